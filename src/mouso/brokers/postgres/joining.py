"""Work in a connection that is not the store's own: the caller's transaction, and a job's.

It finds the psycopg connection below whatever the caller holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from inspect import isawaitable, iscoroutinefunction
from typing import Any

import psycopg
from psycopg import pq

from mouso.brokers.postgres.faults import Lost, Refusal
from mouso.brokers.postgres.link import Link, Values, answer
from mouso.clock import SYSTEM
from mouso.config import one_line
from mouso.errors import BrokerUnavailable, CapabilityError, OutcomeUnknown
from mouso.job import Outcome, Progress

_CONNECT = 5.0
_WANTED = "a psycopg connection, or an SQLAlchemy or Django connection or session that has one"


def run(connection: object, sql: bytes, values: Values, *, timeout: float = 5.0, shown: str) -> pq.abc.PGresult:
    """Runs a statement in the caller's transaction, which begins with it if it has not begun.

    Raises:
        CapabilityError: It is no connection to the store, or it is busy.
        BrokerUnavailable: It failed; the transaction cannot be committed.
    """
    below = _libpq(connection, shown)
    status = below.transaction_status
    if status == pq.TransactionStatus.ACTIVE or below.pipeline_status:
        raise CapabilityError(
            "the connection is busy with a statement or in pipeline mode; enqueue before or after that"
        )
    deadline = SYSTEM.monotonic() + timeout
    try:
        if status == pq.TransactionStatus.IDLE and not _commits_by_itself(connection):
            below.send_query(_begin(driver(connection)))
            answer(below, deadline)
        below.send_query_params(sql, values, param_formats=[1] * len(values), result_format=1)
        return answer(below, deadline)
    except Refusal as error:
        if error.foreign:
            raise CapabilityError(f"the connection leads to another database than {shown}: {error.why}") from error
        raise BrokerUnavailable(f"{shown}: {error.why}; roll your transaction back and try again") from error
    except (Lost, OSError) as error:
        below.finish()  # its answer may still come, and would be taken for another statement's
        raise BrokerUnavailable(f"{shown}: {one_line(error)}; your transaction is lost, try it again") from error


class PostgresTransaction:
    """A transaction in which a job ends.

    Args:
        settle: Applies an outcome in the connection that it is given.
    """

    def __init__(
        self, link: Link, connection: Any, settle: Callable[[object, str, Outcome, Progress | None], bool]
    ) -> None:
        self._shown = link.shown
        self._settle = settle
        self.connection = _new(link) if connection is None else connection
        if iscoroutinefunction(getattr(self.connection, "commit", None)):
            _check_asynchronous(self.connection)
        if hasattr(self.connection, "ensure_connection"):  # Django's, which commits by itself as a rule
            self.connection.set_autocommit(False)
        below = _libpq(self.connection, self._shown)
        if _commits_by_itself(self.connection):
            raise CapabilityError("the connection commits by itself; hand over one that does not")
        if below.transaction_status == pq.TransactionStatus.IDLE:
            run(self.connection, b"SELECT 1", (), shown=self._shown)  # which begins it

    def settle(self, worker: str, outcome: Outcome, progress: Progress | None) -> bool:
        """See ``mouso.brokers.base.Transaction``."""
        below = getattr(driver(self.connection), "pgconn", None)
        if below is None or below.transaction_status == pq.TransactionStatus.IDLE or below.status != pq.ConnStatus.OK:
            raise CapabilityError(
                "the job has ended its transaction by itself; leave commit, rollback and close to Mouso"
            )
        return self._settle(self.connection, worker, outcome, progress)

    async def commit(self) -> None:
        """See ``mouso.brokers.base.Transaction``."""
        try:
            await _done(self.connection.commit())
        except psycopg.OperationalError as error:
            if (error.sqlstate or "").startswith("40"):  # a serialization failure or a deadlock
                raise BrokerUnavailable(f"{self._shown}: {one_line(error)}; nothing was committed") from error
            raise OutcomeUnknown(f"{self._shown}: {one_line(error)}; it may be committed or not") from error
        with suppress(Exception):
            await _done(self.connection.close())

    async def roll_back(self) -> None:
        """See ``mouso.brokers.base.Transaction``."""
        with suppress(Exception):
            await _done(self.connection.rollback())
        with suppress(Exception):
            await _done(self.connection.close())


def _check_asynchronous(connection: Any) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise CapabilityError(
            "a plain function needs a connection that is not asynchronous; hand over another one, or use a coroutine"
        ) from None
    session = getattr(connection, "sync_session", None)
    if session is not None and not session.in_transaction():
        raise CapabilityError("the session has no connection yet; call: await session.connection()")


async def _done(step: object) -> None:
    """Waits for a step of an asynchronous connection."""
    if isawaitable(step):
        await step


def _new(link: Link) -> psycopg.Connection[Any]:
    try:
        connection: psycopg.Connection[Any] = psycopg.Connection(link.connect(SYSTEM.monotonic() + _CONNECT))
        connection.prepare_threshold = None  # PgBouncer may give each transaction another server process
        return connection
    except Lost as error:
        raise BrokerUnavailable(f"{link.shown} cannot be used now; nothing was done, try again: {error}") from error


def check(connection: object, shown: str) -> None:
    """Sees that work can be done in a caller's connection now.

    Raises:
        CapabilityError: It is none to PostgreSQL, or it is closed.
    """
    _libpq(connection, shown)


def _libpq(connection: object, shown: str) -> pq.abc.PGconn:
    below = getattr(driver(connection), "pgconn", None)
    if not isinstance(below, pq.PGconn):
        raise CapabilityError(f"enqueue_in needs {_WANTED} for {shown}, not {type(connection).__name__}")
    if below.status != pq.ConnStatus.OK:
        raise CapabilityError("the connection is closed; enqueue with an open one")
    return below


def driver(connection: Any) -> Any:
    """The psycopg connection below SQLAlchemy's or Django's, found by their public attributes."""
    connection = getattr(connection, "sync_session", None) or getattr(connection, "sync_connection", connection)
    if callable(ensure := getattr(connection, "ensure_connection", None)):  # Django's
        ensure()
        return connection.connection
    if hasattr(connection, "get_bind") and callable(begun := getattr(connection, "connection", None)):  # a session
        connection = begun()
    if hasattr(connection, "in_transaction") and hasattr(connection, "exec_driver_sql"):
        begin: Callable[[], object] = connection.begin
        if not connection.in_transaction():
            begin()  # or its commit would not know of the transaction
        return connection.connection.driver_connection
    return connection


def _begin(driver: object) -> bytes:
    """How it begins a transaction: psycopg keeps what was set of that, and says it in its own ``BEGIN`` only."""
    words = ["BEGIN"]
    level = getattr(driver, "isolation_level", None)
    if level is not None:
        words.append(f"ISOLATION LEVEL {psycopg.IsolationLevel(level).name.replace('_', ' ')}")
    for mode, yes, no in (("read_only", "READ ONLY", "READ WRITE"), ("deferrable", "DEFERRABLE", "NOT DEFERRABLE")):
        wanted = getattr(driver, mode, None)
        if wanted is not None:
            words.append(yes if wanted else no)
    return " ".join(words).encode()


def _commits_by_itself(connection: object) -> bool:
    return bool(getattr(driver(connection), "autocommit", False))
