"""Moves jobs between broker and children, one exchange at a time: it settles what has ended and claims what fits."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, ParamSpec, TypeVar

from mouso.brokers.base import BATCH, Broker, Exchange, Update, Want
from mouso.clock import SYSTEM
from mouso.config import counted, one_line
from mouso.errors import BrokerError, ConfigError
from mouso.job import Outcome
from mouso.observe.metrics import Metrics
from mouso.worker.fleet import Fleet
from mouso.worker.shares import Turns
from mouso.worker.watchdog import Watchdog

P = ParamSpec("P")
R = TypeVar("R")

_LOOK_AGAIN = 1.0
"""Seconds after which an idle worker looks by itself: a ring is a hint, polling is the truth."""
_BACKOFF = (0.05, 1.0)
_REGULAR = frozenset({"exchange", "heartbeat", "promote"})
"""Verbs that are called again and again. An outage is over when each that failed has succeeded: others, such as those
that only read or only wait, may go well all the while; if one of them fails, a heartbeat has to succeed."""
_AMPLE = 0.01
_SPACING = 0.003
"""Seconds between exchanges while every child has work for ``_AMPLE`` seconds more: one that settles 500 jobs takes a
third less for each than one that settles 50."""

_AGREE = 10.0
"""Seconds between two looks whether store and worker agree on what the worker runs."""

log = logging.getLogger("mouso.worker")


class Broken(Exception):
    """The broker did not answer; the call can be repeated."""


class Line:
    """The supervisor's way to the broker: verbs run in threads, an outage is two lines in the log.

    Attributes:
        down_since: When the first call that failed began, on ``SYSTEM.monotonic()``; None while the broker answers.
        outages: How often it did.
        misplaced: Whether the last failure is one that only a change of its place or settings can end.
    """

    def __init__(self, broker: Broker, watchdog: Watchdog) -> None:
        self.broker = broker
        self._watchdog = watchdog
        self._numbers = itertools.count()
        self._threads = _started_pool(4)
        self.down_since: float | None = None
        self.outages = 0
        self.misplaced = False
        self._outage_seconds = 0.0
        self._failing: set[str] = set()

    @property
    def outage_seconds(self) -> float:
        """How long the broker did not answer, all outages together."""
        return self._outage_seconds + (0.0 if self.down_since is None else SYSTEM.monotonic() - self.down_since)

    async def call(self, verb: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls a verb.

        Raises:
            Broken: It failed in a way that may pass.
        """
        loop, calls = asyncio.get_running_loop(), self._watchdog.calls
        number, name = next(self._numbers), verb.__name__
        calls[number] = name.partition("_")[0]  # at the bell it is an exchange as well
        began = SYSTEM.monotonic()
        try:
            result = await loop.run_in_executor(self._threads, partial(verb, *args, **kwargs))
        except (BrokerError, ConfigError, MemoryError) as error:
            self.misplaced = isinstance(error, ConfigError)
            self._failing.add(name if name in _REGULAR else "heartbeat")
            if self.down_since is None:
                self.down_since = began
                self.outages += 1
                log.error("the broker does not answer: %s", one_line(error))
            raise Broken(one_line(error)) from error
        finally:
            del calls[number]
        if self.down_since is not None:
            self._failing.discard(name)
            if not self._failing:
                log.info("the broker answers again after %.1f s", SYSTEM.monotonic() - self.down_since)
                self._outage_seconds, self.down_since = self.outage_seconds, None
        return result

    def close(self) -> None:
        """Ends the threads and the broker's connections."""
        self.broker.interrupt()
        self._threads.shutdown()
        self.broker.close()


def _started_pool(size: int) -> ThreadPoolExecutor:
    """A pool all threads of which run: jobs may later leave the system none to start."""
    pool = ThreadPoolExecutor(size, thread_name_prefix="mouso-broker")
    all_run = threading.Barrier(size)
    try:
        for _ in range(size):
            pool.submit(all_run.wait)
    except RuntimeError:
        all_run.abort()
        pool.shutdown()
        raise
    return pool


class _Exchanged(NamedTuple):
    """What an exchange brought.

    Attributes:
        limit: How many jobs it asked for.
        leased_until: Until when the worker's lease was known to hold when it began, on ``SYSTEM.steady()``.
        seconds: How long it took.
    """

    exchange: Exchange
    limit: int
    leased_until: float
    seconds: float


class Pump:
    """The exchange loop of one worker.

    It takes outcomes from its making on; the broker may be known only later.

    Args:
        worker: The worker's id.
        turns: The queues it serves; None for all.

    Attributes:
        claiming: Whether new jobs are wanted.
        due: Set when a scheduled or retryable job is due.
        leased_until: Until when the worker may start jobs unless its lease is renewed, on ``SYSTEM.steady()``.
        metrics: What it counts in, if anybody wants to know.
    """

    def __init__(self, worker: str, turns: Turns | None) -> None:
        self.claiming = True
        self.due = asyncio.Event()
        self.leased_until = math.inf
        self.metrics: Metrics | None = None
        self._due_timer: asyncio.TimerHandle | None = None
        self._worker = worker
        self._turns = turns
        self._line: Line
        self._fleet: Fleet
        self._tasks: frozenset[str]
        self._on_settled: Callable[[list[Outcome]], None] | None
        self._outcomes: list[Outcome] = []
        self._updates: dict[tuple[object, ...], Update] = {}
        self._stepped: float | None = None
        self._news = asyncio.Event()
        self._asked = False
        self._bell: asyncio.Task[_Exchanged | None] | None = None
        self._bell_answers = False
        self._turn = threading.Lock()
        self._standing = 0
        self._parked: set[str] = set()
        self._repeated = 0
        self._doubt = False
        self._agreed = SYSTEM.monotonic()

    def connect(self, line: Line, fleet: Fleet) -> None:
        """Says between whom it moves jobs."""
        self._line, self._fleet = line, fleet

    def learn(self, tasks: frozenset[str], on_settled: Callable[[list[Outcome]], None] | None) -> None:
        """Says what it claims; to be called before the first exchange, and whenever that changes.

        Args:
            tasks: Names that the fleet can run just now.
            on_settled: Called with the outcomes that the broker has stored, if anybody wants to hear of them.
        """
        self._tasks, self._on_settled = tasks, on_settled
        self._parked -= tasks
        self.look()

    def settle(self, outcomes: list[Outcome]) -> None:
        """Takes outcomes to be stored with the next exchange."""
        self._outcomes += outcomes
        self._asked = True
        self._news.set()

    def report(self, updates: list[Update]) -> None:
        """Takes news of running jobs to be stored: before what they end with, or it would come too late."""
        for update in updates:  # the last wins, so that an outage does not pile them up
            about = update.key, update.token, update.progress is None, update.log is None
            self._updates[about] = update
        self._asked = True
        self._news.set()

    def look(self) -> None:
        """Asks for an exchange: there may be room or work."""
        self._asked = True
        self._news.set()

    def doubt(self) -> None:
        """A call failed that may have been carried out: store and worker may differ in what the worker runs."""
        self._doubt = True

    @property
    def empty(self) -> bool:
        """Whether every outcome is stored."""
        return not self._outcomes and not self._updates

    @property
    def unsettled(self) -> int:
        """How many outcomes are not stored yet."""
        return len(self._outcomes)

    @property
    def idle_seconds(self) -> float:
        """Seconds since its last step; 0 while the broker is to make the next one."""
        if self._stepped is None or (self._bell is not None and not self._bell.done()):
            return 0.0
        return SYSTEM.monotonic() - self._stepped

    async def run(self) -> None:
        """Exchanges for as long as it is not cancelled.

        Raises:
            MemoryError: There was none for a step; nothing is lost, and it can be run again after ``doubt``.
            Exception: A call has failed in a way that nobody expects.
        """
        pause = _BACKOFF[0]
        try:
            while True:
                self._stepped = SYSTEM.monotonic()
                await self._news.wait()
                self._news.clear()
                asked, self._asked, self._stepped = self._asked, False, None
                with self._turn:
                    self._standing = 0  # from now on a ring claims nothing
                try:
                    if self._bell is not None and self._bell_answers:
                        bell, self._bell = self._bell, None
                        claimed = await bell
                        more = claimed is None or await self._exchange(claimed)
                        asked = asked or more or bool(self._outcomes or self._updates) or self._doubt
                    while asked and await self._exchange():
                        if self._fleet.well_fed(_AMPLE):
                            await asyncio.sleep(_SPACING)
                    pause = _BACKOFF[0]
                except Broken:
                    self.doubt()
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _BACKOFF[1])
                    self._asked = True
                    self._news.set()
                    continue
                if self._bell is None:
                    self._bell_answers = False
                    self._bell = asyncio.create_task(self._line.call(self.exchange_at_bell, asyncio.get_running_loop()))
                self._standing = min(self._fleet.room(), BATCH) if self.claiming else 0
        finally:
            if self._bell is not None:  # nobody awaits it any more
                self._bell.add_done_callback(_seen)

    def exchange_at_bell(self, loop: asyncio.AbstractEventLoop) -> _Exchanged | None:
        """In a thread, while the loop is idle: waits for a ring, and claims what there was room for when it began to.

        To leave the claim to the loop would be two changes of threads more, 0.1 to 0.2 ms before the job's start.

        Returns:
            None if the loop is to look itself: for a second nothing rang, or it has something to do.
        """
        try:
            if not self._line.broker.wait(_LOOK_AGAIN):
                return None
            with self._turn:
                limit, self._standing = self._standing, 0
                if not (limit and self.claiming):
                    return None
                self._bell_answers = True  # in a moment; until then the loop may not exchange
            began, leased_until = SYSTEM.monotonic(), self.leased_until
            shares = None if self._turns is None else self._turns.shares(limit)
            want = Want(limit=limit, shares=shares, tasks=self._tasks)
            exchange = self._line.broker.exchange(self._worker, [], want)
            return _Exchanged(exchange, limit, leased_until, SYSTEM.monotonic() - began)
        finally:
            self._bell_answers = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._news.set)

    async def _exchange(self, claimed: _Exchanged | None = None) -> bool:
        """One exchange, or what follows from one at the bell; returns whether another one at once is worth while."""
        outcomes: list[Outcome] = []
        repeated = 0
        if claimed is not None:
            exchange, limit, leased_until, seconds = claimed
        else:
            if self._doubt or (SYSTEM.monotonic() - self._agreed > _AGREE and self._fleet.busy):
                await self._agree()
            ready = min(len(self._outcomes), BATCH)  # before others come, whose last news are not reported yet
            if self._updates:
                await self._report()
            outcomes = self._outcomes[:ready]
            limit = min(self._fleet.room(), BATCH) if self.claiming else 0
            if not outcomes and not limit:
                return False
            news = [outcome for outcome in outcomes if not outcome.stored]  # the others ended in their own transactions
            began, leased_until = SYSTEM.monotonic(), self.leased_until
            repeated, self._repeated = self._repeated, ready  # unless all goes well: the next one sends them again
            shares = None if self._turns is None else self._turns.shares(limit)
            want = Want(limit=limit, shares=shares, tasks=self._tasks)
            exchange = await self._line.call(self._line.broker.exchange, self._worker, news, want)
            seconds = SYSTEM.monotonic() - began
            del self._outcomes[:ready]
            self._repeated = 0
        if exchange.fenced:
            outcomes = self._without_fenced(outcomes, set(exchange.fenced), repeated)
        if exchange.parked or exchange.next_due is not None or self._due_timer is not None:
            self._note(exchange.parked, exchange.next_due)
        if outcomes and self._on_settled is not None:
            self._on_settled(outcomes)
        if self.metrics is not None:
            self.metrics.exchanged(seconds, outcomes, exchange.leases, len(exchange.fenced))
        if exchange.leases and SYSTEM.steady() > leased_until:  # it stood still, and others may run them by now
            log.warning("%s claimed too long ago to be started", counted(len(exchange.leases), "job was", "jobs were"))
            self.doubt()
            return True
        self._fleet.place(exchange.leases)
        full = len(exchange.leases) == limit > 0
        return bool(self._outcomes) or (full and self._fleet.room() > 0) or bool(exchange.parked)

    async def _report(self) -> None:
        news, self._updates = self._updates, {}
        try:
            updates = list(news.values())
            fenced = set(await self._line.call(self._line.broker.report, self._worker, updates))
        except (Broken, MemoryError):
            self._updates = news | self._updates
            raise
        self._fleet.fence([(update.key, update.token) for update in updates if update.key in fenced])

    async def _agree(self) -> None:
        """Compares with the store what runs here: claims that got lost on their way go back, lost jobs are stopped."""
        held = self._fleet.held() + [(o.key, o.token) for o in self._outcomes if not o.stored]
        fenced = set(await self._line.call(self._line.broker.reconcile, self._worker, held))
        self._doubt, self._agreed = False, SYSTEM.monotonic()
        self._fleet.fence([claim for claim in held if claim[0] in fenced])

    def _without_fenced(self, outcomes: list[Outcome], fenced: set[int | str], repeated: int) -> list[Outcome]:
        """The outcomes that the store has taken; of the first, the repeated ones, it may have done so before."""
        late = [o for o in outcomes[repeated:] if o.key in fenced]
        if late:
            log.warning(
                "%s came too late and changed nothing: the jobs had been taken over", counted(len(late), "outcome")
            )
        return [outcome for outcome in outcomes if outcome.key not in fenced]

    def _note(self, parked: list[str], next_due: int | None) -> None:
        for task in set(parked) - self._parked:
            log.warning("no worker knows the task %r; its jobs are parked until one does", task)
            self._parked.add(task)
        if self._due_timer is not None:
            self._due_timer.cancel()
            self._due_timer = None
        if next_due is not None:
            self._due_timer = asyncio.get_running_loop().call_later(next_due / 1000, self.due.set)


def _seen(bell: asyncio.Task[Any]) -> None:
    """Of a failure at the bell that comes when the worker has stopped listening, Python shall not complain."""
    if not bell.cancelled():
        bell.exception()
