"""The supervisor: owns the worker's lease, its children and its end. It never imports or runs the app's code.

Its life: children are spawned → the first ``Hello`` names the broker → heartbeat, pump, upkeep and watch run side by
side → SIGTERM or SIGINT → children give back what has not started → running jobs get their grace → the rest is
released, uncharged → the worker retires from the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import random
import secrets
import signal
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from mouso.brokers import connect
from mouso.brokers.base import Retention, Update, WorkerInfo
from mouso.clock import SYSTEM
from mouso.errors import BrokerUnavailable, ConfigError
from mouso.events import Event
from mouso.job import Charge, JobState, Lease, Outcome, Progress
from mouso.observe.logs import log_to_stderr
from mouso.worker import WorkerOptions, frames
from mouso.worker.arenas import share_arenas
from mouso.worker.deaths import Coroner, describe_exit
from mouso.worker.process import ChildProcess
from mouso.worker.proof import identity, proven_dead
from mouso.worker.pump import Broken, Line, Pump
from mouso.worker.shares import Turns

_BEAT_IDLE = 5.0
_BEAT_BUSY = 1.0
_UPKEEP = 1.0
_REAP = 2.0
_PRUNE = 10.0
_PRUNE_STEPS = 1000
_PRUNE_PAUSE = 0.02
_WATCH = 0.25
_AFTER_GRACE = 1.5
_RESPAWN = (0.1, 10.0)
_STEADY = 10.0
_SPARES = 8
_STEP = 1000

log = logging.getLogger("mouso.worker")


def main(options: WorkerOptions) -> int:
    """Runs a worker; returns its exit code.

    Raises:
        ConfigError: App, broker or options cannot be used.
        BrokerUnavailable: The broker did not answer at the start.
    """
    share_arenas()
    log_to_stderr(options.log_level)
    return asyncio.run(Supervisor(options).run())


def usable_cpus() -> int:
    """CPUs that this process may use, by affinity and by the cgroup's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    return count


class Supervisor:
    """One worker."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._count = options.processes or usable_cpus()
        self._id = secrets.token_hex(8)
        self._here = identity()
        self._name = options.name or f"{socket.gethostname()}:{os.getpid()}"
        self._children: list[ChildProcess] = []
        self._hello: asyncio.Future[frames.Hello]
        self._stopped: asyncio.Event
        self._coroner = Coroner()
        self._deaths = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._started_at = SYSTEM.now()
        self._subscribed = False
        self._line: Line
        self._pump: Pump
        self._retention: Retention
        self._info: WorkerInfo
        self._reporting = asyncio.Lock()
        self._draining = False
        self._failed = False

    # -- life

    async def run(self) -> int:
        """The whole life; returns the exit code."""
        loop = asyncio.get_running_loop()
        self._hello, self._stopped = loop.create_future(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopped.set)
        loop.add_signal_handler(signal.SIGQUIT, self._dump)
        try:
            await asyncio.gather(*(self._spawn() for _ in range(self._count)))
            if not await self._first_hello():
                return 0
            await self._join()
            try:
                self._start(self._pump.run)
                self._pump.look()
                for step in (self._beat, self._upkeep, self._watch):
                    self._start(step)
                await self._stopped.wait()
            finally:
                code = await self._shut_down()
            return code
        finally:
            self._draining = True
            for child in list(self._children):
                child.kill()
                await child.ended()

    def _dump(self) -> None:
        """Writes the stacks of all threads of all processes to stderr."""
        faulthandler.dump_traceback(all_threads=True)
        for child in self._children:
            child.dump()

    async def _first_hello(self) -> bool:
        """Waits until a child has loaded the app; False if the worker was stopped before."""
        stopped = asyncio.create_task(self._stopped.wait())
        waiting: set[asyncio.Future[Any]] = {self._hello, stopped}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        return self._hello.done() and bool(self._hello.result())

    async def _join(self) -> None:
        """Opens the broker that the app names and announces the worker."""
        hello = self._hello.result()
        broker = connect(hello.broker_url)
        if not broker.capabilities.shared:
            raise ConfigError(
                f"{hello.broker_url} lives inside one process; a worker needs a broker such as sqlite:///mouso.db"
            )
        self._line = Line(broker)
        try:
            await asyncio.to_thread(broker.open)
        except BrokerUnavailable:
            self._line.close()
            raise
        for notice in broker.notices():
            log.warning("%s", notice)
        self._subscribed = bool(hello.events)
        self._retention = Retention(**dict(zip(Retention.__struct_fields__, hello.retention, strict=True)))
        tasks = tuple(sorted(hello.tasks))
        self._coroner.tasks = hello.tasks
        self._info = WorkerInfo(
            id=self._id,
            name=self._name,
            host=socket.gethostname(),
            pid=os.getpid(),
            boot=self._here.boot,
            namespace=self._here.namespace,
            started=self._here.started,
            started_at=self._started_at,
            version=_version(),
            queues=tuple(name for name, _ in self._options.queues or ()),
            tasks=tasks,
            slots=self._count * self._options.concurrency,
        )
        try:
            await self._line.call(broker.heartbeat, self._info)
            await self._reap()
        except Broken as error:
            raise BrokerUnavailable(str(error)) from error
        turns = Turns(self._options.queues, strict=self._options.strict) if self._options.queues else None
        on_settled = self._settled if self._subscribed else None
        self._pump = Pump(self._line, self._id, turns, frozenset(tasks), self._children, on_settled, self._suspect)
        log.info(
            "worker %s serves %s with %d processes of %d slots: %d tasks from %s",
            self._name, broker.url, self._count, self._options.concurrency, len(tasks), self._options.app,
        )  # fmt: skip

    def _start(self, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.create_task(step())
        self._tasks.add(task)
        task.add_done_callback(self._step_ended)

    def _step_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.critical("the supervisor failed", exc_info=task.exception())
            self._failed = True
            self._stopped.set()

    async def _shut_down(self) -> int:
        """Gives back, waits, interrupts, releases, retires."""
        self._draining, self._pump.claiming = True, False
        deadline = SYSTEM.monotonic() + self._options.grace
        running = sum(len(child.running()) for child in self._children)
        log.info("stopping: %d jobs run, they have %g s", running, self._options.grace)
        for child in self._children:
            child.send(frames.Drain())
        self._pump.settle(self._coroner.release_suspects())
        await self._until(self._nothing_runs, deadline)
        for child in self._children:
            child.send(frames.Stop(None, "shutdown"))
        await self._until(self._nothing_runs, SYSTEM.monotonic() + _AFTER_GRACE)
        for child in self._children:
            if child.leases:
                log.warning(
                    "child %d ignored the end of its grace with %d jobs; they are released",
                    child.pid,
                    len(child.leases),
                )
                child.kill()
        # Children live until then, to tell the app's handlers of the last events.
        await self._until(lambda: self._pump.empty, SYSTEM.monotonic() + 1.0)
        for child in self._children:
            child.send(frames.Exit())
        await self._until(lambda: not self._children, SYSTEM.monotonic() + 1.0)
        for child in list(self._children):
            child.kill()
            await child.ended()
        settled = await self._until(lambda: self._pump.empty, SYSTEM.monotonic() + 2.0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(Broken):
            await self._line.call(self._line.broker.retire, self._id)
        await asyncio.to_thread(self._line.close)
        if not settled:
            log.error("the broker did not take the last outcomes; the jobs will run again")
            return 75
        log.info("stopped")
        return 1 if self._failed else 0

    def _nothing_runs(self) -> bool:
        return not any(child.leases for child in self._children)

    async def _until(self, condition: Callable[[], bool], deadline: float) -> bool:
        while not condition():
            if SYSTEM.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    # -- children

    async def _spawn(self, *, spare: bool = False) -> None:
        child = ChildProcess(self._options, self._heard, self._exited, spare=spare)
        self._children.append(child)
        await child.spawn()

    def _heard(self, child: ChildProcess, message: frames.ToSupervisor) -> None:
        match message:
            case frames.Outcomes():
                held = child.take(message.outcomes)
                if any(o.charge is Charge.RELEASE for o in held):
                    child.gave_back()
                if child.alone is None and (child.spare or self._coroner.suspects):
                    self._feed_suspect(child)
                self._pump.settle(held)
            case frames.Reports():
                self._start(lambda: self._report(message.reports))
            case frames.Hello():
                self._welcome(child, message)
            case frames.Failed():
                if not self._hello.done():
                    self._hello.set_exception(ConfigError(message.message))
                elif self._hello.exception() is None:
                    log.error("child %d cannot start: %s", child.pid, message.message)

    def _welcome(self, child: ChildProcess, hello: frames.Hello) -> None:
        if self._draining:
            child.send(frames.Exit())
            return
        child.ready = True
        if not self._hello.done():
            self._hello.set_result(hello)
        elif hasattr(self, "_pump"):
            self._feed_suspect(child)
            self._pump.look()

    def _feed_suspect(self, child: ChildProcess) -> None:
        """Gives an empty child one of the jobs under which another died, and nothing beside it."""
        if child.ready and not child.leases and not self._draining:
            suspect = self._coroner.next_suspect()
            if suspect is not None:
                child.alone = suspect.key
                child.assign([suspect])
            elif child.spare:
                child.send(frames.Exit())

    def _exited(self, child: ChildProcess) -> None:
        """Settles what a dead child held and replaces it."""
        if child not in self._children:
            return
        self._children.remove(child)
        child.gone = True
        if not self._hello.done():
            how = describe_exit(child.returncode)
            self._hello.set_exception(ConfigError(f"the app {self._options.app} ended its process at import ({how})"))
        if not self._hello.done() or self._hello.exception() is not None:
            child.close()
            return
        worked = bool(child.leases)
        outcomes = self._coroner.examine(child, draining=self._draining)
        child.close()
        if outcomes and hasattr(self, "_pump"):
            self._pump.settle(outcomes)
        if not self._draining:
            lived = SYSTEM.monotonic() - child.started
            # Only deaths that no job explains may be those of an app that cannot live: they are slowed down.
            self._deaths = 0 if worked or lived > _STEADY else self._deaths + 1
            if not child.spare:
                self._start(self._respawn)
            self._start(self._spawn_spares)

    def _suspect(self, leases: list[Lease]) -> None:
        """Takes jobs that ran beside others when a process died: they run alone from now on."""
        self._coroner.suspects.extend(leases)
        if self._draining:
            self._pump.settle(self._coroner.release_suspects())
        else:
            self._start(self._spawn_spares)

    async def _spawn_spares(self) -> None:
        """Gives suspects children of their own, so that they need not wait for each other."""
        await self._calm_down()
        for child in self._children:
            if self._coroner.suspects and not child.spare:
                self._feed_suspect(child)
        spares = sum(child.spare for child in self._children)
        for _ in range(min(len(self._coroner.suspects), _SPARES) - spares):
            await self._spawn(spare=True)

    async def _respawn(self) -> None:
        await self._calm_down()
        if not self._draining:
            await self._spawn()

    async def _calm_down(self) -> None:
        """Waits a while after deaths that no job explains, longer after each."""
        if self._deaths > 1:
            await asyncio.sleep(min(_RESPAWN[0] * 2 ** (self._deaths - 2), _RESPAWN[1]))

    # -- what goes on while it lives

    async def _beat(self) -> None:
        """Renews the lease and passes on what the worker is told."""
        beaten = SYSTEM.monotonic()
        while True:
            await asyncio.sleep(_BEAT_BUSY * random.uniform(0.9, 1.0))
            busy = any(child.leases for child in self._children)
            if not busy and SYSTEM.monotonic() - beaten < _BEAT_IDLE - _BEAT_BUSY:
                continue
            beaten = SYSTEM.monotonic()
            with contextlib.suppress(Broken):
                for command in await self._line.call(self._line.broker.heartbeat, self._info):
                    if command.kind == "cancel":
                        self._stop_job(command.key, command.token)
                    elif command.kind == "rejoin":
                        log.warning("the lease of this worker had ended; its jobs were taken over and are stopped")
                        for child in self._children:
                            child.send(frames.Stop(None, "fenced"))

    def _stop_job(self, key: int | str, token: int) -> None:
        for child in self._children:
            lease = child.leases.get(key)
            if lease is not None and lease.token == token:
                child.stops.setdefault(key, SYSTEM.monotonic())
                child.send(frames.Stop(key, "cancelled"))

    async def _upkeep(self) -> None:
        """Promotes, reaps and prunes, in small steps."""
        reaped = pruned = SYSTEM.monotonic()
        broker = self._line.broker
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pump.due.wait(), _UPKEEP * random.uniform(0.8, 1.2))
            self._pump.due.clear()
            now = SYSTEM.monotonic()
            with contextlib.suppress(Broken):
                while await self._line.call(broker.promote, _STEP) == _STEP:
                    pass
                if now - reaped > _REAP:
                    reaped = now
                    await self._reap()
                if now - pruned > _PRUNE:
                    pruned = now
                    await self._prune()

    async def _prune(self) -> None:
        """Deletes what is past its retention, step by step, with room for others between the steps."""
        for _ in range(_PRUNE_STEPS):
            if await self._line.call(self._line.broker.prune, _STEP, self._retention) < _STEP:
                return
            await asyncio.sleep(_PRUNE_PAUSE)

    async def _reap(self) -> None:
        """Gives back the jobs of workers that are proven dead or whose lease has ended."""
        broker = self._line.broker
        lost = [worker.id for worker in await self._line.call(broker.workers) if proven_dead(worker, self._here)]
        for worker in lost:
            await self._line.call(broker.retire, worker)
        lost += await self._line.call(broker.reap, _STEP)
        for worker in lost:
            log.warning("worker %s is lost; its jobs are available again", worker)
        self._tell([Event("worker.lost", worker) for worker in lost])

    async def _watch(self) -> None:
        """Kills children whose jobs do not end when they must."""
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

    async def _report(self, reports: list[tuple[int | str, int, Progress]]) -> None:
        updates = [Update(key, token, progress) for key, token, progress in reports]
        async with self._reporting:  # one after the other, or an older progress could end up over a newer one
            with contextlib.suppress(Broken):
                await self._line.call(self._line.broker.report, self._id, updates)

    # -- events

    def _settled(self, outcomes: list[Outcome]) -> None:
        self._tell([event for outcome in outcomes for event in _events(self._id, outcome)])

    def _tell(self, events: list[Event]) -> None:
        """Lets one child tell the app's handlers."""
        ready = [child for child in self._children if child.ready and not child.spare]
        if events and ready and self._subscribed:
            ready[0].send(frames.Happened(events))


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


def _version() -> str:
    from mouso import __version__

    return __version__
