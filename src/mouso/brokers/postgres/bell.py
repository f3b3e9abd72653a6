"""Hears that something is new, by LISTEN on a connection of its own. Rings are hints: who may have missed one looks.

Rings are sent only while somebody has said in ``ears`` that it listens: a commit with a NOTIFY waits for all others of
the database.
"""

from __future__ import annotations

import secrets
import select
from contextlib import suppress

from psycopg import pq

from mouso.brokers.ears import ServerEar, Woken
from mouso.brokers.postgres.faults import Lost, Refusal
from mouso.brokers.postgres.link import Link, Session, pooled
from mouso.brokers.postgres.wire import text
from mouso.clock import SYSTEM
from mouso.errors import ConfigError

WORKERS, CALLERS = "w", "c"
_FAILED = (Lost, Refusal, ConfigError, OSError)
_AGAIN = 0.5
_SLEEP = 0.5
_CONNECT = 5.0
_ANNOUNCED = 60.0
_ANNOUNCE = """
INSERT INTO {schema}.ears AS e (id, kind, until)
VALUES ($1::text, $2::text, clock_timestamp() + interval '3 minutes')
ON CONFLICT (id) DO UPDATE SET until = excluded.until
"""
_FORGET = "DELETE FROM {schema}.ears WHERE id = $1::text OR until < clock_timestamp() - interval '1 hour'"


class Ear(ServerEar):
    """Listens for one kind of ring.

    Args:
        kind: ``WORKERS`` or ``CALLERS``.
        listens: False only lets time pass, so that who waits looks now and then.
    """

    def __init__(self, link: Link, schema: str, kind: str, *, listens: bool = True) -> None:
        super().__init__()
        self._link = link
        self._schema = schema
        self._kind = kind
        self._listens = listens
        self._id = secrets.token_hex(8)
        self._connection: pq.abc.PGconn | None = None
        self._announce_at = self._connect_at = 0.0

    def _listen(self, timeout: float) -> Woken:
        now = SYSTEM.monotonic()
        if not self._listens:
            return self._poll(min(timeout, _SLEEP))
        if self._connection is None:
            pause = self._connect_at - now
            if pause > 0:
                woken = self._poll(min(timeout, pause))
                if woken is not Woken.TIMEOUT or timeout <= pause:
                    return woken
                now, timeout = now + pause, timeout - pause
            self._connect_at = now + _AGAIN
            try:
                self._connection = self._link.connect(now + _CONNECT)
                if pooled(self._session()):
                    self._listens = False
                    self._hang_up()
                    return self._poll(min(timeout, _SLEEP))
                channel = f"mouso_{self._kind}_{self._schema}"[:63].replace('"', '""')
                self._session().run(f'LISTEN "{channel}"')
                self._announce(now)
            except _FAILED:
                self._hang_up()
                return self._poll(min(timeout, _AGAIN))
            return Woken.INTERRUPTED if self._was_interrupted() else Woken.RUNG  # what rang before was not heard
        if now >= self._announce_at:
            try:
                self._announce(now)
            except _FAILED:
                self._hang_up()
                return Woken.RUNG
        if self._take():
            return Woken.INTERRUPTED if self._was_interrupted() else Woken.RUNG
        return self._poll(timeout)

    def _session(self) -> Session:
        assert self._connection is not None
        return Session(self._connection, SYSTEM.monotonic() + _CONNECT)

    def _announce(self, now: float) -> None:
        self._session().fetch(_ANNOUNCE.replace("{schema}", self._schema), text(self._id), text(self._kind))
        self._announce_at = now + _ANNOUNCED

    def _poll(self, timeout: float) -> Woken:
        poll = select.poll()
        poll.register(self.interrupted, select.POLLIN)
        if self._connection is not None:
            poll.register(self._connection.socket, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(max(timeout, 0) * 1000)}
        if self.interrupted in ready:
            self._was_interrupted()
            return Woken.INTERRUPTED
        if ready:
            self._take()
            return Woken.RUNG
        return Woken.TIMEOUT

    def _take(self) -> bool:
        """Takes all rings that have come, and says if there were any; a connection that was lost is made anew."""
        rang = False
        try:
            assert self._connection is not None
            self._connection.consume_input()
            while self._connection.notifies() is not None:
                rang = True
            if self._connection.status != pq.ConnStatus.OK:
                raise Lost("the connection was closed")
        except Exception:  # whatever it was, the next wait begins anew
            self._hang_up()
            return True
        return rang

    def _hang_up(self) -> None:
        if self._connection is not None:
            with suppress(Exception):
                self._connection.finish()
            self._connection = None

    def _leave(self) -> None:
        if self._connection is not None:
            with suppress(*_FAILED):
                self._session().fetch(_FORGET.replace("{schema}", self._schema), text(self._id))
        self._hang_up()
