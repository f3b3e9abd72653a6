"""Who waits for news of a store: one ear for each kind of news in a process, whatever carries it."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from enum import Enum

_PATIENCE = 5.0


class Woken(Enum):
    """Why a wait ended."""

    TIMEOUT = "timeout"
    RUNG = "rung"
    INTERRUPTED = "interrupted"


class ServerEar(ABC):
    """Listens to a server over a connection of its own, which one thread at a time may use.

    Attributes:
        interrupted: Readable when somebody called ``interrupt``.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._closed = False
        self.interrupted, self._interrupt = os.pipe()
        os.set_blocking(self.interrupted, False)
        os.set_blocking(self._interrupt, False)

    def wait(self, timeout: float) -> Woken:
        """Blocks until a ring, ``interrupt`` or the timeout (seconds)."""
        if not self._turn.acquire(timeout=max(timeout, 0)):
            return Woken.RUNG  # another thread hears what rings; this one looks by itself
        try:
            return Woken.INTERRUPTED if self._closed else self._listen(timeout)
        finally:
            self._turn.release()

    @abstractmethod
    def _listen(self, timeout: float) -> Woken:
        """As ``wait``, in one thread at a time."""

    @abstractmethod
    def _leave(self) -> None:
        """Lets go of the connection."""

    def interrupt(self) -> None:
        """Ends the wait that is under way, or else the next one."""
        if not self._closed:
            with suppress(BlockingIOError):
                os.write(self._interrupt, b"!")

    def _was_interrupted(self) -> bool:
        """Whether somebody called ``interrupt``, which then is over."""
        with suppress(BlockingIOError):
            return bool(os.read(self.interrupted, 4096))
        return False

    def close(self) -> None:
        """Stops listening; a wait that is under way ends."""
        self.interrupt()
        if not self._turn.acquire(timeout=_PATIENCE):
            return  # whoever has it is held up, and ends with the process
        try:
            self._closed = True
            self._leave()
            os.close(self.interrupted)
            os.close(self._interrupt)
        finally:
            self._turn.release()
