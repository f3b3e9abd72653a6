"""The children of a worker: those that live, and how others are born."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from mouso.brokers.base import Update
from mouso.clock import SYSTEM
from mouso.isolation import Limits
from mouso.job import Outcome
from mouso.worker import WorkerOptions, frames
from mouso.worker.launch import refusal
from mouso.worker.nursery import Nursery
from mouso.worker.outcomes import release
from mouso.worker.process import ChildProcess

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_REPEATED = 1.0
"""Seconds after which it is said again why no child can be started."""
_REFUSED = (OSError, RuntimeError, MemoryError)
"""What is raised where the system has no more descriptors, processes, threads or memory."""

log = logging.getLogger("mouso.worker")


class Inbox(Protocol):
    """Where outcomes and news of jobs go."""

    def settle(self, outcomes: list[Outcome]) -> None:
        """Takes outcomes to be stored."""

    def report(self, updates: list[Update]) -> None:
        """Takes news of running jobs to be stored."""

    def look(self) -> None:
        """There is room for more jobs."""


class Owner(Protocol):
    """What the children's keepers ask and tell the supervisor."""

    def start(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs a step beside the others; its failure ends the worker."""

    def learn(self) -> None:
        """What the app registers, what the fleet can run, or its size has changed."""

    def despair(self, why: str, *, passing: bool) -> None:
        """No child can start, or none can now."""


class Brake:
    """Slows down births after deaths that no job explains: they may be those of an app that cannot live.

    Attributes:
        why: Why the last one could not start; empty when one has started since.
    """

    def __init__(self) -> None:
        self._deaths = 0
        self._until = 0.0
        self.why = ""

    def release(self) -> None:
        """A child has lived as it should."""
        self._deaths, self._until = 0, 0.0

    def tighten(self) -> None:
        """Another has died, or could not be started."""
        self._deaths += 1
        self._until = SYSTEM.monotonic() + self._pause()

    def is_news(self, why: str) -> bool:
        """Whether a reason why one could not start is another one than the last time."""
        before, self.why = self.why, why
        return why != before

    @property
    def tight(self) -> bool:
        """Whether children have died, and none has lived as it should since."""
        return self._deaths > 0

    @property
    def holds(self) -> bool:
        """Whether it is too soon for the next birth."""
        return SYSTEM.monotonic() < self._until

    async def wait(self) -> None:
        """Waits until it is time for the next birth: longer after each death."""
        left = self._until - SYSTEM.monotonic()
        while left > 0:
            await asyncio.sleep(left)
            left = self._until - SYSTEM.monotonic()  # others may have died meanwhile

    def _pause(self) -> float:
        return 0.0 if self._deaths < 2 else min(_FIRST_PAUSE * 2 ** min(self._deaths - 2, 20), _LONGEST_PAUSE)


class Brood:
    """The children that live, and the birth of others.

    Args:
        worker: The worker's id.
        size: How many are to stay.
        heard: Called with a child and each of its messages.
        exited: Called once with each child that has ended.

    Attributes:
        children: Those whose death was not handled.
        draining: Nothing is started any more.
        version: How often the app has been reloaded.
    """

    def __init__(
        self,
        worker: str,
        options: WorkerOptions,
        size: int,
        inbox: Inbox,
        heard: Callable[[ChildProcess, frames.ToSupervisor], None],
        exited: Callable[[ChildProcess], None],
    ) -> None:
        self.children: list[ChildProcess] = []
        self.size = size
        self.draining = False
        self.version = 0
        self.concurrency = options.concurrency
        self.nursery = Nursery(worker, options)
        self.brake = Brake()
        self._lease = 0
        self._told = ("", 0.0)
        self._killed = False
        self._filling = False
        self._inbox = inbox
        self._heard = heard
        self._exited = exited

    # -- who is there

    @property
    def slots(self) -> int:
        """How many jobs it can run at once."""
        return self.size * self.concurrency

    @property
    def alone(self) -> int:
        """How many isolated jobs have their process."""
        return sum(child.limits is not None for child in self.children)

    @property
    def suspects(self) -> int:
        """How many jobs under which a process died have theirs."""
        return sum(child.spare and child.limits is None and bool(child.leases) for child in self.children)

    def regular(self) -> list[ChildProcess]:
        """The children that are to stay."""
        return [child for child in self.children if not (child.spare or child.leaving or child.heir)]

    def serving(self) -> list[ChildProcess]:
        """The children that take jobs."""
        return [child for child in self.children if child.ready and not (child.spare or child.leaving)]

    def holder(self, key: int | str, token: int) -> ChildProcess | None:
        """The child that holds a claim."""
        for child in self.children:
            lease = child.leases.get(key)
            if lease is not None and lease.token == token:
                return child
        return None

    # -- birth

    async def spawn(self, *, spare: bool = False, heir: bool = False) -> ChildProcess | None:
        """Starts a child; returns None, and says so, if the system does not let it."""
        child = self.conceive(self.concurrency, spare=spare, heir=heir)
        return child if child is not None and await self.bear(child) else None

    def conceive(
        self, slots: int, *, spare: bool = False, heir: bool = False, limits: Limits | None = None
    ) -> ChildProcess | None:
        """A child without a process; None, and it is said, if the system does not let it."""
        try:
            child = ChildProcess(slots, self._heard, self._exited, spare=spare, heir=heir, limits=limits)
        except _REFUSED as error:
            self._refused(error)
            return None
        child.board.lease = self._lease
        self.children.append(child)
        return child

    def renew(self, until: int) -> None:
        """Lets all run jobs up to an instant of the steady clock, in ms."""
        self._lease = until
        for child in self.children:
            child.board.lease = until

    async def bear(self, child: ChildProcess) -> bool:
        """Starts a child's process, and gives it what it holds; returns False, and says why, if that cannot be."""
        child.version = self.version
        try:
            await child.spawn(self.nursery.bear)
        except _REFUSED as error:
            self.children.remove(child)
            self._inbox.settle([release(lease) for lease in child.leases.values()])
            child.close()
            if not self.draining:  # else it is the end of the template that refuses
                self._refused(error)
            return False
        if self.draining or child.killed:
            child.kill()
        elif child.leases:
            with contextlib.suppress(MemoryError):  # it was killed
                child.assign(list(child.leases.values()))
        return True

    async def copies(self) -> bool:
        """Whether spare children start in milliseconds, as copies of a process that has imported the app."""
        with contextlib.suppress(OSError):
            return await self.nursery.prepare() is not None
        return False

    async def fill(self) -> None:
        """Brings it to its size; while it is not known that children can live, one after the other."""
        if self._filling:
            return
        self._filling = True
        try:
            while not self.draining and len(self.regular()) < self.size:
                await self.brake.wait()
                if self.draining or len(self.regular()) >= self.size:
                    break
                child = await self.spawn()
                if child is not None and self.brake.tight:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LONGEST_PAUSE):
                            await child.arrived.wait()
        finally:
            self._filling = False

    def _refused(self, error: BaseException) -> None:
        why, now = refusal(error), SYSTEM.monotonic()
        news = why != self._told[0] or now - self._told[1] > _REPEATED  # it is said once, not for each of many
        if news and not self.draining:
            log.error("a child cannot be started: %s", why)
            self._told = why, now
        self.brake.tighten()

    # -- death

    async def kill(self, patience: float) -> None:
        """Ends what is left of the children, and waits for that, but no longer than so many seconds, and only once.

        What the kernel holds survives even SIGKILL for a while.
        """
        self.draining = True
        for child in self.children:
            child.kill()
        ends = [asyncio.create_task(child.ended()) for child in self.children]
        if ends and not self._killed:
            await asyncio.wait(ends, timeout=patience / 2)
        self.nursery.close()  # how copies end is seen without their template from now on
        if ends and not self._killed:
            await asyncio.wait(ends, timeout=patience / 2)
        self._killed = True
