"""What SQLite's errors mean: the error of ours to raise, with the path, the cause, and what to do about it.

**Which commits are undone.** A log is committed by its last frame, and nothing is written after that frame
(sqlite.org/fileformat2.html, 4; sqlite.org/psow.html). So when a write fails, for want of room or above a limit, the
frame is not whole: no reader and no recovery after a crash will ever see the transaction, and it is rolled back
(sqlite.org/lang_transaction.html, 3). When the sync that follows fails, or the index of the log cannot grow, the
frame is whole, and a crash may bring the transaction back: only then is the outcome unknown.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from mouso.errors import BrokerError, BrokerUnavailable, ConfigError, OutcomeUnknown

FAILURES = (sqlite3.Error, MemoryError)
"""What a statement may raise; the second is how Python tells of SQLITE_NOMEM."""
_UNDONE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR_WRITE)
_NO_STORE = ("unsupported file format", "no such table", "no such column")
_SCARCE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
_LEAST_BYTES = 64 << 10
"""Below this a disk is full: the index of the log grows by 32 KiB at a time."""
_DESCRIPTORS = 7
"""What opening a store takes: the file thrice, its log twice, the log's index, and the folder for a moment."""


def translate(error: sqlite3.Error | MemoryError, path: str) -> BrokerError | ConfigError:
    """An error of SQLite's in Mouso's words; what it interrupted was not stored."""
    if isinstance(error, MemoryError):
        return BrokerUnavailable(
            f"{path}: this process has no memory left; nothing was stored, free some and try again"
        )
    error = _first(error)
    kind = _code(error) & 0xFF
    if kind in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT) or str(error).startswith(_NO_STORE):
        return ConfigError(f"{path} is no intact SQLite database ({error}); restore it or choose another file")
    if _code(error) == sqlite3.SQLITE_BUSY_SNAPSHOT:
        return BrokerUnavailable(
            f"{path}: the transaction has read what others have changed since, and can write no more; nothing was"
            " stored, roll it back and begin anew, with BEGIN IMMEDIATE"
        )
    if is_busy(error):
        return BrokerUnavailable(f"{path} is locked by another transaction; nothing was stored, try again")
    if kind in _SCARCE and (scarce := _shortage(path) or _full(kind)):
        return BrokerUnavailable(f"{path}: {scarce}")
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        if is_mounted_read_only(path):
            return ConfigError(read_only(path))
        return ConfigError(f"{path} cannot be opened for writing ({error}); check the permissions of file and folder")
    if kind == sqlite3.SQLITE_IOERR:
        return BrokerUnavailable(
            f"{path}: {error}; nothing was stored, check the disk, its quota, and that no program still uses an older"
            " file of this name"
        )
    return BrokerUnavailable(f"{path}: {error}; nothing was stored, try again")


def cannot_open(error: OSError, path: str) -> BrokerUnavailable:
    """The system does not let us open the file."""
    return BrokerUnavailable(f"{path}: {_shortage(path) or f'{error.strerror}; nothing was stored, try again'}")


def cannot_bring_back(error: OSError, path: str) -> BrokerUnavailable:
    """A log that somebody has deleted cannot be put in its place again."""
    why = _shortage(path) or f"{error.strerror}; nothing was stored, try again"
    return BrokerUnavailable(f"{path}-wal was deleted while it was in use, and cannot be put back: {why}")


def commit_failed(error: sqlite3.Error | MemoryError, path: str) -> BrokerError | ConfigError:
    """What a failed COMMIT, which the caller has rolled back, means."""
    if _code(error) in _UNDONE or is_busy(error):
        return translate(error, path)
    return OutcomeUnknown(
        f"{path}: the commit failed ({error}) and may be stored or not; check the disk, and repeat the call with the"
        " same id"
    )


def is_busy(error: sqlite3.Error | MemoryError) -> bool:
    """Whether somebody else holds a lock."""
    return _code(error) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


def is_mounted_read_only(path: str) -> bool:
    """Whether nobody can write there, whatever the permissions say."""
    with suppress(OSError, AttributeError):
        return bool(os.statvfs(Path(path).parent).f_flag & os.ST_RDONLY)
    return False


def read_only(path: str) -> str:
    """What to do about it."""
    return f"{path} lies on a file system that is mounted read-only; remount it for writing or choose another file"


def _code(error: sqlite3.Error | MemoryError) -> int:
    return getattr(error, "sqlite_errorcode", 0)


def _first(error: sqlite3.Error) -> sqlite3.Error:
    """The error that ended the transaction, if this one only says that a savepoint is gone with it."""
    cause = error.__context__
    return cause if "no such savepoint" in str(error) and isinstance(cause, sqlite3.Error) else error


def _full(kind: int) -> str:
    if kind != sqlite3.SQLITE_FULL:
        return ""
    return "no space is left on its disk; nothing was stored, free some and try again"


def _shortage(path: str) -> str:
    """What this process or the disk has run out of and what to do, or an empty text: SQLite's codes do not tell."""
    if not _has_descriptors():
        return "this process has no file descriptor left; nothing was stored, close some or raise the limit (ulimit -n)"
    if limit := _size_limit(path):
        return (
            f"it or its log has reached the file size limit of {limit:,} bytes (ulimit -f); nothing was stored, raise"
            " the limit and try again"
        )
    with suppress(OSError, AttributeError):
        disk = os.statvfs(Path(path).parent)
        if disk.f_bavail * disk.f_frsize < _LEAST_BYTES:
            return _full(sqlite3.SQLITE_FULL)
        if disk.f_files and not disk.f_favail:
            return "no inodes are left on its disk; nothing was stored, delete some files and try again"
    return ""


def _has_descriptors() -> bool:
    held = []
    try:
        for _ in range(_DESCRIPTORS):
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return False
    finally:
        for descriptor in held:
            os.close(descriptor)
    return True


def _size_limit(path: str) -> int:
    """The limit in bytes that keeps the store from growing, 0 if none does."""
    try:
        import resource
    except ImportError:
        return 0
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return 0
    sizes = []
    for end in ("", "-wal", "-shm"):
        with suppress(OSError):
            sizes.append(os.path.getsize(path + end))
    return limit if max(sizes, default=0) + _LEAST_BYTES > limit else 0
