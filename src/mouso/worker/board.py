"""Shared memory in which a child notes what it is running, so that its supervisor knows even when it died.

One row per slot: the job (0 for none), when it started and when it must have ended, in ns on the system-wide monotonic
clock (0 for no limit). A note costs 0.2 µs; a message per start would cost a system call and a wake-up.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
import zlib
from typing import NamedTuple

_ROW = struct.Struct("<QQQ")
_JOB = struct.Struct("<Q")


class Note(NamedTuple):
    """A row: ``number(key)`` of the job, start and deadline."""

    number: int
    started: int
    deadline: int


def number(key: int | str) -> int:
    """A lease's key as it stands on the board."""
    return key if isinstance(key, int) else zlib.crc32(key.encode()) | 1 << 32


class Board:
    """The rows of one child.

    Args:
        descriptor: The memory's file descriptor, from ``create``.
        slots: How many rows.
    """

    def __init__(self, descriptor: int, slots: int) -> None:
        self.descriptor = descriptor
        self.slots = slots
        self._memory = mmap.mmap(descriptor, slots * _ROW.size)

    @classmethod
    def create(cls, slots: int) -> Board:
        """Makes new memory of the right size."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("mouso-board", 0)
        else:
            descriptor, path = tempfile.mkstemp(prefix="mouso-board-")
            os.unlink(path)
        os.ftruncate(descriptor, slots * _ROW.size)
        return cls(descriptor, slots)

    def start(self, slot: int, key: int | str, timeout: float | None) -> None:
        """Notes that a job starts now in a slot."""
        now = time.monotonic_ns()
        deadline = 0 if timeout is None else now + int(timeout * 1e9)
        _ROW.pack_into(self._memory, slot * _ROW.size, number(key), now, deadline)

    def end(self, slot: int) -> None:
        """Notes that a slot runs nothing."""
        _JOB.pack_into(self._memory, slot * _ROW.size, 0)

    def read(self) -> list[Note]:
        """What runs now."""
        return [Note(*row) for row in _ROW.iter_unpack(self._memory[: self.slots * _ROW.size]) if row[0]]

    def close(self) -> None:
        """Lets go of the memory."""
        self._memory.close()
        os.close(self.descriptor)
