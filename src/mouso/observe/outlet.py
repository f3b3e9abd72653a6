"""Writing to what others read, without waiting for them: an output that nobody reads must hold up no worker.

A pipe of a log driver that hangs, or a terminal after Ctrl-S, takes nothing more at some point, and a write to it would
wait for ever: with a job's thread, the loop of a worker, or the watchdog that is to end it.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import select
import socket
import stat
import sys
import tempfile
from contextlib import suppress

from mouso.clock import SYSTEM

_PATIENCE, _AGAIN = 0.05, 1.0
"""Seconds to wait for a reader, and until it is waited for again."""


class Outlet:
    """Where a descriptor leads to.

    It is opened once more if that can be, for this process alone: not to wait is a property that all who share an open
    file share. A socket is told with each call. Elsewhere it is looked first whether there is room for a little.

    Attributes:
        descriptor: What it was made with.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._leads_to: tuple[int, int] | None = None
        self._own: int | None = None
        self._socket: socket.socket | None = None
        self._waits = False
        self._waits_from = 0.0
        self._torn = False

    def put(self, data: bytes) -> bool:
        """Writes whole lines; False if they were left out, at least in part, as nobody reads.

        Waits for a reader 50 ms at most, and that once a second.
        """
        deadline: float | None = None
        left = b"\n" + data if self._torn else data
        size = len(left)
        try:
            self._aim()
            while left:
                with suppress(BlockingIOError):
                    left = left[self._write(left) :]
                    continue
                now = SYSTEM.monotonic()
                if deadline is None:
                    deadline = now + _PATIENCE if now >= self._waits_from else now
                    self._waits_from = max(self._waits_from, now + _AGAIN)
                if now >= deadline or not self._has_room(deadline - now):
                    self._torn = self._torn if len(left) == size else True
                    return False
        except OSError:  # nobody is there to read
            return False
        self._torn = False
        return True

    def put_stacks(self) -> None:
        """Writes the stacks of all threads of this process, as far as there is room."""
        with suppress(OSError):
            self._aim()
            if self._own is not None and self._socket is None:
                faulthandler.dump_traceback(self._own, all_threads=True)
                return
            with tempfile.TemporaryFile() as file:
                faulthandler.dump_traceback(file, all_threads=True)
                file.seek(0)
                self.put(file.read())

    def _aim(self) -> None:
        """Opens it once more; and again if the app has made the descriptor lead elsewhere, or closed ours."""
        leads_to = _identity(self.descriptor)
        if leads_to == self._leads_to and (self._own is None or _identity(self._own) == leads_to):
            return
        self.close()
        self._leads_to = leads_to
        mode = os.fstat(self.descriptor).st_mode
        self._waits = not stat.S_ISREG(mode)
        if stat.S_ISSOCK(mode):
            self._own = os.dup(self.descriptor)
            self._socket = socket.socket(fileno=self._own)
        elif stat.S_ISFIFO(mode) or os.isatty(self.descriptor):
            with suppress(OSError):  # a terminal of another user's, or no /proc
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
                self._own = os.open(f"/proc/self/fd/{self.descriptor}", flags)

    def close(self) -> None:
        """Closes what was opened, but not what the app has by now under its number; the next line opens it again."""
        ours = self._own is not None and _identity(self._own) == self._leads_to
        if self._socket is not None:
            self._socket.detach()
        if ours and self._own is not None:
            os.close(self._own)
        self._own = self._socket = self._leads_to = None

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    def _write(self, data: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        if self._own is not None or not self._waits:
            return os.write(self.descriptor if self._own is None else self._own, data)
        if not self._has_room(0):
            raise BlockingIOError
        return os.write(self.descriptor, data[: select.PIPE_BUF])

    def _has_room(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino


_outlet = functools.cache(Outlet)


def put_error(text: str) -> None:
    """Writes to standard error."""
    with suppress(OSError, ValueError, AttributeError):
        _outlet(sys.stderr.fileno()).put(text.encode(sys.stderr.encoding, "backslashreplace"))


def put_stacks() -> None:
    """Writes the stacks of all threads of this process to standard error."""
    with suppress(OSError, ValueError, AttributeError):
        _outlet(sys.stderr.fileno()).put_stacks()
