"""Time that a machine took from the tests: it stood still, its disk did, or it had no CPU for this process.

A thread wakes every 20 ms and writes to a file's disk now and then. What comes later than that by more than a little is
a stall. Limits in seconds are for the program under test, so `elapsed` leaves stalls out.
"""

import os
import tempfile
import threading
import time

_TICK = 0.02
_TOLERATED = 0.1
"""Seconds that a tick may be late by the ways of a busy scheduler."""
_DISK = 25
"""Ticks between two writes to the disk."""


class Stalls(threading.Thread):
    """Finds them from its start on."""

    def __init__(self) -> None:
        super().__init__(name="stalls", daemon=True)
        self._found: list[tuple[float, float]] = []
        self._last = time.monotonic()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # why: it is open as long as the process lives

    def run(self) -> None:
        for number in range(1 << 62):
            time.sleep(_TICK)
            if number % _DISK == 0:
                os.pwrite(self._file.fileno(), b"%d" % number, 0)
                os.fdatasync(self._file.fileno())
            self._tick()

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._last > _TICK + _TOLERATED:
            self._found.append((self._last + _TICK, now))
        self._last = now  # after the other: who looks in between finds this stall in both, and counts it once

    def close(self) -> None:
        """Closes its file; the thread has not been started."""
        self._file.close()

    def between(self, since: float, until: float) -> float:
        last, now = self._last, time.monotonic()
        found = list(self._found)
        if now - last > _TICK + _TOLERATED and (not found or found[-1][0] < last):
            found.append((last + _TICK, now))  # the thread is about to find it
        return sum(max(0.0, min(end, until) - max(start, since)) for start, end in found)


_stalls: Stalls | None = None


def watch() -> None:
    """Begins to look for stalls, for the rest of this process."""
    global _stalls
    _stalls = Stalls()
    _stalls.start()
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    global _stalls
    _stalls = None  # a fork has no such thread


def stalled(since: float, until: float) -> float:
    """Seconds of stalls between two instants of the monotonic clock."""
    return _stalls.between(since, until) if _stalls is not None else 0.0


def elapsed(since: float, until: float | None = None) -> float:
    """Seconds since an instant of the monotonic clock (until another one), without those of stalls."""
    until = time.monotonic() if until is None else until
    return until - since - stalled(since, until)
