"""Reading a SQLite file without leaving a trace, and seeing who else has it open.

Whoever opens such a file in the usual way makes a log and an index beside it, and whoever closes it last moves the log
into the file. So

1. a file that has neither, and on which nobody holds a lock, is read as ``immutable``: no lock is taken and nothing
   beside it is looked for. Who begins to use it meanwhile may change what is being read, so that is looked for.
2. A file that is in use, or has a log that was left behind, is read as any reader does, but for ``mode=ro``, which
   never moves the log. The index may be made, or note the reader.
3. Where the folder is closed to this user, so that no index can be made, SQLite's ``unix-none`` keeps it in memory.
   Only there: when it closes a log that is empty it removes it, be it somebody else's.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from mouso.brokers.sqlite import faults, store
from mouso.brokers.sqlite.locks import WHOLE, holders
from mouso.brokers.sqlite.rows import lenient
from mouso.errors import ConfigError

_BUSY = 2.0
_BESIDE = ("-wal", "-shm", "-journal")


class Reader(store.Store):
    """A store that can only be looked at."""

    _unused = False

    def open(self, timeout: float = _BUSY) -> None:
        with self._writing:
            if self._reader is not None and self._unused and not unused(self.path):
                self._disconnect()
            if self._reader is None:
                self._unused = unused(self.path)
                try:
                    self._reader = connect(self.path, timeout)
                except sqlite3.Error as error:
                    raise self.translate(error) from error

    def write(self, timeout: float = 5.0, *, politely: bool = False) -> NoReturn:
        raise ConfigError(f"{self.path} was opened to be looked at; open it anew to change it")

    def migrate(self) -> NoReturn:
        self.write()


def connect(path: str, timeout: float = _BUSY) -> sqlite3.Connection:
    """Opens a file to look at it; see the module's text."""
    if unused(path) or not os.path.getsize(path):  # beside an empty file SQLite would delete a log
        return _open(path, "mode=ro&immutable=1", timeout)
    connection = _open(path, "mode=ro", timeout)
    try:
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
    except sqlite3.Error as error:
        connection.close()
        if faults.is_busy(error) or os.access(os.path.dirname(path), os.W_OK):
            raise
        connection = _open(path, "mode=ro&vfs=unix-none", timeout)
        connection.execute("PRAGMA locking_mode = exclusive")
    return connection


def _open(path: str, how: str, timeout: float) -> sqlite3.Connection:
    place = f"{Path(path).as_uri()}?{how}"
    connection = sqlite3.connect(place, uri=True, isolation_level=None, check_same_thread=False, timeout=timeout)
    connection.text_factory = lenient
    return connection


def unused(path: str) -> bool:
    """Whether nobody has the file open, and nobody left a log behind."""
    return not any(os.path.exists(path + end) for end in _BESIDE) and not holders(path, WHOLE)


def process(pid: int) -> str:
    """A process for reading, such as ``process 42 (sqlite3)``."""
    with suppress(OSError):
        return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text(errors='replace').strip()})"
    return f"process {pid}" if pid > 0 else "a process of another container"


def stopped(pid: int) -> bool:
    """Whether a process is stopped, by a signal or a debugger, as far as the system tells."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in ("T", "t")
    return False
