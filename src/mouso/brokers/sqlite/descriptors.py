"""Whether the file descriptors of a SQLite connection are still its own.

A program may close some that it did not open: ``os.closerange`` on the way to a daemon, a library that closes one
twice. The next files to be opened get their numbers, and SQLite locks, reads and writes those in place of its own: two
processes write at once, and the store is lost (https://www.sqlite.org/howtocorrupt.html, 1 and 2). So who uses a
connection asks before, which leaves the microseconds between the question and the end of a transaction.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Set
from contextlib import suppress
from typing import Literal

Held = tuple[tuple[int, tuple[int, ...]], ...]
"""Descriptors, each with the inode, the device and the number of names of its file."""

_HERE = "/proc/self/fd"
_NAMES = ("", "-wal", "-shm")
opening = threading.RLock()
"""For who opens a store, or looks into an index that it has not open: to close that drops the locks of its process."""


def leading_to(path: str) -> set[int]:
    """All of this process that lead to a store's file, its log or the log's index."""
    found: set[int] = set()
    for end in _NAMES:
        with suppress(OSError):
            file = os.stat(path + end)[1:4]
            found |= {number for number in _open() if _leads_to(number, file)}
    return found


def opened() -> set[int]:
    """All of this process, where the system tells."""
    with suppress(OSError):
        return {number for number in _open() if _path(number)}  # but for the one that lists them
    return set()


def has_deleted(path: str, before: Set[int]) -> bool:
    """Whether this process has opened a file of this name that has none any more."""
    return any(_path(number) == f"{path} (deleted)" for number in opened() - before)


def of_the_same_file(descriptor: int) -> set[int]:
    """All of this process that lead where this one does; at least this one."""
    try:
        return {number for number in _open() if _leads_to(number, os.fstat(descriptor)[1:4])}
    except OSError:
        return {descriptor}


def held(path: str, others: Set[int]) -> Held:
    """What this process holds of a store's file and log, but for what others hold, and of the log's index, which all
    connections of a process share. Empty where the system does not tell, and without what cannot be told apart.
    """
    found: list[tuple[int, tuple[int, ...]]] = []
    for end in _NAMES:
        with suppress(OSError):
            file = os.stat(path + end)[1:4]
            numbers = [n for n in _open() if _leads_to(n, file) and (end == "-shm" or n not in others)]
            if end == "-shm" or len(numbers) == 1:
                found += [(number, file) for number in numbers]
    return tuple(found)


def one(number: int) -> tuple[int, tuple[int, ...]]:
    """A descriptor of ours."""
    return number, os.fstat(number)[1:4]


def are_own(descriptors: Held) -> bool:
    """Whether all of them still lead to the files that they led to."""
    return all(_leads_to(number, file) for number, file in descriptors)


def is_any_deleted(descriptors: Held) -> bool:
    """Whether one of their files has no name any more."""
    return any(is_nameless(number) for number, _ in descriptors)


def is_nameless(descriptor: int) -> bool:
    """Whether its file was deleted."""
    try:
        return os.fstat(descriptor).st_nlink == 0
    except OSError:
        return False


def index_state(path: str) -> Literal["open", "deleted", "closed", "unknown"]:
    """What has become of the log's index, of which SQLite takes for granted that this process has it open.

    Returns:
        ``"deleted"``: what it has open has no name any more, so others use another one; ``"closed"``: another part of
        the process has closed it, or the process is a fork that has; ``"unknown"``: the system does not tell.
    """
    with suppress(OSError):
        numbers = _open()
        index = os.stat(path + "-shm")[1:4] if os.path.exists(path + "-shm") else None
        if index is not None and any(_leads_to(number, index) for number in numbers):
            return "open"
        if any(_path(number) == f"{path}-shm (deleted)" for number in numbers):
            return "deleted"
        return "unknown" if index is None else "closed"
    return "unknown"


def read_index(path: str, size: int) -> bytes:
    """The first bytes of the log's index, or none."""
    with suppress(OSError), opening:
        index = os.stat(path + "-shm")[1:4]
        for number in _open():
            if _leads_to(number, index):
                return os.pread(number, size, 0)
        with open(path + "-shm", "rb", buffering=0) as file:
            return file.read(size)
    return b""


def as_they_are(descriptors: Held) -> Held:
    """The same ones with the number of names that they have by now."""
    return tuple(one(number) for number, _ in descriptors)


def abandon(connection: sqlite3.Connection) -> None:
    """Never closes it: SQLite would close, and perhaps write, what has its numbers now.

    Python closes what nobody refers to, at its own end too, so one reference is left over.
    """
    import ctypes  # for once in the life of a process, if ever

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _open() -> list[int]:
    return [int(name) for name in os.listdir(_HERE)]


def _path(descriptor: int) -> str:
    try:
        return os.readlink(f"{_HERE}/{descriptor}")
    except OSError:
        return ""


def _leads_to(descriptor: int, file: tuple[int, ...]) -> bool:
    try:
        return os.fstat(descriptor)[1:3] == file[:2]
    except OSError:
        return False
