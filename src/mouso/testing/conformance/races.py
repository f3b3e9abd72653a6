"""Many threads and several broker objects at the same jobs: every verb is one atomic step."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest

from mouso.brokers.base import Broker, CancelResult, JobFilter, Want
from mouso.job import JobState, Lease
from mouso.testing.clock import FakeClock
from mouso.testing.conformance.kit import (
    LEASE,
    W1,
    W2,
    MakeBroker,
    Suite,
    against,
    claim,
    claim_one,
    enqueue,
    everything,
    join,
    make_job,
    outcome,
    read,
    release,
    settle,
    together,
)

JOBS = 240
ROUNDS = 8


class Races(Suite):
    """Verbs against verbs."""

    def test_racing_claimers_get_different_jobs(self, broker: Broker, make_broker: MakeBroker) -> None:
        """A job is claimed by one worker only, however many ask at once."""
        enqueue(broker, *[f"j{n}" for n in range(JOBS)])
        brokers = [broker, make_broker()] * 2
        workers = [str(n) * 16 for n in range(1, 5)]
        for worker in workers:
            join(broker, worker)

        def drain(mine: Broker, worker: str) -> list[Lease]:
            got: list[Lease] = []
            while batch := mine.exchange(worker, [], Want(limit=7)).leases:
                got += batch
            return got

        found = together(*[lambda b=b, w=w: drain(b, w) for b, w in zip(brokers, workers, strict=True)])
        claims = Counter(lease.id for got in found for lease in got)
        assert len(claims) == JOBS
        assert set(claims.values()) == {1}
        jobs = everything(broker)
        for worker, got in zip(workers, found, strict=True):
            assert all(jobs[lease.id].worker == worker and lease.token == 1 for lease in got)

    def test_racing_workers_complete_every_job_once(self, broker: Broker, make_broker: MakeBroker) -> None:
        """Settles outcomes, then claims jobs, in one step."""
        enqueue(broker, *[f"j{n}" for n in range(JOBS)])
        for worker in (W1, W2):
            join(broker, worker)

        def work(mine: Broker, worker: str) -> int:
            done, held = 0, mine.exchange(worker, [], Want(limit=5)).leases
            while held:
                ends = [outcome(lease, JobState.COMPLETED) for lease in held]
                answer = mine.exchange(worker, ends, Want(limit=5))
                assert answer.fenced == []
                done, held = done + len(ends), answer.leases
            return done

        other = make_broker()
        assert sum(together(lambda: work(broker, W1), lambda: work(other, W2))) == JOBS
        assert [queue.counts for queue in broker.queues()] == [{JobState.COMPLETED: JOBS}]

    def test_one_of_many_settles_wins(self, broker: Broker, make_broker: MakeBroker) -> None:
        """An outcome is applied if its token is the job's last claim, else its key is in ``fenced``."""
        brokers = [broker, make_broker()] * 2
        for n in range(ROUNDS):
            enqueue(broker, f"j{n}")
            lease = claim_one(broker)
            ends = [outcome(lease, JobState.COMPLETED, result=str(i).encode()) for i in range(4)]
            fenced = together(
                *[
                    lambda b=b, e=e: b.exchange(W1, [e], Want(limit=0)).fenced
                    for b, e in zip(brokers, ends, strict=True)
                ]
            )
            [winner] = [i for i, keys in enumerate(fenced) if not keys]
            assert read(broker, f"j{n}").result == str(winner).encode()

    def test_settle_against_retire(self, broker: Broker, make_broker: MakeBroker) -> None:
        """An outcome is applied if the job is still running under it; else it changes nothing."""
        other = make_broker()
        for n in range(ROUNDS):
            enqueue(broker, f"j{n}")
            end = outcome(claim_one(broker), JobState.COMPLETED)
            fenced, back = against(partial(settle, broker, end), partial(other.retire, W1))
            assert len(fenced) == back
            job = read(broker, f"j{n}")
            assert job.state is (JobState.AVAILABLE if back else JobState.COMPLETED)
            assert job.releases == back
            broker.delete([f"j{n}"])

    def test_claim_against_cancel(self, broker: Broker, make_broker: MakeBroker) -> None:
        """A waiting job is cancelled in this step and never starts. A running one is asked to stop."""
        other = make_broker()
        join(broker)
        for n in range(ROUNDS):
            enqueue(broker, f"j{n}")
            leases, [result] = against(partial(claim, broker), partial(other.cancel, [f"j{n}"]))
            assert result is (CancelResult.REQUESTED if leases else CancelResult.CANCELLED)
            settle(broker, *[release(lease) for lease in leases])
            assert read(broker, f"j{n}").state is JobState.CANCELLED

    def test_the_same_id_from_many(self, broker: Broker, make_broker: MakeBroker) -> None:
        """An id that is stored already, in any state, changes nothing and is reported as not created."""
        brokers = [broker, make_broker()] * 2
        jobs = [make_job(f"j{n}") for n in range(50)]
        results = together(*[lambda b=b: b.enqueue(jobs) for b in brokers])
        created = Counter(done.id for result in results for done in result if done.created)
        assert created == dict.fromkeys([job.id for job in jobs], 1)
        assert len(claim(broker, 1000)) == 50

    @pytest.mark.parametrize("upkeep", ["promote", "reap", "prune"])
    def test_upkeep_by_everybody_at_once(
        self, broker: Broker, make_broker: MakeBroker, clock: FakeClock, upkeep: str
    ) -> None:
        """Any supervisor, any time: what one did, the others find done."""
        from mouso.testing.conformance.upkeep import retention

        names = [f"j{n}" for n in range(40)]
        enqueue(broker, *names, delay=1000)
        clock.advance(2)
        brokers = [broker, make_broker()] * 2
        if upkeep == "promote":
            assert sum(together(*[lambda b=b: b.promote(30) for b in brokers])) == 40
            return
        broker.promote(40)
        leases = claim(broker, 40)
        if upkeep == "reap":
            clock.advance(LEASE + 1)
            together(*[lambda b=b: b.reap(30) for b in brokers])
            assert all(job.releases == 1 for job in everything(broker).values())
        else:
            settle(broker, *[outcome(lease, JobState.COMPLETED) for lease in leases])
            clock.advance(2)
            rule = retention(finished=1000)
            assert sum(together(*[lambda b=b: b.prune(30, rule) for b in brokers])) == 40
            assert broker.find(JobFilter()) == []
