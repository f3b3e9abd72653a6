"""Shared memory in which jobs of every process and thread count themselves, without asking any broker.

Memory is a file of 64-bit integers: the number of slots taken, then per slot the jobs done, the first and the last
instant (ns, CLOCK_MONOTONIC, the same in all processes), then one instant per numbered job. Only the standard library
is needed, so that the peers' environments can import this too.
"""

import fcntl
import mmap
import os
import threading
from pathlib import Path
from time import monotonic_ns
from typing import NamedTuple

VARIABLE = "BENCH_SLOTS"
"""The environment variable that names the file."""

_SLOTS = 8192
_WIDTH = 8  # a cache line each, so that processes do not slow each other down
_STAMPS = 4096
_STAMPS_AT = (1 + _SLOTS) * _WIDTH
_SIZE = (_STAMPS_AT + _STAMPS) * 8


class Count(NamedTuple):
    """Jobs done, and when the first and the last of them were, in ns; 0 for never."""

    jobs: int
    first: int
    last: int


class Slots:
    """The memory in one file, which is made if it is not there."""

    def __init__(self, path: Path | str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if os.fstat(self._descriptor).st_size < _SIZE:
            os.ftruncate(self._descriptor, _SIZE)
        self._cells = memoryview(mmap.mmap(self._descriptor, _SIZE)).cast("q")
        self._own = threading.local()

    def _slot(self) -> int:
        """Where this thread counts."""
        try:
            return self._own.slot  # type: ignore[no-any-return]  # why: a thread-local's attribute has no type
        except AttributeError:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            self._cells[0] += 1
            taken = self._cells[0]
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            if taken > _SLOTS:
                raise RuntimeError(f"more than {_SLOTS} threads run jobs") from None
            self._own.slot = taken * _WIDTH
            return taken * _WIDTH

    def begin(self) -> None:
        """Notes the instant if it is this thread's first; for jobs that take time."""
        slot = self._slot()
        if not self._cells[slot + 1]:
            self._cells[slot + 1] = monotonic_ns()

    def done(self) -> None:
        """Counts one job."""
        now = monotonic_ns()
        slot = self._slot()
        cells = self._cells
        if not cells[slot + 1]:
            cells[slot + 1] = now
        cells[slot] += 1
        cells[slot + 2] = now

    def stamp(self, number: int) -> None:
        """Notes the instant of a numbered job, 0..4095."""
        self._cells[_STAMPS_AT + number] = monotonic_ns()

    def stamped(self, number: int) -> int:
        """When a numbered job was, in ns; 0 if it was not."""
        return self._cells[_STAMPS_AT + number]

    def count(self) -> Count:
        """All threads together."""
        cells = self._cells
        slots = range(_WIDTH, (1 + cells[0]) * _WIDTH, _WIDTH)
        firsts = [cells[slot + 1] for slot in slots if cells[slot + 1]]
        return Count(
            sum(cells[slot] for slot in slots),
            min(firsts, default=0),
            max((cells[slot + 2] for slot in slots), default=0),
        )


def inherited() -> Slots:
    """The memory that whoever started this process named."""
    return Slots(os.environ[VARIABLE])
