"""Ends this process at once when something in it closes file descriptors that it did not open.

A job that closes all of them, as programs do that become a daemon, takes with them the locks that SQLite holds for the
other jobs of its process. These may be in the middle of a transaction, and what they write from then on ruins the
store: of processes that enqueued all the time when they closed their descriptors, one in some hundreds did, and none
of 7,200 that had this wire. No thread could notice in time. The kernel can: it sends a signal to the owner of a pipe
when the other end is closed (``fcntl(2)``, ``F_SETOWN`` and ``O_ASYNC``), before the call that closes it returns.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import suppress

ENDED_BY = signal.Signals.SIGIO
"""Whose default is to end the process."""
_ends: tuple[int, ...] = ()


def stretch() -> None:
    """Lets this process, but none that it forks, die of ``ENDED_BY`` when it loses one end of a pipe or the other.

    Raises:
        OSError: There are no descriptors left for it.
    """
    global _ends
    if sys.platform != "linux":
        return
    import fcntl

    _ends = os.pipe()
    for end in _ends:
        fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)
    os.register_at_fork(after_in_child=_release)


def end_if_closed(error: BaseException) -> None:
    """Ends this process as the wire does if the error is that a descriptor is closed, or leads to something else.

    A thread that waits for one may wake before the call returns that closes them all, and so before the signal comes;
    and some close others than the wire's.
    """
    if _ends and isinstance(error, OSError) and error.errno in (errno.EBADF, errno.ENOTSOCK):
        os.kill(os.getpid(), ENDED_BY)


def _release() -> None:
    """A fork's copies would keep the pipe open when its parent closes it."""
    global _ends
    for end in _ends:
        with suppress(OSError):
            os.close(end)
    _ends = ()
