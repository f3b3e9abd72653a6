"""Shared memory in which a child notes what it is running, so that its supervisor knows even when it died.

One row per slot: the job (0 for none), its arrival, when it started and when it must have ended, in ns on the
system-wide monotonic clock (0 for no limit). A note costs 0.2 µs; a message per start would cost a system call and a
wake-up. What a row says of a job that has ended stays there, but for the job itself, until the slot runs another.

The first word is the supervisor's: what arrived up to there, the child starts no more. So a child that does not answer
can be relieved of what it has not started: it notes a start first and looks at the word then, the supervisor the other
way round, so one of them sees the other.

The second word is the instant up to which the worker's lease holds for the child, on the steady clock, in ms: so its
jobs stop in time also when the supervisor is stopped and can tell it nothing. If they do not, the child notes that in
the third word, and ends: its exit code alone proves nothing, as a job may end the process with any.

Behind the rows stands the thread of each slot, and behind that is room for stacks: the child's ``faulthandler`` writes
them there, from a signal handler that needs no interpreter, and the supervisor reads them.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
import zlib
from typing import NamedTuple

_HEAD = struct.Struct("<QQQ")
_WORD = struct.Struct("<Q")
_ROW = struct.Struct("<QQQQ")
_JOB = struct.Struct("<Q")
_THREAD = struct.Struct("<Q")
_MOST_STACKS = 4 << 20


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
        self._threads = _HEAD.size + slots * _ROW.size
        self._size = self._threads + slots * _THREAD.size
        self._memory = mmap.mmap(descriptor, self._size)

    @classmethod
    def create(cls, slots: int) -> Board:
        """Makes new memory of the right size."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("mouso-board", 0)
        else:
            import tempfile  # half a MiB that processes on Linux are spared

            descriptor, path = tempfile.mkstemp(prefix="mouso-board-")
            os.unlink(path)
        try:
            os.ftruncate(descriptor, _HEAD.size + slots * (_ROW.size + _THREAD.size))
            board = cls(descriptor, slots)
            board.clear_stacks()
            return board
        except BaseException:
            os.close(descriptor)
            raise

    def recall(self, arrival: int) -> None:
        """Forbids to start what arrived up to there."""
        self._memory[: _WORD.size] = _WORD.pack(arrival)

    @property
    def lease(self) -> int:
        """Up to when the worker's lease holds for the child; 0 if nobody has said."""
        return int(_WORD.unpack_from(self._memory, _WORD.size)[0])

    @lease.setter
    def lease(self, until: int) -> None:
        self._memory[_WORD.size : 2 * _WORD.size] = _WORD.pack(until)

    @property
    def fenced(self) -> bool:
        """Whether the child has ended itself because the lease had ended and its jobs had not."""
        return bool(_WORD.unpack_from(self._memory, 2 * _WORD.size)[0])

    def fence(self) -> None:
        """Notes that the child is about to end itself because the lease has ended and its jobs have not."""
        self._memory[2 * _WORD.size : _HEAD.size] = _WORD.pack(1)

    def start(self, slot: int, key: int | str, arrival: int, timeout: float | None) -> bool:
        """Notes that a job starts now in a slot; returns False if it may not be started any more.

        Args:
            arrival: The how manieth job it is of those that the child was given, from 1.
        """
        now = time.monotonic_ns()
        deadline = 0 if timeout is None else now + int(timeout * 1e9)
        job = key if type(key) is int else number(key)
        _ROW.pack_into(self._memory, _HEAD.size + slot * _ROW.size, job, arrival, now, deadline)
        return arrival > int(_WORD.unpack_from(self._memory)[0])

    def end(self, slot: int) -> None:
        """Notes that a slot runs nothing."""
        _JOB.pack_into(self._memory, _HEAD.size + slot * _ROW.size, 0)

    def read(self) -> list[Note]:
        """What runs now."""
        return [note for note in self._rows() if note.number]

    def arrivals(self) -> list[int]:
        """The arrivals of the last job of each slot, whether it runs or has ended."""
        return [note.arrival for note in self._rows() if note.arrival]

    def here(self, slot: int) -> None:
        """Notes that the jobs of a slot run on this thread, from now on."""
        _THREAD.pack_into(self._memory, self._threads + slot * _THREAD.size, threading.get_ident())

    def threads(self) -> dict[int, int]:
        """The thread of each job that runs now."""
        threads = _THREAD.iter_unpack(self._memory[self._threads : self._size])
        return {note.number: thread for note, (thread,) in zip(self._rows(), threads, strict=True) if note.number}

    def clear_stacks(self) -> None:
        """Makes room for stacks. The place to write to is the descriptor's, which both processes share."""
        os.ftruncate(self.descriptor, self._size)
        os.lseek(self.descriptor, self._size, os.SEEK_SET)

    def stacks(self) -> str:
        """The stacks that were written since, at most 4 MiB."""
        return os.pread(self.descriptor, _MOST_STACKS, self._size).decode("utf-8", "replace")

    def _rows(self) -> list[Note]:
        return [Note(*row) for row in _ROW.iter_unpack(self._memory[_HEAD.size : _HEAD.size + self.slots * _ROW.size])]

    def close(self) -> None:
        """Lets go of the memory."""
        self._memory.close()
        os.close(self.descriptor)
        self.descriptor = -1  # the number may soon be another file's
