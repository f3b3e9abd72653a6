"""When the log is moved into the file: only while nobody else can write, and so that it does not grow.

SQLite before 3.51.3 (but for 3.50.7 and 3.44.6) can corrupt a WAL file when one connection checkpoints while another
resets the log (https://www.sqlite.org/wal.html, section 11.1). Only writers reset it, so automatic checkpoints are off,
and one is made explicitly, on a connection of its own, while the writer's holds the writer's lock. The modes FULL,
RESTART and TRUNCATE, which are said to take that lock themselves, go on without it when they do not get it in time. The
log is begun anew by the next commit, and not shortened: a commit that overwrites is durable in 110 µs, one that must
lengthen the file first in 200.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable

from mouso.brokers.sqlite.transactions import begin, roll_back
from mouso.clock import SYSTEM
from mouso.errors import BrokerError, ConfigError

CHECKPOINT_BYTES = 4 << 20
MOST_LOG_KEPT = 4 * CHECKPOINT_BYTES
COMMIT_BYTES = 6 << 10
CHANGE_BYTES = 150
_LOOK_BYTES = 128 << 10
_PAUSE = 0.05
_WAIT = 0.05
_TRIES = 3
_ROOM_PAUSE = 1.0
_COUNT = (
    "INSERT INTO mouso_meta (key, value) VALUES ('checkpoints', 1) ON CONFLICT (key) DO UPDATE SET value = value + 1"
)
_LOG_NUMBER = 12
"""Where the checkpoint sequence number stands in the log (https://www.sqlite.org/fileformat2.html, 4.1)."""


class Checkpoints:
    """Those that one process makes of a store. All methods but ``log`` are for who writes.

    Args:
        path: The store's file.
        connect: Opens the connection that moves the log.

    Attributes:
        written: Bytes that this process has written since the last one, as estimated: ``COMMIT_BYTES`` for each commit
            and ``CHANGE_BYTES`` for each row. Who writes counts them, and what the connection had changed by then.
        changes: That number.
        look_at: When ``look`` is worth while.
    """

    def __init__(self, path: str, connect: Callable[[], sqlite3.Connection]) -> None:
        self._log = path + "-wal"
        self._path = path
        self._connect = connect
        self._next = self._room_at = 0.0
        self.written = self.changes = self._size = self.look_at = 0

    def opened(self, writer: sqlite3.Connection) -> None:
        """There is a new connection that writes."""
        self.changes = writer.total_changes

    def look(self, writer: sqlite3.Connection) -> None:
        """Checkpoints when enough was written: by this process, as estimated, or by all, as the file has grown."""
        self.look_at = self.written + _LOOK_BYTES
        size, _ = self.log()
        now = SYSTEM.monotonic()
        due = self.written >= CHECKPOINT_BYTES or size >= self._size + CHECKPOINT_BYTES
        if not due or now < self._next:
            return
        self._next = now + _PAUSE
        if self.make(writer):
            self.written, self.look_at = 0, _LOOK_BYTES
            self._size = self.log()[0]

    def make_room(self, writer: sqlite3.Connection, error: sqlite3.Error | MemoryError) -> None:
        """On a full disk: what the log holds is moved into the file, so that the next transactions can overwrite it."""
        now = SYSTEM.monotonic()
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL and now >= self._room_at:
            # Those that are due come all the same: with the first room there is, the log would grow until that is gone.
            self._room_at = now + _ROOM_PAUSE
            self.make(writer)

    def make(self, writer: sqlite3.Connection) -> bool:
        """Moves the log into the file and begins it anew; returns False if a reader was in the way, or anything failed.

        A log of which all was moved is begun anew by the first commit that finds no reader in it. Readers are short,
        but for a backup, so that commit is made at once: it counts the checkpoints.
        """
        _, before = self.log()
        try:
            if not self._move(writer):
                return False
            for _ in range(_TRIES):
                begin(writer, self._path, _WAIT)
                writer.execute(_COUNT)
                writer.execute("COMMIT")
                if self.log()[1] != before:
                    return True
        except (sqlite3.Error, BrokerError, ConfigError):
            roll_back(writer)
        return False

    def _move(self, writer: sqlite3.Connection) -> bool:
        """Whether the whole log was moved into the file. Nobody writes meanwhile, so nobody resets the log."""
        begin(writer, self._path, _WAIT)
        try:
            checkpointer = self._connect()
            try:
                (busy, frames, moved) = checkpointer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            finally:
                checkpointer.close()
        finally:
            roll_back(writer)
        return not busy and frames == moved

    def log(self) -> tuple[int, bytes]:
        """The size of the log, and the number that it gets anew each time it is begun. To open its file is safe, as
        SQLite's locks are on others."""
        try:
            log = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return 0, b""
        try:
            return os.fstat(log).st_size, os.pread(log, 4, _LOG_NUMBER)
        finally:
            os.close(log)
