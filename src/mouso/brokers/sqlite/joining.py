"""Work in a connection that is not the store's own: the caller's transaction, and a job's."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mouso.brokers.base import Update
from mouso.brokers.sqlite import faults, working
from mouso.brokers.sqlite.rows import lenient
from mouso.brokers.sqlite.store import Store
from mouso.clock import SYSTEM, Clock
from mouso.errors import CapabilityError
from mouso.job import Outcome, Progress


@contextmanager
def borrowed(store: Store, connection: object, timeout: float = math.inf) -> Iterator[sqlite3.Connection]:
    """The caller's connection, which reads rows as the store's own do for as long as the block lasts.

    Args:
        timeout: The most that it waits there for a lock, in seconds, if that is less than it would by itself.

    Raises:
        CapabilityError: It is none, one to another file, or one that cannot be used here.
    """
    if not isinstance(connection, sqlite3.Connection):
        raise CapabilityError(
            f"joining a transaction needs a sqlite3.Connection to {store.path}, not {type(connection).__name__}"
        )
    deadline = SYSTEM.monotonic() + timeout
    store.open(min(timeout, 5.0))
    factories = connection.row_factory, connection.text_factory
    connection.row_factory, connection.text_factory = None, lenient
    try:
        if not store.is_same_file(connection):
            raise CapabilityError(f"the connection belongs to another database than {store.path}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # see ``store``: checkpoints beside writers do damage
        with _patient_until(connection, deadline):
            yield connection
    except sqlite3.ProgrammingError as error:
        raise CapabilityError(
            f"the connection to {store.path} cannot be used: {str(error).splitlines()[0].rstrip('.')}; "
            "give one that is open, in the thread that it belongs to"
        ) from error
    except faults.FAILURES as error:
        raise store.translate(error) from error
    finally:
        connection.row_factory, connection.text_factory = factories


@contextmanager
def _patient_until(connection: sqlite3.Connection, deadline: float) -> Iterator[None]:
    """Lets a connection wait for locks until the deadline at the longest, and then again for as long as before."""
    (usual,) = connection.execute("PRAGMA busy_timeout").fetchone()
    left = max(deadline - SYSTEM.monotonic(), 0) * 1000
    if usual <= left:
        yield
        return
    connection.execute(f"PRAGMA busy_timeout = {int(left)}")
    try:
        yield
    finally:
        with suppress(*faults.FAILURES):
            connection.execute(f"PRAGMA busy_timeout = {usual}")


def commits_by_itself(connection: sqlite3.Connection) -> bool:
    """Whether each statement outside of a BEGIN is a transaction of its own."""
    return connection.isolation_level is None or getattr(connection, "autocommit", False) is True


class SQLiteTransaction:
    """A transaction in which a job ends. It has the file's one write lock from its beginning to its end.

    Args:
        committed: Called after the commit.
    """

    def __init__(self, store: Store, connection: object | None, clock: Clock, committed: Callable[[], object]) -> None:
        self._store = store
        self._clock = clock
        self._committed = committed
        given = store.connection() if connection is None else connection
        try:
            with borrowed(store, given) as self.connection:
                if self.connection.in_transaction:
                    raise CapabilityError("the connection is in a transaction already; hand it over before that begins")
                self.connection.execute("BEGIN IMMEDIATE")
        except BaseException:
            if connection is None and isinstance(given, sqlite3.Connection):
                given.close()
            raise

    def settle(self, worker: str, outcome: Outcome, progress: Progress | None) -> bool:
        """See ``mouso.brokers.base.Transaction``."""
        now = self._clock.now()
        with borrowed(self._store, self._open()) as tx:
            row = tx.execute("SELECT n FROM mouso_workers WHERE id = ?", (worker,)).fetchone()
            if row is None:
                return False
            if progress is not None:
                working.report(tx, worker, [Update(outcome.key, outcome.token, progress)], now)
            return not working.settle(tx, worker, row[0], [outcome], now)

    def _open(self) -> sqlite3.Connection:
        with suppress(sqlite3.ProgrammingError):
            if self.connection.in_transaction:
                return self.connection
        raise CapabilityError("the job has ended its transaction by itself; leave commit, rollback and close to Mouso")

    async def commit(self) -> None:
        """See ``mouso.brokers.base.Transaction``."""
        try:
            self.connection.execute("COMMIT")
        except faults.FAILURES as error:
            raise faults.commit_failed(error, self._store.path) from error
        self.connection.close()
        self._committed()

    async def roll_back(self) -> None:
        """See ``mouso.brokers.base.Transaction``."""
        with suppress(*faults.FAILURES):
            self.connection.close()
