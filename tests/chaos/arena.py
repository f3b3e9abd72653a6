"""Two workers under load, what is done to them, and the judgement in the end.

1. `Arena.begin` enqueues the work and starts two workers; `going` waits until so many runs have ended.
2. The test kills, freezes, stops or starves; each method notes a `Fault` for the judge.
3. `Arena.finish` waits until every job is final, judges, and looks for what is left over.
"""

import json
import math
import os
import re
import select
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

from mouso.brokers.base import JobFilter, Level, Retention
from mouso.handle import JobHandle
from mouso.job import Job
from tests.chaos.journal import VARIABLE, Line, Tail
from tests.chaos.judge import Case, Fault, Verdict, judge
from tests.chaos.load import JOBS, SOURCE, Load
from tests.integration.harness import Bench, Worker, kill_one
from tests.stalls import stalled
from tests.support import crowd, wait_until

CHILD, RESTART, LOST = 1.0, 3.0, 20.0
"""Seconds within which jobs run again: a child died, a worker was killed and started again, one was cut off."""
SUSPECTS = 1.0
"""Seconds more for those that ran beside a job under which their process died: each has to wait for an interpreter of
its own, several of which start at once, on CPUs that are busy with the others' jobs."""
LEASE = 15.0
GRACE = 5.0
_ORPHANS = 1.5
"""Seconds for which the children of a supervisor that died may still run."""
_UNSETTLED = 0.5
"""Seconds before a freeze in which a run may have ended without being stored, besides those for which this test itself
kept the store locked."""
_LAZY = 6
"""What a worker opens when it first needs it: a thread for the broker, a pipe, a connection."""


class Deaths(threading.Thread):
    """Notes when each process that ran a job was seen alive for the last time, by its pidfd.

    Attributes:
        at: That instant, for processes that have ended.
    """

    def __init__(self, tail: Tail) -> None:
        super().__init__(name="deaths")
        self.at: dict[int, float] = {}
        self._tail = tail
        self._poll = select.poll()
        self._open: dict[int, int] = {}
        self._lines = 0
        self._looked = time.monotonic()
        self._enough = threading.Event()

    def run(self) -> None:
        while not self._enough.is_set():
            self._look()

    def _look(self) -> None:
        lines = self._tail.read()
        for line in lines[self._lines :]:
            self.watch(line.pid, line.at)
        self._lines = len(lines)
        before = time.monotonic()
        for descriptor, _ in self._poll.poll(10):
            self.at.setdefault(self._open.pop(descriptor), self._looked)
            self._poll.unregister(descriptor)
            os.close(descriptor)
        self._looked = before

    def watch(self, pid: int, alive: float) -> None:
        """Looks out for a process from now on; it was alive at that instant."""
        if pid in self.at or pid in self._open.values():
            return
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self.at[pid] = alive
            return
        self._open[descriptor] = pid
        self._poll.register(descriptor, select.POLLIN)

    def close(self) -> None:
        """Ends the thread, after a last look."""
        self._enough.set()
        self.join()
        self._look()
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()


class Arena(Bench):
    """A bench with a load, two workers and a judge.

    Attributes:
        pair: The workers; a test that restarts one puts the new one in its place.
        options: With which they are started.
        faults: What was done so far.
        evil_limit: Seconds within which jobs must run again that a hostile one took along.
        slack: Seconds that this machine may add to a limit: a second, and what it takes to start processes, more if
            it has more to do than it can.
        crowd: How many times as much as it can do this machine has to do; at least 1.
    """

    def __init__(self, folder: Path, seed: int, broker_url: str = "") -> None:
        super().__init__(folder, broker_url)
        self.seed = seed
        self.random = Random(seed)
        self.pair: list[Worker] = []
        self.faults: list[Fault] = []
        self.evil_limit = CHILD
        self.slack = 2.5
        self.crowd = 1.0
        self.jobs: Any = None
        self.load: Load
        self._journal = folder / "journal"
        self._tail = Tail(self._journal)
        self._deaths = Deaths(Tail(self._journal))
        self._deaths.start()
        self.options: tuple[str, ...] = ()
        self._held: dict[int, list[str]] = {}
        self._locked = 0.0

    # -- the work

    def begin(
        self,
        source: str = "",
        *,
        size: int = JOBS,
        mean: float = 0.02,
        workers: int = 2,
        options: Sequence[str] = (),
        troubled: bool = False,
    ) -> None:
        """Writes the app, enqueues most of the work and starts workers; see `Load`."""
        self.options = ("-p", "2", "-c", "4", "--grace", f"{GRACE:g}", *options)
        self.jobs = self.app(SOURCE + source)
        self.load = Load(self.jobs, self.random, size, mean, troubled=troubled)
        self.load.enqueue_most()
        self.pair = [self.start(*self.options) for _ in range(workers)]
        began = time.monotonic()
        for worker in self.pair:
            self.wait_ready(worker, 2)
        self.crowd = crowd()
        self.slack += (time.monotonic() - began) * self.crowd
        self.load.go_on()

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(**{VARIABLE: str(self._journal), **more})

    def going(self, ended: int, timeout: float = 60) -> None:
        """Waits until so many runs have come to their end."""
        wait_until(lambda: self.ended >= ended, timeout=timeout, message=f"{ended} runs have ended")
        if not self.faults:
            self._held = {worker.pid: _held(worker) for worker in self.pair}

    def lines(self, event: str) -> list[Line]:
        """What jobs wrote of one kind."""
        return [line for line in self._tail.read() if line.event == event]

    def starts(self, handles: Iterable[JobHandle[Any]]) -> list[Line]:
        """When and where these jobs started."""
        ids = {handle.id for handle in handles}
        return [line for line in self.lines("start") if line.job in ids]

    @property
    def ended(self) -> int:
        """How many runs have come to their end."""
        self._tail.read()
        return self._tail.counts["end"]

    # -- what is done to them

    def fault(self, name: str, *, at: float | None = None, until: float | None = None, **details: Any) -> Fault:
        """Notes what was done for the judge; now, unless it says when."""
        at = time.monotonic() if at is None else at
        made = Fault(name, at, at if until is None else until, **details)
        self.faults.append(made)
        return made

    def kill_child(self, worker: Worker, *, limit: float | None = CHILD) -> None:
        """Kills a random child, but none with a job that has lost two already: it might be poison with a third one."""

        def victims() -> list[int]:
            lines = self._tail.read()
            starts = [line for line in lines if line.event == "start"]
            over = {(line.job, line.token, line.pid) for line in lines if line.event != "start"}
            lost = Counter(line.job for line in starts if line.pid in self._deaths.at)
            spared = {s.pid for s in starts if lost[s.job] > 1 and (s.job, s.token, s.pid) not in over}
            return [pid for pid in worker.children() if pid not in spared]

        victim, at = kill_one(victims, self.random.choice)
        until = time.monotonic()
        self._deaths.at.setdefault(victim, at)
        self.fault("a child's death", at=at, until=until, pids=frozenset({victim}), kills=True, limit=limit)

    def kill_supervisor(self, worker: Worker) -> None:
        """Kills the supervisor alone; its children see it and end."""
        at = worker.send(signal.SIGKILL)
        worker.wait()
        until, supervisors = at + _ORPHANS + self.slack, frozenset({worker.pid})
        self.fault("a supervisor's death", at=at, until=until, supervisors=supervisors, limit=RESTART)

    def kill_worker(self, worker: Worker) -> None:
        """Kills the supervisor and all of its children at once."""
        children = worker.children()
        self.random.shuffle(children)
        at = worker.send(signal.SIGKILL)
        _send(children, signal.SIGKILL)
        for pid in children:
            self._deaths.at.setdefault(pid, at)
        worker.wait()
        self.fault("a worker's death", at=at, until=at + 0.5, supervisors=frozenset({worker.pid}), limit=RESTART)

    def restart(self, number: int, *, wait: bool = True) -> Worker:
        """Starts a worker in the place of one that has ended."""
        assert not self.pair[number].alive
        worker = self.pair[number] = self.start(*self.options)
        if wait:
            self.wait_ready(worker, 2)
        return worker

    @contextmanager
    def frozen(self, worker: Worker, *, whole: bool = True, **details: Any) -> Iterator[None]:
        """Stops a worker, or its supervisor alone, for the length of the block."""
        pids = [worker.pid, *(worker.children() if whole else ())]
        at = time.monotonic()
        self.stop_outside_a_transaction(pids)
        try:
            yield
        finally:
            _send(pids, signal.SIGCONT)
            until, supervisors = time.monotonic() + _ORPHANS, frozenset({worker.pid})
            unsettled = _UNSETTLED + self._locked
            self.fault("a freeze", at=at, until=until, supervisors=supervisors, unsettled=unsettled, **details)

    def stop_outside_a_transaction(self, pids: Sequence[int]) -> None:
        """Stops processes while none of them holds SQLite's lock, for which all would wait."""
        while not self._stop(pids):
            pass_time(0.2)  # or whoever waits for the lock, and looks now and then, might never find it free

    def _stop(self, pids: Sequence[int]) -> bool:
        """Stops processes; lets them go on again if one of them holds the lock, and notes for how long it was kept."""
        began = time.monotonic()
        _send(pids, signal.SIGSTOP)
        wait_until(lambda: all(map(_all_stopped, pids)), message="they have stopped")
        _, is_sqlite, file = self.broker_url.partition("sqlite:///")  # RabbitMQ's jobs are in such a file, too
        if not is_sqlite:
            return True
        with closing(sqlite3.connect(file, timeout=0.1, isolation_level=None)) as probe:
            try:
                probe.execute("BEGIN IMMEDIATE")
                return True
            except sqlite3.OperationalError:
                _send(pids, signal.SIGCONT)
                self._locked += time.monotonic() - began
                return False

    def freeze_child(self, worker: Worker, *, limit: float) -> int:
        """Stops a child for good; returns its process id."""
        victim = self.random.choice(worker.children())
        self.fault("a child's freeze", until=math.inf, pids=frozenset({victim}), kills=True, limit=limit)
        self.stop_outside_a_transaction([victim])
        return victim

    def pause(self, *pids: int, seconds: float) -> None:
        """Stops processes for a while, and expects no harm from it."""
        try:
            _send(pids, signal.SIGSTOP)
            pass_time(seconds)
        finally:
            _send(pids, signal.SIGCONT)

    # -- the judgement

    def settled(self) -> bool:
        """Whether no job is live."""
        return not self._live()

    def _live(self) -> list[tuple[str, str, int]]:
        """Queue, state and number of the jobs that are not final."""
        return [
            (queue.name, state, n)
            for queue in self.producer.queues()
            for state, n in queue.counts.items()
            if n and not state.final
        ]

    def finish(self, timeout: float = 60) -> Verdict:
        """Waits for the end of all jobs, judges, and looks for what is left over."""
        self.load.join()
        try:
            wait_until(self.settled, timeout=timeout, interval=0.1, message="every job is final")
        except AssertionError:
            live = self._live()
            raise AssertionError(f"after {timeout:g} s there are jobs that are not final: {live}") from None
        self.check_store()
        verdict = self.verdict()
        self._check_workers()
        return verdict

    def _complaints(self) -> str:
        """What the workers warned of, but for jobs that failed as they were told to."""
        said = [
            f"{worker.pid}: {line}"
            for worker in self.workers
            for line in worker.log.splitlines()
            if re.search(r" (WARNING|ERROR|CRITICAL) ", line) and "failed attempt" not in line
        ]
        return "\n".join(["the workers said:", *said])

    def verdict(self) -> Verdict:
        """What the judge says; violations fail the test."""
        self._deaths.close()
        for line in self.lines("evil"):
            # Without an end: the process runs nothing any more after its death, of which only the earliest instant is
            # known, which on a machine that stands still is seconds before.
            details: dict[str, Any] = {"until": math.inf, "limit": self.evil_limit, "patience": SUSPECTS}
            self.fault("a hostile job", at=line.at, pids=frozenset({line.pid}), kills=True, **details)
        for fault in self.faults:
            if math.isfinite(fault.until):  # what was about to end could not while the machine stood still
                fault.until += stalled(fault.at, fault.until + fault.until - fault.at)
        rows = self._rows()
        case = Case(
            accepted=self.load.accepted,
            rows=rows,
            results={id_: _value(row.result) for id_, row in rows.items()},
            lines=self._tail.read(),
            faults=self.faults,
            deaths=self._deaths.at,
            unknown=frozenset(self.load.unknown),
            keys=self.load.keys,
            slack=self.slack,
            crowd=self.crowd,
        )
        verdict = judge(case)
        assert not self.load.refused & rows.keys(), "enqueues that were refused are in the store"
        assert not verdict.violations, (
            f"{len(verdict.violations)} violations (seed {self.seed}):\n{verdict}\n{self._complaints()}"
        )
        print(f"{len(rows)} jobs, {verdict.again} runs again, {len(self.faults)} faults; {verdict.recoveries}")
        return verdict

    def _rows(self) -> dict[str, Job]:
        broker, ids = self.producer.broker, list[str]()
        while page := broker.find(JobFilter(limit=1000, after=ids[-1] if ids else None)):
            ids += [job.id for job in page]
        return {job.id: job for job in self.records(ids)}

    def check_store(self) -> None:
        """The store is sound: pages, states, counts."""
        diagnosis = self.producer.broker.diagnose(retention=Retention(), full=True)
        if diagnosis.view is not None:
            diagnosis.view.close()
        found = [finding for finding in diagnosis.findings if finding.level is Level.ERROR]
        assert [finding for finding in found if finding.check != "disk"] == [], "which a test may have made small"

    def _check_workers(self) -> None:
        """Those that live are whole and hold no more than when they were new."""
        for worker in self.pair:
            if worker.alive:
                self._check_worker(worker)
        left = {path.name for path in self.folder.iterdir()} - {"journal", "jobs.py", "sitecustomize.py", "__pycache__"}
        odd = [name for name in left if not name.startswith(("jobs.db", "worker-", "disk"))]
        assert not odd, f"files left in the folder: {odd}"

    def _check_worker(self, worker: Worker) -> None:
        wait_until(lambda: len(worker.children()) == 2, message="two children, and no spare ones")
        before = self._held.get(worker.pid)
        more = Counter(_held(worker)) - Counter(before) if before else Counter()
        assert more.total() <= _LAZY, f"it holds what it did not at the start: {more}"

    def close(self) -> None:
        if hasattr(self, "load"):
            self.load.stop()
        try:
            super().close()
        finally:
            if self._deaths.is_alive():
                self._deaths.close()


def pass_time(seconds: float) -> None:
    """Waits: some faults are made of time."""
    time.sleep(max(seconds, 0))


def _send(pids: Iterable[int], number: int) -> None:
    """Sends a signal to processes, of which some may have ended by themselves: those of suspects do."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _all_stopped(pid: int) -> bool:
    """Whether every thread of a process has stopped, or it is gone: a signal takes a moment on a busy machine."""
    try:
        return all(
            (thread / "stat").read_text().rpartition(")")[2].split()[0] in "TtZX"
            for thread in Path(f"/proc/{pid}/task").iterdir()
        )
    except OSError:
        return True


def _value(result: bytes | None) -> object:
    return None if result is None else json.loads(result)


def _held(worker: Worker) -> list[str]:
    """What a supervisor holds, one word each: `thread`, `socket`, `pipe`, the name of a file."""
    held = ["thread"] * len(os.listdir(f"/proc/{worker.pid}/task"))
    for path in Path(f"/proc/{worker.pid}/fd").iterdir():
        with suppress(OSError):
            held.append(os.readlink(path).partition(":")[0].rpartition("/")[2])
    return held
