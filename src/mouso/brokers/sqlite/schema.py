"""The tables, their version, and how an older file becomes a current one.

A job is one row of ``mouso_jobs``, written once, plus one row of either ``mouso_live`` (narrow, rewritten at
every transition, small enough to stay in the cache) or ``mouso_history`` (written once, when the job is
final). So neither a claim nor a settle copies a payload: with everything in one table the same work cost
13 µs a job instead of 9.

``seq`` orders jobs by enqueue and is the key that leases carry. It never comes twice, or a late outcome could hit a
young job: SQLite gives out the highest one plus 1, and a row with the empty id, which is no job, is moved to the
highest one that was deleted (AUTOINCREMENT or a counter would cost each enqueue one more page).
In ``mouso_live`` the state ``parked`` stands for an available job whose task no worker knows; ``due`` is set exactly
while a job is scheduled or retryable. ``mouso_runs`` has a row for each run of which there is more to tell than
``mouso_history`` can: those that did not complete, those that logged, those whose stack was ``asked`` for.
"""

from __future__ import annotations

import re
import sqlite3

from mouso.errors import SchemaError

VERSION = 2

_CREATE = """
CREATE TABLE mouso_meta (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO mouso_meta VALUES ('version', 0);

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
INSERT INTO mouso_jobs VALUES (0, '', '', '', 0, 0, '', NULL, NULL, NULL, 0, x'');

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
CREATE INDEX mouso_live_available ON mouso_live (queue, priority DESC, seq) WHERE state = 'available';
CREATE INDEX mouso_live_running ON mouso_live (worker) WHERE state = 'running';
CREATE INDEX mouso_live_due ON mouso_live (due) WHERE due IS NOT NULL;
CREATE INDEX mouso_live_expiry ON mouso_live (expires_at) WHERE expires_at IS NOT NULL;
CREATE UNIQUE INDEX mouso_live_unique ON mouso_live (unique_key) WHERE unique_key IS NOT NULL;

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
CREATE INDEX mouso_history_failed ON mouso_history (state, seq) WHERE state <> 'completed';
CREATE INDEX mouso_history_keep ON mouso_history (keep_until) WHERE keep_until IS NOT NULL;

CREATE TABLE mouso_errors (
    seq    INTEGER NOT NULL,
    claims INTEGER NOT NULL,
    error  TEXT NOT NULL,
    PRIMARY KEY (seq, claims)
) STRICT, WITHOUT ROWID;

CREATE TABLE mouso_tallies (
    queue TEXT NOT NULL,
    state TEXT NOT NULL,
    n     INTEGER NOT NULL,
    PRIMARY KEY (queue, state)
) STRICT, WITHOUT ROWID;

CREATE TABLE mouso_queues (
    name         TEXT PRIMARY KEY,
    paused       INTEGER NOT NULL DEFAULT 0,
    paused_until INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX mouso_queues_paused ON mouso_queues (name) WHERE paused = 1;

CREATE TABLE mouso_unique_periods (
    key   TEXT PRIMARY KEY,
    id    TEXT NOT NULL,
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE mouso_parked (
    task TEXT NOT NULL,
    seq  INTEGER NOT NULL,
    PRIMARY KEY (task, seq)
) STRICT, WITHOUT ROWID;

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
"""

_RUNS = """
ALTER TABLE mouso_history ADD COLUMN started_at INTEGER;
ALTER TABLE mouso_history ADD COLUMN cpu_seconds REAL;
ALTER TABLE mouso_history ADD COLUMN peak_memory INTEGER;
ALTER TABLE mouso_history ADD COLUMN pid INTEGER;

CREATE TABLE mouso_runs (
    seq     INTEGER NOT NULL,
    claims  INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    asked   INTEGER NOT NULL DEFAULT 0,
    worker  TEXT NOT NULL DEFAULT '',
    run     TEXT,
    log     TEXT,
    stack   TEXT,
    PRIMARY KEY (seq, claims)
) STRICT, WITHOUT ROWID;
CREATE INDEX mouso_runs_asked ON mouso_runs (seq, claims) WHERE asked = 1;
"""

_STEPS: tuple[str, ...] = (_CREATE, _RUNS)
"""``_STEPS[v]`` turns version ``v`` into ``v + 1``."""
_MADE = re.compile(r"^CREATE (?:UNIQUE )?(?:TABLE|INDEX) (\w+)", re.MULTILINE)


def version(connection: sqlite3.Connection) -> int:
    """The file's schema version; 0 for a file without Mouso's tables.

    Raises:
        TypeError, ValueError: A table of another program stands where the version would.
    """
    found = connection.execute("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'mouso_meta'").fetchone()
    if not found:
        return 0
    try:
        return int(connection.execute("SELECT value FROM mouso_meta WHERE key = 'version'").fetchone()[0])
    except sqlite3.OperationalError as error:
        if str(error).startswith("no such column"):
            raise ValueError(str(error)) from None
        raise


def usable_version(connection: sqlite3.Connection, path: str) -> int:
    """``version`` of a file that this Mouso can use, or make usable.

    Raises:
        SchemaError: A newer Mouso made it, or a table of another program stands where the version would.
    """
    try:
        found = version(connection)
    except (TypeError, ValueError):
        raise SchemaError(
            f"{path} has a table mouso_meta that tells no version, so it is not Mouso's; "
            "choose another file, or rename the table"
        ) from None
    if found > VERSION:
        raise SchemaError(
            f"{path} has schema version {found}, this Mouso knows up to {VERSION}; upgrade Mouso, or use another file"
        )
    return found


def upgrade(connection: sqlite3.Connection, found: int, path: str) -> None:
    """Applies the missing steps; the caller holds the write transaction.

    Raises:
        SchemaError: Another program has a table, index or view of a name that Mouso needs.
    """
    taken = {
        name.lower(): f"{'an' if kind == 'index' else 'a'} {kind} {name}"
        for kind, name in connection.execute("SELECT type, name FROM sqlite_schema")
    }
    for step in _STEPS[found:]:
        for name in _MADE.findall(step):
            if name in taken:
                raise SchemaError(
                    f"{path} has {taken[name]} that is not Mouso's, which needs the name; "
                    "choose another file, or rename it"
                )
        for statement in step.split(";\n"):
            if statement.strip():
                connection.execute(statement)
    connection.execute("UPDATE mouso_meta SET value = ? WHERE key = 'version'", (VERSION,))
