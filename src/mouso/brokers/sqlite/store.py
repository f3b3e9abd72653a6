"""One SQLite file, opened safely: transactions with a deadline, checkpoints, and errors in Mouso's words.

**Checkpoints.** SQLite before 3.51.3 (but for 3.50.7 and 3.44.6) can corrupt a WAL file when two connections
checkpoint and write at the same instant (https://www.sqlite.org/wal.html, section 11.1). So automatic checkpoints are
off, and one is made explicitly, with RESTART, which takes the writer's lock first. RESTART leaves the log at its
length: a commit that overwrites is durable in 110 µs, one that must lengthen the file first in 200.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mouso.brokers.sqlite import schema
from mouso.clock import SYSTEM
from mouso.errors import BrokerError, BrokerUnavailable, ConfigError, OutcomeUnknown

CHECKPOINT_BYTES = 4 << 20
_COMMIT_BYTES = 6 << 10
_CHANGE_BYTES = 150
_CHECKPOINT_PAUSE = 0.05
_LOOK_BYTES = 128 << 10
_PAGE_SIZE = "page_size = 2048"
"""For new files. An enqueue writes a page of each of four trees: at 2 KiB it takes 63 µs, at SQLite's 4 KiB 76 µs."""
_NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "afs",
    "ceph",
    "lustre",
    "fuse.sshfs",
    "fuse.glusterfs",
    "beegfs",
}
_OLDEST_ENGINE = (3, 37, 0)


class Store:
    """A SQLite file with one connection for writing and one for reading, usable from any thread.

    Args:
        path: The file.
        synchronous: ``"full"`` (a commit survives power loss) or ``"normal"`` (it survives any crash of programs).
    """

    def __init__(self, path: str, synchronous: str) -> None:
        try:
            self.path = os.path.abspath(path)
        except FileNotFoundError:
            raise ConfigError(f"the current directory is gone, so {path} has no place; use an absolute path") from None
        self._synchronous = synchronous
        self._reset()
        _STORES.add(self)

    def _reset(self) -> None:
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._next_checkpoint = 0.0
        self._written = self._changes = self._log_size = self._look_at = 0

    def open(self, timeout: float = 5.0) -> None:
        """Opens the file, creating or upgrading its tables; does nothing when it is open already."""
        if self._writer is not None:
            return
        with self._writing:
            if self._writer is None:
                self._check_place()
                writer = self._connect()
                try:
                    self._prepare(writer, timeout)
                    writer.execute("PRAGMA busy_timeout = 0")  # _begin waits, with shorter pauses
                    self._reader = self._connect()
                except BaseException:
                    writer.close()
                    raise
                self._writer = writer
                self._changes = writer.total_changes

    def close(self) -> None:
        """Closes both connections; the next use opens them again."""
        with self._writing, self._reading:
            for connection in (self._reader, self._writer):
                if connection is not None:
                    connection.close()
            self._writer = self._reader = None

    @contextmanager
    def write(self, timeout: float = 5.0) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed at the end of the block, rolled back if it raises.

        Raises:
            BrokerUnavailable: Nothing happened.
            OutcomeUnknown: The commit itself failed.
        """
        deadline = SYSTEM.monotonic() + timeout
        if self._writer is None:
            self.open(timeout)
        if not self._writing.acquire(timeout=timeout):
            raise BrokerUnavailable(
                f"{self.path} was busy in this process for {timeout:g} s; nothing was stored, try again"
            )
        try:
            connection = self._writer
            if connection is None:
                raise BrokerUnavailable(f"{self.path} was closed meanwhile; nothing was stored, try again")
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error:
                self._begin(connection, deadline, timeout)
            try:
                yield connection
            except sqlite3.Error as error:
                _roll_back(connection)
                raise self.translate(error) from error
            except BaseException:
                _roll_back(connection)
                raise
            try:
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                _roll_back(connection)
                raise OutcomeUnknown(f"{self.path}: the commit failed ({error}); repeat the call") from error
            changes = connection.total_changes
            self._written += _COMMIT_BYTES + _CHANGE_BYTES * (changes - self._changes)
            self._changes = changes
            if self._written >= self._look_at:
                self._checkpoint_if_due()
        finally:
            self._writing.release()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: all statements of the block see one state of the file."""
        self.open()
        with self._reading:
            if self._reader is None:
                raise BrokerUnavailable(f"{self.path} was closed meanwhile; try again")
            try:
                self._reader.execute("BEGIN")
                yield self._reader
            except sqlite3.Error as error:
                raise self.translate(error) from error
            finally:
                _roll_back(self._reader)

    def migrate(self) -> tuple[int, int]:
        """Upgrades the tables and returns the version before and after."""
        self._check_place()
        connection = self._connect()
        try:
            return self._prepare(connection), schema.VERSION
        finally:
            connection.close()

    def is_same_file(self, connection: sqlite3.Connection) -> bool:
        """Whether ``connection``'s main database is this file."""
        name = connection.execute("SELECT file FROM pragma_database_list WHERE name = 'main'").fetchone()[0]
        return bool(name) and os.path.exists(name) and os.path.samefile(name, self.path)

    def _check_place(self) -> None:
        path, folder = Path(self.path), Path(self.path).parent
        if sqlite3.sqlite_version_info < _OLDEST_ENGINE:
            raise ConfigError(f"SQLite {sqlite3.sqlite_version} is too old; Mouso needs 3.37 or newer")
        if not folder.is_dir():
            raise ConfigError(f"the folder {folder} does not exist; create it or choose another file for the jobs")
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; name a file for the jobs")
        kind = _file_system(folder)
        if kind in _NETWORK:
            raise ConfigError(
                f"{path} lies on a network file system ({kind}), where SQLite loses data; choose a local disk"
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"no permission to write into {folder}, which SQLite needs beside {path.name}")
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            raise ConfigError(f"no permission to write {path}")

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5.0)
        except sqlite3.Error as error:
            raise self.translate(error) from error
        try:
            for pragma in (
                f"synchronous = {self._synchronous}",
                "wal_autocheckpoint = 0",
                "cache_size = -4000",
                "secure_delete = off",  # on by default in Debian's engine; costs a settle 0.7 µs
                _PAGE_SIZE,
            ):
                connection.execute(f"PRAGMA {pragma}")
        except sqlite3.Error as error:
            connection.close()
            raise self.translate(error) from error
        return connection

    def _prepare(self, connection: sqlite3.Connection, timeout: float = 5.0) -> int:
        """Brings file mode and tables up to date and returns the version found."""
        deadline = SYSTEM.monotonic() + timeout
        connection.execute(f"PRAGMA busy_timeout = {int(timeout * 1000)}")
        try:
            while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                with suppress(sqlite3.OperationalError):
                    connection.execute("PRAGMA journal_mode = wal")
                if SYSTEM.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"{self.path} stayed locked by another program for {timeout:g} s; try again"
                    )
            found = schema.version(connection)
            schema.check(found, self.path)
            if found == schema.VERSION:
                return found
            self._begin(connection, deadline, timeout)
            try:
                found = schema.version(connection)
                schema.check(found, self.path)
                if found < schema.VERSION:
                    schema.upgrade(connection, found)
                connection.execute("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise
        except sqlite3.Error as error:
            raise self.translate(error) from error
        return found

    def _begin(self, connection: sqlite3.Connection, deadline: float, timeout: float) -> None:
        """Takes the write lock. SQLite's own busy handler sleeps 1 ms and more; many writers want less than that."""
        pause = 0.0001
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    raise self.translate(error) from error
            if SYSTEM.monotonic() >= deadline:
                raise BrokerUnavailable(
                    f"{self.path} stayed locked by another program for {timeout:g} s; nothing was stored, try again"
                )
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 1.5, 0.005)

    def _checkpoint_if_due(self) -> None:
        """Checkpoints when enough was written. What the log holds cannot be asked without opening its file, which would
        drop SQLite's locks; so it is this process's own writing that is estimated, and the file's growth that is seen.
        """
        self._look_at = self._written + _LOOK_BYTES
        try:
            size = os.stat(self.path + "-wal").st_size
        except OSError:
            return
        now = SYSTEM.monotonic()
        due = self._written >= CHECKPOINT_BYTES or size >= self._log_size + CHECKPOINT_BYTES
        if not due or now < self._next_checkpoint:
            return
        self._next_checkpoint = now + _CHECKPOINT_PAUSE
        mode = "RESTART" if size < 4 * CHECKPOINT_BYTES else "TRUNCATE"
        checkpointer = self._connect()
        try:
            (busy, _, _) = checkpointer.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
            if not busy:
                self._written, self._look_at = 0, _LOOK_BYTES
                self._log_size = size if mode == "RESTART" else 0
        except sqlite3.Error:
            pass  # a reader or writer was in the way; a later commit tries again
        finally:
            checkpointer.close()

    def translate(self, error: sqlite3.Error) -> BrokerError | ConfigError:
        """A client's error in Mouso's words."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return ConfigError(f"{self.path} is no intact SQLite database ({error}); restore it or choose another file")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return ConfigError(
                f"{self.path} cannot be opened for writing ({error}); check the permissions of file and folder"
            )
        if code == sqlite3.SQLITE_FULL:
            return BrokerUnavailable(f"the disk of {self.path} is full; nothing was stored, free some space")
        return BrokerUnavailable(f"{self.path}: {error}; nothing was stored, try again")


_STORES: weakref.WeakSet[Store] = weakref.WeakSet()
_forking: list[Store] = []
_abandoned: list[sqlite3.Connection | None] = []
"""A forked child's copies of its parent's connections: never used, and never closed, which could end the log."""


def _before_fork() -> None:
    _forking[:] = list(_STORES)
    for store in _forking:
        store._writing.acquire()
        store._reading.acquire()


def _after_fork(*, child: bool) -> None:
    for store in _forking:
        if child:
            _abandoned.extend((store._writer, store._reader))
            store._reset()
        else:
            store._reading.release()
            store._writing.release()
    _forking.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=lambda: _after_fork(child=False),
        after_in_child=lambda: _after_fork(child=True),
    )


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def _file_system(folder: Path) -> str:
    """The type of file system that ``folder`` lies on, or ``""`` where it cannot be told."""
    best, kind = "", ""
    try:
        real = str(folder.resolve())
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            fields, _, rest = line.partition(" - ")
            point = fields.split()[4].replace("\\040", " ")
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, rest.split()[0]
    except (OSError, IndexError):
        return ""
    return kind


def engine_notice() -> str:
    """A sentence about this SQLite engine if it has the WAL-reset bug, else an empty text."""
    version = sqlite3.sqlite_version_info
    if version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45):
        return ""
    return (
        f"SQLite {sqlite3.sqlite_version} has the WAL-reset bug (sqlite.org/wal.html, 11.1); Mouso's guarded "
        "checkpoints contain it, an engine of 3.51.3 or newer removes it"
    )
