"""Signals before a command has got to its work."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def quiet_interrupts() -> Iterator[None]:
    """Lets Ctrl-C end the process at once, with exit code 130 and without a word: for imports, which leave nothing and
    take longer than a person needs to see that a command was mistyped.

    An exception would not do: extension modules lose it, or turn it into another. A handler of somebody else's, such
    as a caller's or ``nohup``'s, stays.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    try:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    except ValueError:  # only the main thread may
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def early_end(args: Sequence[str]) -> Iterator[None]:
    """Lets SIGTERM end a worker that has not started yet as it ends one that has: with exit code 0."""
    if list(args[:1]) != ["worker"] or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    try:
        signal.signal(signal.SIGTERM, _leave)
    except ValueError:  # only the main thread may
        yield
        return
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _leave:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, frame: object) -> None:
    os._exit(0)
