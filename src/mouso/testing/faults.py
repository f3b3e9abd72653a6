"""A broker that fails at its Nth call, for tests of what a program does when its store goes away at the worst moment.

::

    app = Mouso("shop", broker="memory://")


    def test_an_order_is_stored_wherever_the_store_fails():
        for faulty in fail_each(app, Fault.AFTER):  # at the first call, at the second, … until all have failed once
            place_order("order-1")  # repeats its enqueue with the same id
            assert len(faulty.broker.get(["order-1"])) == 1
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Collection, Generator
from enum import StrEnum
from functools import wraps
from typing import Any, cast

from mouso.app import Mouso
from mouso.brokers.base import Broker
from mouso.errors import BrokerError, BrokerUnavailable, OptionError, OutcomeUnknown

READING = frozenset({"open", "wait", "get", "find", "queues", "workers", "watch", "runs", "diagnose"})
"""Verbs that change nothing: their failure is always ``BrokerUnavailable``. Of any other a caller may not learn whether
it was done."""
_NEVER_FAIL = frozenset({"url", "capabilities", "notices", "close", "interrupt"})


class Fault(StrEnum):
    """What happens at the Nth call."""

    BEFORE = "before"
    """It raises ``BrokerUnavailable``, and nothing happened."""
    AFTER = "after"
    """It happens, and then raises ``OutcomeUnknown`` (a verb that only reads: ``BrokerUnavailable``)."""
    KILL_BEFORE = "kill before"
    """The calling process is killed, and nothing happened."""
    KILL_AFTER = "kill after"
    """It happens, and then the calling process is killed, before it learns of it."""


class FaultyBroker:
    """Stands in for any broker; every verb is passed on but for the Nth, which goes wrong.

    Args:
        broker: The one that does the work.
        nth: Which call fails, counted from 1 over all threads; 0 for none.
        fault: How.
        verbs: Count only these; None for all but ``notices``, ``close`` and ``interrupt``, which never fail.

    Attributes:
        broker: As given.
        calls: Names of the verbs called so far.
        struck: The verb that went wrong, or an empty text.

    Raises:
        OptionError: There is no such verb, or ``nth`` is negative.
    """

    def __init__(self, broker: Broker, nth: int, fault: Fault, verbs: Collection[str] | None = None) -> None:
        if nth < 0:
            raise OptionError(f"nth={nth} is out of range; use 1 for the first call, 0 for none")
        unknown = [verb for verb in verbs or () if verb in _NEVER_FAIL or not callable(getattr(broker, verb, None))]
        if unknown:
            raise OptionError(f"no verb of a broker is called {unknown[0]!r}; see mouso.brokers.base.Broker")
        self.broker = broker
        self.calls: list[str] = []
        self.struck = ""
        self._nth = nth
        self._fault = fault
        self._verbs = verbs
        self._counting = threading.Lock()

    def __repr__(self) -> str:
        return f"FaultyBroker({self.broker!r}, {self._nth}, {str(self._fault)!r})"

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.broker, name)
        if name in _NEVER_FAIL or name.startswith("_") or not callable(value):
            return value

        @wraps(value)
        def verb(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, value, *args, **kwargs)

        return verb

    def _call(self, verb: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._strikes(verb):
            return method(*args, **kwargs)
        if self._fault is Fault.KILL_BEFORE:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fault is not Fault.BEFORE:
            method(*args, **kwargs)
        if self._fault is Fault.KILL_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)
        raise _error(self._fault, verb)

    def _strikes(self, verb: str) -> bool:
        """Counts a call and tells whether it is the one."""
        with self._counting:
            if self._verbs is not None and verb not in self._verbs:
                return False
            self.calls.append(verb)
            if len(self.calls) != self._nth:
                return False
            self.struck = verb
            return True


def fail_nth(app: Mouso, nth: int, fault: Fault, verbs: Collection[str] | None = None) -> FaultyBroker:
    """Makes the app's Nth call to its broker from now on go wrong; an earlier arrangement is replaced.

    Args:
        nth, fault, verbs: As for ``FaultyBroker``.

    Returns:
        What tells which calls were made, and which was ``struck``.
    """
    inner: Any = app.broker
    faulty = FaultyBroker(inner.broker if isinstance(inner, FaultyBroker) else inner, nth, fault, verbs)
    app.broker = cast(Broker, faulty)
    return faulty


def fail_each(app: Mouso, fault: Fault, verbs: Collection[str] | None = None) -> Generator[FaultyBroker, None, None]:
    """Lets the first call fail in the first round of a loop, the second in the second, … until none is left to fail.

    Args:
        fault, verbs: As for ``FaultyBroker``.

    Yields:
        The faulty broker of each round. Look at the results through its ``broker``, which does not count.
    """
    inner = app.broker
    try:
        for nth in itertools.count(1):
            faulty = fail_nth(app, nth, fault, verbs)
            yield faulty
            if not faulty.struck:
                return
    finally:
        app.broker = inner


def _error(fault: Fault, verb: str) -> BrokerError:
    if fault is Fault.AFTER and verb not in READING:
        return OutcomeUnknown(f"injected: {verb} was done, and its answer is lost; repeat it with the same ids")
    return BrokerUnavailable(f"injected: {verb} was not done; try again")
