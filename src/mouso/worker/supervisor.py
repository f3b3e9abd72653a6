"""The supervisor: owns the worker's lease, its children and its end. It never imports or runs the app's code.

Its life: children are spawned → the first ``Hello`` names the broker → heartbeat, pump, upkeep and watch run side by
side → SIGTERM, SIGINT or SIGHUP → children give back what has not started → running jobs get their grace → the rest is
released, uncharged → the worker retires from the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from mouso.brokers import connect
from mouso.brokers.base import Retention, WorkerInfo
from mouso.clock import SYSTEM
from mouso.config import counted
from mouso.errors import BrokerUnavailable, ConfigError
from mouso.events import Event
from mouso.job import JobState, Outcome
from mouso.observe.logs import log_to_stderr
from mouso.observe.outlet import put_stacks
from mouso.worker import WorkerOptions
from mouso.worker.arenas import give_back, share_arenas
from mouso.worker.autoscale import autoscale
from mouso.worker.cpus import usable_cpus
from mouso.worker.fleet import Fleet
from mouso.worker.launch import reap_adopted
from mouso.worker.names import name_apart
from mouso.worker.proof import identity, orphans, proven_dead
from mouso.worker.pump import Broken, Line, Pump
from mouso.worker.reload import Watch, reload
from mouso.worker.shares import Turns
from mouso.worker.signals import heeded
from mouso.worker.vitals import Vitals
from mouso.worker.watchdog import EXIT_CODE, Watchdog

_BEAT_IDLE = 5.0
_BEAT_BUSY = 1.0
_UPKEEP = 1.0
_PROMOTE_IDLE = 5.0
"""Seconds. A worker with room looks for work every second, and so hears when the next job is due."""
_REAP = 2.5
_REAP_DEAD = 0.2
_ORPHANS_END = 1.0
"""Seconds that the children of a dead supervisor have to end by themselves; they mean to within half of it."""
_PRUNE = 10.0
_PRUNE_STEPS = 1000
_PRUNE_PAUSE = 0.02
_AFTER_GRACE = 1.5
_LAST = 2.9
"""Seconds after the grace by which all else must be done: whoever stops a worker may kill it 3 s after the grace."""
_GUARD = 0.3
_FENCE, _FENCE_GRACE, _LAST_HOPE = 12.0, 2.0, 10.0
"""Of the 15 s that a lease holds, jobs get the last three to stop by themselves, or to be killed."""
_AFTER_OUTAGE = 3.0
"""Seconds after which a worker that had lost its lease looks whether others have lost theirs."""
_FENCE_ALONE = 13.0
"""When children stop their jobs without being told."""
_STEP = 1000
_STARVED, _STARVED_TOLD = 1.0, 30.0
"""Seconds until what there was no memory for is tried again, and between two lines about it."""
_USELESS_CODE = 2
"""As if the app could not be loaded at the start."""

log = logging.getLogger("mouso.worker")


def main(options: WorkerOptions) -> int:
    """Runs a worker; returns its exit code.

    Raises:
        ConfigError: App, broker or options cannot be used.
        BrokerUnavailable: The broker did not answer at the start.
        StartError: No process could start, which may change.
    """
    share_arenas()
    log_to_stderr(options.log_level, options.log_format)
    runner = asyncio.Runner()
    supervisor = Supervisor(options, Vitals(options))
    try:
        return runner.run(supervisor.run())
    finally:
        if supervisor.hung:
            os._exit(EXIT_CODE)  # else the interpreter would wait for the call
        with contextlib.suppress(RuntimeError):  # jobs have left no thread to wait for those of the loop with
            runner.close()


class Supervisor:
    """One worker.

    Attributes:
        hung: Whether a call of the broker had not come back when it had to end.
    """

    def __init__(self, options: WorkerOptions, vitals: Vitals) -> None:
        self._options = options
        self._vitals = vitals
        self._count = options.autoscale[0] if options.autoscale else options.processes or usable_cpus()
        self._id = secrets.token_hex(8)
        self._here = identity()
        self._fleet: Fleet
        self._stopped: asyncio.Event
        self._news: asyncio.Event
        self._joined = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._started_at = SYSTEM.now()
        self._subscribed = False
        self._line: Line
        self._pump: Pump
        self._retention: Retention
        self._info: WorkerInfo
        self._broker_url: str
        self._renewed = self._regained = 0
        self._fenced_at: float | None = None
        self._watchdog: Watchdog
        self._dead: dict[str, float] = {}
        self._starved: float | None = None
        self._code = 0
        self.hung = False

    # -- life

    async def run(self) -> int:
        """The whole life; returns the exit code."""
        loop = asyncio.get_running_loop()
        options, self._stopped, self._news = self._options, asyncio.Event(), asyncio.Event()
        loop.set_exception_handler(self._uncaught)
        self._watchdog = Watchdog()
        self._pump = Pump(self._id, Turns(options.queues, strict=options.strict) if options.queues else None)
        self._fleet = Fleet(self._id, options, self._count, self._pump, self)
        for number in heeded(_SIGNALS):
            answer = _SIGNALS[number]
            signal.signal(number, lambda *_, answer=answer: loop.call_soon_threadsafe(answer, self))
        self.start(self._move)
        self._vitals.begin(self._fleet, self._pump, self._watchdog)
        for step in (self._vitals.watch, self._fleet.watch):
            self.start(step)
        try:
            watch = Watch(options) if options.reload else None  # it sees what changes from now on
            if not await self._first_hello():
                return 0
            await self._join()
            give_back()
            try:
                self.start(self._pump.run)
                self._pump.look()
                for step in (self._beat, self._guard, self._upkeep):
                    self.start(step)
                if options.autoscale is not None:
                    self.start(partial(autoscale, self._fleet, self._line, options))
                if watch is not None:
                    self.start(partial(reload, self._fleet, watch))
                await self._stopped.wait()
            finally:
                code = await self._shut_down()
            return code
        finally:
            await self._fleet.kill()
            self._watchdog.close()
            self._vitals.end()
            # Not by add_signal_handler: as the loop closes, it would let a last signal end the process by its number.
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    def _stop(self) -> None:
        self._stopped.set()

    def _dump(self) -> None:
        """Writes the stacks of all threads of all processes to stderr."""
        put_stacks()
        self._fleet.dump()

    async def _first_hello(self) -> bool:
        """Starts the children and waits until one has loaded the app; False if the worker was stopped before."""
        stopped = asyncio.create_task(self._stopped.wait())
        launched = asyncio.create_task(self._fleet.launch())
        try:
            for step in (launched, self._fleet.hello):
                waiting: set[asyncio.Future[Any]] = {step, stopped}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    return False
                step.result()
            return True
        finally:
            stopped.cancel()
            launched.cancel()

    async def _join(self) -> None:
        """Opens the broker that the app names and announces the worker."""
        hello = self._fleet.hello.result()
        self._broker_url = hello.broker_url
        broker = connect(hello.broker_url)
        if not broker.capabilities.shared:
            raise ConfigError(
                f"{hello.broker_url} lives inside one process; a worker needs a broker such as sqlite:///mouso.db"
            )
        self._line = Line(broker, self._watchdog)
        try:
            await asyncio.to_thread(broker.open)
        except BrokerUnavailable:
            self._line.close()
            raise
        for notice in broker.notices():
            log.warning("%s", notice)
        try:
            await self._announce()
        except Broken as error:
            if isinstance(error.__cause__, ConfigError):
                raise error.__cause__ from None
            raise BrokerUnavailable(str(error)) from error
        self._pump.connect(self._line, self._fleet)
        self._pump.metrics = self._vitals.metrics
        self._tell_vitals()
        log.info(
            "worker %s serves %s with %s of %s: %s from %s",
            self._info.name, broker.url, counted(self._count, "process", "processes"),
            counted(self._options.concurrency, "slot"), counted(len(hello.tasks), "task"), self._options.app,
        )  # fmt: skip

    async def _announce(self) -> None:
        """Makes the worker known to the broker and begins its lease.

        Raises:
            Broken: The broker did not answer.
        """
        known = await self._line.call(self._line.broker.workers)
        self._info = WorkerInfo(
            id=self._id,
            name=self._options.name or f"{socket.gethostname()}:{os.getpid()}",
            host=socket.gethostname(),
            pid=os.getpid(),
            boot=self._here.boot,
            namespace=self._here.namespace,
            started=self._here.started,
            started_at=self._started_at,
            version=_version(),
            queues=tuple(name for name, _ in self._options.queues or ()),
        )
        self._tell_apart(known)
        self._joined = True
        self.learn()
        self._renew(SYSTEM.steady())
        await self._line.call(self._line.broker.heartbeat, self._info)
        # Those that start at the same moment see each other only now.
        while self._options.name and self._tell_apart(await self._line.call(self._line.broker.workers)):
            await self._line.call(self._line.broker.heartbeat, self._info)
        await self._reap(known)

    def _tell_apart(self, known: Sequence[WorkerInfo]) -> bool:
        """Takes another name if one of the known workers has this one's before it; returns whether it did."""
        if not self._options.name:
            return False
        others = [w for w in known if w.id != self._id and w.lease_left and not proven_dead(w, self._here)]
        name = name_apart(self._info, self._options.name, others, registered=self._joined)
        changed = name != self._info.name
        self._info = msgspec.structs.replace(self._info, name=name)
        return changed

    def _tell_vitals(self) -> None:
        self._vitals.joined(self._line, self._info, lambda: self._renewed)

    def learn(self) -> None:
        """Takes over what the app's newest version registers, and tells it to whom it concerns."""
        if not self._joined:
            return
        app = self._fleet.app
        if app.broker_url != self._broker_url:
            log.warning("the app names another broker now; the worker keeps the one it has until it is started anew")
            self._broker_url = app.broker_url
        self._subscribed = bool(app.events)
        self._retention = Retention(**dict(zip(Retention.__struct_fields__, app.retention, strict=True)))
        self._pump.learn(self._fleet.claimable, self._settled if self._subscribed else None)
        tasks = tuple(sorted(self._fleet.tasks))
        info = msgspec.structs.replace(self._info, tasks=tasks, slots=self._fleet.slots if self._fleet.serves else 0)
        if info != self._info:
            self._info = info
            self._news.set()

    def start(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs a step beside the others, again if there was no memory for it; its failure ends the worker."""
        task = asyncio.create_task(step())
        self._tasks.add(task)
        task.add_done_callback(partial(self._step_ended, step))

    def _starve(self) -> None:
        """There was no memory: says so, and lets the store and the worker agree again on what runs here."""
        self._pump.doubt()
        self._pump.look()
        now = SYSTEM.monotonic()
        if self._starved is None or now - self._starved > _STARVED_TOLD:
            self._starved = now
            with contextlib.suppress(MemoryError):
                log.error("the supervisor has no memory; it goes on as soon as there is some again")

    def _uncaught(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), MemoryError):
            self._starve()
        else:
            loop.default_exception_handler(context)

    def _step_ended(self, step: Callable[[], Coroutine[Any, Any, None]], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        if isinstance(task.exception(), MemoryError):
            self._starve()
            asyncio.get_running_loop().call_later(_STARVED, self.start, step)
        else:
            log.critical("the supervisor failed", exc_info=task.exception())
            self._code = 1
            self._stopped.set()

    def despair(self, why: str, *, passing: bool) -> None:
        """No child can start: whoever started the worker learns it by its end."""
        self._code = EXIT_CODE if passing else _USELESS_CODE
        log.critical("no process of this worker can start: %s; it ends with exit code %d", why, self._code)
        self._stopped.set()

    async def _shut_down(self) -> int:
        """Gives back, waits, interrupts, releases, retires; all within the grace and three seconds."""
        self._vitals.stopping()
        self._pump.claiming = False
        grace = self._options.grace
        deadline = SYSTEM.monotonic() + grace
        end = deadline + _LAST
        log.info("stopping: %s, with %g s to end", counted(self._fleet.running, "running job"), grace)
        self._fleet.drain()
        await self._until(lambda: not self._fleet.busy, deadline)
        self._fleet.interrupt("shutdown")
        await self._until(lambda: not self._fleet.busy, SYSTEM.monotonic() + _AFTER_GRACE)
        self._fleet.kill_running("its grace has ended")
        # Children live until then, to tell the app's handlers of the last events.
        await self._until(lambda: self._pump.empty, min(SYSTEM.monotonic() + 1.0, end - 1.0))
        self._fleet.dismiss()
        await self._until(lambda: self._fleet.empty, min(SYSTEM.monotonic() + 1.0, end - 0.9))
        await self._fleet.kill(max(end - 0.5 - SYSTEM.monotonic(), 0.1))
        settled = await self._until(lambda: self._pump.empty, min(SYSTEM.monotonic() + 2.0, end - 0.3))
        while self._tasks:  # again and again: a step may just be waiting for what takes the cancellation for its own
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(list(self._tasks), timeout=0.5)
        self.start(self._move)  # to take leave of a store that is gone may take longer than a loop may stand still
        answered = False
        try:
            async with asyncio.timeout(end - SYSTEM.monotonic()):
                answered = await self._retire()
                await asyncio.to_thread(self._line.close)
        except TimeoutError:
            self.hung = True
        if not settled:
            log.error("the broker did not take the last outcomes; the jobs will run again")
        if not (settled and answered) or self.hung:
            log.error("the broker did not answer at the end; this worker ends with exit code %d", EXIT_CODE)
            return EXIT_CODE
        log.info("stopped")
        return self._code

    async def _retire(self) -> bool:
        """Leaves the broker; returns whether it has taken notice."""
        for pause in (0.1, 0.2, 0.0):
            try:
                await self._line.call(self._line.broker.retire, self._id)
                return True
            except Broken:
                await asyncio.sleep(pause)
        return False

    async def _until(self, condition: Callable[[], bool], deadline: float) -> bool:
        while not condition():
            if SYSTEM.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    # -- what goes on while it lives

    def _renew(self, at: int) -> None:
        if self._renewed and at - self._renewed > _FENCE * 1000:
            self._regained = SYSTEM.steady()  # not when that beat began, which may have waited long
        self._renewed = at
        self._pump.leased_until = at + _FENCE * 1000
        self._fleet.renew_lease(at + int(_FENCE_ALONE * 1000))

    @property
    def _steady(self) -> bool:
        """Whether its lease holds, and did not only just come back. After an outage each worker's has ended: who looked
        at once would take from the others, or from itself, what they have done meanwhile and are about to settle."""
        now = SYSTEM.steady()
        return now - self._renewed < _FENCE * 1000 and now - self._regained > _AFTER_OUTAGE * 1000

    async def _beat(self) -> None:
        """Renews the lease, announces what has changed, and passes on what the worker is told."""
        beaten = SYSTEM.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BEAT_BUSY * random.uniform(0.9, 1.0)):
                    await self._news.wait()
            news = self._news.is_set()
            if not (news or self._fleet.busy) and SYSTEM.monotonic() - beaten < _BEAT_IDLE - _BEAT_BUSY:
                continue
            self._news.clear()
            beaten = SYSTEM.monotonic()
            began = SYSTEM.steady()
            try:
                commands = await self._line.call(self._line.broker.heartbeat, self._info)
            except Broken:
                self._pump.doubt()
                continue
            self._renew(began)
            if news:
                self._pump.look()  # jobs that were parked may be available now
            for command in commands:
                if command.kind == "cancel":
                    self._fleet.stop(command.key, command.token)
                elif command.kind == "stack":
                    self._fleet.find_stack(command.key, command.token)
                elif command.kind == "rejoin":
                    log.warning("the lease of this worker had ended; its jobs were taken over and are stopped")
                    self._fleet.interrupt("fenced")

    async def _guard(self) -> None:
        """Stops what runs in time when the lease cannot be renewed: once it has ended, others run these jobs."""
        while not self._stopped.is_set():
            await asyncio.sleep(_GUARD)
            age = (SYSTEM.steady() - self._renewed) / 1000
            if age < _FENCE:
                if self._fenced_at is not None:
                    self._fenced_at, self._pump.claiming = None, True
                    log.info("the lease of this worker is renewed; it takes jobs again")
                    self._pump.look()
            elif self._fenced_at is None:
                self._fenced_at, self._pump.claiming = SYSTEM.monotonic(), False
                log.error("the lease of this worker was not renewed for %.0f s: its jobs are stopped", age)
                self._fleet.interrupt("fenced")
            elif SYSTEM.monotonic() - self._fenced_at > _FENCE_GRACE:
                self._fleet.kill_running("the lease has ended")
                if self._line.misplaced and SYSTEM.monotonic() - self._fenced_at > _LAST_HOPE:
                    log.critical("the store is gone or another one; this worker ends with exit code %d", EXIT_CODE)
                    self._stopped.set()

    async def _move(self) -> None:
        """Shows the watchdog that the loop moves; as the first process of a container, buries what others leave."""
        dead: frozenset[int] = frozenset()
        while True:
            self._watchdog.moved()
            if os.getpid() == 1:
                dead = reap_adopted(dead)
            await asyncio.sleep(_GUARD)

    async def _upkeep(self) -> None:
        """Promotes, reaps and prunes, in small steps."""
        promoted = reaped = pruned = SYSTEM.monotonic()
        broker = self._line.broker
        while True:
            pause = _REAP_DEAD if self._dead else _UPKEEP
            with contextlib.suppress(TimeoutError):
                # Not wait_for: Python 3.11's may swallow a cancellation that comes in the turn in which a job is due.
                async with asyncio.timeout(pause * random.uniform(0.8, 1.2)):
                    await self._pump.due.wait()
            due = self._pump.due.is_set() or self._fleet.room() <= 0
            self._pump.due.clear()
            now = SYSTEM.monotonic()
            with contextlib.suppress(Broken):
                if due or now - promoted > _PROMOTE_IDLE:
                    promoted = now
                    while await self._line.call(broker.promote, _STEP) == _STEP:
                        pass
                if self._steady and now - reaped > (_REAP_DEAD if self._dead else _REAP):
                    reaped = now
                    known = await self._line.call(broker.workers)
                    if self._tell_apart(known):  # one that started before was just about to register when this one did
                        self._tell_vitals()
                        log.info("another worker has the same name; this one is called %s now", self._info.name)
                        self._news.set()
                    await self._reap(known)
                if now - pruned > _PRUNE:
                    pruned = now
                    await self._prune()

    async def _prune(self) -> None:
        """Deletes what is past its retention, step by step, with room for others between the steps."""
        for _ in range(_PRUNE_STEPS):
            if await self._line.call(self._line.broker.prune, _STEP, self._retention) < _STEP:
                return
            await asyncio.sleep(_PRUNE_PAUSE)

    async def _reap(self, known: Sequence[WorkerInfo]) -> None:
        """Gives back the jobs of those of the known workers that are proven dead or whose lease has ended."""
        broker = self._line.broker
        lost = [worker.id for worker in known if proven_dead(worker, self._here) and self._buried(worker.id)]
        for worker in lost:
            await self._line.call(broker.retire, worker)
        overdue = [worker.running for worker in known if worker.lease_left == 0]
        for _ in range(sum(overdue) // _STEP + 1 if overdue else 0):
            lost += await self._line.call(broker.reap, _STEP)
        lost = [worker for worker in lost if worker != self._id]  # if it was late itself, its next beat tells
        for worker in lost:
            log.warning("worker %s is lost; its jobs are available again", worker)
        self._tell([Event("worker.lost", worker) for worker in lost])

    def _buried(self, worker: str) -> bool:
        """Whether the children of a dead worker are dead as well: before that, its jobs may run no second time."""
        left = orphans(worker)
        if not left:
            self._dead.pop(worker, None)
            return True
        since = self._dead.setdefault(worker, SYSTEM.monotonic())
        if SYSTEM.monotonic() - since > _ORPHANS_END:
            for pid in left:
                log.warning("process %d outlives its supervisor, the worker %s; it is killed", pid, worker)
                with contextlib.suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)  # it leads a session, with the programs that its jobs started
        return False

    # -- events

    def _settled(self, outcomes: list[Outcome]) -> None:
        self._tell([event for outcome in outcomes for event in _events(self._id, outcome)])

    def _tell(self, events: list[Event]) -> None:
        if self._subscribed:
            self._fleet.tell(events)


def _events(worker: str, outcome: Outcome) -> list[Event]:
    names = {
        JobState.COMPLETED: ["job.completed"],
        JobState.RETRYABLE: ["job.failed"],
        JobState.DEAD: ["job.failed", "job.dead"],
        JobState.CANCELLED: ["job.cancelled"],
        JobState.EXPIRED: ["job.expired"],
        JobState.SCHEDULED: ["job.snoozed"],
        JobState.AVAILABLE: ["job.released"],
    }
    return [
        Event(name, worker, outcome.id, outcome.task, outcome.queue, outcome.run_seconds, outcome.reason, outcome.error)
        for name in names.get(outcome.state, ())
    ]


_SIGNALS: Mapping[signal.Signals, Callable[[Supervisor], None]] = {
    signal.SIGTERM: Supervisor._stop,
    signal.SIGINT: Supervisor._stop,
    signal.SIGHUP: Supervisor._stop,
    signal.SIGQUIT: Supervisor._dump,
}


def _version() -> str:
    from mouso import __version__

    return __version__
