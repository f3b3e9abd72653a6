"""A log that was deleted while other processes use it, and how it comes back.

What a log holds that was not moved into the file yet is lost with the last process that has it open. Who has it open
itself can move it, but who has an older one, or none, cannot, and the one that could may not be about to write for
hours: so it is copied from there, which Linux permits to who may trace that process, and to its owner.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Literal, NamedTuple

from mouso.brokers.sqlite import descriptors, locks

_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
_MARK = bytes(4)
_SALTS, _SALTS_AT = 8, 16
_INDEX = struct.Struct("=16xI12x8s56xI")
"""Where they stand: sqlite.org/fileformat2.html (4.1) and sqlite.org/walformat.html (2.1)."""
_CHUNK = 1 << 20

Found = Literal["back", "own", "none", "unknown"]

log = logging.getLogger("mouso.brokers.sqlite")


class _Index(NamedTuple):
    """Of how many frames of which log it knows, and how many of these were moved into the file."""

    frames: int
    salts: bytes
    moved: int


class _Lost(NamedTuple):
    """A log without a name: where it can be opened, its inode and device, when it was written to last, its salts."""

    place: str
    file: tuple[int, ...]
    written: int
    salts: bytes


def is_suspected(store: str) -> bool:
    """Whether somebody may have a lost log: there is none in place, and either the index knows of one, or somebody uses
    the file without that index. While a store is opened this may be so for a moment, without any harm.
    """
    if not _is_missing(store):
        return False
    if _index(store) is not None:
        return True
    users, index_users = locks.holders(store, locks.USERS), locks.holders(store + "-shm", locks.WHOLE)
    return not users <= index_users


def is_awaited(store: str) -> bool:
    """Whether the log in place cannot be the one: the index knows another, or somebody has a lost one."""
    return is_suspected(store) and (_index(store) is not None or bool(_find(store)[0]))


def bring_back(store: str, own: tuple[int, ...] | None = None) -> Found:
    """Puts a copy of a lost log in its place. The lost one is marked, so that nobody takes it for one that is in use.

    If nobody has the log that the index is about, the index is deleted, and all begin a new log. Only for who has
    passed the gate.

    Args:
        store: The file's path.
        own: Inode and device of a log that the caller can save by itself.

    Returns:
        ``"back"``: it is in its place; ``"own"``: that is the lost one; ``"none"``: nobody has one; ``"unknown"``:
        somebody may have one, which cannot be told, or not be copied, now.

    Raises:
        OSError: The copy cannot be made now.
    """
    found, all_asked = _find(store)
    if not found:
        if all_asked:
            _give_up(store)
        return "none" if all_asked else "unknown"
    newest = max(found, key=lambda lost: lost.written)
    if newest.file == own:
        return "own"
    index = _index(store)
    known = index is not None and index.salts == newest.salts
    if not known and (locks.holders(store + "-shm", locks.WHOLE) or descriptors.index_state(store) == "open"):
        return "unknown"  # who uses another index would write over it; who has it can move it
    with open(newest.place, "rb+", buffering=0) as lost:
        return "back" if _put_in_place(lost.fileno(), store) else "unknown"


def is_of_use(descriptor: int) -> bool:
    """Whether something may be in a log: nothing is in one that was moved into the file, or copied."""
    return os.pread(descriptor, len(_MARK), 0) in _MAGIC


def _is_missing(store: str) -> bool:
    """Whether there is no log, or one in which nothing is yet."""
    try:
        return not os.stat(store + "-wal").st_size
    except OSError:
        return True


def _give_up(store: str) -> None:
    before, missing, after = _index(store), _is_missing(store), _index(store)
    if before is None or not missing or before != after:
        return
    os.unlink(store + "-shm")
    if before.moved < before.frames:
        log.critical("%s-wal was deleted, and then all programs that used it were killed: what it held is lost", store)


def _put_in_place(lost: int, store: str) -> bool:
    """Whether nobody wrote meanwhile, as a connection does that passes no gate."""
    was, made = os.fstat(lost), f"{store}-wal-copy"
    with suppress(FileNotFoundError):
        os.unlink(made)  # of one who was killed
    try:
        _copy(lost, was, made)
        now = os.fstat(lost)
        same = (now.st_size, now.st_mtime_ns) == (was.st_size, was.st_mtime_ns)
        if not same or locks.holders(f"{store}-shm", locks.WRITER):
            return False
        os.rename(made, f"{store}-wal")
        os.pwrite(lost, _MARK, 0)  # its readers need the frames, not this
    finally:
        with suppress(FileNotFoundError):
            os.unlink(made)
    folder = os.open(os.path.dirname(store), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True


def _copy(lost: int, was: os.stat_result, made: str) -> None:
    """Durably, with owner, group and rights as far as this process may give them."""
    copy, at = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), 0
    try:
        for owner in ((was.st_uid, -1), (-1, was.st_gid)):
            with suppress(PermissionError):
                os.fchown(copy, *owner)
        os.fchmod(copy, was.st_mode & 0o777)
        while chunk := os.pread(lost, _CHUNK, at):
            at += os.write(copy, chunk)
        os.fsync(copy)
    finally:
        os.close(copy)


def _find(store: str) -> tuple[list[_Lost], bool]:
    """The lost logs of a store, and whether all processes that may have one could be asked.

    A process may have another file open that had the store's name before: a log is the store's if the index says so, or
    if there is no index to say so, and its process has no other SQLite file open.
    """
    users = locks.holders(store, locks.USERS) | locks.holders(store + "-shm", locks.WHOLE)
    found, all_asked = _ask({*users, os.getpid()}, store)
    if not found and all_asked and _index(store) is not None:  # it may be one that has read a file by itself,
        found, _ = _ask({int(name) for name in os.listdir("/proc") if name.isdecimal()}, store)  # and so has no lock
    return found, all_asked and locks.sees_all()


def _ask(pids: set[int], store: str) -> tuple[list[_Lost], bool]:
    """The store's lost logs that these processes have, and whether all that may have one could be asked."""
    found: list[_Lost] = []
    all_asked, index = True, _index(store)
    for pid in pids:
        try:
            for lost in _lost_by(pid, store):
                if index.salts == lost.salts if index is not None else locks.only_user_of(store, pid):
                    found.append(lost)
                else:
                    all_asked = False
        except ProcessLookupError:
            pass
        except OSError:
            all_asked = False
    return found, all_asked


def _lost_by(pid: int, store: str) -> Iterator[_Lost]:
    """Raises ProcessLookupError if it has ended, another OSError if it cannot be asked."""
    folder, end = f"/proc/{pid}/fd", f"/{os.path.basename(store)}-wal (deleted)"  # it may see another root
    device = os.stat(store).st_dev
    try:
        numbers = os.listdir(folder)
    except FileNotFoundError:
        os.kill(pid, 0)  # or it is hidden
        raise
    for number in numbers:
        place = f"{folder}/{number}"
        with suppress(FileNotFoundError):
            if os.readlink(place).endswith(end):
                file = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    status = os.fstat(file)
                    if status.st_dev == device and is_of_use(file):
                        salts = os.pread(file, _SALTS, _SALTS_AT)
                        yield _Lost(place, tuple(status[1:3]), status.st_mtime_ns, salts)
                finally:
                    os.close(file)


def _index(store: str) -> _Index | None:
    """What the index says of its log, unless that holds nothing."""
    head = descriptors.read_index(store, _INDEX.size)
    found = _Index._make(_INDEX.unpack(head)) if len(head) == _INDEX.size else None
    return found if found is not None and found.frames else None
