"""The children of a worker: who lives, who runs what, and what becomes of the jobs of one that dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from mouso.clock import SYSTEM
from mouso.errors import ConfigError
from mouso.events import Event
from mouso.job import Charge, Lease, Outcome, Progress
from mouso.worker import WorkerOptions, frames
from mouso.worker.deaths import Coroner, describe_exit
from mouso.worker.outcomes import release
from mouso.worker.process import ChildProcess
from mouso.worker.shares import deal

_WATCH = 0.25
_RESPAWN = (0.1, 10.0)
_STEADY = 10.0
_SPARES = 8

log = logging.getLogger("mouso.worker")


class Inbox(Protocol):
    """Where a fleet's outcomes go."""

    def settle(self, outcomes: list[Outcome]) -> None:
        """Takes outcomes to be stored."""

    def look(self) -> None:
        """There is room for more jobs."""


class Owner(Protocol):
    """What a fleet asks of its supervisor."""

    def report(self, reports: list[tuple[int | str, int, Progress]]) -> None:
        """Takes progress to be stored."""

    def start(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs a step beside the others; its failure ends the worker."""


class Fleet:
    """The children.

    Args:
        count: How many to keep alive.

    Attributes:
        hello: What the app registered, from the first child that has loaded it; fails with ``ConfigError`` if none can.
        draining: Nothing is started any more.
    """

    def __init__(self, options: WorkerOptions, count: int, inbox: Inbox, owner: Owner) -> None:
        self.hello: asyncio.Future[frames.Hello] = asyncio.get_running_loop().create_future()
        self.draining = False
        self._options = options
        self._count = count
        self._inbox = inbox
        self._owner = owner
        self._children: list[ChildProcess] = []
        self._coroner = Coroner()
        self._deaths = 0

    # -- life

    async def launch(self) -> None:
        """Starts the first children."""
        await asyncio.gather(*(self._spawn() for _ in range(self._count)))

    async def watch(self) -> None:
        """Kills children whose jobs do not end when they must; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_WATCH)
            for child in self._children:
                verdicts = self._coroner.overdue(child)
                if verdicts:
                    child.verdicts.update(verdicts)
                    log.warning(
                        "child %d is killed: %d of its jobs did not end when asked to", child.pid, len(verdicts)
                    )
                    child.kill()

    def drain(self) -> None:
        """Starts nothing more; what has not started is given back."""
        self.draining = True
        self._send_all(frames.Drain())
        self._inbox.settle(self._coroner.release_suspects())

    def interrupt(self, reason: str) -> None:
        """Asks all running jobs to stop."""
        self._send_all(frames.Stop(None, reason))

    def kill_the_rest(self) -> None:
        """Kills children that still hold jobs; these are released."""
        for child in self._children:
            if child.leases:
                log.warning(
                    "child %d ignored the end of its grace with %d jobs; they are released",
                    child.pid,
                    len(child.leases),
                )
                child.kill()

    def dismiss(self) -> None:
        """Lets the children end."""
        self._send_all(frames.Exit())

    async def kill(self) -> None:
        """Ends what is left of the children."""
        self.draining = True
        for child in list(self._children):
            child.kill()
            await child.ended()

    def dump(self) -> None:
        """Makes the children write the stacks of their threads to stderr."""
        for child in self._children:
            child.dump()

    def _send_all(self, message: frames.ToChild) -> None:
        for child in self._children:
            child.send(message)

    # -- what it holds

    @property
    def empty(self) -> bool:
        """Whether no child is left."""
        return not self._children

    @property
    def busy(self) -> bool:
        """Whether any child holds a job."""
        return any(child.leases for child in self._children)

    @property
    def running(self) -> int:
        """How many jobs run now."""
        return sum(len(child.running()) for child in self._children)

    def room(self) -> int:
        """How many more jobs it can take."""
        return sum(child.room() for child in self._children)

    def well_fed(self, seconds: float) -> bool:
        """Whether every child has work waiting for at least so long."""
        return all(child.well_fed(seconds) for child in self._children)

    def place(self, leases: Sequence[Lease]) -> None:
        """Gives jobs to children; what cannot be placed any more is released."""
        suspects = [lease for lease in leases if lease.crashes]
        if suspects:
            self._coroner.suspects.extend(suspects)
            leases = [lease for lease in leases if not lease.crashes]
            if self.draining:
                self._inbox.settle(self._coroner.release_suspects())
            else:
                self._owner.start(self._spawn_spares)
        children, start = self._children, 0
        rooms = [child.room() for child in children]
        counts = [min(len(leases), *rooms)] if len(children) == 1 else deal(len(leases), rooms)
        for child, count in zip(children, counts, strict=True):
            if count:
                child.assign(leases[start : start + count])
            start += count
        if start < len(leases):  # a child died while they were claimed
            self._inbox.settle([release(lease) for lease in leases[start:]])

    def stop(self, key: int | str, token: int) -> None:
        """Asks a job to stop because it was cancelled."""
        for child in self._children:
            lease = child.leases.get(key)
            if lease is not None and lease.token == token:
                child.stops.setdefault(key, SYSTEM.monotonic())
                child.send(frames.Stop(key, "cancelled"))

    def tell(self, events: list[Event]) -> None:
        """Lets one child tell the app's handlers."""
        ready = [child for child in self._children if child.ready and not child.spare]
        if events and ready:
            ready[0].send(frames.Happened(events))

    # -- what children say

    def _heard(self, child: ChildProcess, message: frames.ToSupervisor) -> None:
        match message:
            case frames.Outcomes():
                held = child.take(message.outcomes)
                if any(o.charge is Charge.RELEASE for o in held):
                    child.gave_back()
                if child.alone is None and (child.spare or self._coroner.suspects):
                    self._feed_suspect(child)
                self._inbox.settle(held)
            case frames.Reports():
                self._owner.report(message.reports)
            case frames.Hello():
                self._welcome(child, message)
            case frames.Failed():
                if not self.hello.done():
                    self.hello.set_exception(ConfigError(message.message))
                elif self.hello.exception() is None:
                    log.error("child %d cannot start: %s", child.pid, message.message)

    def _welcome(self, child: ChildProcess, hello: frames.Hello) -> None:
        if self.draining:
            child.send(frames.Exit())
            return
        child.ready = True
        if not self.hello.done():
            self._coroner.tasks = hello.tasks
            self.hello.set_result(hello)
        else:
            self._feed_suspect(child)
            self._inbox.look()

    # -- birth and death

    async def _spawn(self, *, spare: bool = False) -> None:
        child = ChildProcess(self._options, self._heard, self._exited, spare=spare)
        self._children.append(child)
        await child.spawn()

    def _exited(self, child: ChildProcess) -> None:
        """Settles what a dead child held and replaces it."""
        if child not in self._children:
            return
        self._children.remove(child)
        child.gone = True
        if not self.hello.done():
            how = describe_exit(child.returncode)
            self.hello.set_exception(ConfigError(f"the app {self._options.app} ended its process at import ({how})"))
        if self.hello.exception() is not None:
            child.close()
            return
        worked = bool(child.leases)
        outcomes = self._coroner.examine(child, draining=self.draining)
        child.close()
        self._inbox.settle(outcomes)
        if not self.draining:
            lived = SYSTEM.monotonic() - child.started
            # Only deaths that no job explains may be those of an app that cannot live: they are slowed down.
            self._deaths = 0 if worked or lived > _STEADY else self._deaths + 1
            if not child.spare:
                self._owner.start(self._respawn)
            self._owner.start(self._spawn_spares)

    async def _respawn(self) -> None:
        await self._calm_down()
        if not self.draining:
            await self._spawn()

    async def _calm_down(self) -> None:
        """Waits a while after deaths that no job explains, longer after each."""
        if self._deaths > 1:
            await asyncio.sleep(min(_RESPAWN[0] * 2 ** (self._deaths - 2), _RESPAWN[1]))

    # -- suspects

    def _feed_suspect(self, child: ChildProcess) -> None:
        """Gives an empty child one of the jobs under which another died, and nothing beside it."""
        if child.ready and not child.leases and not self.draining:
            suspect = self._coroner.next_suspect()
            if suspect is not None:
                child.alone = suspect.key
                child.assign([suspect])
            elif child.spare:
                child.send(frames.Exit())

    async def _spawn_spares(self) -> None:
        """Gives suspects children of their own, so that they need not wait for each other."""
        await self._calm_down()
        for child in self._children:
            if self._coroner.suspects and not child.spare:
                self._feed_suspect(child)
        spares = sum(child.spare for child in self._children)
        for _ in range(min(len(self._coroner.suspects), _SPARES) - spares):
            await self._spawn(spare=True)
