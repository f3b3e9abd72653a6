"""The schema: its version, the numbered migrations that make it, and how an empty database becomes a store.

The migrations are the files of ``migrations``, in order; the number of the last one is the version. Each is written
for a schema of any name.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from mouso.brokers.postgres.faults import Lost, Refusal
from mouso.brokers.postgres.link import Link, Session
from mouso.brokers.postgres.wire import text
from mouso.clock import SYSTEM
from mouso.errors import BrokerUnavailable, ConfigError, SchemaError

_FOLDER = Path(__file__).parent / "migrations"
_NUMBERED = re.compile(r"(\d{4})_\w+\.sql")
OLDEST_SERVER = 130000
_TIMEOUT = 30.0
_PAUSE = 0.1
_THERE = (
    "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " WHERE n.nspname = $1::text AND c.relname = 'meta'"
)
"""Looks into the tables: ``to_regclass`` may still remember from before the lock that there is nothing."""


@cache
def migrations() -> tuple[tuple[int, str], ...]:
    """Numbers and texts of all migrations, in order."""
    found = ((_NUMBERED.fullmatch(path.name), path) for path in sorted(_FOLDER.iterdir()))
    return tuple((int(match[1]), path.read_text()) for match, path in found if match)


def version() -> int:
    """The version that this Mouso makes and needs."""
    return migrations()[-1][0]


def quoted(name: str) -> str:
    """A schema's name as it stands in statements."""
    if "$" in name:
        raise ConfigError(f"schema={name!r} in the broker URL cannot be used; leave out the $")
    return f'"{name}"'


def sql(name: str, before: int = 0) -> str:
    """The statements that bring a schema from a version (0: it does not exist) to the current one."""
    schema = quoted(name)
    parts = [f"CREATE SCHEMA IF NOT EXISTS {schema};\n"] if not before else []
    parts += [script.replace("{schema}", schema) for number, script in migrations() if number > before]
    store = "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    parts.append(f"INSERT INTO {schema}.meta (key, value) VALUES ('version', {version()}) {store};\n")
    parts.append(
        f"INSERT INTO {schema}.meta (key, value) VALUES ('store', (pg_catalog.random() * 9e18)::bigint)"
        " ON CONFLICT (key) DO NOTHING;\n"
    )
    return "\n".join(parts)


def roles_sql(name: str) -> str:
    """The statements that make the roles of producers, workers and dashboards, with the least rights they need."""
    return (_FOLDER / "roles.sql").read_text().replace("{schema}", quoted(name))


def open_store(link: Link, name: str, timeout: float) -> None:
    """Sees that there is a store of this version; makes it if there is none.

    Raises:
        SchemaError: There is one of another version.
        ConfigError: There is none, and this role may not make it.
        BrokerUnavailable: The server cannot be reached within ``timeout`` seconds.
    """

    def look(session: Session) -> int:
        found = _check(session, link, name)
        if 0 < found < version():
            raise SchemaError(
                f"{link.shown} has schema version {found}, this Mouso needs {version()}; run mouso migrate"
            )
        return found or _upgrade(session, link, name)

    _persist(link, name, timeout, look)


def migrate(link: Link, name: str) -> tuple[int, int]:
    """Brings the store to the current version and returns the version before and after."""

    def step(session: Session) -> int:
        found = _check(session, link, name)
        return found if found == version() else _upgrade(session, link, name)

    return _persist(link, name, _TIMEOUT, step), version()


def _persist(link: Link, name: str, timeout: float, step: Callable[[Session], int]) -> int:
    """Repeats a step, which is idempotent, while the server cannot be used."""
    deadline = SYSTEM.monotonic() + timeout
    while True:
        try:
            with link.session(deadline) as session:
                return step(session)
        except (Refusal, Lost) as error:
            failure = _translate(link, name, error)
            if not isinstance(failure, BrokerUnavailable) or SYSTEM.monotonic() + _PAUSE > deadline:
                raise failure from error
        time.sleep(_PAUSE)


def identity_sql(name: str) -> bytes:
    """The statement that asks which store there is: a number that was drawn when the schema was made."""
    return f"SELECT value FROM {quoted(name)}.meta WHERE key = 'store'".encode()


def found_version(session: Session, name: str) -> int:
    """The version that is there, 0 for none."""
    if not session.fetch(_THERE, text(name)):
        return 0
    found = session.fetch(f"SELECT value FROM {quoted(name)}.meta WHERE key = 'version'")
    return int.from_bytes(found[0][0] or b"") if found else 0


def _check(session: Session, link: Link, name: str) -> int:
    [(number, encoding)] = session.fetch(
        "SELECT current_setting('server_version_num')::int, current_setting('server_encoding')"
    )
    if int.from_bytes(number or b"") < OLDEST_SERVER:
        raise ConfigError(f"{link.shown} is older than PostgreSQL 13; upgrade the server")
    if encoding != b"UTF8":
        raise ConfigError(f"{link.shown} has the encoding {(encoding or b'').decode()}; use a database in UTF8")
    found = found_version(session, name)
    if found > version():
        raise SchemaError(
            f"{link.shown} has schema version {found}, this Mouso knows up to {version()}; upgrade Mouso, or use"
            " another schema"
        )
    return found


def _upgrade(session: Session, link: Link, name: str) -> int:
    """Applies what is missing in one transaction, one program at a time; returns the version that it found."""
    session.run("BEGIN")
    session.fetch("SELECT pg_advisory_xact_lock(hashtext($1), 1)", text(quoted(name)))
    found = _check(session, link, name)
    if found < version():
        session.run(sql(name, found))
    session.run("COMMIT")
    return found


def _translate(link: Link, name: str, error: Refusal | Lost) -> ConfigError | BrokerUnavailable:
    if isinstance(error, Refusal) and error.rights:
        return ConfigError(
            f"{link.shown} has no schema {name!r} that this role may use or make: {error.why}; run mouso migrate as a"
            " role that may, or grant the rights"
        )
    if isinstance(error, Lost) or error.later or error.lost:
        return BrokerUnavailable(f"{link.shown} cannot be used now; nothing was stored, try again: {error}")
    return ConfigError(f"{link.shown} refuses: {error.why} ({error.code})")
