"""The children of a worker: who lives, who runs what, and what becomes of the jobs of one that dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from mouso.brokers.base import Update
from mouso.clock import SYSTEM
from mouso.config import one_line
from mouso.errors import ConfigError
from mouso.events import Event
from mouso.isolation import Limits
from mouso.job import Charge, Lease, Outcome
from mouso.worker import WorkerOptions, frames, stacks
from mouso.worker.deaths import Coroner
from mouso.worker.launch import Exit, describe
from mouso.worker.memory import resident
from mouso.worker.nursery import Nursery
from mouso.worker.outcomes import release
from mouso.worker.process import ChildProcess
from mouso.worker.shares import deal

_WATCH, _WATCH_ALONE = 0.25, 0.1
"""Seconds between two looks; shorter while there are jobs whose memory is limited."""
_RESPAWN = (0.1, 10.0)
_STEADY = 10.0
_SPARES = 8
GIVE_BACK = 0.25
_SCARCE = 1.0
_DEAF = 1.0
_HOPELESS = 10.0
_REFUSED = (OSError, RuntimeError, MemoryError)
"""What is raised where the system has no more descriptors, processes, threads or memory."""
_AFTER_RECALL = 0.05
"""Seconds that a child may need to see that it starts nothing more, or to note what it just starts."""

log = logging.getLogger("mouso.worker")


class Inbox(Protocol):
    """Where a fleet's outcomes go."""

    def settle(self, outcomes: list[Outcome]) -> None:
        """Takes outcomes to be stored."""

    def report(self, updates: list[Update]) -> None:
        """Takes news of running jobs to be stored."""

    def look(self) -> None:
        """There is room for more jobs."""


class Owner(Protocol):
    """What a fleet asks and tells its supervisor."""

    def start(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs a step beside the others; its failure ends the worker."""

    def learn(self) -> None:
        """What the app registers, what the fleet can run, or its size has changed."""


class Census(NamedTuple):
    """A fleet at one moment.

    Attributes:
        pids: The processes that live.
        ready: How many of them take jobs.
        running: Jobs that run.
        held: Claimed jobs that have not started.
    """

    pids: list[int]
    ready: int
    running: int
    held: int


class Fleet:
    """The children.

    Args:
        worker: The worker's id.
        size: How many to start with.

    Attributes:
        hello: What the app registered, from the first child that has loaded it; fails with ``ConfigError`` if none can.
        app: What its newest version registered.
        tasks: What every child that takes jobs can run, old version or new.
        draining: Nothing is started any more.
        size: How many children are to be alive.
        restarts: How many were replaced, by the cause of their end.
    """

    def __init__(self, worker: str, options: WorkerOptions, size: int, inbox: Inbox, owner: Owner) -> None:
        self.hello: asyncio.Future[frames.Hello] = asyncio.get_running_loop().create_future()
        self.app: frames.Hello
        self.tasks: frozenset[str] = frozenset()
        self.draining = False
        self.size = size
        self.restarts: Counter[str] = Counter()
        self._options = options
        self._nursery = Nursery(worker, options)
        self._inbox = inbox
        self._owner = owner
        self._children: list[ChildProcess] = []
        self._coroner = Coroner()
        self._stacks = stacks.Stacks(inbox.report)
        self._deaths = 0
        self._isolated: dict[str, Limits] = {}
        self._lonely: deque[tuple[Lease, float]] = deque()
        self._scarce_until = 0.0
        self._barren_until = 0.0
        self._succeeding = False
        self._version = self._newest = 0

    # -- life

    async def launch(self) -> None:
        """Starts the first children.

        Raises:
            ConfigError: The system does not let it.
        """
        for _ in range(self.size):
            if await self._spawn() is None:
                raise ConfigError(f"the worker cannot start {self.size} processes; see the line above")

    async def watch(self) -> None:
        """Kills children whose jobs do not end when they must, or that do not answer; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_WATCH_ALONE if self._alone() else _WATCH)
            for child in list(self._children):
                self._listen_to(child)
                verdicts = self._coroner.overdue(child) | self._coroner.overdrawn(child)
                if verdicts:
                    child.verdicts.update(verdicts)
                    log.warning("child %d is killed because of %d of its jobs", child.pid, len(verdicts))
                    child.kill()
                most = self._options.max_memory_per_child
                if most is not None and child.jobs and child in self._regular() and resident(child.pid) > most:
                    self._succeed(child, f"it has more than {most / (1 << 20):,.0f} MiB resident")
            if self._lonely:
                self._give_back_lonely()
                self._isolate_next()

    def _listen_to(self, child: ChildProcess) -> None:
        """Relieves a child that does not answer of what it has not started, and ends it if that is all that helps."""
        silence = child.silence()
        if silence > _DEAF and not child.deaf:
            log.warning(
                "child %d does not answer: a job holds its interpreter, or it was stopped; what waits in it goes to"
                " others, its stacks follow", child.pid,
            )  # fmt: skip
            self._owner.start(partial(stacks.dump, child))
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
        self._inbox.settle([*self._coroner.release_suspects(), *(release(lease) for lease, _ in self._lonely)])
        self._lonely.clear()

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
        self._nursery.close()

    def dump(self) -> None:
        """Writes the stacks of all children to stderr, with the jobs that run on them."""
        for child in self._children:
            self._owner.start(partial(stacks.dump, child))

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

    def census(self) -> Census:
        """How many there are of what."""
        running, claimed = self.running, len(self.held())
        ready = len(self._serving())
        pids = [child.pid for child in self._children if child.pid]
        return Census(pids, ready, running, max(claimed - running, 0))

    @property
    def starting(self) -> bool:
        """Whether fewer children take jobs than there are to be."""
        return len(self._serving()) < self.size

    @property
    def slots(self) -> int:
        """How many jobs it can run at once."""
        return self.size * self._options.concurrency

    @property
    def taken(self) -> int:
        """How many of its slots are taken."""
        return sum(min(len(child.leases), child.slots) for child in self._regular()) + self._alone()

    def room(self) -> int:
        """How many more jobs it can take."""
        room = sum(child.room() for child in self._children)
        if not self._isolated:
            return room
        if SYSTEM.monotonic() < self._scarce_until:
            room = sum(min(child.room(), max(child.slots - len(child.leases), 0)) for child in self._children)
        return max(room - len(self._lonely) - self._alone(), 0)

    def _alone(self) -> int:
        """How many isolated jobs have their process."""
        return sum(child.limits is not None for child in self._children)

    def well_fed(self, seconds: float) -> bool:
        """Whether every child has work waiting for at least so long."""
        return all(child.well_fed(seconds) for child in self._children if not child.spare)

    def place(self, leases: Sequence[Lease]) -> None:
        """Gives jobs to children; what cannot be placed any more is released."""
        if self._isolated:
            now = SYSTEM.monotonic()
            self._lonely.extend((lease, now) for lease in leases if lease.task in self._isolated)
            leases = [lease for lease in leases if lease.task not in self._isolated]
            self._isolate_next()
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

    def find_stack(self, key: int | str, token: int) -> None:
        """Has it reported where a job is."""
        for child in self._children:
            lease = child.leases.get(key)
            if lease is not None and lease.token == token:
                self._owner.start(partial(self._stacks.find, child, lease))

    def held(self) -> list[tuple[int | str, int]]:
        """Key and token of every claim that it knows of."""
        leases = [lease for child in self._children for lease in child.leases.values()]
        leases += [*self._coroner.suspects, *(lease for lease, _ in self._lonely)]
        return [(lease.key, lease.token) for lease in leases]

    def fence(self, claims: Collection[tuple[int | str, int]]) -> None:
        """Stops claims (key and token) that others have taken over; late news of one that has ended stop nothing."""
        for child in self._children:
            for key, token in claims:
                lease = child.leases.get(key)
                if lease is not None and lease.token == token:
                    log.warning("job %s was taken over by another worker; it is stopped", lease.id)
                    child.stops.setdefault(key, (SYSTEM.monotonic(), "fenced"))
                    child.send(frames.Stop(key, "fenced"))

    def tell(self, events: list[Event]) -> None:
        """Lets one child tell the app's handlers."""
        serving = self._serving()
        if events and serving:
            serving[0].send(frames.Happened(events))

    # -- what children say

    def _heard(self, child: ChildProcess, message: frames.ToSupervisor) -> None:
        match message:
            case frames.Outcomes():
                held = child.take(message.outcomes)
                if any(o.charge is Charge.RELEASE for o in held):
                    child.gave_back()
                if child.leaving or child.spare or self._coroner.suspects or self._options.max_jobs_per_child:
                    self._see_off(child)
                self._inbox.settle(held)
            case frames.Pong():
                self._inbox.look()  # there may be room in it again
            case frames.Reports():
                self._stacks.heard(message.updates)
                self._inbox.report(message.updates)
            case frames.Hello():
                self._welcome(child, message)
            case frames.Failed():
                child.failure = message.message
                if not self.hello.done():
                    self.hello.set_exception(ConfigError(message.message))
                elif self.hello.exception() is None and not child.heir:  # or else who waits for it tells
                    log.error("child %d cannot start: %s", child.pid, message.message)

    def _see_off(self, child: ChildProcess) -> None:
        """What follows when a child has ended jobs: another suspect, its end, or its replacement."""
        most = self._options.max_jobs_per_child
        if child.leaving or child.limits is not None:
            child.leave()
        elif child.alone is None and (child.spare or self._coroner.suspects):
            self._feed_suspect(child)
        elif most is not None and child.jobs >= most:
            self._succeed(child, f"it has run {child.jobs:,} jobs")

    def _welcome(self, child: ChildProcess, hello: frames.Hello) -> None:
        if self.draining:
            child.dismiss()
            return
        child.ready, child.tasks = True, frozenset(hello.tasks)
        child.arrived.set()
        if not child.spare:
            self._learn(child, hello)
        if not self.hello.done():
            self.hello.set_result(hello)
            if self._isolated:
                self._owner.start(self._prepare)
        else:
            self._feed_suspect(child)
            self._inbox.look()

    def _learn(self, child: ChildProcess, hello: frames.Hello) -> None:
        """Notes what a child's version of the app can run."""
        if child.version >= self._newest:
            self._newest, self.app = child.version, hello
            self._coroner.tasks |= hello.tasks  # what is no longer there may still run in older children
            self._isolated = {name: info.limits for name, info in hello.tasks.items() if info.limits is not None}
        self._agree()

    def _agree(self) -> None:
        """Finds out what all children that take jobs can run: only that may be claimed."""
        serving = self._serving()
        if serving:
            self.tasks = frozenset.intersection(*(child.tasks for child in serving))
            self._owner.learn()

    # -- birth and death

    async def _spawn(self, *, spare: bool = False, heir: bool = False) -> ChildProcess | None:
        """Starts a child; returns None, and says so, if the system does not let it."""
        try:
            child = ChildProcess(self._options.concurrency, self._heard, self._exited, spare=spare, heir=heir)
        except _REFUSED as error:
            self._failed_to_start(one_line(error))
            return None
        self._children.append(child)
        return child if await self._bear(child) else None

    async def _bear(self, child: ChildProcess) -> bool:
        """Starts a child's process, and gives it what it holds; returns False, and says so, if that cannot be."""
        child.version = self._version
        try:
            await child.spawn(self._nursery.bear)
        except _REFUSED as error:
            self._failed_to_start(one_line(error))
            self._children.remove(child)
            self._inbox.settle([release(lease) for lease in child.leases.values()])
            child.close()
            return False
        if self.draining or child.killed:
            child.kill()
        elif child.leases:
            child.assign(list(child.leases.values()))
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
        child.arrived.set()
        worked = child.ready and bool(child.leases)
        outcomes = self._coroner.examine(child, draining=self.draining)
        child.close()
        self._inbox.settle(outcomes)
        if not self.draining:
            lived = SYSTEM.monotonic() - child.started
            # Only deaths that no job explains may be those of an app that cannot live: they are slowed down.
            if worked or lived > _STEADY or (child.dismissed and child.jobs):
                self._deaths = 0
            elif not (child.dismissed or child.heir):
                self._slow_down()
            if not (child.spare or child.leaving or child.heir):
                self.restarts[cause_of_end(child)] += 1
                self._agree()
                self._owner.start(self._respawn)
            self._owner.start(self._spawn_spares)
            self._isolate_next()
            self._inbox.look()

    def _regular(self) -> list[ChildProcess]:
        """The children that are to stay."""
        return [child for child in self._children if not (child.spare or child.leaving or child.heir)]

    def _serving(self) -> list[ChildProcess]:
        """The children that take jobs."""
        return [child for child in self._children if child.ready and not (child.spare or child.leaving)]

    async def _respawn(self) -> None:
        """Brings the fleet to its size."""
        await self._calm_down()
        while not self.draining and len(self._regular()) < self.size:
            if await self._spawn() is None:
                await self._calm_down()

    def resize(self, size: int) -> None:
        """Starts children, or lets some end after their jobs."""
        self.size = size
        regular = sorted(self._regular(), key=lambda child: (child.ready, len(child.leases)))
        for child in regular[: max(len(regular) - size, 0)]:
            child.leave()
        self._agree()
        self._owner.learn()
        self._owner.start(self._respawn)

    async def renew(self) -> str:
        """Replaces all children, one after the other, by such as import the app anew.

        Returns:
            Why one of them cannot start, and then those that are left stay; empty if all is done.
        """
        self._deaths = 0
        try:
            await self._nursery.renew()
        except (ConfigError, OSError) as error:
            return one_line(error)
        self._version += 1
        for child in self._regular():
            if why := await self._replace(child):
                self._nursery.revert()
                return why
            self._nursery.keep()
        self._nursery.keep()
        self._owner.start(self._respawn)
        if self._isolated:
            self._owner.start(self._prepare)
        return ""

    def give_up(self) -> None:
        """Ends children that are to replace others and cannot work yet."""
        self._nursery.give_up()
        for child in self._children:
            if child.heir:
                child.kill()

    def _succeed(self, child: ChildProcess, why: str) -> None:
        """Replaces a child between jobs: it ends when its successor can work. One after the other."""
        if not (self._succeeding or self.draining or child.heir):
            self._succeeding = True
            log.info("child %d is replaced: %s", child.pid, why)
            self._owner.start(partial(self._succeed_now, child))

    async def _succeed_now(self, child: ChildProcess) -> None:
        try:
            if why := await self._replace(child):
                log.error("child %d stays, its successor cannot start: %s", child.pid, why)
                self._slow_down()
                await self._calm_down()
        finally:
            self._succeeding = False

    async def _replace(self, child: ChildProcess) -> str:
        """Starts a successor; when that can work, the child takes nothing more and ends after its jobs.

        Returns:
            Why it cannot; empty if it is done.
        """
        heir = await self._spawn(heir=True)
        if heir is None:
            return "the system lets no process start"
        await heir.arrived.wait()
        if not heir.ready:
            return heir.failure or f"its process ended ({describe(heir.exit or Exit(None))})"
        heir.heir = False
        if not (child.gone or child.leaving):
            self.restarts["recycled"] += 1
            child.leave()
        elif len(self._regular()) > self.size:
            heir.leave()
        self._agree()
        self._inbox.look()
        return ""

    def _failed_to_start(self, why: str) -> None:
        log.error("a child cannot be started: %s", why)
        self._slow_down()

    def _slow_down(self) -> None:
        self._deaths += 1
        self._barren_until = SYSTEM.monotonic() + self._pause()

    def _pause(self) -> float:
        """Seconds to wait after deaths that no job explains, longer after each."""
        return 0.0 if self._deaths < 2 else min(_RESPAWN[0] * 2 ** min(self._deaths - 2, 20), _RESPAWN[1])

    async def _calm_down(self) -> None:
        await asyncio.sleep(self._pause())

    # -- isolated jobs

    async def _prepare(self) -> None:
        """Makes the template before it is needed, so that the first isolated job starts as fast as the others."""
        with contextlib.suppress(OSError):
            await self._nursery.prepare()

    def _isolate_next(self) -> None:
        """Starts processes for isolated jobs, as many as there are slots."""
        if SYSTEM.monotonic() < self._barren_until:
            return
        for _ in range(min(len(self._lonely), self.slots - self._alone())):
            lease, _ = self._lonely.popleft()
            limits = self._isolated.get(lease.task, Limits())
            try:
                child = ChildProcess(1, self._heard, self._exited, spare=True, limits=limits)
            except _REFUSED as error:
                self._failed_to_start(one_line(error))
                self._inbox.settle([release(lease)])
                return
            child.alone, child.leases[lease.key] = lease.key, lease
            self._children.append(child)  # now, so that its slot is taken
            self._owner.start(partial(self._isolate, child))

    async def _isolate(self, child: ChildProcess) -> None:
        await self._bear(child)

    def _give_back_lonely(self) -> None:
        """Gives back isolated jobs that found no slot in time."""
        now = SYSTEM.monotonic()
        while self._lonely and now - self._lonely[0][1] > GIVE_BACK:
            self._scarce_until = now + _SCARCE
            self._inbox.settle([release(self._lonely.popleft()[0])])

    # -- suspects

    def _feed_suspect(self, child: ChildProcess) -> None:
        """Gives an empty child one of the jobs under which another died, and nothing beside it."""
        if child.ready and not (child.leases or child.leaving or self.draining or child.limits is not None):
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
        spares = sum(child.spare and child.limits is None for child in self._children)
        for _ in range(min(len(self._coroner.suspects), _SPARES) - spares):
            if await self._spawn(spare=True) is None:
                self._owner.start(self._spawn_spares)
                return


def cause_of_end(child: ChildProcess) -> str:
    """Why a child has ended, in few and always the same words: ``killed`` (by its supervisor), or by its exit code."""
    return "killed" if child.killed else describe(child.exit or Exit(None)).rpartition(", ")[2]
