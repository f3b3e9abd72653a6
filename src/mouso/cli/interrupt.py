"""Ctrl-C while modules are imported, which takes longer than a person needs to see that a command was mistyped."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_interrupts() -> Iterator[None]:
    """Lets Ctrl-C end the process at once, with exit code 130 and without a word: for imports, which leave nothing.

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
