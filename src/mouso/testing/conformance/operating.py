"""What operators do: cancel, retry, delete, pause, resume, purge."""

from __future__ import annotations

import pytest

from mouso.brokers.base import Broker, CancelResult, DeleteResult, Enqueued, RetryResult, Update
from mouso.job import FINAL, LIVE, JobState, Progress, UniqueScope
from mouso.testing.clock import FakeClock
from mouso.testing.conformance.kit import (
    W1,
    Suite,
    claim,
    claim_one,
    enqueue,
    everything,
    failure,
    finish,
    ids,
    join,
    make_job,
    outcome,
    read,
    release,
    settle,
    state,
)

WAITING = [JobState.SCHEDULED, JobState.AVAILABLE, JobState.RETRYABLE]


def bring(broker: Broker, id: str, to: JobState) -> None:
    """Stores a job and brings it into a state, with two failed attempts behind it."""
    enqueue(broker, id, queue="bring")
    for _ in range(2):
        settle(broker, failure(claim_one(broker, shares=[("bring", 1)]), JobState.AVAILABLE))
    if to is JobState.AVAILABLE:
        return
    lease = claim_one(broker, shares=[("bring", 1)])
    if to is not JobState.RUNNING:
        settle(broker, outcome(lease, to, delay=60_000, result=b"1", reason="why"))


class Cancelling(Suite):
    """``cancel``."""

    @pytest.mark.parametrize("origin", WAITING)
    def test_a_waiting_job_never_starts(self, broker: Broker, clock: FakeClock, origin: JobState) -> None:
        """A waiting job is cancelled in this step and never starts."""
        bring(broker, "a", origin)
        assert broker.cancel(["a"]) == [CancelResult.CANCELLED]
        job = read(broker, "a")
        assert (job.state, job.finished_at, job.due) == (JobState.CANCELLED, clock.now(), None)
        clock.advance(120)
        assert (broker.promote(10), claim(broker, 10)) == (0, [])

    def test_a_running_one_is_asked_to_stop(self, broker: Broker) -> None:
        """A running one is asked to stop: the wish is stored, reaches its worker at the next heartbeat, and stays."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        assert broker.cancel(["a"]) == [CancelResult.REQUESTED]
        assert broker.cancel(["a"]) == [CancelResult.REQUESTED]
        job = read(broker, "a")
        assert (job.state, job.cancel_requested, job.finished_at) == (JobState.RUNNING, True, None)
        [command] = join(broker)
        assert (command.kind, command.key, command.token) == ("cancel", lease.key, lease.token)

    @pytest.mark.parametrize("end", [JobState.AVAILABLE, JobState.RETRYABLE, JobState.SCHEDULED, JobState.DEAD])
    def test_the_wish_holds_when_the_claim_ends(self, broker: Broker, clock: FakeClock, end: JobState) -> None:
        """The wish is stored, reaches its worker at the next heartbeat, and also holds when the claim is released,
        snoozed or fails: the job is cancelled then."""
        enqueue(broker, "a", unique="key")
        lease = claim_one(broker)
        broker.cancel(["a"])
        assert settle(broker, failure(lease, end)) == []
        job = read(broker, "a")
        assert (job.state, job.finished_at, job.due) == (JobState.CANCELLED, clock.now(), None)
        assert (job.attempts, len(job.errors)) == (1, 1)
        assert broker.enqueue([make_job("b", unique="key")]) == [Enqueued("b", True)]

    def test_a_job_that_completes_all_the_same(self, broker: Broker) -> None:
        """A job that completes all the same stays completed."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        broker.cancel(["a"])
        assert settle(broker, outcome(lease, JobState.COMPLETED, result=b"1")) == []
        assert (read(broker, "a").state, read(broker, "a").result) == (JobState.COMPLETED, b"1")

    def test_it_completes_also_beside_a_fenced_one(self, broker: Broker) -> None:
        """A job that completes all the same stays completed, whatever else is settled with it."""
        enqueue(broker, "a", "b")
        a, b = claim(broker, 2)
        settle(broker, release(b))
        broker.cancel(["a"])
        assert settle(broker, outcome(b, JobState.COMPLETED), outcome(a, JobState.COMPLETED)) == [b.key]
        assert (state(broker, "a"), state(broker, "b")) == (JobState.COMPLETED, JobState.AVAILABLE)

    @pytest.mark.parametrize("final", sorted(FINAL))
    def test_a_final_job_is_left_as_it_is(self, broker: Broker, clock: FakeClock, final: JobState) -> None:
        """A final job is left as it is (``done``)."""
        bring(broker, "a", final)
        before = read(broker, "a")
        clock.advance(1)
        assert broker.cancel(["a"]) == [CancelResult.DONE]
        assert read(broker, "a") == before

    def test_nothing_is_stored_for_an_unknown_id(self, broker: Broker) -> None:
        """Nothing is stored for an unknown id."""
        assert broker.cancel(["a"]) == [CancelResult.UNKNOWN]
        enqueue(broker, "a")
        assert claim_one(broker).id == "a"
        assert join(broker) == []

    def test_many_at_once(self, broker: Broker) -> None:
        """Cancels jobs: one result for each id, in order."""
        enqueue(broker, "a", "b")
        claim_one(broker)
        results = broker.cancel(["b", "unknown", "a", "b"])
        assert results == [
            CancelResult.CANCELLED,
            CancelResult.UNKNOWN,
            CancelResult.REQUESTED,
            CancelResult.DONE,
        ]
        assert broker.cancel([]) == []


class Retrying(Suite):
    """``retry``."""

    @pytest.mark.parametrize("origin", [JobState.DEAD, JobState.CANCELLED, JobState.EXPIRED])
    def test_final_jobs_begin_anew(self, broker: Broker, origin: JobState) -> None:
        """Makes dead, cancelled and expired jobs available again, with their attempts and crashes back at 0.
        ``claims`` and past errors are kept; expiry, result, reason and a cancel request are cleared."""
        bring(broker, "a", origin)
        before = read(broker, "a")
        assert (before.attempts, before.claims) == (2, 3)
        assert broker.retry(["a"]) == [RetryResult.RETRIED]
        job = read(broker, "a")
        assert (job.state, job.attempts, job.crashes) == (JobState.AVAILABLE, 0, 0)
        assert (job.claims, job.errors) == (before.claims, before.errors)
        assert (job.result, job.reason, job.finished_at, job.cancel_requested) == (None, "", None, False)
        assert job.enqueued_at == before.enqueued_at
        assert claim_one(broker).token == 4

    def test_expiry_and_cancel_request_are_cleared(self, broker: Broker, clock: FakeClock) -> None:
        """Expiry, result, reason and a cancel request are cleared."""
        enqueue(broker, "a", "b", ttl=1000)
        a, b = claim(broker, 2)
        broker.cancel(["a"])
        settle(broker, release(a), release(b))
        clock.advance(2)
        broker.promote(10)
        assert (state(broker, "a"), state(broker, "b")) == (JobState.CANCELLED, JobState.EXPIRED)
        assert broker.retry(["a", "b"]) == [RetryResult.RETRIED] * 2
        assert broker.promote(10) == 0
        for lease in claim(broker, 2):
            assert (lease.ttl, read(broker, lease.id).expires_at) == (None, None)
            assert settle(broker, failure(lease)) == []
            assert state(broker, lease.id) is JobState.RETRYABLE

    @pytest.mark.parametrize("origin", [JobState.SCHEDULED, JobState.RETRYABLE])
    def test_delayed_jobs_are_due_now(self, broker: Broker, origin: JobState) -> None:
        """Scheduled and retryable jobs are due now."""
        bring(broker, "a", origin)
        assert broker.retry(["a"]) == [RetryResult.RETRIED]
        broker.promote(10)
        lease = claim_one(broker)
        assert (lease.id, lease.token) == ("a", 4)

    @pytest.mark.parametrize(
        ("origin", "result"),
        [
            (JobState.AVAILABLE, RetryResult.LIVE),
            (JobState.RUNNING, RetryResult.LIVE),
            (JobState.COMPLETED, RetryResult.DONE),
        ],
    )
    def test_others_are_left_alone(self, broker: Broker, origin: JobState, result: RetryResult) -> None:
        """Other live jobs are left alone (``live``), completed ones too (``done``)."""
        bring(broker, "a", origin)
        before = read(broker, "a")
        assert broker.retry(["a"], payload=b"new") == [result]
        assert read(broker, "a") == before

    @pytest.mark.parametrize("origin", [JobState.DEAD, JobState.CANCELLED, JobState.EXPIRED])
    def test_new_arguments(self, broker: Broker, origin: JobState) -> None:
        """Replaces the arguments."""
        bring(broker, "a", origin)
        bring(broker, "b", origin)
        broker.retry(["a"], payload=b"\0new")
        broker.retry(["b"])
        assert [lease.payload for lease in claim(broker, 2)] == [b"\0new", b"{}"]

    @pytest.mark.parametrize("scope", UniqueScope)
    def test_a_key_that_another_job_holds(self, broker: Broker, clock: FakeClock, scope: UniqueScope) -> None:
        """A job whose unique key another job holds by now is left alone (``conflict``)."""
        options = {"unique": "key", "unique_scope": scope, "unique_period": 1000}
        enqueue(broker, "a", **options)
        finish(broker, JobState.DEAD, "a")
        clock.advance(2)
        enqueue(broker, "b", **options)
        before = everything(broker)
        assert broker.retry(["a"], payload=b"new") == [RetryResult.CONFLICT]
        assert everything(broker) == before
        broker.delete(["b"])
        assert broker.retry(["a"]) == [RetryResult.RETRIED]

    def test_a_retried_job_holds_its_key_again(self, broker: Broker) -> None:
        """A unique key of scope ``live`` is held until the job is final."""
        enqueue(broker, "a", unique="key")
        broker.cancel(["a"])
        assert broker.retry(["a"]) == [RetryResult.RETRIED]
        assert broker.enqueue([make_job("b", unique="key")]) == [Enqueued("a", False)]

    @pytest.mark.parametrize("scope", UniqueScope)
    def test_a_key_that_another_holds_past_its_expiry(
        self, broker: Broker, clock: FakeClock, scope: UniqueScope
    ) -> None:
        """One that waits past its expiry lets go of it as in ``enqueue``."""
        enqueue(broker, "a", unique="key", unique_scope=scope, unique_period=1000)
        finish(broker, JobState.DEAD, "a")
        clock.advance(2)
        enqueue(broker, "b", unique="key", ttl=1000)
        clock.advance(2)
        assert broker.retry(["a"]) == [RetryResult.RETRIED]
        assert (state(broker, "a"), state(broker, "b")) == (JobState.AVAILABLE, JobState.EXPIRED)
        assert [queue.counts for queue in broker.queues()] == [{JobState.EXPIRED: 1, JobState.AVAILABLE: 1}]
        assert broker.retry(["b"]) == [RetryResult.RETRIED if scope is UniqueScope.PERIOD else RetryResult.CONFLICT]

    @pytest.mark.parametrize("origin", [JobState.COMPLETED, JobState.AVAILABLE])
    def test_what_is_not_retried_takes_no_key(self, broker: Broker, clock: FakeClock, origin: JobState) -> None:
        """Other live jobs are left alone (``live``), completed ones too (``done``)."""
        enqueue(broker, "a", unique="key", unique_scope=UniqueScope.QUEUED)
        finish(broker, origin, "a")
        enqueue(broker, "b", unique="key", ttl=1000)
        clock.advance(2)
        before = everything(broker)
        assert broker.retry(["a"]) == [RetryResult.DONE if origin.final else RetryResult.LIVE]
        assert everything(broker) == before

    def test_only_one_of_two_gets_the_key_back(self, broker: Broker) -> None:
        """A job whose unique key another job holds by now is left alone (``conflict``)."""
        for id in "ab":
            enqueue(broker, id, unique="key")
            broker.cancel([id])
        results = broker.retry(["b", "a", "b", "unknown"])
        assert results == [
            RetryResult.RETRIED,
            RetryResult.CONFLICT,
            RetryResult.LIVE,
            RetryResult.UNKNOWN,
        ]

    def test_what_it_was_kept_for_is_over(self, broker: Broker) -> None:
        """Attempts and crashes are back at 0: the job has all its runs again."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        broker.report(W1, [Update(lease.key, lease.token, Progress(1))])
        settle(broker, failure(lease, JobState.DEAD, keep=1))
        broker.retry(["a"])
        lease = claim_one(broker)
        assert (lease.attempts, lease.crashes, lease.token) == (0, 0, 2)


class Deleting(Suite):
    """``delete`` and ``purge``."""

    @pytest.mark.parametrize("origin", sorted((LIVE | FINAL) - {JobState.PENDING, JobState.RUNNING}))
    def test_a_deleted_job_is_gone(self, broker: Broker, clock: FakeClock, origin: JobState) -> None:
        """Removes jobs and all that is kept of them."""
        bring(broker, "a", origin)
        enqueue(broker, "b")
        assert broker.delete(["a", "unknown", "a"]) == [
            DeleteResult.DELETED,
            DeleteResult.UNKNOWN,
            DeleteResult.UNKNOWN,
        ]
        assert list(everything(broker)) == ["b"]
        clock.advance(120)
        broker.promote(10)
        assert ids(claim(broker, 10)) == ["b"]
        enqueue(broker, "a")
        job = read(broker, "a")
        assert (job.claims, job.attempts, job.errors, job.progress) == (0, 0, (), None)

    def test_a_running_job_is_left_alone(self, broker: Broker) -> None:
        """A running job is left alone (``running``)."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        before = read(broker, "a")
        assert broker.delete(["a"]) == [DeleteResult.RUNNING]
        assert read(broker, "a") == before
        assert settle(broker, outcome(lease, JobState.COMPLETED)) == []

    def test_purging_a_queue(self, broker: Broker) -> None:
        """Running and finished jobs are left alone."""
        for origin in (JobState.RUNNING, *FINAL, JobState.SCHEDULED, JobState.RETRYABLE, JobState.AVAILABLE):
            bring(broker, origin, origin)
        enqueue(broker, "other")
        assert broker.purge("bring", 100) == len(WAITING)
        left = {JobState.RUNNING, *FINAL}
        assert {id: job.state for id, job in everything(broker).items()} == {
            **{str(origin): origin for origin in left},
            "other": JobState.AVAILABLE,
        }
        assert broker.purge("bring", 100) == 0
        assert broker.purge("unknown", 100) == 0

    def test_purging_no_more_than_the_limit(self, broker: Broker) -> None:
        """Removes up to ``limit`` waiting jobs of a queue for good; returns how many."""
        enqueue(broker, *"abcde")
        assert [broker.purge("default", 2) for _ in range(4)] == [2, 2, 1, 0]

    @pytest.mark.parametrize("scope", UniqueScope)
    def test_purged_jobs_hold_no_keys(self, broker: Broker, scope: UniqueScope) -> None:
        """Unique keys are free again."""
        options = {"unique": "key", "unique_scope": scope, "unique_period": 60_000}
        enqueue(broker, "a", **options)
        broker.purge("default", 10)
        enqueue(broker, "b", **options)


class Pausing(Suite):
    """``pause`` and ``resume``."""

    def test_until_resume(self, broker: Broker, clock: FakeClock) -> None:
        """Stops claims from a queue, until ``resume``. Idempotent."""
        enqueue(broker, "a")
        for _ in range(2):
            broker.pause("default")
            clock.advance(1000)
            assert claim(broker) == []
            [queue] = broker.queues()
            assert (queue.paused, queue.paused_until) == (True, None)
        for _ in range(2):
            broker.resume("default")
            [queue] = broker.queues()
            assert (queue.paused, queue.paused_until) == (False, None)
        assert claim_one(broker).id == "a"

    def test_until_an_instant(self, broker: Broker, clock: FakeClock) -> None:
        """Until ``resume`` or until an instant."""
        enqueue(broker, "a")
        until = clock.now() + 5000
        broker.pause("default", until)
        assert (broker.queues()[0].paused, broker.queues()[0].paused_until) == (True, until)
        clock.advance(4.9)
        assert claim(broker) == []
        clock.advance(0.2)
        assert (broker.queues()[0].paused, broker.queues()[0].paused_until) == (False, None)
        assert claim_one(broker).id == "a"

    def test_the_last_pause_counts(self, broker: Broker, clock: FakeClock) -> None:
        """Until ``resume`` or until an instant: a new pause replaces the old one."""
        enqueue(broker, "a", "b")
        broker.pause("default")
        broker.pause("default", clock.now() + 1000)
        clock.advance(2)
        assert claim_one(broker).id == "a"
        broker.pause("default", clock.now() + 1000)
        broker.pause("default")
        clock.advance(2)
        assert claim(broker) == []

    def test_jobs_go_in_and_running_ones_go_on(self, broker: Broker) -> None:
        """Jobs can still be enqueued; running ones go on. The queue need not exist yet."""
        broker.pause("mail")
        assert [(queue.name, queue.paused) for queue in broker.queues()] == [("mail", True)]
        enqueue(broker, "a", queue="mail")
        assert claim(broker) == []
        broker.resume("mail")
        lease = claim_one(broker)
        broker.pause("mail")
        assert settle(broker, outcome(lease, JobState.COMPLETED)) == []
        assert state(broker, "a") is JobState.COMPLETED

    def test_a_pause_is_of_one_queue(self, broker: Broker) -> None:
        """Stops claims from a queue, and from no other."""
        broker.pause("mail")
        enqueue(broker, "a", queue="mail2")
        enqueue(broker, "b", queue="Mail")
        assert ids(claim(broker, 10, shares=[("mail2", 1), ("Mail", 1)])) == ["a", "b"]
