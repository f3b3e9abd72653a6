"""The work of a chaos test: 2,000 jobs of all kinds, and what was promised of each when it was accepted."""

import itertools
import threading
from collections import defaultdict
from collections.abc import Iterable
from random import Random
from typing import Any

from mouso import Job
from mouso.errors import BrokerUnavailable, ConfigError, OutcomeUnknown
from mouso.handle import JobHandle
from tests.chaos.judge import Expected

JOBS = 2000
SOURCE = '''
from tests.chaos.journal import record, run

@app.on("job.completed")
def completed(event):
    record("completed", event.job_id)

@app.task
def plain(seconds: float) -> int:
    with run() as token:
        time.sleep(seconds)
        return token

@app.task
async def coroutine(seconds: float) -> int:
    with run() as token:
        await asyncio.sleep(seconds)
        return token

@app.task(attempts=20, backoff=constant("50ms"))
def flaky(ctx: Context, seconds: float, failures: int) -> int:
    with run() as token:
        time.sleep(seconds)
        if ctx.attempt <= failures:
            raise OSError("as told")
        return token

@app.task(attempts=20, backoff=constant("50ms"))
async def flaky_coroutine(ctx: Context, seconds: float, failures: int) -> int:
    with run() as token:
        await asyncio.sleep(seconds)
        if ctx.attempt <= failures:
            raise OSError("as told")
        return token

@app.task(attempts=50, backoff=constant("400ms"))
def parent(ctx: Context, seconds: float, children: int) -> int:
    """Enqueues others, under ids that a second run would choose again."""
    with run() as token:
        for n in range(children):
            plain.options(id=f"{ctx.job_id}.{n}").delay(seconds)
        return token
'''
_COMPLETES = Expected()
_CHILDREN = 2
_LONG = (0.3, 0.8)
_LATER = (0.2, 4.0)
_PACE = 0.01


class Load:
    """Jobs for one test.

    Args:
        jobs: The app's module, made of `SOURCE`.
        random: Decides kinds, durations and order.
        size: How many jobs are accepted in all, those that jobs enqueue included.
        mean: Seconds that a job takes on average.
        troubled: The store will not be there all the time, so jobs that enqueue others may fail.

    Attributes:
        accepted: What is expected of each accepted job.
        refused: Ids of jobs that were certainly not stored.
        unknown: Ids of those of which it was not learned.
        keys: Ids by unique key.
        extra: Ids of jobs that the test enqueued by itself.
    """

    def __init__(self, jobs: Any, random: Random, size: int, mean: float, *, troubled: bool) -> None:
        self.accepted: dict[str, Expected] = {}
        self.refused: set[str] = set()
        self.unknown: set[str] = set()
        self.keys: dict[str, list[str]] = defaultdict(list)
        self.extra: set[str] = set()
        self._jobs = jobs
        self._random = random
        self._size = size
        self._mean = mean
        self._troubled = troubled
        self._thread: threading.Thread | None = None
        self._enough = threading.Event()
        self._error: BaseException | None = None

    def enqueue_most(self) -> None:
        """Enqueues all but those of `go_on`, mixed."""
        jobs, size = self._jobs, self._size
        batch: list[Job] = []
        for _ in range(size // 40):
            batch.append(jobs.parent.job(self._seconds(), _CHILDREN))
            self.accepted[batch[-1].id] = Expected(failures=None if self._troubled else 0)
            self.accepted.update((f"{batch[-1].id}.{child}", Expected()) for child in range(_CHILDREN))
        for n in range(size // 13):
            batch.append((jobs.flaky, jobs.flaky_coroutine)[n % 2].job(self._seconds(), 1 + n % 3))
            self.accepted[batch[-1].id] = Expected(failures=1 + n % 3)
        for n in range(size // 20):
            delay = self._random.uniform(*_LATER)
            batch.append((jobs.plain, jobs.coroutine)[n % 2].options(delay=delay).job(self._seconds()))
        for n in range(size // 100):
            batch.append((jobs.plain, jobs.coroutine)[n % 2].job(self._random.uniform(*_LONG)))
        self._enqueue_unique(size // 20)
        for job in batch:
            self._take(job.id)
        while len(self.accepted) < size - size * 3 // 20:
            batch.append(self._random.choice((jobs.plain, jobs.coroutine)).job(self._seconds()))
            self._take(batch[-1].id)
        self._random.shuffle(batch)
        self._jobs.app.enqueue_many(batch)

    def _enqueue_unique(self, count: int) -> None:
        """Jobs with keys, each asked for twice."""
        for n in range(count):
            call = (self._jobs.plain, self._jobs.coroutine)[n % 2].options(unique=f"key-{n}", queue="unique")
            first = call.delay(self._seconds())
            assert call.delay(self._seconds()).id == first.id, "a key that is held gives its holder"
            self._take(first.id, f"key-{n}")

    def _take(self, job: str, key: str = "") -> None:
        self.accepted.setdefault(job, Expected())
        if key and job not in self.keys[key]:
            self.keys[key].append(job)

    def _seconds(self) -> float:
        return self._random.uniform(0, 2 * self._mean)

    @property
    def retries(self) -> int:
        """How many runs are told to fail and to be repeated."""
        return sum(expected.failures or 0 for expected in self.accepted.values())

    def accept(self, handles: Iterable[JobHandle[Any]], expected: Expected = _COMPLETES) -> None:
        """Takes jobs that the test has enqueued by itself."""
        for handle in handles:
            self.accepted[handle.id] = expected
            self.extra.add(handle.id)

    # -- while the faults go on

    def go_on(self) -> None:
        """Starts to enqueue the rest, one by one, in a thread."""
        self._thread = threading.Thread(target=self._enqueue_singles, name="producer")
        self._thread.start()

    def _enqueue_singles(self) -> None:
        jobs, random = self._jobs, Random(self._random.random())
        for n in itertools.count():
            if len(self.accepted) >= self._size or self._enough.wait(_PACE):
                return
            task = (jobs.plain, jobs.coroutine)[n % 2]
            key = f"key-{random.randrange(self._size // 20)}" if n % 5 == 0 else ""
            call = task.options(unique=key, queue="unique") if key else task
            seconds = random.uniform(0, 2 * self._mean)
            job = call.job(seconds)
            try:
                self._take(jobs.app.enqueue_many([job])[0].id, key)
            except OutcomeUnknown:
                self.unknown.add(job.id)
            except (BrokerUnavailable, ConfigError):
                self.refused.add(job.id)
            except Exception as error:
                self._error = error
                return

    def join(self, timeout: float = 60) -> None:
        """Waits for the producer's end."""
        if self._thread is not None:
            self._thread.join(timeout)
            counts = f"{len(self.accepted)} accepted, {len(self.refused)} refused, {len(self.unknown)} unknown"
            assert not self._thread.is_alive(), f"the producer does not come to its end: {counts}"
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ends the producer early; what it has not enqueued is not expected."""
        self._enough.set()
        if self._thread is not None:
            self._thread.join(10)
