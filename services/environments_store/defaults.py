"""Every number of the environments-store service: its value, its unit, and where it comes from."""

import msgspec

__all__ = ["DatabaseSettings", "MigrationBudgets", "OperationLimits", "StoreLimits"]


class DatabaseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The serving pool. Times in seconds."""

    application_name: str = "environments-store"
    """PostgreSQL's application_name, by which a rollback detects nodes behind a pooler."""
    pool_size: int = 10
    """PostgreSQL connections of one node; a default server accepts 100. DATABASE_POOL_SIZE sets it."""
    reader_count: int = 10
    """SQLite connections that only read, so that a slow export delays neither a write nor a short read."""
    left_to_others: int = 2
    """Connections that exports and waiting writes never take: one for lists, one for short reads. Exports leave as many
    more to writes. A pool of fewer than eight leaves one."""
    connect_timeout_s: float = 5.0
    """asyncpg's own is 60, longer than a caller waits."""
    acquire_timeout_s: float = 5.0
    """Wait for a free connection before the call fails because all are busy."""
    idle_s: float = 300.0
    """A connection that was not used for so long is closed: asyncpg's own."""
    statements_between_releases: int = 1_000
    """Then asyncpg sees a connection that was kept between statements again, and replaces one that has run 50,000."""
    full_pause_s: float = 0.25
    """Pause between attempts to connect while the server allows no more connections: each costs it a process."""
    statement_timeout_s: float = 15.0
    """On the server; the longest honest query (statistics of a million rows) takes half a second."""
    lock_timeout_s: float = 5.0
    """A request that waits longer for a row or table fails with a retryable error instead of piling up."""
    idle_in_transaction_timeout_s: float = 10.0
    """Ends the transaction of a stalled node, because its locks and snapshot block all migrations."""
    stream_idle_timeout_s: float = 60.0
    """The same for an export, whose reader may pause between batches, and an import, which reads lines of 50 MB."""
    command_timeout_s: float = 20.0
    """In the client, for a network that swallows answers; longer than the server's, which then speaks first."""
    connection_check_interval_s: float = 0.5
    """The server notices a dead client within this time, also while its statement waits for a lock."""
    sqlite_busy_timeout_s: float = 5.0
    """How long one statement waits for another writer of the file."""
    sqlite_wal_timeout_s: float = 5.0
    """Switching to WAL needs exclusive access to the file for a moment; after this time it keeps its journal mode."""


class MigrationBudgets(msgspec.Struct, frozen=True, kw_only=True):
    """How long the migration waits, tries and pauses. Times in seconds, lock timeouts in milliseconds."""

    start_s: float = 10.0
    """How long a start waits for the column before the service serves without it and retries in the background."""
    connect_timeout_s: float = 5.0
    statement_timeout_s: float = 5.0
    """For all statements but the index and the statistics; it includes waiting for the lock."""
    statistics_timeout_s: float = 60.0
    """ANALYZE of one column takes 0.2 s for a million rows."""
    poll_min_s: float = 0.1
    poll_max_s: float = 0.4
    """Between two attempts to get the lock, with an inspection of what its holder has finished."""
    lock_timeouts_ms: tuple[int, ...] = (50, 100, 200, 250)
    """Lock timeouts of the attempts to add the column; the last one repeats. Readers queue behind a waiting ALTER."""
    sleep_first_s: float = 0.2
    sleep_growth: float = 2.0
    sleep_patient_s: float = 5.0
    """Longest pause between attempts during `patience_s`: the column is added this soon after the blocker has ended."""
    patience_s: float = 600.0
    sleep_max_s: float = 60.0
    """Longest pause after that."""
    sleep_per_lock_timeout: float = 5.0
    """A pause is at least this multiple of the lock timeout, so that readers are unaffected for 80 % of the time."""
    blockers_every_s: float = 60.0
    """How often the log repeats the blocking sessions."""
    index_retry_s: float = 300.0
    """Shortest time between two builds of the index: each failed one costs the whole work again."""
    pooler_answer_s: float = 1.0
    """How soon a pooler has to give a second connection beside the one that holds the lock. If it has only one, every
    caller waits for this time, and would wait for the whole build."""
    index_drop_lock_timeout_s: float = 1.0
    index_invalid_recheck_s: float = 1.0
    """An INVALID index is dropped only if no session builds it at two inspections this far apart."""
    index_wait_step_s: float = 0.5
    index_wait_s: float = 300.0
    """How long to wait for another session's build before inspecting again later."""
    reinspect_s: float = 60.0
    """How often the schema is inspected while nothing is to be done, or nothing can be."""
    refused_look_s: float = 2.0
    """It is also inspected after a refused call, but not more often than this."""
    reconnect_min_s: float = 0.5
    reconnect_max_s: float = 15.0
    sqlite_busy_ms: int = 250
    """One attempt to lock the file; attempts are repeated within the start budget, and then in the background."""
    rebuild_recheck_s: float = 2.0
    """A backup of a SQLite table counts as left behind when it does not change for this time: the original, which
    rebuilds its tables at each start, takes a step every few milliseconds."""
    small_table_rows: int = 100_000
    """PostgreSQL 14.0 to 14.3 can build a corrupt index concurrently: below this a plain, blocking build is used."""


class StoreLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the store accepts and holds in memory."""

    uuid_characters: int = 255
    """The column is VARCHAR(255) in every table that the original made."""
    document_depth: int = 500
    """Nesting depth of a new document, which every parser involved supports: Python 3.11's ends below 1,000,
    PostgreSQL's between 10,000 and 20,000 with its default stack. Stored documents of any depth are read."""
    list_limit: int = 2**63 - 1
    """The largest that both databases accept."""
    hash_entries: int = 32_768
    """Cached hashes of some 300 bytes each; 0 disables the cache."""
    thread_from_bytes: int = 262_144
    """Larger documents are parsed in a thread: on the loop they would delay heartbeats by more than 10 ms."""
    alone_from_bytes: int = 4_194_304
    """From this size a document is very large: smaller ones do not wait while it is parsed, and its digest, which takes
    more than some 5 ms, is computed in a thread."""
    listed_bytes: int = 65_536
    """Longer documents are fetched one at a time, not with others."""
    piece_bytes: int = 1_048_576
    """Longer documents are read from PostgreSQL in pieces of this size: the driver blocks the loop while it copies."""
    aliases: int = 10_000
    """Cached rows whose environmentUuid differs from their id, of some 100 bytes each."""
    aliases_s: float = 10.0
    """How long they are cached; scanning a million rows takes 90 ms, so at most 1 % of the time."""
    batch_documents: int = 50
    """Rows fetched at once with their documents, of 64 KiB at most: 3.3 MB. A list of so many takes one statement."""
    batch_rows: int = 1_000
    """Rows fetched at once without documents, some 300 bytes each."""
    attempts: int = 5
    """Attempts of one write that conflicts with others each time: with two clients that create and delete one uuid
    without pause, one attempt in about ten conflicts."""
    read_back_s: float = 5.0
    """How long the outcome of a write is read back after its connection was lost; callers commonly wait 10 s."""
    read_back_pause_s: float = 0.2
    """Pause between two attempts to read it back."""
    late_look_s: float = 2.0
    """How long the outcome of a write that its caller's deadline cut off is read back: if committed, its event has to
    be sent."""
    connect_pause_s: float = 1.0
    """Pause between two attempts to reach the database or NATS at the start."""
    start_timeout_s: float = 60.0
    """How long a start waits for the database and NATS; containers of one compose file start within it."""
    embedded_start_s: float = 10.0
    """How long the embedded NATS server may take to start; it takes some 50 ms on an idle machine."""
    embedded_stop_s: float = 5.0
    """How long it may take to stop before it is killed."""
    embedded_poll_s: float = 0.02
    """Pause between two checks whether it is up."""
    probe_s: float = 1.0
    """How long a server at NATS_URL may take to accept a connection before it counts as absent, and how long `schema`
    waits for the database."""
    same_line_s: float = 10.0
    """The same failure is logged once in this time, so that an outage does not fill the log."""
    same_lines: int = 100
    """How many different failures are remembered for this."""
    recent_days: int = 7
    """The guide's monitoring query."""


class OperationLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the operations on a table that is in use. Times in seconds."""

    purge_days: int = 90
    """The guide's age."""
    purge_days_min: int = 1
    """Younger ones are purged only by force: a day is the least time in which a mistake is noticed."""
    purge_batch: int = 500
    """Rows of one DELETE: some 5 ms, so that other sessions and writers of a SQLite file hardly wait."""
    purge_batch_max: int = 10_000
    purge_pause_s: float = 0.01
    """Pause between two batches, for other sessions."""
    purge_margin: float = 0.2
    """Share of a caller's time that is reserved for the answer: another call continues a longer purge."""
    kept_examples: int = 20
    """How many environments that the database refuses to delete are named."""
    events_between_pauses: int = 20
    """Events of purged and imported environments sent before the loop does other work: some 1 ms."""
    retention_first_s: float = 3_600.0
    """The first automatic purge runs within this time after the start, at random, since nodes start together."""
    retention_every_s: float = 86_400.0
    """The later ones run daily, 10 % more or less."""
    export_batch: int = 50
    """Rows fetched at once with their documents, of 64 KiB at most: 3.3 MB."""
    export_chunk_bytes: int = 65_536
    """Lines are sent together, since each chunk of a stream costs a packet."""
    import_rows: int = 500
    """Rows of one INSERT."""
    import_bytes: int = 4_194_304
    """Bytes of one INSERT, so that large documents are stored a few at a time."""
    told_import_bytes: int = 33_554_432
    """A larger import logs a warning: SQLite stores some 40 to 200 MB a second from its staging table, so a smaller one
    blocks other writers for less than a second."""
    line_bytes: int = 134_217_728
    """Longest line of an import: PostgreSQL refuses documents of 256 MB and more."""
    spool_bytes: int = 1_048_576
    """An import from a pipe or a stream is kept in memory up to this size, then in a temporary file."""
    serving_every_s: float = 30.0
    """How often a node checks the connection of its serving lock."""
    serving_retry_s: float = 5.0
    """Pause before it takes the lock again after the connection was lost."""
    rollback_wait_s: float = 30.0
    """How long a rollback tries to lock the table before it gives up and changes nothing."""
    wait_s: float = 60.0
    """How long `migrate run` and `list-index` wait for other sessions before they give up."""
    progress_every_s: float = 0.5
    """How often the progress of an index build is read."""
    large_table_rows: int = 100_000
    """From this size sorting the table for a page of live environments takes more than some 20 ms."""
    old_transaction_s: float = 5.0
    """An older transaction is reported: the migration waits for it, and statements of a service take less."""
    examples: int = 5
    """How many ids are named for each kind of damage."""
    small_table_rows: int = 10_000
    """Below this size PostgreSQL rightly scans the table instead of using an index."""
