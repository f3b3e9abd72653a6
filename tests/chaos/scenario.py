"""A small program and a worker of its own making, which use every verb of a broker and insist when one fails.

    python -m tests.chaos.scenario FAULT FOLDER

runs it for N = 1, 2, … in a forked process that is killed at its Nth call, goes on with what it left, and checks.
"""

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from mouso import Job, JobState, Mouso
from mouso.brokers.base import Broker, JobFilter, Retention, Update, Want, WorkerInfo
from mouso.errors import BrokerError
from mouso.job import Charge, Lease, Outcome, Progress, UniqueScope
from mouso.testing.faults import Fault, fail_nth

P = ParamSpec("P")
R = TypeVar("R")

COUNT = 8
CANCELLED, RETRIED, KEYED = "job-5", "job-6", "job-7"
ENDS = {CANCELLED: {"cancelled", "completed"}}


def insist(verb: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Repeats a call with the same ids until it gets an answer."""
    for _ in range(3):
        try:
            return verb(*args, **kwargs)
        except BrokerError:
            continue
    raise AssertionError("one fault makes no three")


def play(broker: Broker, worker: str) -> None:
    """Enqueues, works, cancels, retries, tidies up and leaves; may be played again on what an earlier one left."""
    keyed = {"unique": "key", "unique_scope": UniqueScope.LIVE}
    jobs = [Job(id=f"job-{n}", task="t", delay=1 if n == 4 else None) for n in range(COUNT - 1)]
    insist(broker.enqueue, jobs)
    insist(broker.enqueue, [Job(id=KEYED, task="t", **keyed)])  # type: ignore[arg-type]  # why: a mixed dict
    (twin,) = insist(broker.enqueue, [Job(id="twin", task="t", **keyed)])  # type: ignore[arg-type]  # why: as above, from a dict
    assert twin.id == KEYED or [job.state for job in broker.get([KEYED]) if job] != ["available"]
    info = WorkerInfo(id=worker, name=worker, host="here", pid=1, tasks=("t",))
    insist(broker.heartbeat, info)

    leases = exchange(broker, worker, [], held=[], limit=3)
    insist(broker.report, worker, [Update(lease.key, lease.token, Progress(1, 2)) for lease in leases])
    failed, rest = leases[:1], leases[1:]
    outcomes = [ended(lease, JobState.RETRYABLE, Charge.ATTEMPT) for lease in failed]
    leases = exchange(broker, worker, outcomes + [ended(lease) for lease in rest], held=[], limit=2)
    insist(broker.promote, 100)
    insist(broker.cancel, [CANCELLED])
    insist(broker.heartbeat, info)
    given_back = [ended(lease, JobState.AVAILABLE, Charge.RELEASE) for lease in leases]
    leases = exchange(broker, worker, given_back, held=[], limit=10)
    doomed = [lease for lease in leases if lease.id == RETRIED]
    others = [lease for lease in leases if lease.id != RETRIED]
    dead = [ended(lease, JobState.DEAD, Charge.ATTEMPT) for lease in doomed]
    exchange(broker, worker, dead + [ended(lease) for lease in others], held=[], limit=0)
    insist(broker.retry, [RETRIED])
    insist(broker.pause, "other")
    insist(broker.resume, "other")
    insist(broker.reap, 100)
    insist(broker.prune, 100, Retention())
    exchange(broker, worker, [], held=[], limit=1)  # and leaves with it
    insist(broker.retire, worker)


def exchange(
    broker: Broker, worker: str, outcomes: Sequence[Outcome], held: Sequence[Lease], limit: int
) -> list[Lease]:
    """Settles and claims; after a fault it first finds out what it holds, as a supervisor does."""
    try:
        return broker.exchange(worker, outcomes, Want(limit=limit)).leases
    except BrokerError:
        waiting = [(outcome.key, outcome.token) for outcome in outcomes]
        insist(broker.reconcile, worker, [(lease.key, lease.token) for lease in held] + waiting)
        return broker.exchange(worker, outcomes, Want(limit=limit)).leases


def ended(lease: Lease, state: JobState = JobState.COMPLETED, charge: Charge = Charge.NONE) -> Outcome:
    """An outcome of a claim."""
    return Outcome(lease.key, lease.token, lease.id, lease.task, lease.queue, state, charge=charge)


def go_on(broker: Broker, dead: Sequence[str]) -> None:
    """Another worker finishes what is left, and finds everything in order."""
    for worker in dead:
        broker.retire(worker)  # its death is proven
    while any(not job.state.final for job in broker.find(JobFilter(limit=1000))):
        broker.promote(100)
        leases = broker.exchange("after", [], Want(limit=100)).leases
        broker.exchange("after", [ended(lease) for lease in leases], Want(limit=0))
    broker.retire("after")
    jobs = {job.id: job for job in broker.find(JobFilter(limit=1000))}
    assert jobs.keys() - {"twin"} == {f"job-{n}" for n in range(COUNT)}, sorted(jobs)
    for job in jobs.values():
        assert str(job.state) in ENDS.get(job.id, {"completed"}), job
        if job.state is JobState.COMPLETED and job.id != RETRIED:  # a retry sets the counters back
            assert job.claims == job.attempts + job.crashes + job.releases + 1, job
        assert job.attempts <= len(dead), job  # each of them let it fail once at most
    counts = {state: n for queue in broker.queues() for state, n in queue.counts.items() if n}
    assert sum(counts.values()) == len(jobs), counts
    assert broker.workers() == []


# -- in processes that are killed


def main(fault: Fault, folder: Path) -> int:
    """Plays until no call is left to be killed at; prints how many there were."""
    for nth in itertools.count(1):
        place = folder / str(nth)
        place.mkdir(parents=True)
        url = f"sqlite:///{place}/jobs.db"
        killed = forked(lambda url=url, nth=nth: play_and_die(url, nth, fault))  # type: ignore[misc]  # why: binds the loop's variables
        assert killed in (0, signal.SIGKILL), f"call {nth}: {killed}"
        code = forked(lambda url=url: repair(url))  # type: ignore[misc]  # why: binds the loop variable
        assert code == 0, f"call {nth}: what was left is not in order"
        shutil.rmtree(place)
        if not killed:
            print(nth - 1)
            return 0
    raise AssertionError


def forked(work: Callable[[], None]) -> int:
    """Runs something in a fork; returns its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def play_and_die(url: str, nth: int, fault: Fault) -> None:
    with opened(url) as app:
        fail_nth(app, nth, fault)
        play(app.broker, "first")


def repair(url: str) -> None:
    with opened(url) as app:
        play(app.broker, "second")
        go_on(app.broker, dead=["first", "second"])


@contextmanager
def opened(url: str) -> Iterator[Mouso]:
    with Mouso("scenario", broker=url) as app:
        yield app


if __name__ == "__main__":
    sys.exit(main(Fault(sys.argv[1]), Path(sys.argv[2])))
