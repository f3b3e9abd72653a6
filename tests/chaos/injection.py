"""Faults in the broker of a real supervisor, without a line of it changed.

The test writes `SITE` beside the app as `sitecustomize.py`, which the interpreter imports at its start, and what is to
happen into `jobs.db-fault`: `VERB NTH FAULT`, or `storm SEED EVERY`. With the Nth call comes `jobs.db-struck`.
"""

import os
import random
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import mouso.brokers
from mouso.errors import BrokerUnavailable, OutcomeUnknown
from mouso.testing.faults import READING, Fault, FaultyBroker

SITE = """
import sys
from pathlib import Path

if "mouso" in sys.orig_argv and "worker" in sys.orig_argv:
    from tests.chaos.injection import install
    install(Path(__file__).with_name("jobs.db-fault"))
"""
PLAN, STRUCK = "jobs.db-fault", "jobs.db-struck"
SPARED = {"open", "close", "interrupt", "notices"}
START = 4
"""Calls that a storm spares, so that the worker gets as far as to its work."""


def install(plan: Path) -> None:
    """Makes `connect` of this process return brokers that follow the plan."""
    if not plan.exists():
        return
    kind, first, second = plan.read_text().split(maxsplit=2)  # a fault's name may be two words
    connect = mouso.brokers.connect

    def faulty(url: str, **more: Any) -> Any:
        broker = connect(url, **more)
        if kind == "storm":
            return Storm(broker, int(first) + os.getpid(), int(second))
        return Telling(plan.with_name(STRUCK), broker, int(first), Fault(second), [kind])

    mouso.brokers.connect = faulty


class Telling(FaultyBroker):
    """A broker whose Nth call fails, and which leaves a file then, also when it is killed."""

    def __init__(self, mark: Path, *args: Any) -> None:
        super().__init__(*args)
        self._mark = mark

    def _strikes(self, verb: str) -> bool:
        strikes = super()._strikes(verb)
        if strikes:
            self._mark.touch()
        return strikes


class Storm:
    """A broker that fails at random, before or after it did what it was asked."""

    def __init__(self, broker: Any, seed: int, every: int) -> None:
        self._broker = broker
        self._random = random.Random(seed)
        self._every = every
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._broker, name)
        if name in SPARED or not callable(value):
            return value

        @wraps(value)
        def verb(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, value, *args, **kwargs)

        return verb

    def _call(self, verb: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._calls += 1
        if self._calls <= START or self._random.randrange(self._every):
            return method(*args, **kwargs)
        if self._random.random() < 0.5:
            raise BrokerUnavailable(f"injected: {verb} was not done")
        method(*args, **kwargs)
        raise (BrokerUnavailable if verb in READING else OutcomeUnknown)(f"injected: {verb} was done")
