"""Shared memory in which a child notes what it is running, so that its supervisor knows even when it died.

One row per slot: the job (0 for none), its arrival, when it started and when it must have ended, in ns on the
system-wide monotonic clock (0 for no limit). A note costs 0.2 µs; a message per start would cost a system call and a
wake-up. What a row says of a job that has ended stays there, but for the job itself, until the slot runs another.

The first word is the supervisor's: while it is set, the child starts nothing. So a child that does not answer can be
relieved of what it has not started: it notes a start first and looks at the word then, the supervisor the other way
round, so one of them sees the other.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
import zlib
from typing import NamedTuple

_HEAD = struct.Struct("<Q")
_ROW = struct.Struct("<QQQQ")
_JOB = struct.Struct("<Q")


class Note(NamedTuple):
    """A row: ``number(key)`` of the job, its arrival, start and deadline."""

    number: int
    arrival: int
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
        self._memory = mmap.mmap(descriptor, _HEAD.size + slots * _ROW.size)

    @classmethod
    def create(cls, slots: int) -> Board:
        """Makes new memory of the right size."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("mouso-board", 0)
        else:
            descriptor, path = tempfile.mkstemp(prefix="mouso-board-")
            os.unlink(path)
        try:
            os.ftruncate(descriptor, _HEAD.size + slots * _ROW.size)
            return cls(descriptor, slots)
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def recalled(self) -> bool:
        """Whether nothing may be started."""
        return self._memory[0] != 0

    @recalled.setter
    def recalled(self, value: bool) -> None:
        self._memory[0] = int(value)

    def start(self, slot: int, key: int | str, arrival: int, timeout: float | None) -> None:
        """Notes that a job starts now in a slot.

        Args:
            arrival: The how manieth job it is of those that the child was given, from 1.
        """
        now = time.monotonic_ns()
        deadline = 0 if timeout is None else now + int(timeout * 1e9)
        _ROW.pack_into(self._memory, _HEAD.size + slot * _ROW.size, number(key), arrival, now, deadline)

    def end(self, slot: int) -> None:
        """Notes that a slot runs nothing."""
        _JOB.pack_into(self._memory, _HEAD.size + slot * _ROW.size, 0)

    def read(self) -> list[Note]:
        """What runs now."""
        return [note for note in self._rows() if note.number]

    def arrivals(self) -> list[int]:
        """The arrivals of the last job of each slot, whether it runs or has ended."""
        return [note.arrival for note in self._rows() if note.arrival]

    def _rows(self) -> list[Note]:
        return [Note(*row) for row in _ROW.iter_unpack(self._memory[_HEAD.size : _HEAD.size + self.slots * _ROW.size])]

    def close(self) -> None:
        """Lets go of the memory."""
        self._memory.close()
        os.close(self.descriptor)
