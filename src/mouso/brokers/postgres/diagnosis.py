"""What is wrong with a PostgreSQL store, or about to be: server, schema, rights, vacuum, upkeep. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mouso.brokers.base import Finding, Level, Retention
from mouso.brokers.postgres import schema, wire
from mouso.brokers.postgres.faults import Lost, Refusal
from mouso.brokers.postgres.link import Link, Session
from mouso.clock import SYSTEM, Clock
from mouso.errors import ConfigError

_TIMEOUT = 15.0
_LONG = 300
_BLOATED_DEAD, _BLOATED_SHARE = 100_000, 2
_WRAPAROUND = 1_500_000_000
_OFF = 2000
_LATE = 10_000
_UNPRUNED = 26 * 3_600_000
_SAMPLE = 5000
_RESTORE = "find the program that writes to Mouso's tables; restore a backup if jobs are missing"
_NEEDED = ("jobs", "live", "history", "runs", "keys", "tallies", "queues", "workers", "steadies", "ears", "meta")

Facts = Iterator[Finding]
Check = Callable[["_Look"], Facts]


class _Look:
    """What the checks need."""

    def __init__(self, session: Session, name: str, clock: Clock, retention: Retention) -> None:
        self.session = session
        self.name = name
        self.clock = clock
        self.retention = retention

    def rows(self, sql: str, *values: bytes | None) -> list[tuple[bytes | None, ...]]:
        return self.session.fetch(sql.replace("{schema}", schema.quoted(self.name)), *values)

    def count(self, sql: str, *values: bytes | None) -> int:
        """How many rows a query has, as a number of at most 100,000."""
        [(found,)] = self.rows(f"SELECT count(*) FROM ({sql} LIMIT 100000) found", *values)
        return int.from_bytes(found or b"")


def examine(link: Link, name: str, clock: Clock, retention: Retention, *, full: bool) -> tuple[list[Finding], bool]:
    """Looks at everything; returns what was found, and whether jobs can be read."""
    findings: list[Finding] = []
    readable = False
    try:
        with link.session(SYSTEM.monotonic() + _TIMEOUT) as session:
            findings += _server(link, session)
            look = _Look(session, name, clock, retention)
            found = _schema(look, link)
            findings.append(found)
            readable = found.level is Level.OK
            checks: list[Check] = [_clock, _transactions, _wraparound]
            if readable:
                checks += [_rights, _vacuum, _upkeep] + ([_consistency] if full else [])
            for check in checks:
                findings += check(look)
    except ConfigError as error:
        what, _, remedy = str(error).partition("; ")
        findings.append(Finding(Level.ERROR, "connection", what, remedy or "check the broker's URL"))
    except Lost as error:
        what = f"{link.shown} cannot be reached ({error})"
        remedy = "check that the server runs, that this machine may reach it, and the broker's URL"
        findings.append(Finding(Level.ERROR, "connection", what, remedy))
        readable = False
    except Refusal as error:
        what = f"{link.shown} refuses to be looked at ({error})"
        which = "rights" if error.rights else "connection"
        findings.append(Finding(Level.ERROR, which, what, "run mouso as a role that may read the schema"))
        readable = False
    return findings, readable


def _server(link: Link, session: Session) -> Facts:
    [(number, text, standby, readonly)] = session.fetch(
        "SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),"
        " current_setting('default_transaction_read_only') = 'on'"
    )
    said = (text or b"").decode()
    yield Finding(Level.OK, "connection", f"{link.shown} answers")
    if int.from_bytes(number or b"") < schema.OLDEST_SERVER:
        yield Finding(Level.ERROR, "engine", f"PostgreSQL {said} is too old", "upgrade the server to 13 or newer")
    else:
        yield Finding(Level.OK, "engine", f"PostgreSQL {said}")
    if standby == b"\x01":
        what = f"{link.shown} is a standby, which takes no jobs"
        yield Finding(
            Level.ERROR, "server", what, "name the primary, or all servers with target_session_attrs=read-write"
        )
    elif readonly == b"\x01":
        remedy = "turn default_transaction_read_only off, for the server, the database and the role"
        yield Finding(Level.ERROR, "server", f"{link.shown} takes transactions as read-only", remedy)


def _schema(look: _Look, link: Link) -> Finding:
    """OK only if the jobs can be read."""
    found, known = schema.found_version(look.session, look.name), schema.version()
    if found == known:
        return Finding(Level.OK, "schema", f"schema version {found}, as this Mouso has it")
    if found > known:
        what = f"{link.shown} has schema version {found}, this Mouso knows up to {known}"
        return Finding(Level.ERROR, "schema", what, "upgrade Mouso here, or use another schema")
    if found:
        what = f"{link.shown} has schema version {found}, this Mouso needs {known}"
        return Finding(Level.ERROR, "schema", what, "stop the older workers, then run mouso migrate")
    what = f"{link.shown} has no store in the schema {look.name!r}"
    return Finding(Level.INFO, "schema", what, "run mouso migrate, or start a worker as a role that may make it")


def _clock(look: _Look) -> Facts:
    """Due times, leases and expiry go by the server's clock; logs and schedules of people by this machine's."""
    if look.clock is not SYSTEM:
        return
    began = look.clock.now()
    [(there,)] = look.rows("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint")
    off = int.from_bytes(there or b"") - (began + look.clock.now()) // 2
    if abs(off) > _OFF:
        what = f"the server's clock is {abs(off) / 1000:,.1f} s {'ahead of' if off > 0 else 'behind'} this machine's"
        yield Finding(
            Level.WARNING, "clock", what, "let both keep time by NTP; jobs are due and expire by the server's"
        )
    else:
        yield Finding(Level.OK, "clock", "the server's clock agrees with this machine's")


def _transactions(look: _Look) -> Facts:
    """What keeps vacuum from removing dead rows: then every claim has to step over them."""
    found = look.rows(
        "SELECT pid::bigint, coalesce(usename, ''), coalesce(application_name, ''), state,"
        " extract(epoch FROM clock_timestamp() - xact_start)::bigint FROM pg_stat_activity"
        " WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        f" AND xact_start < clock_timestamp() - interval '{_LONG} seconds' ORDER BY xact_start LIMIT 5"
    )
    for pid, user, program, state, age in found:
        who = (program or user or b"").decode(errors="replace")
        what = (
            f"a transaction of {who!r} (process {int.from_bytes(pid or b'')}, {(state or b'').decode()}) is open for"
            f" {int.from_bytes(age or b''):,} s, and keeps vacuum from removing dead rows"
        )
        remedy = f"pg_terminate_backend({int.from_bytes(pid or b'')}) ends it; set idle_in_transaction_session_timeout"
        yield Finding(Level.WARNING, "transactions", what, remedy)
    slots = look.rows(
        "SELECT slot_name FROM pg_replication_slots WHERE NOT active AND (xmin IS NOT NULL OR catalog_xmin IS NOT NULL)"
    )
    for (slot,) in slots:
        what = f"the replication slot {(slot or b'').decode()!r} is unused, and keeps vacuum from removing dead rows"
        yield Finding(Level.WARNING, "transactions", what, "start its standby, or drop it: pg_drop_replication_slot")
    if not found and not slots:
        yield Finding(Level.OK, "transactions", f"no transaction is open for more than {_LONG} s")


def _wraparound(look: _Look) -> Facts:
    [(age,)] = look.rows("SELECT age(datfrozenxid)::bigint FROM pg_database WHERE datname = current_database()")
    number = int.from_bytes(age or b"")
    if number > _WRAPAROUND:
        what = f"the oldest transaction of the database is {number:,} back, and the server stops at 2,147,483,647"
        yield Finding(Level.ERROR, "wraparound", what, "run VACUUM FREEZE on the database now")
    else:
        yield Finding(Level.OK, "wraparound", f"the oldest transaction of the database is {number:,} back")


def _rights(look: _Look) -> Facts:
    """What this role may do with the tables; each right alone is normal for a role of its own."""
    missing = look.rows(
        "SELECT t.name FROM unnest($1::text[]) AS t (name) WHERE NOT (SELECT bool_and(has_table_privilege("
        "format('%I.%I', $2::text, t.name), r)) FROM unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) r)",
        wire.texts(_NEEDED), wire.text(look.name),
    )  # fmt: skip
    if missing:
        names = ", ".join((name or b"").decode() for (name,) in missing)
        remedy = "a worker needs all of them: see the roles in the guide to PostgreSQL"
        yield Finding(Level.INFO, "rights", f"this role may not do everything with the tables {names}", remedy)
    else:
        yield Finding(Level.OK, "rights", "this role may do everything that a worker does")


def _vacuum(look: _Look) -> Facts:
    [(on,)] = look.rows("SELECT current_setting('autovacuum') = 'on'")
    if on != b"\x01":
        what = "autovacuum is off, so dead rows stay and claims become slower and slower"
        yield Finding(Level.ERROR, "vacuum", what, "set autovacuum = on, and reload the server's configuration")
    disabled = look.rows(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1::text"
        " AND c.reloptions::text LIKE '%autovacuum_enabled=%' AND c.reloptions::text NOT SIMILAR TO"
        " '%autovacuum_enabled=(true|on|1)%'",
        wire.text(look.name),
    )  # fmt: skip
    for (table,) in disabled:
        what = f"autovacuum is off for the table {(table or b'').decode()}"
        yield Finding(Level.WARNING, "vacuum", what, "ALTER TABLE … RESET (autovacuum_enabled)")
    [(live, dead, size)] = look.rows(
        "SELECT n_live_tup, n_dead_tup, pg_total_relation_size(relid) FROM pg_stat_user_tables"
        " WHERE schemaname = $1::text AND relname = 'live'",
        wire.text(look.name),
    )  # fmt: skip
    alive, gone, room = (int.from_bytes(number or b"") for number in (live, dead, size))
    what = f"the table of live jobs has about {alive:,} rows, {gone:,} dead ones, and {room / (1 << 20):,.1f} MiB"
    if gone > max(_BLOATED_DEAD, _BLOATED_SHARE * alive):
        remedy = "see what holds vacuum up (transactions, above); then VACUUM it, and REINDEX TABLE CONCURRENTLY"
        yield Finding(Level.WARNING, "bloat", what, remedy)
    else:
        yield Finding(Level.OK, "bloat", what)


def _upkeep(look: _Look) -> Facts:
    """What any worker does in passing, and must have done."""
    [(at,)] = look.rows("SELECT {schema}.now()")
    now = look.clock.now() if look.clock is not SYSTEM else int.from_bytes(at or b"")
    waits = "SELECT 1 FROM {schema}.live WHERE state <> 'running' AND"
    kept = (
        "SELECT 1 FROM (SELECT coalesce(keep_until, finished_at + CASE state WHEN 'dead' THEN $2::bigint"
        f" ELSE $3::bigint END) AS until FROM {{schema}}.history ORDER BY seq LIMIT {_SAMPLE}) eldest"
        " WHERE until <= $1::bigint"
    )
    late = {
        "jobs past their expiry that are not marked as expired": look.count(
            f"{waits} expires_at <= $1::bigint", wire.number(now - _LATE)
        ),
        "jobs that are due and not made available": look.count(f"{waits} due <= $1::bigint", wire.number(now - _LATE)),
        f"jobs kept for more than a day beyond their retention, of the {_SAMPLE:,} eldest": look.count(
            kept, wire.number(now - _UNPRUNED), wire.number(look.retention.dead), wire.number(look.retention.finished)
        ),
    }
    for what, number in late.items():
        if number:
            remedy = "start a worker, which does that in passing; if one is there, look at its log"
            yield Finding(Level.WARNING, "upkeep", f"{what}: {number:,}", remedy)
    if not any(late.values()):
        yield Finding(Level.OK, "upkeep", "due, expired and old jobs are dealt with")
    stray = look.count("SELECT 1 FROM {schema}.jobs_default")
    if stray >= 100_000:
        what = "100,000 or more jobs are in no day's partition"
        remedy = "set the clocks of producers; or few days could be made: look for long transactions"
        yield Finding(Level.WARNING, "days", what, remedy)


_CONSISTENT: dict[str, str] = {
    "jobs in no state": "SELECT 1 FROM {schema}.jobs j"
    " WHERE NOT EXISTS (SELECT FROM {schema}.live l WHERE l.seq = j.seq)"
    " AND NOT EXISTS (SELECT FROM {schema}.history h WHERE h.seq = j.seq AND h.day = j.day)",
    "jobs that are live and final at once": "SELECT 1 FROM {schema}.live JOIN {schema}.history USING (seq)",
    "states of no job": "SELECT 1 FROM (SELECT seq, day FROM {schema}.live"
    " UNION ALL SELECT seq, day FROM {schema}.history) s"
    " WHERE NOT EXISTS (SELECT FROM {schema}.jobs j WHERE j.seq = s.seq AND j.day = s.day)",
    "running jobs of no worker": "SELECT 1 FROM {schema}.live l WHERE state = 'running'"
    " AND NOT EXISTS (SELECT FROM {schema}.workers w WHERE w.n = l.worker)",
    "unique keys of no job": "SELECT 1 FROM {schema}.keys k WHERE until IS NULL"
    " AND NOT EXISTS (SELECT FROM {schema}.live l WHERE l.seq = k.seq AND l.holds > 0)",
    "wrong counts of finished jobs": "SELECT 1 FROM (SELECT queue, state, n FROM {schema}.tallies"
    " UNION ALL SELECT queue, state, -count(*) FROM {schema}.history GROUP BY queue, state) t"
    " GROUP BY queue, state HAVING sum(n) <> 0",
}


def _consistency(look: _Look) -> Facts:
    """What holds after each of Mouso's transactions, and what another program may have broken."""
    wrong = 0
    for what, sql in _CONSISTENT.items():
        number = look.count(sql)
        if number:
            wrong += 1
            yield Finding(Level.ERROR, "consistency", f"{what}: {number:,}", _RESTORE)
    if not wrong:
        yield Finding(Level.OK, "consistency", "jobs, states and counts fit together")
