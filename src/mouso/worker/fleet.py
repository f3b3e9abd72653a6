"""The children of a worker: who lives, who runs what, and what becomes of the jobs of one that dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, Protocol

from mouso.clock import SYSTEM
from mouso.config import one_line
from mouso.errors import ConfigError
from mouso.events import Event
from mouso.job import Charge, Lease, Outcome, Progress
from mouso.worker import WorkerOptions, frames
from mouso.worker.deaths import Coroner
from mouso.worker.launch import Exit, describe
from mouso.worker.outcomes import release
from mouso.worker.process import ChildProcess
from mouso.worker.shares import deal

_WATCH = 0.25
_RESPAWN = (0.1, 10.0)
_STEADY = 10.0
_SPARES = 8
_DEAF = 1.0
_HOPELESS = 10.0
_AFTER_RECALL = 0.05
"""Seconds that a child may need to see that it starts nothing more, or to note what it just starts."""

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
        worker: The worker's id.
        count: How many to keep alive.

    Attributes:
        hello: What the app registered, from the first child that has loaded it; fails with ``ConfigError`` if none can.
        draining: Nothing is started any more.
    """

    def __init__(self, worker: str, options: WorkerOptions, count: int, inbox: Inbox, owner: Owner) -> None:
        self.hello: asyncio.Future[frames.Hello] = asyncio.get_running_loop().create_future()
        self.draining = False
        self._worker = worker
        self._options = options
        self._count = count
        self._inbox = inbox
        self._owner = owner
        self._children: list[ChildProcess] = []
        self._coroner = Coroner()
        self._deaths = 0

    # -- life

    async def launch(self) -> None:
        """Starts the first children.

        Raises:
            ConfigError: The system does not let it.
        """
        for _ in range(self._count):
            if not await self._spawn():
                raise ConfigError(f"the worker cannot start {self._count} processes; see the line above")

    async def watch(self) -> None:
        """Kills children whose jobs do not end when they must, or that do not answer; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_WATCH)
            for child in list(self._children):
                self._listen_to(child)
                verdicts = self._coroner.overdue(child)
                if verdicts:
                    child.verdicts.update(verdicts)
                    log.warning(
                        "child %d is killed: %d of its jobs did not end when asked to", child.pid, len(verdicts)
                    )
                    child.kill()

    def _listen_to(self, child: ChildProcess) -> None:
        """Relieves a child that does not answer of what it has not started, and ends it if that is all that helps."""
        silence = child.silence()
        if silence > _DEAF and not child.deaf:
            log.warning(
                "child %d does not answer: a job holds its interpreter, or it was stopped; what waits in it goes to"
                " others, its stacks follow", child.pid,
            )  # fmt: skip
            child.dump()
            child.deaf = child.board.recalled = True
            self._owner.start(lambda: self._take_back(child))
        if silence > _HOPELESS and (child.stopped() or not child.running()):
            child.end_as_broken(f"it did not answer for {silence:.0f} s")

    async def _take_back(self, child: ChildProcess) -> None:
        await asyncio.sleep(_AFTER_RECALL)
        if not child.gone:
            self._inbox.settle([release(lease) for lease in child.take_back()])

    def drain(self) -> None:
        """Starts nothing more; what has not started is given back."""
        self.draining = True
        self._send_all(frames.Drain())
        self._inbox.settle(self._coroner.release_suspects())

    def interrupt(self, reason: str) -> None:
        """Asks all running jobs to stop: ``shutdown``, or ``fenced`` when others may run them by now."""
        now = SYSTEM.monotonic()
        for child in self._children:
            if reason == "fenced":
                child.stops.update((key, (now, reason)) for key in child.leases if key not in child.stops)
            child.send(frames.Stop(None, reason))

    def kill_running(self, why: str) -> None:
        """Kills children that still hold jobs; these are released."""
        for child in self._children:
            if child.leases and not child.killed:
                log.warning(
                    "child %d is killed: %s and %d of its jobs have not; they are released",
                    child.pid, why, len(child.leases),
                )  # fmt: skip
                child.kill()

    def dismiss(self) -> None:
        """Lets the children end."""
        for child in self._children:
            child.dismiss()

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
                child.stops.setdefault(key, (SYSTEM.monotonic(), "cancelled"))
                child.send(frames.Stop(key, "cancelled"))

    def held(self) -> list[tuple[int | str, int]]:
        """Key and token of every claim that it knows of."""
        leases = [lease for child in self._children for lease in child.leases.values()]
        return [(lease.key, lease.token) for lease in (*leases, *self._coroner.suspects)]

    def fence(self, keys: Collection[int | str]) -> None:
        """Stops jobs that others have taken over."""
        for child in self._children:
            for key in child.leases.keys() & set(keys):
                log.warning("job %s was taken over by another worker; it is stopped", child.leases[key].id)
                child.stops.setdefault(key, (SYSTEM.monotonic(), "fenced"))
                child.send(frames.Stop(key, "fenced"))

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
            case frames.Pong():
                self._inbox.look()  # there may be room in it again
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
            child.dismiss()
            return
        child.ready = True
        if not self.hello.done():
            self._coroner.tasks = hello.tasks
            self.hello.set_result(hello)
        else:
            self._feed_suspect(child)
            self._inbox.look()

    # -- birth and death

    async def _spawn(self, *, spare: bool = False) -> bool:
        """Starts a child; returns False, and says so, if the system does not let it."""
        child: ChildProcess | None = None
        try:
            child = ChildProcess(self._worker, self._options, self._heard, self._exited, spare=spare)
            self._children.append(child)
            await child.spawn()
        except (OSError, RuntimeError, MemoryError) as error:
            log.error("a child cannot be started: %s", one_line(error))
            if child is not None:
                self._children.remove(child)
                child.close()
            self._deaths += 1
            return False
        return True

    def _exited(self, child: ChildProcess) -> None:
        """Settles what a dead child held and replaces it."""
        if child not in self._children:
            return
        self._children.remove(child)
        child.gone = True
        if not self.hello.done():
            how = describe(child.exit or Exit(None))
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
        while not self.draining and not await self._spawn():
            await self._calm_down()

    async def _calm_down(self) -> None:
        """Waits a while after deaths that no job explains, longer after each."""
        if self._deaths > 1:
            await asyncio.sleep(min(_RESPAWN[0] * 2 ** min(self._deaths - 2, 20), _RESPAWN[1]))

    # -- suspects

    def _feed_suspect(self, child: ChildProcess) -> None:
        """Gives an empty child one of the jobs under which another died, and nothing beside it."""
        if child.ready and not child.leases and not self.draining:
            suspect = self._coroner.next_suspect()
            if suspect is not None:
                child.alone = suspect.key
                child.assign([suspect])
            elif child.spare:
                child.dismiss()

    async def _spawn_spares(self) -> None:
        """Gives suspects children of their own, so that they need not wait for each other."""
        await self._calm_down()
        for child in self._children:
            if self._coroner.suspects and not child.spare:
                self._feed_suspect(child)
        spares = sum(child.spare for child in self._children)
        for _ in range(min(len(self._coroner.suspects), _SPARES) - spares):
            if not await self._spawn(spare=True):
                self._owner.start(self._spawn_spares)
                return
