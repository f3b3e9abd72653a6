"""``promote`` and ``prune``."""

from __future__ import annotations

from typing import Any

import pytest

from mouso.brokers.base import Broker, Retention
from mouso.job import JobState
from mouso.testing.clock import FakeClock
from mouso.testing.conformance.kit import (
    FOREVER,
    Suite,
    claim,
    claim_one,
    complete,
    enqueue,
    everything,
    failure,
    finish,
    outcome,
    read,
    settle,
    state,
)


def retention(**fields: Any) -> Retention:
    """A retention that keeps everything but for what is named."""
    return Retention(**({"finished": FOREVER.finished, "dead": FOREVER.dead} | fields))


class Promoting(Suite):
    """``promote``."""

    def test_due_jobs_become_available(self, broker: Broker, clock: FakeClock) -> None:
        """Makes due jobs available; returns how many changed. Idempotent."""
        enqueue(broker, "failed", "snoozed")
        failed, snoozed = claim(broker, 2)
        settle(broker, failure(failed, delay=1000), outcome(snoozed, JobState.SCHEDULED, delay=1000))
        enqueue(broker, "delayed", delay=1000)
        enqueue(broker, "later", delay=1001)
        clock.advance(0.999)
        assert broker.promote(10) == 0
        clock.advance(0.001)
        assert broker.promote(10) == 3
        assert broker.promote(10) == 0
        for id in ("failed", "snoozed", "delayed"):
            assert (read(broker, id).state, read(broker, id).due) == (JobState.AVAILABLE, None)
        assert state(broker, "later") is JobState.SCHEDULED

    def test_promoting_charges_nothing(self, broker: Broker, clock: FakeClock) -> None:
        """Makes due jobs available: their counters stay."""
        enqueue(broker, "a")
        settle(broker, failure(claim_one(broker), delay=1000))
        before = read(broker, "a")
        clock.advance(2)
        broker.promote(10)
        after = read(broker, "a")
        for counter in ("attempts", "crashes", "releases", "claims"):
            assert getattr(after, counter) == getattr(before, counter)

    def test_earliest_due_first(self, broker: Broker, clock: FakeClock) -> None:
        """Earliest due first, at most ``limit`` jobs."""
        for id, delay in (("c", 3000), ("a", 1000), ("d", 4000), ("b", 2000)):
            enqueue(broker, id, delay=delay)
        clock.advance(10)
        for done in ("a", "ab", "abc", "abcd"):
            assert broker.promote(1) == 1
            available = [id for id, job in everything(broker).items() if job.state is JobState.AVAILABLE]
            assert sorted(available) == list(done)
        assert broker.promote(1) == 0

    def test_waiting_jobs_past_their_expiry_expire(self, broker: Broker, clock: FakeClock) -> None:
        """Expires waiting jobs past their expiry."""
        enqueue(broker, "retryable", ttl=1000)
        settle(broker, failure(claim_one(broker), delay=500))
        enqueue(broker, "available", ttl=1000)
        enqueue(broker, "scheduled", ttl=1000, delay=500)
        enqueue(broker, "never due", ttl=1000, delay=900_000)
        enqueue(broker, "in time", ttl=3000)
        clock.advance(2)
        assert broker.promote(10) == 4
        for id in ("retryable", "available", "scheduled", "never due"):
            job = read(broker, id)
            assert (job.state, job.finished_at, job.due) == (JobState.EXPIRED, clock.now(), None)
        assert state(broker, "in time") is JobState.AVAILABLE
        assert broker.promote(10) == 0

    def test_the_limit_counts_expired_and_due_jobs(self, broker: Broker, clock: FakeClock) -> None:
        """At most ``limit`` jobs."""
        enqueue(broker, "a", "b", ttl=1000)
        enqueue(broker, "c", "d", delay=1000)
        clock.advance(2)
        assert [broker.promote(3), broker.promote(3), broker.promote(3)] == [3, 1, 0]
        assert sorted(job.state for job in everything(broker).values()) == [
            JobState.AVAILABLE,
            JobState.AVAILABLE,
            JobState.EXPIRED,
            JobState.EXPIRED,
        ]

    def test_a_running_job_is_not_touched(self, broker: Broker, clock: FakeClock) -> None:
        """A running job is not touched."""
        enqueue(broker, "a", ttl=1000)
        lease = claim_one(broker)
        before = read(broker, "a")
        clock.advance(2)
        assert broker.promote(10) == 0
        assert read(broker, "a") == before
        assert settle(broker, outcome(lease, JobState.COMPLETED)) == []


class Pruning(Suite):
    """``prune``."""

    def test_finished_jobs_past_their_retention_go(self, broker: Broker, clock: FakeClock) -> None:
        """Deletes finished jobs past their retention; returns how many."""
        for final in (JobState.COMPLETED, JobState.CANCELLED, JobState.EXPIRED, JobState.DEAD):
            enqueue(broker, final)
            finish(broker, final, final)
        rule = retention(finished=10_000, dead=20_000)
        clock.advance(9.9)
        assert broker.prune(10, rule) == 0
        clock.advance(0.2)
        assert broker.prune(10, rule) == 3
        assert list(everything(broker)) == ["dead"]
        clock.advance(10)
        assert broker.prune(10, rule) == 1
        assert everything(broker) == {}
        assert broker.prune(10, rule) == 0

    def test_live_jobs_are_not_touched(self, broker: Broker, clock: FakeClock) -> None:
        """Live jobs are not touched."""
        enqueue(broker, "running", "retryable")
        _, lease = claim(broker, 2)
        settle(broker, failure(lease, delay=1000))
        enqueue(broker, "available")
        enqueue(broker, "scheduled", delay=1000)
        clock.advance(900_000)
        before = everything(broker)
        assert broker.prune(10, retention(finished=0, dead=0, max_finished=0, max_dead=0)) == 0
        assert everything(broker) == before

    def test_a_result_with_its_own_keep_goes_by_that(self, broker: Broker, clock: FakeClock) -> None:
        """A result with its own ``keep`` goes by that age."""
        complete(broker, "short", keep=1000)
        complete(broker, "long", keep=100_000)
        complete(broker, "usual")
        rule = retention(finished=10_000)
        for seconds, gone in ((0.9, ""), (0.2, "short"), (9, "usual"), (89.8, ""), (0.2, "long")):
            clock.advance(seconds)
            assert broker.prune(10, rule) == (1 if gone else 0)
            assert state(broker, gone) is None

    def test_oldest_first(self, broker: Broker, clock: FakeClock) -> None:
        """Oldest enqueued first, at most ``limit`` jobs."""
        for id in "abcde":
            complete(broker, id)
            clock.advance(1)
        clock.advance(60)
        for left in (["c", "d", "e"], ["e"], []):
            broker.prune(2, retention(finished=1000))
            assert sorted(everything(broker)) == left

    @pytest.mark.parametrize(("final", "rule"), [("completed", "max_finished"), ("dead", "max_dead")])
    def test_too_many_are_cut_down(self, broker: Broker, clock: FakeClock, final: str, rule: str) -> None:
        """More than ``max_finished`` (``max_dead``) are cut down to it."""
        for id in "abcde":
            enqueue(broker, id)
            finish(broker, JobState(final), id)
            clock.advance(1)
        other = {"max_finished": "max_dead", "max_dead": "max_finished"}[rule]
        assert broker.prune(10, retention(**{other: 0, rule: 5})) == 0
        assert broker.prune(10, retention(**{rule: 3})) == 2
        assert sorted(everything(broker)) == ["c", "d", "e"]
        assert broker.prune(1, retention(**{rule: 1})) == 1
        assert sorted(everything(broker)) == ["d", "e"]

    def test_age_and_number_together(self, broker: Broker, clock: FakeClock) -> None:
        """More than ``max_finished`` are cut down to it, and no further."""
        complete(broker, "a")
        complete(broker, "b")
        complete(broker, "short", keep=1000)
        clock.advance(2)
        assert broker.prune(10, retention(max_finished=2)) == 1
        assert sorted(everything(broker)) == ["a", "b"]
