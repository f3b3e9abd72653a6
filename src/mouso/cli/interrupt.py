"""Signals before a command has got to its work."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_USUAL: dict[signal.Signals, Any] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}


@contextmanager
def quiet_interrupts() -> Iterator[None]:
    """Lets Ctrl-C end the process at once, without a word, with exit code 130, or 0 if it is a worker: for imports,
    which leave nothing and take longer than a person needs to see that a command was mistyped.

    An exception would not do: extension modules lose it, or turn it into another. A handler of somebody else's, such
    as a caller's or ``nohup``'s, stays.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    try:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(0 if is_worker(sys.argv[1:]) else 130))
    except ValueError:  # only the main thread may
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def early_end(args: Sequence[str]) -> Iterator[None]:
    """Lets SIGTERM and Ctrl-C end a worker that has not started yet as they end one that has: with exit code 0."""
    main = threading.current_thread() is threading.main_thread()  # only it may
    taken = {number: usual for number, usual in _USUAL.items() if signal.getsignal(number) is usual}
    if not is_worker(args) or not main:
        yield
        return
    for number in taken:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number, usual in taken.items():
            if signal.getsignal(number) is _leave:
                signal.signal(number, usual)


def is_worker(args: Sequence[str]) -> bool:
    """Whether these arguments start a worker."""
    return list(args[:1]) == ["worker"]


def _leave(number: int, frame: object) -> None:
    os._exit(0)
