"""The children of a worker: who lives, who runs what, and what becomes of the jobs of one that dies."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

from mouso.clock import SYSTEM
from mouso.config import counted
from mouso.errors import ConfigError, StartError
from mouso.events import Event
from mouso.job import Charge, Lease
from mouso.worker import WorkerOptions, frames, stacks
from mouso.worker.brood import Brood, Inbox, Owner
from mouso.worker.deaths import Coroner
from mouso.worker.isolating import Isolated
from mouso.worker.launch import Exit, describe
from mouso.worker.outcomes import release
from mouso.worker.process import ChildProcess
from mouso.worker.shares import deal
from mouso.worker.succession import Succession

_WATCH, _WATCH_ALONE = 0.25, 0.1
"""Seconds between two looks; shorter while there are jobs whose memory is limited."""
_STOPPED = 2.5
"""Seconds between two looks after which this process, or the machine, must have been stopped."""
_USELESS = 60.0
"""Seconds for which no child could start, after which the worker is of no use."""
_SLOW_START = 30.0
"""Seconds after which it is worth a line that a child has not loaded the app yet."""
_UNBORN, _SLOWER = 60.0, 5
"""Seconds that a process may take to its start where others wait for it; or as many times as long as the slowest."""
_LINGER = 10.0
"""Seconds that a child may take to end which was told to: until then it holds its slot."""
_STEADY = 10.0
_STILLBIRTHS = 3
"""How many children that are killed before any has loaded the app are replaced."""
_SPARES, _SPARES_COPIED = 8, 64
"""The most suspects that run at once: in processes that must import the app, and in copies of one that has."""
_DEAF = 1.0
_HOPELESS = 10.0
_UNTOLD = 10_000
"""The most events that wait for a child to tell the handlers of."""
_AFTER_RECALL = 0.05
"""Seconds that a child may need to see that it starts nothing more, or to note what it just starts."""

log = logging.getLogger("mouso.worker")


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
        hello: What the app registered, from the first child that has loaded it; fails with ``ConfigError`` if none can,
            and with ``StartError`` if that may change.
        app: What its newest version registered.
        tasks: What every child that takes jobs can run, old version or new.
        restarts: How many were replaced, by the cause of their end.
    """

    def __init__(self, worker: str, options: WorkerOptions, size: int, inbox: Inbox, owner: Owner) -> None:
        self.hello: asyncio.Future[frames.Hello] = asyncio.get_running_loop().create_future()
        self.app: frames.Hello
        self.tasks: frozenset[str] = frozenset()
        self.restarts: Counter[str] = Counter()
        self._name = options.app
        self._inbox = inbox
        self._owner = owner
        self._brood = Brood(worker, options, size, inbox, self._heard, self._exited)
        self._isolated = Isolated(self._brood, inbox, owner)
        self._succession = Succession(self._brood, options, owner, self.restarts, self._served_by_others)
        self._coroner = Coroner(self._brood.brake.is_news)
        self._stacks = stacks.Stacks(inbox.report)
        self._untold: deque[Event] = deque(maxlen=_UNTOLD)
        self._newest = self._stillbirths = 0
        self._slow = self._passing = False
        self._slowest = 0.0

    # -- life

    @property
    def size(self) -> int:
        """How many children are to be alive."""
        return self._brood.size

    @property
    def draining(self) -> bool:
        """Whether nothing is started any more."""
        return self._brood.draining

    async def launch(self) -> None:
        """Starts the first children.

        Raises:
            ConfigError: The system does not let it.
        """
        for _ in range(self.size):
            if len(self._brood.regular()) >= self.size:  # one has died by now, and was replaced
                return
            if await self._brood.spawn() is None:
                raise ConfigError(f"the worker cannot start {self.size} processes; see the line above")

    async def watch(self) -> None:
        """Kills children whose jobs do not end when they must, or that do not answer; runs until it is cancelled."""
        awake, served = 0.0, SYSTEM.monotonic()
        while True:
            pause = _WATCH_ALONE if self._brood.alone else _WATCH
            looked = SYSTEM.monotonic()
            await asyncio.sleep(pause)
            passed = SYSTEM.monotonic() - looked
            if passed > _STOPPED:  # the children probably as well
                awake = SYSTEM.monotonic()
            for child in list(self._brood.children):
                self._look_at_start(child, awake)
                if child.killed:  # its verdicts are spoken, even if the kernel takes its time
                    continue
                if child.dismissed and SYSTEM.monotonic() - max(child.dismissed_at, awake) > _LINGER:
                    why = "lifespans, exit handlers or threads hold it"
                    log.warning("child %d has not ended within %g s (%s): it is killed", child.pid, _LINGER, why)
                    child.kill()
                    continue
                self._listen_to(child, min(passed, 2 * pause))
                self._coroner.usual.sample(child)
                verdicts = self._coroner.overdue(child, awake) | self._coroner.overdrawn(child)
                if verdicts:
                    child.verdicts.update(verdicts)
                    log.warning("child %d is killed because of %d of its jobs", child.pid, len(verdicts))
                    child.kill()
            self._succession.look()
            self._isolated.look()
            if self._brood.serving():
                served = SYSTEM.monotonic()
            elif self._brood.brake.why and not self.draining and SYSTEM.monotonic() - max(served, awake) > _USELESS:
                self._owner.despair(self._brood.brake.why, passing=self._passing)
                return

    def _look_at_start(self, child: ChildProcess, awake: float) -> None:
        """Tells of a child that does not come to work; ends it where a slot, or another child's end, waits for it."""
        age = SYSTEM.monotonic() - max(child.started, awake)
        if child.ready or age <= _SLOW_START:
            return
        if not self._slow:
            self._slow = True
            why = "it has not loaded the app, or not entered its lifespans"
            log.warning("child %d is not ready after %g s: %s; its stack follows", child.pid, _SLOW_START, why)
            self._owner.start(partial(stacks.dump, child))
        patience = max(_UNBORN, _SLOWER * self._slowest)
        if (child.spare or child.heir) and age > patience and not child.killed:
            waits = "what waits for it goes elsewhere" if child.spare else "the child that it was to replace stays"
            log.error("child %d is not ready after %.3g s: it is killed, %s", child.pid, patience, waits)
            child.kill()

    def _listen_to(self, child: ChildProcess, passed: float) -> None:
        """Relieves a child that does not answer of what it has not started, and ends it if that is all that helps."""
        silence = child.silence(passed)
        if silence > _DEAF and not child.deaf:
            stopped = child.stopped()
            why = "it was stopped by a signal" if stopped else "a job holds its interpreter, its stacks follow"
            log.warning("child %d does not answer: %s; what waits in it goes to others", child.pid, why)
            if not stopped:
                self._owner.start(partial(stacks.dump, child))
            child.deaf = True
            self._owner.start(partial(self._take_back, child, child.recall()))
        if silence > _HOPELESS and (child.stopped() or not child.running()):
            child.end_as_broken(f"it did not answer for {silence:.0f} s")

    async def _take_back(self, child: ChildProcess, last: int) -> None:
        await asyncio.sleep(_AFTER_RECALL)
        if not child.gone:
            self._inbox.settle([release(lease) for lease in child.take_back(last)])

    def resize(self, size: int) -> None:
        """Starts children, or lets some end after their jobs."""
        self._brood.size = size
        regular = sorted(self._brood.regular(), key=lambda child: (child.ready, len(child.leases)))
        for child in regular[: max(len(regular) - size, 0)]:
            child.leave()
        self._agree()
        self._owner.learn()
        self._owner.start(self._brood.fill)

    def renew_lease(self, until: int) -> None:
        """Lets the children run jobs up to an instant of the steady clock, in ms, and stop them then by themselves."""
        self._brood.renew(until)

    async def renew(self) -> str:
        """Replaces all children, one after the other, by such as import the app anew.

        Returns:
            Why one of them cannot start, and then those that are left stay; empty if all is done.
        """
        why = await self._succession.renew()
        if not why:
            self._isolated.prepare()
        return why

    def give_up(self) -> None:
        """Ends children that are to replace others and cannot work yet."""
        self._succession.give_up()

    # -- the end

    def drain(self) -> None:
        """Starts nothing more; what has not started is given back."""
        self._brood.draining = True
        for child in self._brood.children:
            child.send(frames.Drain())
        self._inbox.settle(self._coroner.release_suspects())
        self._isolated.drain()

    def interrupt(self, reason: str) -> None:
        """Asks all running jobs to stop: ``shutdown``, or ``fenced`` when others may run them by now."""
        now = SYSTEM.monotonic()
        for child in self._brood.children:
            if reason == "fenced":
                child.stops.update((key, (now, reason)) for key in child.leases if key not in child.stops)
            child.send(frames.Stop(None, reason))

    def kill_running(self, why: str) -> None:
        """Kills children that still hold jobs; these are released."""
        for child in self._brood.children:
            if child.leases and not child.killed:
                log.warning(
                    "child %d is killed: %s and %d of its jobs have not; they are released",
                    child.pid, why, len(child.leases),
                )  # fmt: skip
                child.kill()

    def dismiss(self) -> None:
        """Lets the children end."""
        for child in self._brood.children:
            child.dismiss()

    async def kill(self, patience: float = 1.0) -> None:
        """Ends what is left of the children, and waits for that, but no longer than so many seconds."""
        await self._brood.kill(patience)

    def dump(self) -> None:
        """Writes the stacks of all children to stderr, with the jobs that run on them."""
        for child in self._brood.children:
            self._owner.start(partial(stacks.dump, child))

    # -- what it holds

    @property
    def empty(self) -> bool:
        """Whether no child is left."""
        return not self._brood.children

    @property
    def busy(self) -> bool:
        """Whether any child holds a job."""
        return any(child.leases for child in self._brood.children)

    @property
    def running(self) -> int:
        """How many jobs run now."""
        return sum(len(child.running()) for child in self._brood.children)

    def census(self) -> Census:
        """How many there are of what."""
        running, claimed = self.running, len(self.held())
        pids = [child.pid for child in self._brood.children if child.pid]
        return Census(pids, len(self._brood.serving()), running, max(claimed - running, 0))

    @property
    def serves(self) -> bool:
        """Whether any child takes jobs."""
        return bool(self._brood.serving())

    @property
    def starting(self) -> bool:
        """Whether fewer children take jobs than there are to be."""
        return len(self._brood.serving()) < self.size

    @property
    def slots(self) -> int:
        """How many jobs it can run at once."""
        return self._brood.slots

    @property
    def taken(self) -> int:
        """How many of its slots are taken."""
        regular = sum(min(len(child.leases), child.slots) for child in self._brood.regular())
        return regular + self._brood.alone + self._brood.suspects

    @property
    def claimable(self) -> frozenset[str]:
        """What every child that takes jobs can run, but for what just now cannot get the process it needs."""
        return self.tasks.difference(self._isolated.tasks) if self._isolated.barred else self.tasks

    def room(self) -> int:
        """How many more jobs it can take: what has a process of its own shares the slots with the others."""
        if not (self._isolated.tasks or self._coroner.suspects or any(child.spare for child in self._brood.children)):
            return sum(child.room() for child in self._brood.children)  # as a rule
        suspects = len(self._coroner.suspects) + self._brood.suspects
        apart = suspects + len(self._isolated.waiting) + self._brood.alone
        vacant = self.size * self._brood.concurrency - sum(child.slots for child in self._brood.regular())
        room, exact = min(vacant - apart, 0), suspects or self._isolated.scarce
        for child in self._brood.children:
            room += min(child.room(), max(child.slots - len(child.leases), 0)) if exact else child.room()
        return max(room, 0)

    def well_fed(self, seconds: float) -> bool:
        """Whether every child has work waiting for at least so long."""
        return all(child.well_fed(seconds) for child in self._brood.children if not child.spare)

    def held(self) -> list[tuple[int | str, int]]:
        """Key and token of every claim that it knows of."""
        leases = [lease for child in self._brood.children for lease in child.leases.values()]
        leases += [*self._coroner.suspects, *self._isolated.waiting]
        return [(lease.key, lease.token) for lease in leases]

    # -- what it is told

    def place(self, leases: Sequence[Lease]) -> None:
        """Gives jobs to children; what cannot be placed any more is released."""
        if self._isolated.tasks:
            leases = self._isolated.take(leases)
        suspects = [lease for lease in leases if lease.crashes]
        if suspects:
            self._coroner.suspects.extend(suspects)
            leases = [lease for lease in leases if not lease.crashes]
            if self.draining:
                self._inbox.settle(self._coroner.release_suspects())
            else:
                self._owner.start(self._spawn_spares)
        children, start = self._brood.children, 0
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
        child = self._brood.holder(key, token)
        if child is not None:
            child.stop(key, "cancelled")

    def fence(self, claims: Collection[tuple[int | str, int]]) -> None:
        """Stops claims (key and token) that others have taken over; late news of one that has ended stop nothing."""
        for key, token in claims:
            child = self._brood.holder(key, token)
            if child is not None:
                log.warning("job %s was taken over by another worker; it is stopped", child.leases[key].id)
                child.stop(key, "fenced")

    def find_stack(self, key: int | str, token: int) -> None:
        """Has it reported where a job is."""
        child = self._brood.holder(key, token)
        if child is not None:
            self._owner.start(partial(self._stacks.find, child, child.leases[key]))

    def tell(self, events: Sequence[Event] = ()) -> None:
        """Lets one child tell the app's handlers; while none takes jobs, the last events wait for one that does."""
        self._untold.extend(events)
        serving = self._brood.serving()
        if self._untold and serving:
            serving[0].send(frames.Happened(list(self._untold)))
            self._untold.clear()

    # -- what children say

    def _heard(self, child: ChildProcess, message: frames.ToSupervisor) -> None:
        match message:
            case frames.Outcomes():
                held = child.take(message.outcomes)
                if any(o.charge is Charge.RELEASE for o in held):
                    child.gave_back()
                if child.leaving or child.spare or self._succession.recycles:
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
                if not child.heir:
                    self._passing = message.passing
                if not self.hello.done():
                    self.hello.set_exception((StartError if message.passing else ConfigError)(message.message))
                elif not (self.hello.exception() or child.heir) and self._brood.brake.is_news(message.message):
                    log.error("child %d cannot start: %s; it is tried again and again", child.pid, message.message)

    def _see_off(self, child: ChildProcess) -> None:
        """What follows when a child has ended jobs: another suspect, its end, or its replacement."""
        if child.leaving or child.limits is not None:
            child.leave()
        elif child.spare:
            self._feed_suspect(child)
        else:
            self._succession.after_jobs(child)

    def _welcome(self, child: ChildProcess, hello: frames.Hello) -> None:
        if self.draining:
            child.dismiss()
            return
        child.ready, child.tasks, self._slow = True, frozenset(hello.tasks), False
        self._slowest = max(self._slowest, SYSTEM.monotonic() - child.started)
        self._brood.brake.why = ""
        child.arrived.set()
        if not child.spare:
            self._learn(child, hello)
        if not self.hello.done():
            self.hello.set_result(hello)
            self._isolated.prepare()
            if self._stillbirths:
                log.warning(
                    "%s killed at the import of the app, and replaced",
                    counted(self._stillbirths, "child was", "children were"),
                )
        else:
            if child.spare:
                self._feed_suspect(child)
            self._inbox.look()

    def _learn(self, child: ChildProcess, hello: frames.Hello) -> None:
        """Notes what a child's version of the app can run."""
        if child.version >= self._newest:
            self._newest, self.app = child.version, hello
            self._coroner.tasks |= hello.tasks  # what is no longer there may still run in older children
            self._isolated.learn(hello.tasks)
        self._agree()

    def _agree(self) -> None:
        """Finds out what all children that take jobs can run: only that may be claimed."""
        serving = self._brood.serving()
        if serving:
            self.tasks = frozenset.intersection(*(child.tasks for child in serving))
        self._owner.learn()
        self.tell()

    def _served_by_others(self) -> None:
        self._agree()
        self._inbox.look()

    # -- death

    def _exited(self, child: ChildProcess) -> None:
        """Settles what a dead child held and replaces it."""
        brood = self._brood
        if child not in brood.children:
            return
        brood.children.remove(child)
        child.gone = True
        if not self.hello.done():
            self._stillborn(child)
            return
        if self.hello.exception() is not None:
            child.close()
            return
        child.arrived.set()
        if not (child.ready or child.failure or child.heir):
            self._passing = was_killed(child)
        worked = child.ready and bool(child.leases)
        outcomes = self._coroner.examine(child, draining=self.draining)
        child.close()
        self._inbox.settle(outcomes)
        if self.draining:
            return
        lived = SYSTEM.monotonic() - child.started
        if worked or (child.ready and lived > _STEADY) or (child.dismissed and child.jobs):
            brood.brake.release()
        elif not (child.dismissed or child.heir):
            brood.brake.tighten()
        if not (child.spare or child.leaving or child.heir):
            self.restarts[cause_of_end(child)] += 1
            self._agree()
            self._owner.start(brood.fill)
        self._owner.start(self._spawn_spares)
        self._isolated.start_next()
        self._inbox.look()

    def _stillborn(self, child: ChildProcess) -> None:
        """Replaces a child that has died before any was ready if it was killed, as the next may be spared; one that
        ended by itself would do so again. Where all are killed, as for want of memory, a worker may do better later.
        """
        child.arrived.set()
        child.close()
        if self.draining:
            return
        found = child.exit or Exit(None)
        what = f"the app {self._name} ended its process at import"
        self._stillbirths += 1
        if not was_killed(child):
            self.hello.set_exception(ConfigError(f"{what} ({describe(found)})"))
        elif self._stillbirths > _STILLBIRTHS:
            how = self._coroner.describe(found)
            self.hello.set_exception(StartError(f"{what} ({how}), as {_STILLBIRTHS} others before"))
        else:
            self._brood.brake.tighten()
            self.restarts[cause_of_end(child)] += 1
            self._owner.start(self._brood.fill)

    # -- suspects

    def _feed_suspect(self, child: ChildProcess) -> None:
        """Gives an empty spare child one of the jobs under which another died; without any left, it ends."""
        if child.ready and not (child.leases or child.leaving or self.draining or child.limits is not None):
            suspect = self._coroner.next_suspect()
            if suspect is None:
                child.dismiss()
            else:
                child.assign([suspect])

    async def _spawn_spares(self) -> None:
        """Gives suspects children of their own: they need not wait for each other, and nobody waits for them."""
        if not self._coroner.suspects:
            return
        await self._brood.brake.wait()
        most = _SPARES_COPIED if await self._brood.copies() else _SPARES
        spares = sum(child.spare and child.limits is None for child in self._brood.children)
        for _ in range(min(len(self._coroner.suspects), most - spares)):
            if await self._brood.spawn(spare=True) is None:
                self._owner.start(self._spawn_spares)
                return


def was_killed(child: ChildProcess) -> bool:
    """Whether a child was ended by a signal, as far as anybody can tell."""
    return child.exit is None or child.exit.code is None or child.exit.code < 0


def cause_of_end(child: ChildProcess) -> str:
    """Why a child has ended, in few and always the same words: ``killed`` (by its supervisor), or by its exit code."""
    return "killed" if child.killed else describe(child.exit or Exit(None)).rpartition(", ")[2]
