"""Every number of the broker, with its unit and where it comes from, and the options a user may set."""

# Life of a node: the values of Moleculer JS (protocol §4, appendix A) unless said otherwise.
HEARTBEAT_INTERVAL_S = 10.0
HEARTBEAT_OFFSET_S = 0.5  # nodes started together do not beat together
HEARTBEAT_TIMEOUT_S = 30.0
TICK_S = 0.25  # how often peers are looked after; JS looks once per timeout and so needs up to twice as long
LOOP_STANDS_STILL_S = 3.0  # worth a line: far above what a busy machine does, far below what makes peers drop us
FORGET_OFFLINE_S = 600.0
DISCOVERY_LISTEN_S = 0.55  # a JS node answers no DISCOVER for 0.5 s after its own
DISCOVERY_WAIT_S = 0.5
DISCOVERY_SECOND_VERSION_S = 0.25  # half the wait: a live node answers within milliseconds
PEERS_WAIT_S = 0.2  # the same; then another node may be asked…
PEERS_TRIES = 2  # …once, as NATS may have chosen one that is frozen
PEERS_LOOK_S = 0.01  # far below that wait
PEERS_PACKET_BYTES = 4_000  # below any `max_payload` in use
PEERS_STARTING = 100  # nodes that start in the same seconds as this one
PEERS_STARTING_S = 3.0  # such a node is up long before, or it has failed
PEERS_GREET_AGAIN_S = 0.5
ANNOUNCE_DELAY_S = 1.0
STOP_DELAY_S = 0.1  # JS `registry.stopDelay`
STOP_READ_S = 2.0  # how long a stop waits for busy peers to read of it: live ones need milliseconds
SHUTDOWN_TIMEOUT_S = 5.0  # JS `tracking.shutdownTimeout`; here always on
# A killed node is noticed within 2 s: by the next probe (0.5 s), then this run of probes without responders (1.25 s).
NODE_PROBE_AFTER_S = 0.25  # longer than most calls take: they cost no probe
NODE_PROBE_INTERVAL_S = 0.5
NODE_UNREACHABLE_S = 1.25  # longer than a node takes to reconnect to a running server: at once, over leaf nodes 1 s
NODE_RECONNECT_S = 3.0  # the same when servers came or went: nats.js tries each of them once, then again after 2.1 s
NODE_UNRESPONSIVE_S = 5.0  # far above what a busy node needs for a ping; only moves calls to other nodes
SHORT_OUTAGE_S = 2.0  # of the own connection: what nats.js waits before it tries to reconnect
ANSWER_RETRY_S = 0.05  # how often an answer is sent again to a caller that reconnects
ANSWER_LOST_S = 30.0  # how long a call without a timeout waits after an outage: the heartbeat timeout
REQUESTS_ASKED = 100  # of a node at a time: some 4 kB, so that it fits any max_payload
NODE_SOUGHT_S = 30.0  # the heartbeat timeout: later, a node that comes back is found by its heartbeat
ID_PROBE_S = 1.0  # a live holder of our node id answers a ping within milliseconds

# Bounds.
REQUESTS_PENDING = 50_000  # JS `transit.maxQueueSize`
EVENTS_IN_WORK = 10_000  # their handlers; JS has no bound
SLICE_S = 0.005  # how long one kind of work may keep the event loop to itself: far below what a caller would notice
REQUESTS_IN_WORK = 10_000  # JS has no bound; about 100 MB of small requests and their tasks
ENVELOPE_MARGIN_BYTES = 256  # room for what a reply's meta may gain after `reply_limit` was asked for
NODES_KNOWN = 10_000  # JS has no bound; far above the clusters that NATS is used for, and some 100 MB
NAMES_KNOWN = 100_000  # of actions and of event groups, those included that no node offers now
PING_TIMEOUT_S = 2.0  # JS `broker.ping`

# Compression (protocol §13.1).
COMPRESSION_THRESHOLD_BYTES = 1024  # JS `threshold: "1kb"`
DECOMPRESSED_BYTES = 134_217_728  # JS has no bound; far above what any node sends, far below the memory of a host

# Streams (protocol §8).
STREAM_CHUNK_BYTES = 262_144  # JS `transit.maxChunkSize`; less where max_payload asks for it
STREAM_MARK_BYTES = 1_048_576  # between two Python nodes, how often the reader reports how far it is…
STREAM_MARK_CHUNKS = 256
STREAM_MARKS_AHEAD = 4  # …and how many such steps the writer may be ahead: 4 MiB
STREAM_FLIGHT_BYTES = 4_194_304  # on their way to one node: far below a server's `max_pending` of 64 MiB
STREAM_PING_AGAIN_S = 2.0  # how soon a loss is noticed: above what a busy node needs for some MiB
STREAM_OVERTAKEN_S = 1.0  # by how much an answer may come after a later one: a JS node packs them in threads
STREAM_SETTLED_S = 30.0  # the heartbeat timeout: a node that loses a part later is noticed otherwise, or is gone
STREAM_BUFFER_BYTES = 67_108_864  # what a writer that cannot be slowed down (JS) may be ahead before we give up
STREAMS_BUFFER_BYTES = 134_217_728  # the same of all streams of a node together: two such writers
STREAM_SLOWED_BYTES = 8_388_608  # further ahead is only who cannot be slowed down: twice the steps above
STREAM_PART_BYTES = 256  # what holding a chunk takes beside its own bytes: many small ones are more than their text
STREAM_OPENING_S = 1.0  # how long a stream waits for its first item to open; what it opens without one is of values
STREAM_ERROR_AFTER_OPENING_S = 0.1  # for JS to hand a stream to its reader: far above one turn of its event loop
STREAM_TIMEOUT_MARGIN_S = 1.0  # what a JS node has beyond the caller's timeout: after its own it drops even an end
STREAM_IDLE_TIMEOUT_S = 60.0  # JS waits without end for a chunk that was lost
STREAMS_OPEN = 10_000  # from other nodes; same bound as for requests in work

# A node that rebuilds its balanced subscriptions is away for a moment (protocol §1.3); JS nodes do so at each change.
BALANCED_RETRIES = 5
BALANCED_RETRY_S = 0.05

# Fault tolerance: the values of Moleculer JS (protocol §12).
RETRIES = 5
RETRY_DELAY_S = 0.1
RETRY_MAX_DELAY_S = 1.0
RETRY_FACTOR = 2.0
BREAKER_THRESHOLD = 0.5
BREAKER_WINDOW_S = 60.0
BREAKER_MIN_REQUESTS = 20
BREAKER_HALF_OPEN_S = 10.0
BULKHEAD_CONCURRENCY = 10
BULKHEAD_QUEUE = 100
CACHE_SWEEP_S = 30.0  # how often expired entries of the memory cacher are removed
CACHE_KEY_DIGEST_CHARACTERS = 44  # a SHA-256 in base64, at the end of a key that is too long

# Strategies: the values of Moleculer JS (protocol §9.2).
CPU_USAGE_SAMPLES = 3
CPU_USAGE_LOW_PERCENT = 10.0
LATENCY_SAMPLES = 5
LATENCY_LOW_S = 0.01
LATENCY_COLLECT = 5
LATENCY_PING_INTERVAL_S = 10.0
SHARD_VNODES = 10

# NATS: nats.js 2 as Moleculer uses it (protocol §14).
NATS_CONNECT_TIMEOUT_S = 5  # JS waits 20 s; ours is one try of many
NATS_CONNECT_RETRY_S = 1.0  # JS waits 5 s; a service that starts beside its server should not lose that much
NATS_CONNECT_RETRY_MAX_S = 5.0
NATS_RECONNECT_FIRST_S = 0.05  # the most before the first try, then doubled each time: nodes do not come back at once
NATS_RECONNECT_MAX_S = 1.0  # JS waits 2 s before each try
NATS_RECONNECT_PATIENCE_S = 0.5  # for the first answer of one of several servers, then doubled up to the timeout
NATS_PING_INTERVAL_S = 5  # JS 120 s; a frozen server is left after 10 to 15 s
NATS_OVERLAP_S = 1.0  # on both servers, while the others learn that the node has moved: a route takes milliseconds
NATS_PENDING_MESSAGES = 65_536  # of a subscription; nats-py 524,288, which for small events is half a gigabyte
NATS_READ_BYTES = 1_048_576  # one message of the usual max_payload; 100 MB from JS then take 4 s instead of failing
NATS_SUBJECT_BYTES = 3_840  # of a subject and an inbox: the server's `max_control_line` of 4096, less the rest
NATS_DENIED_AGAIN_S = 30.0  # between two lines about a subject that this node may not publish to
NATS_CLOSE_TIMEOUT_S = 2

# Command line: what a person at a shell, or a container that starts beside its server, waits for.
CLI_CONNECT_TIMEOUT_S = 5.0
CLI_WAIT_S = 30.0
CLI_KNOWN_WAIT_S = 1.0  # a node that takes longer to read of a listener misses events anyway
START_TIMEOUT_S = 60.0
