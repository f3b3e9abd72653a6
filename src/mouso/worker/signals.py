"""SIGTERM, SIGINT and SIGHUP in processes that run or import the app's code: only their supervisor tells them to end.

A fork that the app's code makes is no process of the supervisor's, and whoever made it ends it by such a signal, as
``multiprocessing`` does: there they mean what they mean in any Python program.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable
from types import FrameType

_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


_mask = threading.local()
"""What a thread that forks had blocked before."""
_own = False


def heeded(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Those to be handled: not SIGHUP where ``nohup`` has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in numbers if number != signal.SIGHUP or not ignored]


def ignore_ends() -> None:
    """Lets SIGTERM, SIGINT and SIGHUP pass this process by, and its copies, but not what the app's code forks."""
    for number in heeded(_ENDS):
        signal.signal(number, _ignore)
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_restore)


def fork() -> int:
    """``os.fork()``, for a process that such signals pass by as well. To be called where there is one thread."""
    global _own
    _own = True
    try:
        return os.fork()
    finally:
        _own = False


def _ignore(number: int, frame: FrameType | None) -> None:
    """A handler, not ``SIG_IGN``: programs that a job starts would inherit that."""


def _hold() -> None:
    """Lets a signal that comes for the fork wait: before its handlers are in place, it would be lost."""
    _mask.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.blocked)


def _restore() -> None:
    if not _own:
        for number in _ENDS:
            if signal.getsignal(number) is _ignore:  # else the app has handlers of its own
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _release()
