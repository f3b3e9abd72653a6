"""``transaction``: jobs that end together with what they did."""

from __future__ import annotations

import asyncio

import pytest

from mouso.brokers.base import Broker, Transaction, Want
from mouso.errors import CapabilityError
from mouso.job import JobState, Lease, Progress
from mouso.testing.clock import FakeClock
from mouso.testing.conformance.kit import (
    LEASE,
    W1,
    W2,
    MakeBroker,
    Suite,
    claim,
    claim_one,
    ended_by,
    enqueue,
    everything,
    make_job,
    outcome,
    read,
    release,
    settle,
    state,
)

DONE = Progress(2, 2, "done")


def _settle(transaction: Transaction, lease: Lease, worker: str = W1) -> bool:
    return transaction.settle(worker, outcome(lease, JobState.COMPLETED, result=b"42", run_seconds=1.5), DONE)


class Ending(Suite):
    """``transaction``."""

    @pytest.fixture
    def lease(self, broker: Broker) -> Lease:
        if not broker.capabilities.transactional:
            with pytest.raises(CapabilityError):
                broker.transaction()
            pytest.skip(f"{broker.capabilities.name} has no transactions")
        enqueue(broker, "a", unique="key")
        return claim_one(broker)

    def test_a_commit_ends_the_job(self, broker: Broker, lease: Lease, clock: FakeClock) -> None:
        """What ``settle`` applies becomes so with the commit."""
        transaction = broker.transaction()
        clock.advance(1)
        assert _settle(transaction, lease)
        asyncio.run(transaction.commit())
        job = read(broker, "a")
        assert (job.state, job.result, job.run_seconds, job.worker) == (JobState.COMPLETED, b"42", 1.5, W1)
        assert (job.progress, job.finished_at) == (DONE, clock.now())
        assert [queue.counts for queue in broker.queues()] == [{JobState.COMPLETED: 1}]
        assert broker.enqueue([make_job("b", unique="key")])[0].created
        assert settle(broker, outcome(lease, JobState.COMPLETED)) == [lease.key]

    def test_without_a_commit_nothing_has_happened(self, broker: Broker, lease: Lease) -> None:
        """What ``settle`` applies becomes so with the commit and not without."""
        before = everything(broker)
        for applied in (True, False):
            transaction = broker.transaction()
            if applied:
                assert _settle(transaction, lease)
            asyncio.run(transaction.roll_back())
            assert everything(broker) == before
        assert settle(broker, outcome(lease, JobState.COMPLETED)) == []

    def test_enqueues_and_the_end_are_one(self, broker: Broker, lease: Lease) -> None:
        """What ``settle`` applies becomes so with the commit and not without, beside what else went through it."""
        for commit in (False, True):
            transaction = broker.transaction()
            broker.enqueue([make_job("next")], connection=transaction.connection)
            assert _settle(transaction, lease)
            asyncio.run(transaction.commit() if commit else transaction.roll_back())
            states = (state(broker, "a"), state(broker, "next"))
            assert states == ((JobState.COMPLETED, JobState.AVAILABLE) if commit else (JobState.RUNNING, None))

    @pytest.mark.parametrize("how", ["released", "taken over", "another worker", "unknown worker", "wrong token"])
    def test_a_fenced_outcome(self, broker: Broker, lease: Lease, clock: FakeClock, how: str) -> None:
        """A fenced outcome changes nothing and leaves the transaction as it is."""
        worker = {"another worker": W2, "unknown worker": "nobody"}.get(how, W1)
        if how == "another worker":
            claim(broker, 1, worker=W2)
        if how == "released":
            settle(broker, release(lease))
        if how == "taken over":
            clock.advance(LEASE + 1)
            broker.reap(10)
            claim_one(broker, worker=W2)
        before = everything(broker)
        late = outcome(lease, JobState.COMPLETED, result=b"42")
        late.token += how == "wrong token"
        transaction = broker.transaction()
        broker.enqueue([make_job("next")], connection=transaction.connection)
        assert not transaction.settle(worker, late, DONE)
        asyncio.run(transaction.commit())
        assert state(broker, "next") is JobState.AVAILABLE
        broker.delete(["next"])
        assert everything(broker) == before

    def test_waiting_callers_hear_of_the_commit(self, broker: Broker, make_broker: MakeBroker, lease: Lease) -> None:
        """No final state is missed, nor a job that was enqueued beside it."""
        transaction = broker.transaction()
        broker.enqueue([make_job("next")], connection=transaction.connection)
        _settle(transaction, lease)
        other = make_broker()
        [seen] = other.watch({"a": None}, 0)
        assert ended_by(lambda: other.watch({"a": seen}, 8.0), lambda: asyncio.run(transaction.commit()))
        assert [lease.id for lease in broker.exchange(W1, [], Want(limit=5)).leases] == ["next"]

    def test_a_connection_of_the_callers(self, request: pytest.FixtureRequest, broker: Broker, lease: Lease) -> None:
        """The caller's, in no transaction yet, and from now on the transaction's."""
        given = request.getfixturevalue("make_connection")()
        transaction = broker.transaction(given)
        assert transaction.connection is given
        assert _settle(transaction, lease)
        asyncio.run(transaction.commit())
        assert state(broker, "a") is JobState.COMPLETED
        with pytest.raises(CapabilityError):
            broker.enqueue([make_job("b")], connection=given)

    def test_a_wrong_connection_begins_nothing(self, broker: Broker, lease: Lease) -> None:
        """``connection`` is of the wrong kind."""
        with pytest.raises(CapabilityError):
            broker.transaction(object())
        assert settle(broker, outcome(lease, JobState.COMPLETED)) == []

    @pytest.mark.parametrize("end", ["commit", "rollback", "close"])
    def test_a_job_that_ends_it_by_itself(self, broker: Broker, lease: Lease, end: str) -> None:
        """The job has committed or rolled back by itself."""
        transaction = broker.transaction()
        getattr(transaction.connection, end)()
        with pytest.raises(CapabilityError, match="leave commit, rollback and close to Mouso"):
            _settle(transaction, lease)
        asyncio.run(transaction.roll_back())
        assert state(broker, "a") is JobState.RUNNING

    def test_a_cancel_meanwhile(self, broker: Broker, lease: Lease) -> None:
        """A job that completes all the same stays completed."""
        broker.cancel(["a"])
        transaction = broker.transaction()
        assert _settle(transaction, lease)
        asyncio.run(transaction.commit())
        assert (state(broker, "a"), read(broker, "a").cancel_requested) == (JobState.COMPLETED, False)
