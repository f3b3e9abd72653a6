"""A clock that stands still until a test moves it."""

from __future__ import annotations

from mouso.clock import Clock


class FakeClock(Clock):
    """Time that only a test moves.

    Args:
        now: Where the wall clock stands at first, ms since the epoch.
    """

    def __init__(self, now: int = 1_750_000_000_000) -> None:
        self._now = now
        self._steady = 1_000_000

    def now(self) -> int:
        return self._now

    def steady(self) -> int:
        return self._steady

    def monotonic(self) -> float:
        return self._steady / 1000

    def advance(self, seconds: float) -> None:
        """Lets time pass: every clock goes forward."""
        if seconds < 0:
            raise ValueError(f"time does not run backwards ({seconds} s); use jump() to set the wall clock")
        self._steady += round(seconds * 1000)
        self._now += round(seconds * 1000)

    def jump(self, seconds: float) -> None:
        """Sets the wall clock forward or back, as an operator or NTP does; no time passes."""
        self._now += round(seconds * 1000)
