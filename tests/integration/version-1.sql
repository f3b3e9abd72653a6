BEGIN TRANSACTION;
CREATE TABLE mouso_errors (
    seq    INTEGER NOT NULL,
    claims INTEGER NOT NULL,
    error  TEXT NOT NULL,
    PRIMARY KEY (seq, claims)
) STRICT, WITHOUT ROWID;
INSERT INTO "mouso_errors" VALUES(2,1,'{"type":"ValueError","message":"no","traceback":"Traceback…","attempt":1,"reason":"attempts","at":1750000002000,"worker":"1111111111111111"}');
INSERT INTO "mouso_errors" VALUES(4,1,'{"type":"ValueError","message":"no","traceback":"Traceback…","attempt":1,"reason":"attempts","at":1750000002000,"worker":"1111111111111111"}');
CREATE TABLE mouso_history (
    seq         INTEGER PRIMARY KEY,
    state       TEXT NOT NULL,
    queue       TEXT NOT NULL,
    finished_at INTEGER NOT NULL,
    run_seconds REAL,
    worker      TEXT,
    claims      INTEGER NOT NULL,
    attempts    INTEGER NOT NULL,
    crashes     INTEGER NOT NULL,
    releases    INTEGER NOT NULL,
    expires_at  INTEGER,
    keep_until  INTEGER,
    reason      TEXT NOT NULL DEFAULT '',
    progress    TEXT,
    result      BLOB
) STRICT;
INSERT INTO "mouso_history" VALUES(1,'completed','default',1750000002000,1.5,'1111111111111111',1,0,0,0,NULL,NULL,'',NULL,X'3432');
INSERT INTO "mouso_history" VALUES(2,'dead','default',1750000002000,0.5,'1111111111111111',1,1,0,0,NULL,NULL,'attempts',NULL,NULL);
INSERT INTO "mouso_history" VALUES(3,'cancelled','default',1750000002000,0.0,'1111111111111111',1,0,0,0,NULL,NULL,'by the task',NULL,NULL);
CREATE TABLE mouso_jobs (
    seq           INTEGER PRIMARY KEY,
    id            TEXT NOT NULL UNIQUE,
    task          TEXT NOT NULL,
    queue         TEXT NOT NULL,
    priority      INTEGER NOT NULL,
    enqueued_at   INTEGER NOT NULL,
    codec         TEXT NOT NULL,
    options       BLOB,
    unique_key    TEXT,
    unique_scope  TEXT,
    unique_period INTEGER NOT NULL,
    payload       BLOB NOT NULL
) STRICT;
INSERT INTO "mouso_jobs" VALUES(0,'','','',0,0,'',NULL,NULL,NULL,0,X'');
INSERT INTO "mouso_jobs" VALUES(1,'completed','work','default',0,1750000000000,'json',NULL,NULL,NULL,0,X'7B226E223A317D');
INSERT INTO "mouso_jobs" VALUES(2,'dead','work','default',0,1750000000000,'json',NULL,NULL,NULL,0,X'7B226E223A317D');
INSERT INTO "mouso_jobs" VALUES(3,'cancelled','work','default',0,1750000000000,'json',NULL,NULL,NULL,0,X'7B226E223A317D');
INSERT INTO "mouso_jobs" VALUES(4,'retryable','work','default',0,1750000000000,'json',NULL,NULL,NULL,0,X'7B226E223A317D');
INSERT INTO "mouso_jobs" VALUES(5,'running','work','default',0,1750000000000,'json',NULL,NULL,NULL,0,X'7B226E223A317D');
INSERT INTO "mouso_jobs" VALUES(6,'available','work','mail',5,1750000002000,'json',NULL,NULL,NULL,0,X'7B226E223A317D');
INSERT INTO "mouso_jobs" VALUES(7,'scheduled','work','default',0,1750000002000,'json',NULL,NULL,NULL,0,X'7B226E223A317D');
INSERT INTO "mouso_jobs" VALUES(8,'parked','strange','default',0,1750000002000,'json',NULL,NULL,NULL,0,X'7B226E223A317D');
INSERT INTO "mouso_jobs" VALUES(9,'unique','work','default',0,1750000002000,'json',NULL,'key','period',1000000000,X'7B226E223A317D');
CREATE TABLE mouso_live (
    seq           INTEGER PRIMARY KEY,
    state         TEXT NOT NULL,
    queue         TEXT NOT NULL,
    priority      INTEGER NOT NULL,
    due           INTEGER,
    claims        INTEGER NOT NULL DEFAULT 0,
    attempts      INTEGER NOT NULL DEFAULT 0,
    crashes       INTEGER NOT NULL DEFAULT 0,
    releases      INTEGER NOT NULL DEFAULT 0,
    worker        INTEGER,
    cancel        INTEGER NOT NULL DEFAULT 0,
    expires_at    INTEGER,
    unique_key    TEXT,
    unique_queued INTEGER NOT NULL DEFAULT 0,
    progress      TEXT
) STRICT;
INSERT INTO "mouso_live" VALUES(4,'retryable','default',0,1750000062000,1,1,0,0,NULL,0,NULL,NULL,0,NULL);
INSERT INTO "mouso_live" VALUES(5,'running','default',0,NULL,1,0,0,0,1,0,NULL,NULL,0,'[1,3,"one"]');
INSERT INTO "mouso_live" VALUES(6,'available','mail',5,NULL,0,0,0,0,NULL,0,NULL,NULL,0,NULL);
INSERT INTO "mouso_live" VALUES(7,'scheduled','default',0,1750003602000,0,0,0,0,NULL,0,NULL,NULL,0,NULL);
INSERT INTO "mouso_live" VALUES(8,'parked','default',0,NULL,0,0,0,0,NULL,0,NULL,NULL,0,NULL);
INSERT INTO "mouso_live" VALUES(9,'running','default',0,NULL,1,0,0,0,1,0,NULL,NULL,0,NULL);
CREATE TABLE mouso_meta (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO "mouso_meta" VALUES('version',1);
CREATE TABLE mouso_parked (
    task TEXT NOT NULL,
    seq  INTEGER NOT NULL,
    PRIMARY KEY (task, seq)
) STRICT, WITHOUT ROWID;
INSERT INTO "mouso_parked" VALUES('strange',8);
CREATE TABLE mouso_queues (
    name         TEXT PRIMARY KEY,
    paused       INTEGER NOT NULL DEFAULT 0,
    paused_until INTEGER
) STRICT, WITHOUT ROWID;
INSERT INTO "mouso_queues" VALUES('default',0,NULL);
INSERT INTO "mouso_queues" VALUES('mail',1,NULL);
CREATE TABLE mouso_tallies (
    queue TEXT NOT NULL,
    state TEXT NOT NULL,
    n     INTEGER NOT NULL,
    PRIMARY KEY (queue, state)
) STRICT, WITHOUT ROWID;
INSERT INTO "mouso_tallies" VALUES('default','cancelled',1);
INSERT INTO "mouso_tallies" VALUES('default','completed',1);
INSERT INTO "mouso_tallies" VALUES('default','dead',1);
CREATE TABLE mouso_unique_periods (
    key   TEXT PRIMARY KEY,
    id    TEXT NOT NULL,
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO "mouso_unique_periods" VALUES('key','unique',1751000002000);
CREATE TABLE mouso_workers (
    n           INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT NOT NULL UNIQUE,
    boot        TEXT NOT NULL,
    lease_until INTEGER NOT NULL,
    beat        INTEGER NOT NULL,
    reaped_at   INTEGER,
    rejoins     INTEGER NOT NULL DEFAULT 0,
    info        TEXT NOT NULL
) STRICT;
INSERT INTO "mouso_workers" VALUES(1,'1111111111111111','an-earlier-boot',1015000,1750000000000,NULL,0,'{"id":"1111111111111111","name":"w","host":"h","pid":1,"boot":"","namespace":"","started":0,"started_at":0,"version":"","queues":[],"tasks":["work"],"slots":0,"running":0,"beat":0,"lease_left":0}');
CREATE INDEX mouso_live_available ON mouso_live (queue, priority DESC, seq) WHERE state = 'available';
CREATE INDEX mouso_live_running ON mouso_live (worker) WHERE state = 'running';
CREATE INDEX mouso_live_due ON mouso_live (due) WHERE due IS NOT NULL;
CREATE INDEX mouso_live_expiry ON mouso_live (expires_at) WHERE expires_at IS NOT NULL;
CREATE UNIQUE INDEX mouso_live_unique ON mouso_live (unique_key) WHERE unique_key IS NOT NULL;
CREATE INDEX mouso_history_failed ON mouso_history (state, seq) WHERE state <> 'completed';
CREATE INDEX mouso_history_keep ON mouso_history (keep_until) WHERE keep_until IS NOT NULL;
CREATE INDEX mouso_queues_paused ON mouso_queues (name) WHERE paused = 1;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('mouso_workers',1);
COMMIT;
