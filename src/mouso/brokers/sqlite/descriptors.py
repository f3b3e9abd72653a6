"""Whether the file descriptors of a SQLite connection are still its own.

A program may close some that it did not open: ``os.closerange`` on the way to a daemon, a library that closes one
twice. The next files to be opened get their numbers, and SQLite locks, reads and writes those in place of its own: two
processes write at once, and the store is lost (https://www.sqlite.org/howtocorrupt.html, 1 and 2). So who uses a
connection asks before, which leaves the microseconds between the question and the end of a transaction.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress

Held = tuple[tuple[int, tuple[int, ...]], ...]
"""Descriptors, each with the inode and device of its file."""

_HERE = "/proc/self/fd"


def held(path: str, but: Held = ()) -> Held:
    """What this process holds of a store's file and log, but for what others hold, and of the log's index, which all
    connections of a process share. Empty where the system does not tell, and without what cannot be told apart.
    """
    others = {descriptor for descriptor, _ in but}
    found: list[tuple[int, tuple[int, ...]]] = []
    for end in ("", "-wal", "-shm"):
        with suppress(OSError):
            identity = os.stat(path + end)[1:3]
            numbers = [n for n in _open() if _leads_to(n, identity) and (end == "-shm" or n not in others)]
            if end == "-shm" or len(numbers) == 1:
                found += [(number, identity) for number in numbers]
    return tuple(found)


def are_own(descriptors: Held) -> bool:
    """Whether all of them still lead to the files that they led to."""
    return all(_leads_to(number, identity) for number, identity in descriptors)


def lacks_index(path: str) -> bool:
    """Whether this process has opened the log's index and closed it, as a fork may that becomes a daemon: SQLite, which
    takes it for open, would take its locks on whatever has the number now. False where the system does not tell.
    """
    try:
        identity = os.stat(path + "-shm")[1:3]
        return not any(_leads_to(number, identity) for number in _open())
    except OSError:
        return False


def abandon(connection: sqlite3.Connection) -> None:
    """Never closes it: SQLite would close, and perhaps write, what has its numbers now.

    Python closes what nobody refers to, at its own end too, so one reference is left over.
    """
    import ctypes  # for once in the life of a process, if ever

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _open() -> list[int]:
    return [int(name) for name in os.listdir(_HERE)]


def _leads_to(descriptor: int, identity: tuple[int, ...]) -> bool:
    try:
        return os.fstat(descriptor)[1:3] == identity
    except OSError:
        return False
