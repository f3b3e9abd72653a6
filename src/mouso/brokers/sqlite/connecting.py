"""Opening connections to a store's file, and bringing its mode and its tables up to date."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from mouso.brokers.sqlite import faults, schema
from mouso.brokers.sqlite.checkpoints import MOST_LOG_KEPT
from mouso.brokers.sqlite.rows import lenient
from mouso.brokers.sqlite.transactions import begin, locked, roll_back
from mouso.clock import SYSTEM

_PAUSE = 0.0001
_PAGE_SIZE = "page_size = 2048"
"""For new files. An enqueue writes a page of each of four trees: at 2 KiB it takes 63 µs, at SQLite's 4 KiB 76 µs."""


def connect(path: str, synchronous: str, timeout: float = 5.0, *, create: bool = False) -> sqlite3.Connection:
    """A connection with Mouso's settings; its file is none that was just moved away, unless it may be made.

    Raises:
        BrokerUnavailable, ConfigError: The file cannot be opened.
    """
    place = path if create else f"{Path(path).as_uri()}?mode=rw"
    try:
        connection = sqlite3.connect(
            place, uri=not create, isolation_level=None, check_same_thread=False, timeout=timeout
        )
    except faults.FAILURES as error:
        raise faults.translate(error, path) from error
    try:
        for pragma in (
            f"synchronous = {synchronous}",
            "wal_autocheckpoint = 0",
            f"journal_size_limit = {MOST_LOG_KEPT}",
            "cache_size = -4000",
            "secure_delete = off",  # on by default in Debian's engine; costs a settle 0.7 µs
            _PAGE_SIZE,
        ):
            connection.execute(f"PRAGMA {pragma}")
        connection.text_factory = lenient
    except faults.FAILURES as error:
        connection.close()
        raise faults.translate(error, path) from error
    return connection


def prepare(connection: sqlite3.Connection, path: str, timeout: float, deadline: float | None = None) -> int:
    """Brings file mode and tables up to date and returns the version found.

    Args:
        deadline: When to give up; by default after ``timeout`` seconds.
    """
    deadline = SYSTEM.monotonic() + timeout if deadline is None else deadline
    try:
        _enter_wal(connection, path, timeout, deadline)
        found = schema.usable_version(connection, path)
        if found == schema.VERSION:
            return found
        begin(connection, path, timeout, deadline)
        try:
            found = schema.usable_version(connection, path)
            if found < schema.VERSION:
                schema.upgrade(connection, found, path)
            connection.execute("COMMIT")
        except BaseException:
            roll_back(connection)
            raise
    except faults.FAILURES as error:
        raise faults.translate(error, path) from error
    return found


def _enter_wal(connection: sqlite3.Connection, path: str, timeout: float, deadline: float) -> None:
    """Switches the file to a log, for which nobody else may use it at that moment."""
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = wal")
        except sqlite3.OperationalError as error:
            if not faults.is_busy(error):
                raise
            time.sleep(_PAUSE)
        if SYSTEM.monotonic() > deadline:
            raise locked(path, timeout)
