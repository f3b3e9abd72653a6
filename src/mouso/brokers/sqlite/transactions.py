"""Beginning a transaction on a connection within a time, and leaving it."""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress

from mouso.brokers.sqlite import faults
from mouso.clock import SYSTEM
from mouso.errors import BrokerUnavailable

_PAUSE = 0.002
_TOLD = 0.1


def begin(connection: sqlite3.Connection, path: str, timeout: float, deadline: float | None = None) -> None:
    """Takes SQLite's lock for what needs no gate: tables, and checkpoints of who has passed it.

    Args:
        deadline: When to give up; by default after ``timeout`` seconds.

    Raises:
        BrokerUnavailable: It was not free in time.
    """
    deadline = SYSTEM.monotonic() + timeout if deadline is None else deadline
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except faults.FAILURES as error:
            if not faults.is_busy(error):
                raise faults.translate(error, path) from error
        if SYSTEM.monotonic() >= deadline:
            raise locked(path, timeout)
        time.sleep(_PAUSE)


def roll_back(connection: sqlite3.Connection) -> None:
    """Leaves the transaction, if there is one."""
    if connection.in_transaction:
        with suppress(*faults.FAILURES):
            connection.execute("ROLLBACK")


def locked(path: str, timeout: float) -> BrokerUnavailable:
    """The error for a file that others have locked for too long."""
    # Who had to wait for other calls of this process before has hardly any time left here.
    waited = (
        f"stayed locked by another transaction for {timeout:.3g} s"
        if timeout >= _TOLD
        else "is locked by another transaction, and the time to wait for it is over"
    )
    return BrokerUnavailable(f"{path} {waited}; nothing was stored, try again")
