"""The only source of time, and the units of it.

Instants are ``int`` milliseconds since the epoch, UTC. Durations are ``float`` seconds, and also
``timedelta`` or text such as ``"10m"`` where a person writes them. Aware ``datetime`` exists only at
the API's edge; this module converts.
"""

from __future__ import annotations

import math
import re
import time
from datetime import UTC, datetime, timedelta

from mouso.errors import shown

Duration = float | int | str | timedelta
MAX_SECONDS = 100 * 366 * 86_400.0
"""The longest duration that is accepted: about a hundred years."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w))+", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII)
_EXAMPLES = 'write seconds or "90s", "10m", "1h30m", "2d"'
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)


class Clock:
    """Real time. Tests hand in a subclass whose time they move themselves."""

    def now(self) -> int:
        """Wall clock, ms since the epoch, UTC. It may jump."""
        return time.time_ns() // 1_000_000

    def steady(self) -> int:
        """Milliseconds that never jump and count suspended time, equal in all processes of this boot."""
        return time.clock_gettime_ns(_STEADY) // 1_000_000

    monotonic = staticmethod(time.monotonic)
    """Seconds for measuring durations inside this host."""


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END = 9_223_372_036
_MS = timedelta(milliseconds=1)
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

SYSTEM = Clock()


def seconds(value: Duration, name: str = "duration") -> float:
    """Reads a duration.

    Args:
        value: Seconds, a timedelta, or text made of ``ms s m h d w`` such as ``"1h30m"``.
        name: What to call it in the error.

    Returns:
        Seconds, finite and not negative; negative input counts as 0.

    Raises:
        ValueError: It is no duration, not finite, or longer than a hundred years.
    """
    if isinstance(value, timedelta):
        number: float = value.total_seconds()
    elif isinstance(value, str):
        number = _read(value, name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number = value
    else:
        raise ValueError(f"{name} must be seconds, a timedelta or text such as '10m', not {type(value).__name__}")
    if number != number or number == -math.inf:
        raise ValueError(f"{name}={shown(value)} is no duration; {_EXAMPLES}")
    if number > MAX_SECONDS:
        raise ValueError(f"{name}={shown(value)} is longer than a hundred years")
    return float(number) if number > 0 else 0.0


def _read(value: str, name: str) -> float:
    text = value.strip().lower()
    if _DURATION.fullmatch(text):
        return sum(float(n) * _UNITS[unit] for n, unit in _PART.findall(text))
    if _NUMBER.fullmatch(text):
        return float(text)
    raise ValueError(f"{name}={shown(value)} is no duration; {_EXAMPLES}")


def millis(value: Duration, name: str = "duration") -> int:
    """Reads a duration as whole milliseconds, rounded up so that a wait is never cut short."""
    return math.ceil(round(seconds(value, name) * 1000, 6))  # 2.007 * 1000 is a little more than 2007


def instant(value: datetime | int | float, name: str = "eta") -> int:
    """Converts an aware datetime (or a Unix timestamp in seconds) to ms since the epoch.

    Raises:
        ValueError: It is naive, its time zone fails, or it lies outside the years 1970..2262.
    """
    if isinstance(value, datetime):
        try:
            aware = value.utcoffset() is not None
            ms = (value - _EPOCH) // _MS if aware else 0
        except Exception as error:  # what a tzinfo of somebody else's raises
            raise ValueError(
                f"{name}={shown(value)} has a time zone that raises {shown(error)}; use another"
            ) from error
        if not aware:
            raise ValueError(f"{name}={value.isoformat()} has no time zone; use datetime.now(timezone.utc) + …")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        ms = int(round(value * 1000, 3)) if 0 <= value < _END else -1
    else:
        raise ValueError(
            f"{name} must be an aware datetime, not {type(value).__name__}; use datetime.now(timezone.utc) + …"
        )
    if not 0 <= ms < _END * 1000:
        raise ValueError(f"{name}={shown(value)} lies outside the years 1970 to 2262")
    return ms


def moment(ms: int) -> datetime:
    """Converts ms since the epoch to an aware datetime in UTC: the first or the last there is if it lies beyond."""
    try:
        return _EPOCH + ms * _MS
    except OverflowError:  # a row that another program wrote
        return (datetime.max if ms > 0 else datetime.min).replace(tzinfo=UTC)
