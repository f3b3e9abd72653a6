"""Hears that something is new, by Redis' publish and subscribe. Rings are hints: who may have missed one looks."""

from __future__ import annotations

import select
import ssl
from contextlib import suppress
from typing import Any

from mouso.brokers.ears import ServerEar, Woken
from mouso.brokers.redis.link import Link
from mouso.brokers.redis.servers import FAILED
from mouso.clock import SYSTEM

_AGAIN = 0.5
_READ = 65536
_NOTHING_MORE = (BlockingIOError, ssl.SSLWantReadError)


class Ear(ServerEar):
    """Listens to one channel.

    Args:
        kind: ``w`` for workers, ``c`` for waiting callers.
    """

    def __init__(self, link: Link, kind: str) -> None:
        super().__init__()
        self._link = link
        self._kind = kind
        self._connection: Any = None

    def _listen(self, timeout: float) -> Woken:
        if self._connection is None:
            try:
                self._connection = self._link.listening(self._kind)
            except FAILED:
                return self._poll(None, min(timeout, _AGAIN))
            return self._poll(None, 0) if self._interrupted_already() else Woken.RUNG  # what rang before was not heard
        return self._poll(self._connection, timeout)

    def _interrupted_already(self) -> bool:
        return bool(select.select([self.interrupted], [], [], 0)[0])

    def _poll(self, connection: Any, timeout: float) -> Woken:
        poll = select.poll()
        poll.register(self.interrupted, select.POLLIN)
        if connection is not None:
            poll.register(connection._sock.fileno(), select.POLLIN)
        deadline = SYSTEM.monotonic() + timeout
        while True:
            left = max(deadline - SYSTEM.monotonic(), 0)
            ready = {fd for fd, _ in poll.poll(left * 1000)}
            if self.interrupted in ready:
                self._was_interrupted()
                return Woken.INTERRUPTED
            if ready:
                self._drain()
                return Woken.RUNG
            if SYSTEM.monotonic() >= deadline:
                return Woken.TIMEOUT

    def _drain(self) -> None:
        """Takes all rings that have come, whatever they say: to read them as messages would take 0.1 ms. What was lost
        is made anew by the next wait."""
        sock = self._connection._sock
        try:
            sock.setblocking(False)
            while sock.recv(_READ):
                pass
            self._hang_up()
        except _NOTHING_MORE:
            pass
        except OSError:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._connection is not None:
            with suppress(Exception):
                self._connection.disconnect()
            self._connection = None

    def _leave(self) -> None:
        self._hang_up()
