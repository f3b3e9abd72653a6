"""What the suite's tests are written with: fixtures, and one-line ways to put jobs where a test needs them."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from mouso.brokers.base import LEASE_MS, Broker, Exchange, JobFilter, Retention, Want, WorkerInfo
from mouso.errors import CapabilityError, ErrorInfo
from mouso.job import Charge, Job, JobState, Lease, Outcome, new_id
from mouso.testing.clock import FakeClock

S = TypeVar("S")
T = TypeVar("T")
MakeBroker = Callable[[], Broker]

W1, W2, W3 = "1" * 16, "2" * 16, "3" * 16
TASK = "work"
LEASE = LEASE_MS / 1000
FOREVER = Retention(finished=10**15, dead=10**15)
_DELIVERY = 0.25
"""Seconds within which a broker that cannot look for jobs has delivered those that there are."""
PROMPT = 4.0
"""Seconds within which something must return that returns "at once"."""


class Suite:
    """The fixtures of every part of the suite; a subclass has to provide ``make_broker``."""

    def __init_subclass__(cls, **settings: Any) -> None:
        """Lets a test end as skipped where it asks for what its broker says that it cannot do."""
        super().__init_subclass__(**settings)
        for name, test in list(vars(cls).items()):
            if name.startswith("test_"):
                setattr(cls, name, _skipping(test))

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def broker(self, make_broker: MakeBroker) -> Iterator[Broker]:
        broker = make_broker()
        yield broker
        broker.close()

    @pytest.fixture
    def make_connection(self) -> Callable[[], Any]:
        """Makes connections with ``commit``, ``rollback`` and ``close``; for ``transactional`` brokers."""
        raise NotImplementedError("the suite of a transactional broker provides make_connection")

    @pytest.fixture
    def broken(self) -> Broker:
        """A broker whose store cannot be used: damaged, out of reach, …; for brokers that are ``shared``."""
        raise NotImplementedError("the suite of a shared broker provides one that is broken")


def _skipping(test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    def run(self: object, **fixtures: Any) -> Any:
        try:
            return test(self, **fixtures)
        except CapabilityError as error:
            broker = fixtures["broker"] if "broker" in fixtures else fixtures["make_broker"]()
            if broker.capabilities.inspect:
                raise
            pytest.skip(str(error))

    return run


def require_inspection(broker: Broker) -> None:
    """Skips a test whose sentence holds only where the broker can look for jobs, and acts on those it finds."""
    if not broker.capabilities.inspect:
        pytest.skip(f"{broker.capabilities.name} cannot look for jobs")


def make_job(id: str | None = None, **fields: Any) -> Job:
    """A job of the task that every worker here knows."""
    return Job(**({"id": id or new_id(), "task": TASK} | fields))


def enqueue(broker: Broker, *ids: str, **fields: Any) -> None:
    """Stores a job for each id, in order, and makes sure that it was not there before."""
    assert all(done.created for done in broker.enqueue([make_job(id, **fields) for id in ids]))


def join(broker: Broker, worker: str = W1, tasks: Sequence[str] = (TASK,), started_at: int = 0) -> list[Any]:
    """Sends a heartbeat and returns its commands."""
    info = WorkerInfo(
        id=worker, name=f"worker {worker[0]}", host="here", pid=1, tasks=tuple(tasks), started_at=started_at
    )
    return list(broker.heartbeat(info))


def exchange(
    broker: Broker,
    limit: int = 0,
    *,
    worker: str = W1,
    outcomes: Sequence[Outcome] = (),
    shares: Sequence[tuple[str, int]] | None = None,
    tasks: frozenset[str] | None = None,
) -> Exchange:
    """Exchanges as a worker that has announced itself."""
    if all(known.id != worker for known in broker.workers()):
        join(broker, worker, tasks=sorted(tasks or {TASK}))
    done = broker.exchange(worker, outcomes, Want(limit=limit, shares=shares, tasks=tasks))
    late = time.monotonic() + _DELIVERY
    while not broker.capabilities.inspect and len(done.leases) < limit and time.monotonic() < late:
        broker.wait(_DELIVERY / 10)
        more = broker.exchange(worker, (), Want(limit=limit - len(done.leases), shares=shares, tasks=tasks))
        done.leases += more.leases
        done.parked = sorted({*done.parked, *more.parked})
    return done


def claim(broker: Broker, limit: int = 1, **options: Any) -> list[Lease]:
    """Claims up to ``limit`` jobs."""
    return exchange(broker, limit, **options).leases


def claim_one(broker: Broker, **options: Any) -> Lease:
    """Claims the job that is there to be claimed."""
    [lease] = claim(broker, 1, **options)
    return lease


def outcome(lease: Lease, state: JobState, **fields: Any) -> Outcome:
    """An outcome of this claim."""
    return Outcome(
        key=lease.key, token=lease.token, id=lease.id, task=lease.task, queue=lease.queue, state=state, **fields
    )


def failure(lease: Lease, state: JobState = JobState.RETRYABLE, delay: int = 1000, **fields: Any) -> Outcome:
    """A failed attempt, to be repeated after ``delay`` ms."""
    error = ErrorInfo(type="ValueError", message=f"token {lease.token}", attempt=lease.attempts + 1)
    return outcome(lease, state, delay=delay, charge=Charge.ATTEMPT, error=error, **fields)


def release(lease: Lease) -> Outcome:
    """The claim, given back uncharged."""
    return outcome(lease, JobState.AVAILABLE, charge=Charge.RELEASE)


def settle(broker: Broker, *outcomes: Outcome, worker: str = W1) -> list[int | str]:
    """Settles without claiming; returns what was fenced."""
    return exchange(broker, worker=worker, outcomes=outcomes).fenced


def complete(broker: Broker, *ids: str, **fields: Any) -> None:
    """Enqueues jobs and completes them."""
    enqueue(broker, *ids)
    finish(broker, JobState.COMPLETED, *ids, **fields)


def finish(broker: Broker, state: JobState, *ids: str, **fields: Any) -> None:
    """Claims everything there is and gives these jobs a state; the others are given back."""
    leases = claim(broker, 1000)
    assert set(ids) <= {lease.id for lease in leases}
    ends = [outcome(lease, state, **fields) if lease.id in ids else release(lease) for lease in leases]
    assert settle(broker, *ends) == []


def read(broker: Broker, id: str) -> Job:
    """The job, which has to be there."""
    [job] = broker.get([id])
    assert job is not None, f"{id} is unknown"
    return job


def state(broker: Broker, id: str) -> JobState | None:
    """The job's state, None if it is unknown."""
    [job] = broker.get([id])
    return job.state if job else None


def ids(found: Sequence[Job] | Sequence[Lease]) -> list[str]:
    """The ids, in order."""
    return [one.id for one in found]


def everything(broker: Broker) -> dict[str, Job]:
    """All jobs by id, with their errors."""
    found = broker.get(ids(broker.find(JobFilter(limit=10_000))))
    return {job.id: job for job in found if job is not None}


def together(*calls: Callable[[], T]) -> list[T]:
    """Calls all at the same moment, each in a thread of its own; returns their results in order."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T:
        start.wait(10)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(run, call) for call in calls]
        return [future.result(60) for future in futures]


def against(one: Callable[[], T], other: Callable[[], S]) -> tuple[T, S]:
    """Calls both at the same moment; returns both results."""
    first: list[T] = []
    second: list[S] = []
    together(lambda: first.append(one()), lambda: second.append(other()))
    return first[0], second[0]


def promptly(call: Callable[[], T]) -> T:
    """The result of a call that could block for long, and must not."""
    started = time.monotonic()
    result = call()
    took = time.monotonic() - started
    assert took < PROMPT, f"returned after {took:.1f} s instead of at once"
    return result


def ended_by(blocking: Callable[[], T], event: Callable[[], object]) -> T:
    """The result of a blocking call in another thread that ``event`` has to end, whichever of them comes first."""
    running = threading.Event()

    def run() -> T:
        running.set()
        return promptly(blocking)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run)
        assert running.wait(10)
        event()
        return future.result(60)
