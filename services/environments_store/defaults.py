"""Every number of the environments-store service: its value, its unit, and where it comes from."""

import msgspec

__all__ = ["DatabaseSettings", "MigrationBudgets", "OperationLimits", "StoreLimits"]


class DatabaseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The serving pool. Times in seconds."""

    application_name: str = "environments-store"
    """What PostgreSQL shows of its connections. By this name a rollback finds nodes behind a pooler."""
    pool_size: int = 10
    """PostgreSQL connections of one node; a default server accepts 100. DATABASE_POOL_SIZE sets it."""
    reader_count: int = 10
    """SQLite connections that only read, so that a slow export delays neither a write nor a short read."""
    left_to_others: int = 2
    """Connections that exports and waiting writes never take: one for lists, one for short reads. Exports leave as many
    again to writes. A pool of less than eight leaves one."""
    connect_timeout_s: float = 5.0
    """asyncpg's own is 60, longer than a caller waits."""
    acquire_timeout_s: float = 5.0
    """Wait for a free connection before the caller is told that all are busy."""
    idle_s: float = 300.0
    """A connection that was not used for so long is closed: asyncpg's own."""
    full_pause_s: float = 0.25
    """Between two attempts to connect while the server allows no more connections: each costs it a process."""
    statement_timeout_s: float = 15.0
    """On the server; the longest honest query (statistics of a million rows) takes half a second."""
    lock_timeout_s: float = 5.0
    """A request that waits longer for a row or table fails with a retryable error instead of piling up."""
    idle_in_transaction_timeout_s: float = 10.0
    """Ends the transaction of a node that stalls, because its locks and snapshot hold everybody's migrations up."""
    stream_idle_timeout_s: float = 60.0
    """The same for an export, whose reader may pause between batches, and an import, which reads lines of 50 MB."""
    command_timeout_s: float = 20.0
    """In the client, for a network that swallows answers; longer than the server's, which then speaks first."""
    connection_check_interval_s: float = 0.5
    """The server notices a dead client within this time, also while its statement waits for a lock."""
    sqlite_busy_timeout_s: float = 5.0
    """How long one statement waits for another writer of the file."""
    sqlite_wal_timeout_s: float = 5.0
    """Going to WAL needs a moment alone in the file; after this it stays in its journal mode."""


class MigrationBudgets(msgspec.Struct, frozen=True, kw_only=True):
    """How long the migration waits, tries and pauses. Times in seconds, lock timeouts in milliseconds."""

    start_s: float = 10.0
    """How long a start waits for the column before the service serves in degraded mode and tries on."""
    connect_timeout_s: float = 5.0
    statement_timeout_s: float = 5.0
    """Everything but the index and the statistics; it includes waiting for the lock."""
    statistics_timeout_s: float = 60.0
    """ANALYZE of one column takes 0.2 s for a million rows."""
    poll_min_s: float = 0.1
    poll_max_s: float = 0.4
    """Between two looks at the lock and at what the peer that holds it has finished."""
    lock_timeouts_ms: tuple[int, ...] = (50, 100, 200, 250)
    """Of the attempts to add the column; the last one repeats. Readers queue behind a waiting ALTER for that long."""
    sleep_first_s: float = 0.2
    sleep_growth: float = 2.0
    sleep_patient_s: float = 5.0
    """Longest pause between attempts while the patience lasts: so soon after its blocker's end the column comes."""
    patience_s: float = 600.0
    sleep_max_s: float = 60.0
    """Longest pause after that."""
    sleep_per_lock_timeout: float = 5.0
    """A pause is at least so many times the lock timeout, so that readers keep more than 80 % of the time."""
    blockers_every_s: float = 60.0
    """How often the log repeats who blocks."""
    index_retry_s: float = 300.0
    """Least time between two builds of the index: each failed one costs the whole work again."""
    pooler_answer_s: float = 1.0
    """How soon a pooler has to give a second connection beside the one that holds the lock. Where it has one alone,
    every caller waits for so long, and for the build would wait for ever."""
    index_drop_lock_timeout_s: float = 1.0
    index_invalid_recheck_s: float = 1.0
    """An INVALID index is dropped only if nobody works on it at two looks so far apart."""
    index_wait_step_s: float = 0.5
    index_wait_s: float = 300.0
    """How long to wait for somebody else's build before looking again later."""
    reinspect_s: float = 60.0
    """How often the schema is looked at while there is nothing to do, or no right to do it."""
    refused_look_s: float = 2.0
    """And at once after a call that had to be refused, but not more often than this."""
    reconnect_min_s: float = 0.5
    reconnect_max_s: float = 15.0
    sqlite_busy_ms: int = 250
    """One attempt to lock the file; attempts go on up to the start budget, and in the background after it."""
    rebuild_recheck_s: float = 2.0
    """A copy of a SQLite table is left behind when nobody worked on it at two looks so far apart: the original, which
    copies and drops its tables at each start, takes a step every few milliseconds."""
    small_table_rows: int = 100_000
    """PostgreSQL 14.0 to 14.3 can build a corrupt index concurrently: below this a plain, blocking build is used."""


class StoreLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the store accepts and holds in memory."""

    uuid_characters: int = 255
    """The column is VARCHAR(255) in every table that the original made."""
    document_depth: int = 500
    """Nested arrays and objects of a new document: what every parser on its way takes. Python 3.11's ends below 1,000,
    PostgreSQL's between 10,000 and 20,000 with its default stack. Stored documents of any depth are read."""
    list_limit: int = 2**63 - 1
    """The largest that both databases take."""
    hash_entries: int = 32_768
    """Hashes remembered; some 300 bytes each. 0 for none, and no fingerprints."""
    thread_from_bytes: int = 262_144
    """Larger documents are parsed on a thread: on the loop they would hold up heartbeats for over 10 ms."""
    alone_from_bytes: int = 4_194_304
    """From this size on a document is very large: smaller ones are not kept waiting while it is parsed, and its digest,
    which takes more than some 5 ms, is made on a thread."""
    listed_bytes: int = 65_536
    """Longer documents are not fetched with others, but one at a time."""
    piece_bytes: int = 1_048_576
    """A longer one comes from PostgreSQL in pieces of this size: the driver holds the loop while it copies one."""
    aliases: int = 10_000
    """Rows whose environmentUuid is another than their id: so many are remembered, some 100 bytes each."""
    aliases_s: float = 10.0
    """For how long; reading a million rows for them takes 90 ms, so at most one part in a hundred of the time."""
    batch_documents: int = 50
    """Rows fetched at once with their documents, of 64 KiB at most: 3.3 MB. A list of so many takes one statement."""
    batch_rows: int = 1_000
    """Rows fetched at once without documents, some 300 bytes each."""
    attempts: int = 5
    """Of one write that meets a change of others each time: two clients that create and delete one uuid without a pause
    make one attempt in some ten do nothing."""
    read_back_s: float = 5.0
    """How long a write whose connection died looks for its outcome; below the 10 s that callers commonly wait."""
    read_back_pause_s: float = 0.2
    """Between two such looks."""
    late_look_s: float = 2.0
    """How long a write that its caller's deadline cut off is looked for: on the commit, it is stored and has to be
    told."""
    connect_pause_s: float = 1.0
    """Between two attempts to reach the database or NATS at the start."""
    start_timeout_s: float = 60.0
    """How long a start waits for the database and NATS; containers of one compose file start within it."""
    embedded_start_s: float = 10.0
    """How long the embedded NATS server may take to start; it takes some 50 ms on an idle machine."""
    embedded_stop_s: float = 5.0
    """How long it may take to stop before it is killed."""
    embedded_poll_s: float = 0.02
    """Between two looks whether it is up."""
    probe_s: float = 1.0
    """How long a server at NATS_URL may take to accept a connection before it counts as absent, and how long `schema`
    waits for the database."""
    same_line_s: float = 10.0
    """A failure in the same words is logged once in this time, so that an outage does not fill the log."""
    same_lines: int = 100
    """Of so many different ones the times are remembered."""
    recent_days: int = 7
    """The guide's monitoring query."""


class OperationLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How the operations of a DBA go about a table that is in use. Times in seconds."""

    purge_days: int = 90
    """The guide's age."""
    purge_days_min: int = 1
    """Younger ones are purged by force only: a day is the least in which a mistake is noticed."""
    purge_batch: int = 500
    """Rows of one DELETE: some 5 ms, so that nobody waits for it and a SQLite file is free again at once."""
    purge_batch_max: int = 10_000
    purge_pause_s: float = 0.01
    """Between two batches, so that others come in between."""
    purge_margin: float = 0.2
    """Share of a caller's time that is kept for the answer: a purge that takes longer is continued by another call."""
    kept_examples: int = 20
    """So many of the environments that the database keeps are named, with what keeps them."""
    events_between_pauses: int = 20
    """News of purged and imported environments sent before other work of the node has its turn: some 1 ms."""
    retention_first_s: float = 3_600.0
    """The first automatic purge comes within this time after the start, at random, since nodes start together."""
    retention_every_s: float = 86_400.0
    """Then daily, 10 % more or less."""
    export_batch: int = 50
    """Rows fetched at once with their documents, of 64 KiB at most: 3.3 MB."""
    export_chunk_bytes: int = 65_536
    """Lines are handed on together, since each chunk of a stream costs a packet."""
    import_rows: int = 500
    """Rows of one INSERT."""
    import_bytes: int = 4_194_304
    """And their bytes, so that large documents are stored a few at a time."""
    told_import_bytes: int = 33_554_432
    """SQLite stores some 40 to 200 MB a second from its staging table: less than this keeps no other writer waiting for
    longer than a second."""
    line_bytes: int = 134_217_728
    """Longest line of an import: PostgreSQL refuses documents from 256 MB on, in whichever form."""
    spool_bytes: int = 1_048_576
    """An import from a pipe or a stream is kept in memory up to this size, then in a temporary file."""
    serving_every_s: float = 30.0
    """How often a node makes sure that it still counts as serving."""
    serving_retry_s: float = 5.0
    """How long it waits to say so again after its connection was lost."""
    rollback_wait_s: float = 30.0
    """How long a rollback tries to lock the table before it gives up and changes nothing."""
    wait_s: float = 60.0
    """How long `migrate run` and `list-index` wait for other sessions before they give up: a report or a dump that ends
    within it is no reason to start again."""
    progress_every_s: float = 0.5
    """How often the progress of an index build is looked at."""
    large_table_rows: int = 100_000
    """From here on sorting the table for a page of live environments takes more than some 20 ms."""
    old_transaction_s: float = 5.0
    """A transaction of this age is told of: the migration waits for it, and statements of a service take less."""
    examples: int = 5
    """So many ids are named for each kind of damage."""
    small_table_rows: int = 10_000
    """Below this PostgreSQL rightly reads the whole table instead of an index."""
