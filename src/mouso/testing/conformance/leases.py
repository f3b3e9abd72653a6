"""Workers: heartbeats, leases, how claims come back, and clocks that jump."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mouso.brokers.base import LEASE_MS, Broker, Command, Want, WorkerInfo
from mouso.job import JobState
from mouso.testing.clock import FakeClock
from mouso.testing.conformance.kit import (
    LEASE,
    W1,
    W2,
    W3,
    Suite,
    claim,
    claim_one,
    enqueue,
    everything,
    failure,
    ids,
    join,
    outcome,
    read,
    release,
    require_inspection,
    settle,
    state,
)


class Heartbeats(Suite):
    """``heartbeat`` and ``workers``."""

    def test_a_heartbeat_announces_a_worker(self, broker: Broker, clock: FakeClock) -> None:
        """Announces a worker."""
        info = WorkerInfo(
            id=W1,
            name="wörker",
            host="host",
            pid=123,
            boot="boot",
            namespace="pid:[1]",
            started=7,
            started_at=9,
            version="1",
            queues=("mail",),
            tasks=("a", "b"),
            slots=8,
        )
        assert broker.heartbeat(info) == []
        [known] = broker.workers()
        assert (known.beat, known.lease_left) == (clock.now(), LEASE_MS)
        set_by_broker = {"beat": info.beat, "lease_left": info.lease_left, "running": info.running}
        assert replace(known, **set_by_broker) == info

    def test_a_heartbeat_renews_the_lease(self, broker: Broker, clock: FakeClock) -> None:
        """Renews its lease for 15 s."""
        join(broker)
        for _ in range(3):
            clock.advance(LEASE - 1)
            assert broker.workers()[0].lease_left == 1000
            assert broker.reap(10) == []
            join(broker)
            assert (broker.workers()[0].lease_left, broker.workers()[0].beat) == (LEASE_MS, clock.now())

    def test_a_heartbeat_describes_the_worker_anew(self, broker: Broker) -> None:
        """Announces a worker: one row per incarnation."""
        join(broker, tasks=["a"])
        join(broker, tasks=["a", "b"])
        [known] = broker.workers()
        assert known.tasks == ("a", "b")

    def test_cancel_is_told_at_every_heartbeat(self, broker: Broker) -> None:
        """``cancel`` for each of its running claims that somebody asked to cancel, until it is settled."""
        enqueue(broker, "a", "b", "c", "d")
        a, b, _ = claim(broker, 3)
        [d] = claim(broker, 1, worker=W2)
        broker.cancel(["a", "b", "d"])
        told = [Command("cancel", lease.key, lease.token) for lease in (a, b)]
        for _ in range(2):
            assert sorted(join(broker), key=lambda command: str(command.key)) == told
        assert join(broker, W2) == [Command("cancel", d.key, d.token)]
        settle(broker, outcome(a, JobState.COMPLETED))
        assert join(broker) == told[1:]
        settle(broker, release(b))
        assert join(broker) == []

    def test_a_reaped_worker_is_told_to_rejoin(self, broker: Broker, clock: FakeClock) -> None:
        """``rejoin`` first if the worker had been known and reaped."""
        assert join(broker) == []
        clock.advance(LEASE + 1)
        broker.reap(10)
        assert [command.kind for command in join(broker)] == ["rejoin"]
        assert join(broker) == []
        assert [worker.id for worker in broker.workers()] == [W1]

    def test_rejoin_is_told_to_a_worker_that_was_busy(self, broker: Broker, clock: FakeClock) -> None:
        """``rejoin`` first if the worker had been known and reaped, whatever else it called in between."""
        join(broker)
        clock.advance(LEASE + 1)
        broker.reap(10)
        broker.exchange(W1, [], Want(limit=1))
        broker.report(W1, [])
        assert [command.kind for command in join(broker)] == ["rejoin"]

    def test_a_worker_that_left_is_forgotten(self, broker: Broker, clock: FakeClock) -> None:
        """Forgets a worker that has left: nobody knows that it was ever reaped."""
        join(broker)
        clock.advance(LEASE + 1)
        broker.reap(10)
        broker.retire(W1)
        assert join(broker) == []

    def test_workers_by_start(self, broker: Broker) -> None:
        """Workers that are known, by start."""
        for worker, started_at in ((W2, 20), (W3, 30), (W1, 10)):
            join(broker, worker, started_at=started_at)
        assert [worker.id for worker in broker.workers()] == [W1, W2, W3]
        broker.retire(W2)
        assert [worker.id for worker in broker.workers()] == [W1, W3]


class Reconciling(Suite):
    """``reconcile``."""

    def test_what_the_worker_does_not_know_of_goes_back(self, broker: Broker) -> None:
        """Its running claims that are not in ``held`` go back as in ``retire``; those in ``held`` are not touched."""
        enqueue(broker, "a", "b", "c", "d")
        a, b, _ = claim(broker, 3)
        [d] = claim(broker, 1, worker=W2)
        broker.cancel(["c"])
        assert broker.reconcile(W1, [(a.key, a.token)]) == []
        assert [state(broker, job) for job in "abcd"] == ["running", "available", "cancelled", "running"]
        assert (read(broker, "b").releases, read(broker, "b").attempts, read(broker, "a").releases) == (1, 0, 0)
        assert settle(broker, outcome(b, JobState.COMPLETED)) == [b.key]
        assert settle(broker, outcome(a, JobState.COMPLETED)) == []
        assert settle(broker, outcome(d, JobState.COMPLETED), worker=W2) == []

    def test_what_was_taken_over_is_told(self, broker: Broker) -> None:
        """The keys in ``held`` that are not its running claims: their jobs were taken over or have ended."""
        require_inspection(broker)
        enqueue(broker, "a", "b", "c")
        a, b, c = claim(broker, 3)
        settle(broker, outcome(a, JobState.COMPLETED), release(b))
        [again] = claim(broker, 1, worker=W2)
        held = [(lease.key, lease.token) for lease in (a, b, c)]
        assert again.key == b.key
        assert broker.reconcile(W1, held) == [a.key, b.key]
        assert state(broker, "b") is JobState.RUNNING
        assert broker.reconcile(W1, held) == [a.key, b.key]
        assert state(broker, "c") is JobState.RUNNING

    def test_an_unknown_worker_holds_nothing(self, broker: Broker) -> None:
        """Idempotent; for a worker that was never heard of there is nothing to do."""
        assert broker.reconcile(W3, []) == []
        assert broker.reconcile(W3, [("x", 1)]) == ["x"]


class Retiring(Suite):
    """``retire`` and ``reap``."""

    def test_claims_of_a_worker_that_left_go_back(self, broker: Broker) -> None:
        """Its running jobs are available again, their ``releases`` one higher, nothing else charged."""
        enqueue(broker, "a", "b", "c")
        claim(broker, 2)
        claim(broker, 1, worker=W2)
        assert broker.retire(W1) == 2
        for id in "ab":
            job = read(broker, id)
            assert (job.state, job.releases, job.attempts, job.crashes) == (JobState.AVAILABLE, 1, 0, 0)
            assert (job.claims, job.errors) == (1, ())
        assert state(broker, "c") is JobState.RUNNING
        assert ids(claim(broker, 5, worker=W2)) == ["a", "b"]
        assert [worker.id for worker in broker.workers()] == [W2]

    def test_a_cancel_request_holds(self, broker: Broker) -> None:
        """One with a cancel requested is cancelled."""
        enqueue(broker, "a", "b")
        claim(broker, 2)
        broker.cancel(["a"])
        broker.retire(W1)
        assert (state(broker, "a"), state(broker, "b")) == (JobState.CANCELLED, JobState.AVAILABLE)

    def test_an_unknown_worker_is_no_error(self, broker: Broker) -> None:
        """An unknown worker is no error."""
        assert broker.retire(W1) == 0
        join(broker)
        assert (broker.retire(W1), broker.retire(W1)) == (0, 0)

    def test_only_workers_whose_lease_has_ended_are_reaped(self, broker: Broker, clock: FakeClock) -> None:
        """A worker whose lease holds is not touched."""
        require_inspection(broker)
        enqueue(broker, "a", "b")
        claim(broker)
        clock.advance(LEASE / 2)
        claim(broker, worker=W2)
        clock.advance(LEASE / 2 - 0.001)
        assert broker.reap(10) == []
        clock.advance(0.002)
        assert broker.reap(10) == [W1]
        assert [worker.id for worker in broker.workers()] == [W2]
        assert (state(broker, "a"), state(broker, "b")) == (JobState.AVAILABLE, JobState.RUNNING)
        assert broker.reap(10) == []

    def test_claims_go_back_as_in_retire(self, broker: Broker, clock: FakeClock) -> None:
        """Claims go back as in ``retire``."""
        enqueue(broker, "a", "b")
        claim(broker, 2)
        broker.cancel(["b"])
        clock.advance(LEASE + 1)
        assert broker.reap(10) == [W1]
        a, b = read(broker, "a"), read(broker, "b")
        assert (a.state, a.releases, a.attempts, a.crashes) == (JobState.AVAILABLE, 1, 0, 0)
        assert (b.state, b.cancel_requested) == (JobState.CANCELLED, False)

    @pytest.mark.parametrize(("limit", "calls"), [(1, 5), (2, 3), (3, 2), (5, 1), (9, 1)])
    def test_many_claims_go_back_in_several_calls(
        self, broker: Broker, clock: FakeClock, limit: int, calls: int
    ) -> None:
        """Claims go back as in ``retire``, in several calls if there are more than ``limit``; the worker is named by
        the call that gave back the last one."""
        require_inspection(broker)
        enqueue(broker, *"abcde")
        claim(broker, 5)
        clock.advance(LEASE + 1)
        for call in range(1, calls + 1):
            assert broker.reap(limit) == ([W1] if call == calls else [])
            back = [job.state for job in everything(broker).values()].count(JobState.AVAILABLE)
            assert back == min(5, call * limit)
        assert all(job.releases == 1 for job in everything(broker).values())

    def test_the_limit_is_for_all_workers(self, broker: Broker, clock: FakeClock) -> None:
        """At most ``limit`` jobs."""
        require_inspection(broker)
        enqueue(broker, *"abcd")
        claim(broker, 2)
        claim(broker, 2, worker=W2)
        clock.advance(LEASE + 1)
        named = broker.reap(3)
        assert len(named) == 1
        assert [job.state for job in everything(broker).values()].count(JobState.AVAILABLE) == 3
        assert sorted(named + broker.reap(3)) == [W1, W2]

    def test_no_job_runs_under_a_worker_that_nobody_knows(self, broker: Broker, clock: FakeClock) -> None:
        """Accepted jobs run until an attempt is recorded: whoever claimed one, it comes back."""
        enqueue(broker, "a", "b")
        broker.exchange(W1, [], Want(limit=1))
        join(broker, W2)
        clock.advance(LEASE + 1)
        broker.reap(10)
        broker.exchange(W2, [], Want(limit=1))
        clock.advance(LEASE + 1)
        broker.reap(10)
        assert [job.state for job in everything(broker).values()] == [JobState.AVAILABLE] * 2


class Clocks(Suite):
    """Clock jumps neither lose nor duplicate a job."""

    @pytest.mark.parametrize("jump", [-86_400, -60, 60, 86_400])
    def test_a_jump_neither_ends_nor_prolongs_a_lease(self, broker: Broker, clock: FakeClock, jump: float) -> None:
        """A worker whose lease holds is not touched: leases count by a clock that never jumps."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        clock.jump(jump)
        assert broker.workers()[0].lease_left == LEASE_MS
        assert broker.reap(10) == []
        assert broker.promote(10) == 0
        assert claim(broker, 10, worker=W2) == []
        clock.advance(LEASE + 1)
        assert W1 in broker.reap(10)
        assert settle(broker, outcome(lease, JobState.COMPLETED)) == [lease.key]
        assert state(broker, "a") is JobState.AVAILABLE

    def test_a_jump_back_delays_and_does_not_lose(self, broker: Broker, clock: FakeClock) -> None:
        """Clock jumps neither lose nor duplicate a job."""
        enqueue(broker, "a", delay=10_000)
        enqueue(broker, "b")
        settle(broker, failure(claim_one(broker), delay=5000))
        clock.jump(-3600)
        clock.advance(10)
        assert broker.promote(10) == 0
        clock.jump(3600)
        assert broker.promote(10) == 2
        assert ids(claim(broker, 10)) == ["a", "b"]

    def test_a_jump_forward_makes_due_once(self, broker: Broker, clock: FakeClock) -> None:
        """Clock jumps neither lose nor duplicate a job."""
        enqueue(broker, "a", delay=10_000)
        clock.jump(3600)
        assert broker.promote(10) == 1
        assert ids(claim(broker, 10)) == ["a"]
        clock.jump(-3600)
        assert broker.promote(10) == 0
        clock.advance(11)
        assert (broker.promote(10), claim(broker, 10)) == (0, [])

    def test_waits_are_not_negative_after_a_jump_back(self, broker: Broker, clock: FakeClock) -> None:
        """How long its oldest available job waits (ms)."""
        enqueue(broker, "a")
        clock.jump(-3600)
        assert (broker.queues()[0].oldest or 0) >= 0
