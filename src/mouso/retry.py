"""Retry policies: pure functions from a failure to what happens next."""

from __future__ import annotations

import inspect
import logging
import random
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from mouso.clock import Duration, seconds
from mouso.errors import OptionError, Retry, shown

BackoffFunction = Callable[[BaseException, int], float | None]
"""``(exception, failed attempts) -> seconds``, or None for no further attempt."""

MAX_DELAY = 366 * 86_400.0

_log = logging.getLogger("mouso.retry")


class Backoff(msgspec.Struct, frozen=True):
    """``min(cap, base * factor ** (attempt - 1))`` seconds, of which the share ``jitter`` is random.

    With ``jitter=1`` ("full jitter") the delay is uniform between 0 and that value, which spreads the retries of many
    jobs that failed together (M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015).
    """

    base: float = 5.0
    factor: float = 2.0
    cap: float = 3600.0
    jitter: float = 1.0

    def delay(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number ``attempt`` (from 1)."""
        try:
            longest = min(self.cap, self.base * self.factor ** (attempt - 1))
        except OverflowError:
            longest = self.cap if self.base else 0.0
        return longest * (1 - self.jitter * random.random())


def exponential(base: Duration = 5, cap: Duration = "1h", *, factor: float = 2.0, jitter: bool = True) -> Backoff:
    """A delay that grows by ``factor`` from ``base`` to ``cap``; full jitter unless switched off."""
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 <= factor <= 100:
        raise OptionError(f"factor={shown(factor)} is out of range; use 1 to 100")
    try:
        return Backoff(_wait(base, "base"), float(factor), _wait(cap, "cap"), 1.0 if jitter else 0.0)
    except ValueError as error:
        raise OptionError(str(error)) from None


def _wait(value: Duration, name: str) -> float:
    found = seconds(value, name)
    if not isinstance(value, str) and (value.total_seconds() if isinstance(value, timedelta) else value) < 0:
        raise ValueError(f"{name}={shown(value)} is before the failure; use 0 or more")
    return found


def constant(delay: Duration) -> Backoff:
    """The same delay after every attempt."""
    return exponential(delay, delay, factor=1.0, jitter=False)


def check_backoff(function: object) -> BackoffFunction:
    """A function that can be called for a delay, as far as can be told without calling it.

    Raises:
        ValueError: It is none; says what to write.
    """
    name = getattr(function, "__name__", None) or shown(function)
    if function in (exponential, constant, Backoff):
        raise ValueError(f"backoff={name} is not called; write backoff={name.replace('Backoff', 'exponential')}(5)")
    if not callable(function):
        raise ValueError(f"backoff={shown(function)} is no back-off; use exponential(5, cap='1h') or constant(30)")
    advice = "write a plain function (exception, attempt) that returns seconds, or None for no further attempt"
    if any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
        raise ValueError(f"backoff={name} is a coroutine function; {advice}")
    if not takes(function, OSError(), 1):
        raise ValueError(f"backoff={name} does not take (exception, attempt); {advice}")
    return function


def takes(function: Callable[..., Any], *arguments: object) -> bool:
    """Whether a function can be called with these arguments, as far as can be told without calling it."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # some of those written in C do not say what they take
        return True
    return True


class Decision(msgspec.Struct, frozen=True):
    """After a failed attempt: wait ``delay`` seconds and run again, or (None) end as dead for ``reason``."""

    delay: float | None
    reason: str


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a failed job runs again.

    Attributes:
        attempts: Runs in all.
        retry_on: Qualified names of exception classes that are retried; None for all.
        discard_on: Names of those that are never retried; wins over ``retry_on``.
    """

    attempts: int = 10
    backoff: Backoff | BackoffFunction = Backoff()
    retry_on: tuple[str, ...] | None = None
    discard_on: tuple[str, ...] = ()

    def decide(self, error: BaseException, attempt: int, *, timed_out: bool = False) -> Decision:
        """What follows when attempt number ``attempt`` ended with ``error``; a ``Retry`` is always retried."""
        asked = isinstance(error, Retry)
        if self.discard_on and not asked and matches(error, self.discard_on):
            return Decision(None, "discarded")
        if self.retry_on is not None and not asked and not timed_out and not matches(error, self.retry_on):
            return Decision(None, "not_retryable")
        if attempt >= self.attempts:
            return Decision(None, "timeout" if timed_out else "attempts")
        delay = self._delay(error, attempt)
        if delay is None:
            return Decision(None, "discarded")
        return Decision(max(min(delay, MAX_DELAY), 0.0), "")

    def _delay(self, error: BaseException, attempt: int) -> float | None:
        """Seconds as the back-off says; a function that fails at it has no power over the job."""
        if isinstance(self.backoff, Backoff):
            return self.backoff.delay(attempt)
        try:
            delay = self.backoff(error, attempt)
            if delay is None or delay > MAX_DELAY:
                return delay
            return seconds(delay)
        except Exception:
            _log.exception("the back-off function %r failed; the default back-off applies", self.backoff)
            return Backoff().delay(attempt)


def matches(error: BaseException, names: Sequence[str]) -> bool:
    """Whether the error's class or one of its bases bears one of the qualified names."""
    return any(class_name(cls) in names for cls in type(error).__mro__)


def class_name(cls: type) -> str:
    """``ValueError`` for builtins, else ``module.Qualified.Name``, the module as a worker imports it."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{module_name(cls.__module__)}.{cls.__qualname__}"


def module_name(module: str) -> str:
    """The module's name as another process imports it: a script's ``__main__`` is called by its file's name."""
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name.removesuffix(".__main__"))
    return Path(getattr(main, "__file__", None) or "__main__").stem
