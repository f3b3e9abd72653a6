-- The tables. A job is a row of jobs, written once, and a row of either live (narrow, rewritten at every transition) or
-- history (written once, when the job is final). runs holds what is known of single runs, and each failed one's error.
--
-- These three are partitioned by day: the day that a job's id tells if it is a UUIDv7, else 0. So an id can only be in one
-- partition, where a unique index guards it, and most of history is dropped by the day. What has no partition of its own
-- is in the default one.
--
-- seq orders jobs by enqueue and is the key that leases carry; it never comes twice. In live the state parked stands for an
-- available job whose task no worker knows; due is set exactly while a job is scheduled or retryable; holds tells whether
-- it has a row in keys, until its first claim (1) or until it is final (2). Instants and durations are milliseconds.

CREATE TABLE {schema}.meta (
    key   text COLLATE "C" PRIMARY KEY,
    value bigint NOT NULL
);

CREATE SEQUENCE {schema}.seqs;

CREATE TABLE {schema}.jobs (
    seq           bigint NOT NULL,
    enqueued_at   bigint NOT NULL,
    unique_period bigint,
    day           integer NOT NULL,
    priority      smallint NOT NULL,
    id            text COLLATE "C" NOT NULL,
    task          text COLLATE "C" NOT NULL,
    queue         text COLLATE "C" NOT NULL,
    codec         text COLLATE "C" NOT NULL,
    options       bytea,
    unique_key    text COLLATE "C",
    unique_scope  text COLLATE "C",
    payload       bytea NOT NULL,
    PRIMARY KEY (id, day)
) PARTITION BY RANGE (day);
CREATE INDEX jobs_seq ON {schema}.jobs (seq);
CREATE TABLE {schema}.jobs_default PARTITION OF {schema}.jobs DEFAULT;

CREATE TABLE {schema}.live (
    seq        bigint NOT NULL,
    due        bigint,
    expires_at bigint,
    day        integer NOT NULL,
    claims     integer NOT NULL DEFAULT 0,
    attempts   integer NOT NULL DEFAULT 0,
    crashes    integer NOT NULL DEFAULT 0,
    releases   integer NOT NULL DEFAULT 0,
    worker     integer,
    priority   smallint NOT NULL,
    holds      smallint NOT NULL DEFAULT 0,
    cancel     boolean NOT NULL DEFAULT false,
    state      text COLLATE "C" NOT NULL,
    queue      text COLLATE "C" NOT NULL,
    task       text COLLATE "C" NOT NULL,
    progress   text
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_analyze_scale_factor = 0.1,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX live_seq ON {schema}.live (seq);
CREATE INDEX live_available ON {schema}.live (queue, priority DESC, seq) WHERE state = 'available';
CREATE INDEX live_running ON {schema}.live (worker) WHERE state = 'running';
CREATE INDEX live_parked ON {schema}.live (task) WHERE state = 'parked';
CREATE INDEX live_due ON {schema}.live (due) WHERE due IS NOT NULL;
CREATE INDEX live_expiry ON {schema}.live (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE {schema}.history (
    seq         bigint NOT NULL,
    finished_at bigint NOT NULL,
    expires_at  bigint,
    keep_until  bigint,
    started_at  bigint,
    run_seconds double precision,
    cpu_seconds double precision,
    peak_memory bigint,
    pid         integer,
    day         integer NOT NULL,
    claims      integer NOT NULL,
    attempts    integer NOT NULL,
    crashes     integer NOT NULL,
    releases    integer NOT NULL,
    state       text COLLATE "C" NOT NULL,
    queue       text COLLATE "C" NOT NULL,
    worker      text COLLATE "C",
    reason      text NOT NULL DEFAULT '',
    progress    text,
    result      bytea
) PARTITION BY RANGE (day);
CREATE INDEX history_seq ON {schema}.history (seq);
CREATE INDEX history_failed ON {schema}.history (state, seq) WHERE state <> 'completed';
CREATE INDEX history_keep ON {schema}.history (keep_until) WHERE keep_until IS NOT NULL;
CREATE TABLE {schema}.history_default PARTITION OF {schema}.history DEFAULT;

CREATE TABLE {schema}.runs (
    seq     bigint NOT NULL,
    day     integer NOT NULL,
    claims  integer NOT NULL,
    attempt integer NOT NULL,
    asked   boolean NOT NULL DEFAULT false,
    worker  text COLLATE "C" NOT NULL DEFAULT '',
    run     text,
    log     text,
    stack   text,
    error   text,
    PRIMARY KEY (seq, claims, day)
) PARTITION BY RANGE (day);
CREATE INDEX runs_asked ON {schema}.runs (seq) WHERE asked;
CREATE TABLE {schema}.runs_default PARTITION OF {schema}.runs DEFAULT;

-- Who holds a unique key: for good, or until an instant.
CREATE TABLE {schema}.keys (
    key   text COLLATE "C" PRIMARY KEY,
    seq   bigint NOT NULL,
    until bigint,
    id    text COLLATE "C" NOT NULL
);
CREATE INDEX keys_seq ON {schema}.keys (seq);
CREATE INDEX keys_until ON {schema}.keys (until) WHERE until IS NOT NULL;

-- Changes to the number of finished jobs, to be added up, so that no two transactions write the same row. Names every queue
-- that a job has left.
CREATE TABLE {schema}.tallies (
    n     bigint NOT NULL,
    queue text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL
);

CREATE TABLE {schema}.queues (
    name         text COLLATE "C" PRIMARY KEY,
    paused       boolean NOT NULL DEFAULT false,
    paused_until bigint
);

CREATE TABLE {schema}.workers (
    n           integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id          text COLLATE "C" NOT NULL UNIQUE,
    boot        text NOT NULL,
    lease_until bigint NOT NULL,
    beat        bigint NOT NULL,
    reaped_at   bigint,
    rejoins     boolean NOT NULL DEFAULT false,
    tasks       text[] COLLATE "C" NOT NULL,
    info        text NOT NULL
) WITH (fillfactor = 50);

-- For each host, what its steady clock said when, by the server's clock without its jumps.
CREATE TABLE {schema}.steadies (
    boot   text PRIMARY KEY,
    own    bigint NOT NULL,
    steady bigint NOT NULL
) WITH (fillfactor = 50);

-- Who listens to rings for workers (w) or waiting callers (c), as long as until lies ahead.
CREATE TABLE {schema}.ears (
    id    text PRIMARY KEY,
    kind  text NOT NULL,
    until timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE FUNCTION {schema}.now() RETURNS bigint
LANGUAGE sql VOLATILE AS $$ SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint $$;

-- Wakes those who listen, once the transaction is committed.
CREATE FUNCTION {schema}.ring(_kind text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.ears e WHERE e.kind = _kind AND e.until > clock_timestamp()) THEN
        PERFORM pg_notify(left('mouso_' || _kind || '_{schema}', 63), '');
    END IF;
END $$;

-- Everything that is known of a job but its errors and runs.
CREATE VIEW {schema}.everything AS
SELECT j.seq, j.day, j.id, j.task, j.payload, j.codec, j.queue, j.priority, l.due,
    coalesce(l.expires_at, h.expires_at) AS expires_at, j.unique_key, j.unique_scope, j.unique_period, j.options,
    coalesce(l.state, h.state) AS state, coalesce(l.attempts, h.attempts) AS attempts,
    coalesce(l.crashes, h.crashes) AS crashes, coalesce(l.releases, h.releases) AS releases,
    coalesce(l.claims, h.claims) AS claims, j.enqueued_at, h.finished_at, h.run_seconds, h.started_at, h.cpu_seconds,
    h.peak_memory, h.pid, coalesce(h.worker, w.id) AS worker, coalesce(l.cancel, false) AS cancel,
    coalesce(l.progress, h.progress) AS progress, h.result, coalesce(h.reason, '') AS reason
FROM {schema}.jobs j
LEFT JOIN {schema}.live l ON l.seq = j.seq
LEFT JOIN {schema}.history h ON h.seq = j.seq AND h.day = j.day
LEFT JOIN {schema}.workers w ON w.n = l.worker;
