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
_HEADER = 32
_LOG_SALTS = slice(16, 24)
_INDEX = struct.Struct("=16xI12x8s56xI")
"""Where they stand: sqlite.org/fileformat2.html (4.1) and sqlite.org/walformat.html (2.1)."""
_CHUNK = 1 << 20

log = logging.getLogger("mouso.brokers.sqlite")


class _Index(NamedTuple):
    """Of how many frames of which log it knows, and how many of these were moved into the file."""

    frames: int
    salts: bytes
    moved: int


Found = Literal["back", "own", "none", "unknown"]


class _Lost(NamedTuple):
    """A log without a name: where it can be opened, its inode and device, and when it was written to last."""

    place: str
    file: tuple[int, ...]
    written: int


def is_missing(store: str) -> bool:
    """Whether there is no log, or one in which nothing is yet."""
    try:
        return not os.stat(store + "-wal").st_size
    except OSError:
        return True


def bring_back(store: str, own: tuple[int, ...] | None = None) -> Found:
    """Puts a copy of a lost log in its place. The lost one is emptied, so that nobody takes it for one that is in use.

    If nobody has the log that the index is about, the index is deleted, and all begin a new log. Only for who has
    passed the gate.

    Args:
        store: The file's path.
        own: Inode and device of a log that the caller can save by itself.

    Returns:
        ``"own"``: that is the lost one; ``"none"``: nobody has one; ``"unknown"``: somebody may have one who cannot be
        asked now.

    Raises:
        OSError: The copy cannot be made now.
    """
    found, all_asked = _find(store)
    if (not all_asked and not found) or locks.holders(store + "-shm", locks.WRITER):
        return "unknown"  # or somebody writes who has not passed the gate
    if not found:
        _give_up(store)
        return "none"
    newest = max(found, key=lambda lost: lost.written)
    if newest.file == own:
        return "own"
    with open(newest.place, "rb+", buffering=0) as lost:
        _put_in_place(lost.fileno(), store + "-wal")
        os.ftruncate(lost.fileno(), 0)
    return "back"


def is_held(store: str) -> bool:
    """Whether the log is missing because somebody has a lost one."""
    return is_missing(store) and bool(_find(store)[0])


def _give_up(store: str) -> None:
    index = _index(store)
    if index is None or not is_missing(store):  # in this order: what it knows of was there before
        return
    os.unlink(store + "-shm")
    if index.moved < index.frames:
        log.critical("%s-wal was deleted, and then all programs that used it were killed: what it held is lost", store)


def _put_in_place(lost: int, place: str) -> None:
    was, made, at = os.fstat(lost), f"{place}-{os.getpid()}", 0
    copy = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with suppress(PermissionError):  # only root can
            os.fchown(copy, was.st_uid, was.st_gid)
        os.fchmod(copy, was.st_mode & 0o777)
        while chunk := os.pread(lost, _CHUNK, at):
            at += os.write(copy, chunk)
        os.fsync(copy)
        os.rename(made, place)
    except BaseException:
        os.unlink(made)
        raise
    finally:
        os.close(copy)
    folder = os.open(os.path.dirname(place), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _find(store: str) -> tuple[list[_Lost], bool]:
    """The lost logs of a store, and whether all processes that may have one could be asked.

    A process may have another file open that had the store's name before: a log is the store's if the index says so, or
    if its process has no other SQLite file open.
    """
    found: list[_Lost] = []
    all_asked, index = locks.sees_all(), _index(store)
    # A process that has read a file by itself has no lock on it any more.
    users = locks.holders(store, locks.USERS) | locks.holders(store + "-shm", locks.WHOLE)
    for pid in {*users, os.getpid()}:
        try:
            for lost, its_salts in _lost_by(pid, store + "-wal"):
                if (index is not None and its_salts == index.salts) or locks.only_user_of(store, pid):
                    found.append(lost)
                else:
                    all_asked = False
        except ProcessLookupError:
            pass
        except OSError:
            all_asked = False
    return found, all_asked


def _lost_by(pid: int, name: str) -> Iterator[tuple[_Lost, bytes]]:
    folder, end = f"/proc/{pid}/fd", f"/{os.path.basename(name)} (deleted)"  # it may see another root
    try:
        numbers = os.listdir(folder)
    except FileNotFoundError:
        return  # it has ended
    for number in numbers:
        place = f"{folder}/{number}"
        with suppress(FileNotFoundError):
            if os.readlink(place).endswith(end):
                file = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    header, status = os.pread(file, _HEADER, 0), os.fstat(file)
                finally:
                    os.close(file)
                if header[: len(_MAGIC[0])] in _MAGIC:
                    yield _Lost(place, tuple(status[1:3]), status.st_mtime_ns), header[_LOG_SALTS]


def _index(store: str) -> _Index | None:
    """What the index says of its log, unless that holds nothing."""
    head = descriptors.read_index(store, _INDEX.size)
    found = _Index._make(_INDEX.unpack(head)) if len(head) == _INDEX.size else None
    return found if found is not None and found.frames else None
