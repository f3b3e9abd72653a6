"""The slots of a child: which job runs when, on which thread or on the loop.

Jobs wait in one queue, in the order they came. A plain function runs on a thread, a coroutine on the loop; together
they never fill more than ``concurrency`` slots. What makes small jobs cheap:

* A thread that has ended a job takes the next by itself. One thread is woken when jobs arrive, and more only while
  the queue has not drained within a tick: waking a thread costs 20 µs, running a small job 3 µs.
* What is taken from the queue for the loop, but finds the loop blocked, is given back like what waits.
* Outcomes are sent together: when the queue is empty, after ``FLUSH`` seconds, or at the next tick.

The tick comes from the child's reader thread: every millisecond while outcomes are unsent or jobs wait beside free
slots, every ten while all slots are taken, twice a second while jobs run, else never.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from mouso.app import Mouso
from mouso.brokers.base import Update
from mouso.clock import SYSTEM
from mouso.config import one_line
from mouso.context import Context
from mouso.job import Lease, LogLine, Outcome, Progress
from mouso.worker import stacks
from mouso.worker.board import Board, number
from mouso.worker.executor import Executor, JobTask, Run
from mouso.worker.frames import Outcomes, Reports, portions
from mouso.worker.loopwatch import LoopWatch
from mouso.worker.meter import Meter
from mouso.worker.outcomes import release

log = logging.getLogger("mouso.worker")

TICK = 0.001
SLOW_TICK = 0.01
LOOK = 0.5
FLUSH = 0.002
REPORT = 0.05
LOG_RATE = 256 << 10
"""Bytes a second of the logs of running jobs, of which all that is kept is sent again each time."""
_MOST_SHOWN = 100
GIVE_BACK = 0.25
"""Seconds after which a job that has not started is given back."""


class _Waiting(NamedTuple):
    """A job that has not started.

    Attributes:
        since: When it came, on the monotonic clock.
        arrival: The how manieth it is of all that came, from 1.
    """

    lease: Lease
    since: float
    arrival: int


class Pool:
    """Runs the jobs of one child.

    Args:
        send: Sends a message to the supervisor; called from any thread, one at a time.
        kick: Makes the reader thread call ``tick`` soon.
    """

    def __init__(
        self,
        app: Mouso,
        worker: str,
        loop: asyncio.AbstractEventLoop,
        board: Board,
        concurrency: int,
        send: Callable[[Outcomes | Reports], None],
        kick: Callable[[], None],
    ) -> None:
        self._executor = Executor(app, worker, self._report)
        self._coroutines = frozenset(task.name for task in app.tasks.values() if task.is_async)
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._board = board
        self._concurrency = concurrency
        self._send = send
        self._kick = kick
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._queue: deque[_Waiting] = deque()
        self._handed: dict[tuple[int | str, int], _Waiting] = {}
        self._arrived = 0
        self._draining = False
        self._occupied = 0
        self._idle: list[threading.Lock] = []
        self._threads = 0
        self._short_of_threads = False
        self._slots = list(range(2 * concurrency - 1, concurrency - 1, -1))
        self._runs: dict[int | str, Run] = {}
        self._stopping = ""
        self._tasks: dict[asyncio.Task[Outcome], Run] = {}
        self._loop_watch = LoopWatch(loop, lambda: bool(self._tasks), self._job_of)
        self._outcomes: deque[Outcome] = deque()
        self._reports: dict[int | str, Update] = {}
        self._logged: dict[int | str, Context] = {}
        self._flushed = self._reported = self._logs_due = 0.0
        self._deadlines: list[tuple[float, int, Run]] = []
        self._order = itertools.count()
        self._next_tick = math.inf
        self._forked = False
        for slot in self._slots:
            board.here(slot)

    def forked(self) -> None:
        """This process is a fork that a job has made, and no child of the supervisor: it ends when that job returns."""
        self._forked = self._executor.forked = True
        self._queue.clear()
        self._handed.clear()

    # -- called by the reader thread

    def add(self, leases: Sequence[Lease]) -> None:
        """Takes jobs to run."""
        now = SYSTEM.monotonic()
        with self._lock:
            if self._draining:
                self._arrived += len(leases)
                self._outcomes += [release(lease) for lease in leases]
                return
            first = self._arrived + 1
            self._queue.extend(_Waiting(lease, now, n) for n, lease in enumerate(leases, first))
            self._arrived += len(leases)
            coroutines = self._next_coroutines()
            if self._queue:
                self._wake_threads(1)
        self._start_coroutines(coroutines)

    def tick(self) -> float | None:
        """Does what is due and returns the seconds until the next tick, None for when there is something new."""
        now = SYSTEM.monotonic()
        with self._lock:
            while self._queue and now - self._queue[0].since > GIVE_BACK:
                self._outcomes.append(release(self._queue.popleft().lease))
            if self._handed:
                self._take_back(None, now - GIVE_BACK)
            coroutines: Sequence[Lease] = ()
            if self._queue:
                coroutines = self._next_coroutines()
                self._wake_threads(max(1, self._occupied))
            unsent = bool(self._outcomes or self._reports)
            pause = self._pause(unsent)
            if self._logged:
                pause = min(pause, max(self._logs_due - now, TICK))
            if len(self._deadlines) > 1000 + 4 * self._concurrency:
                self._forget_ended_deadlines()
            deadline = self._deadlines[0][0] if self._deadlines else math.inf
            self._next_tick = min(now + pause, deadline)
        if coroutines:
            self._start_coroutines(coroutines)
        if deadline <= now:
            self._stop_late_runs(now)
        self.flush()
        wait = min(pause, max(deadline - now, TICK))
        return wait if wait < math.inf else None

    def _pause(self, unsent: bool) -> float:
        """Seconds until something may have to be done that no deadline stands for; the lock is held."""
        if unsent or (self._queue and self._occupied < self._concurrency):
            return TICK
        if self._queue or self._handed:
            return SLOW_TICK
        return LOOK if self._occupied else math.inf

    def stop(self, key: int | str | None, reason: str) -> None:
        """Asks one running job, or all, to stop. One that waits is given back."""
        self._give_back_waiting(key)
        if self._draining:
            self._stopping = reason  # for one that is about to start in this moment, the last that does
        for run in [run for run in list(self._runs.values()) if key is None or run.lease.key == key]:
            self._stop_run(run, reason)

    def drain(self) -> None:
        """Gives back what has not started, now and from now on."""
        self._draining = True
        self._give_back_waiting(None)

    def _give_back_waiting(self, key: int | str | None) -> None:
        with self._lock:
            back = [waiting.lease for waiting in self._queue if key is None or waiting.lease.key == key]
            self._queue = deque(waiting for waiting in self._queue if key is not None and waiting.lease.key != key)
            self._outcomes += [release(lease) for lease in back]
            self._take_back(key, math.inf)
        self.flush()

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not self._queue and not self._occupied

    def flush(self) -> None:
        """Sends outcomes and progress that have gathered."""
        with self._sending:
            # Item by item from the same containers: another thread may be adding to them.
            outcomes = [self._outcomes.popleft() for _ in range(len(self._outcomes))]
            self._flushed = SYSTEM.monotonic()
            if self._reports and (outcomes or self._flushed - self._reported > REPORT):
                self._reported = self._flushed
                self._send(Reports([self._reports.pop(key) for key in list(self._reports)]))
            if self._logged and self._flushed >= self._logs_due:
                self._send_logs()
            for part in portions(outcomes, _result_size) if len(outcomes) > 32 else (outcomes,):
                if part:
                    self._send(Outcomes(list(part)))

    def _send_logs(self) -> None:
        """Sends the logs of jobs that still run: the others' go with their outcomes."""
        contexts = [self._logged.pop(key) for key in list(self._logged)]
        running = {id(run.context) for run in list(self._runs.values())}
        logs = [(c, c.kept.encoded()) for c in contexts if id(c) in running and c.kept is not None]
        self._logs_due = self._flushed + REPORT + sum(len(log) for _, log in logs) / LOG_RATE
        if logs:
            self._send(Reports([Update(context.key, context.token, log=log) for context, log in logs]))

    def inspect(self, key: int | str, token: int) -> None:
        """Reports where a job is, if it runs."""
        run = self._runs.get(key)
        if run is None or run.lease.token != token:
            return
        task = next((task for task, found in list(self._tasks.items()) if found is run), None)
        if task is not None:
            stack = self._where(task)
        else:
            stack = stacks.of_thread(self._board.threads().get(number(key), 0))
        if stack:
            with self._sending:
                self._send(Reports([Update(key, token, stack=stacks.innermost(stack))]))

    def coroutines(self) -> str:
        """Where the coroutines are, each under its job: while one waits, no stack of a thread shows it."""
        tasks, wakers = list(self._tasks.items()), stacks.find_wakers(self._loop)
        text = "".join(
            f"\nCoroutine of job {run.lease.id} ({run.lease.task}), most recent call last:\n{self._where(task, wakers)}"
            for task, run in tasks[:_MOST_SHOWN]
        )
        return f"{text}\nand {len(tasks) - _MOST_SHOWN} more coroutines\n" if len(tasks) > _MOST_SHOWN else text

    def _where(self, task: asyncio.Task[Any], wakers: stacks.Wakers | None = None) -> str:
        try:
            return stacks.innermost(stacks.of_task(task, self._loop_thread, wakers))
        except Exception as error:  # what a job awaits may be of its own making
            return f"its stack cannot be taken: {one_line(error)}\n"

    # -- choosing what runs next; the lock is held

    def _next_coroutines(self) -> list[Lease]:
        """Takes coroutine jobs from the head of the queue while slots are free."""
        taken = []
        while self._queue and self._occupied < self._concurrency and self._queue[0].lease.task in self._coroutines:
            waiting = self._queue.popleft()
            lease = waiting.lease
            self._handed[lease.key, lease.token] = waiting
            taken.append(lease)
            self._occupied += 1
        return taken

    def _take_back(self, key: int | str | None, before: float) -> None:
        """Gives back coroutine jobs that the loop, blocked by another, has not begun with: one or, with key None, all
        that came before an instant."""
        for claim, waiting in list(self._handed.items()):
            wanted = waiting.since < before and key in (None, waiting.lease.key)
            if wanted and self._handed.pop(claim, None) is not None:
                self._outcomes.append(release(waiting.lease))
                self._occupied -= 1

    def _wake_threads(self, most: int) -> None:
        """Lets up to ``most`` more threads go for the queue, if a plain function is at its head."""
        waiting = len(self._queue)
        while most > 0 and waiting > 0 and self._occupied < self._concurrency:
            if self._queue[0].lease.task in self._coroutines:
                return
            if self._idle:
                self._idle.pop().release()
            elif not self._start_thread():
                return
            self._occupied += 1
            most -= 1
            waiting -= 1

    def _start_thread(self) -> bool:
        """One thread more; False, and it is said once, if the system does not let it: its job waits, or goes back."""
        slot = self._threads
        try:
            threading.Thread(target=self._work, args=(slot,), name=f"mouso-{slot}", daemon=True).start()
        except RuntimeError as error:
            if not self._short_of_threads:
                log.error(
                    "process %d runs functions on %d threads, more cannot be started: %s", os.getpid(), slot, error
                )
            self._short_of_threads = True
            return False
        self._threads += 1
        return True

    def _next_function(self, asleep: threading.Lock) -> tuple[_Waiting | None, list[Lease]]:
        """The next plain function's job for a thread that has a slot, and coroutine jobs met on the way.

        Without one the slot is given up, to a coroutine job if that is what waits, and the thread counts as idle in the
        same moment: so there are never more threads than slots.
        """
        with self._lock:
            coroutines = self._next_coroutines()
            if self._queue:
                waiting = self._queue.popleft()
                lease = waiting.lease
                if lease.task not in self._coroutines:
                    return waiting, coroutines + self._next_coroutines()
                self._handed[lease.key, lease.token] = waiting
                coroutines.append(lease)  # takes over this thread's slot
            else:
                self._occupied -= 1
            self._idle.append(asleep)
            return None, coroutines

    # -- threads

    def _work(self, slot: int) -> None:
        """A thread's life: run what waits, then sleep until woken."""
        asleep = threading.Lock()
        asleep.acquire()
        meter = Meter()
        self._board.here(slot)
        while True:
            waiting, coroutines = self._next_function(asleep)
            if coroutines:
                self._loop.call_soon_threadsafe(self._start_coroutines, coroutines)
            if waiting is None:
                if self._outcomes:
                    self.flush()
                asleep.acquire()
                continue
            run = self._prepare(waiting, slot)
            if isinstance(run, Run):
                self._begin(run, slot, waiting.arrival)
                outcome = self._executor.run_function(run, meter)
                if self._forked:
                    os._exit(0)
                self._end(run, slot)
            else:
                outcome = run
                self._board.end(slot)
            self._outcomes.append(outcome)
            if not self._queue or SYSTEM.monotonic() - self._flushed > FLUSH:
                self.flush()

    def _prepare(self, waiting: _Waiting, slot: int) -> Run | Outcome:
        lease = waiting.lease
        # Noted at once: decoding it may already be what kills the process.
        if not self._board.start(slot, lease.key, waiting.arrival, None):
            return release(lease)
        return self._executor.prepare(lease, SYSTEM.monotonic() - waiting.since)

    def _begin(self, run: Run, slot: int, arrival: int) -> None:
        if run.timeout is not None:
            self._board.start(slot, run.lease.key, arrival, run.timeout)
        self._runs[run.lease.key] = run
        if self._stopping:
            self._stop_run(run, self._stopping)
        if run.timeout is not None:
            deadline = run.started + run.timeout
            with self._lock:
                heapq.heappush(self._deadlines, (deadline, next(self._order), run))
            if deadline < self._next_tick:
                self._kick()

    def _end(self, run: Run, slot: int) -> None:
        self._board.end(slot)
        del self._runs[run.lease.key]

    # -- coroutines

    def _start_coroutines(self, leases: Sequence[Lease]) -> None:
        if not leases:
            return
        if threading.get_ident() != self._loop_thread:
            self._loop.call_soon_threadsafe(self._start_coroutines, leases)
            return
        left = deque(leases)
        while left:
            lease = left.popleft()
            waiting = self._handed.pop((lease.key, lease.token), None)
            if waiting is None:
                continue
            slot = self._slots.pop()
            run = self._prepare(waiting, slot)
            if isinstance(run, Run):
                task = JobTask(self._run_coroutine(run, slot, waiting.arrival), loop=self._loop)
                task.job = self._tasks[task] = run
                if not self._loop_watch.awake:
                    self._loop_watch.wake()
                task.add_done_callback(partial(self._coroutine_done, run, slot))
            else:
                self._free(slot)
                left += self._coroutine_ended(run)

    async def _run_coroutine(self, run: Run, slot: int, arrival: int) -> Outcome:
        task = asyncio.current_task()
        assert task is not None
        run.stop = task.cancel
        self._begin(run, slot, arrival)
        try:
            return await self._executor.run_coroutine(run)
        finally:
            if self._forked:
                os._exit(0)
            del self._runs[run.lease.key]

    def _job_of(self, task: asyncio.Task[Any]) -> Lease | None:
        run = self._tasks.get(task)
        return None if run is None else run.lease

    def _free(self, slot: int) -> None:
        self._board.end(slot)
        self._slots.append(slot)

    def _coroutine_done(self, run: Run, slot: int, task: asyncio.Task[Outcome]) -> None:
        self._free(slot)
        del self._tasks[task]
        # Only a task that another one cancelled before its first step has no outcome of its own.
        outcome = self._executor.ended(run, asyncio.CancelledError()) if task.cancelled() else task.result()
        self._start_coroutines(self._coroutine_ended(outcome))

    def _coroutine_ended(self, outcome: Outcome) -> list[Lease]:
        """Takes an outcome; returns the coroutine jobs that can start now."""
        first = not self._outcomes
        self._outcomes.append(outcome)
        with self._lock:
            self._occupied -= 1
            coroutines = self._next_coroutines()
            if self._queue:
                self._wake_threads(1)
        if first:
            self._loop.call_soon(self.flush)  # after all that end in this turn of the loop
        return coroutines

    # -- stopping and progress

    def _forget_ended_deadlines(self) -> None:
        self._deadlines = [d for d in self._deadlines if self._runs.get(d[2].lease.key) is d[2]]
        heapq.heapify(self._deadlines)

    def _stop_late_runs(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            with self._lock:
                _, _, run = heapq.heappop(self._deadlines)
            if self._runs.get(run.lease.key) is run:
                self._stop_run(run, "timeout")

    def _stop_run(self, run: Run, reason: str) -> None:
        if run.context.should_stop:
            return  # asked before: a second cancellation would break the coroutine's cleaning up
        run.context.request_stop(reason)
        if run.stop is not None:
            self._loop.call_soon_threadsafe(run.stop)

    def _report(self, context: Context, what: Progress | LogLine) -> None:
        now = SYSTEM.monotonic()
        if isinstance(what, Progress):
            self._reports[context.key] = Update(context.key, context.token, what)
            due = now - self._reported > REPORT
        else:
            self._logged[context.key] = context
            due = now >= self._logs_due
        if due:
            self.flush()
        else:
            self._kick()


def _result_size(outcome: Outcome) -> int:
    return len(outcome.result or b"") + len(outcome.log or b"")
