"""What can be seen: ``get``, ``find``, ``queues``."""

from __future__ import annotations

import pytest

from mouso.brokers.base import Broker, JobFilter
from mouso.job import JobState
from mouso.testing.clock import FakeClock
from mouso.testing.conformance.kit import (
    MakeBroker,
    Suite,
    claim,
    claim_one,
    complete,
    enqueue,
    everything,
    failure,
    ids,
    outcome,
    settle,
)


def _fill(broker: Broker, clock: FakeClock) -> None:
    """Six jobs: a completed, b running, c dead, d and f available, e scheduled."""
    enqueue(broker, "a", "b", "c")
    a, _, c = claim(broker, 3)
    settle(broker, failure(c, JobState.DEAD), outcome(a, JobState.COMPLETED))
    clock.advance(1)
    enqueue(broker, "d", queue="mail")
    enqueue(broker, "e", queue="mail", task="send", delay=1000)
    enqueue(broker, "f", task="send")


class Reading(Suite):
    """``get``, ``find`` and ``queues``."""

    def test_get_keeps_the_order(self, broker: Broker) -> None:
        """Reads jobs with everything that is known of them, None for each unknown id."""
        enqueue(broker, "a", "b")
        found = broker.get(["b", "unknown", "a", "b", ""])
        assert [job and job.id for job in found] == ["b", None, "a", "b", None]
        assert broker.get([]) == []

    def test_another_broker_object_sees_the_same(
        self, broker: Broker, make_broker: MakeBroker, clock: FakeClock
    ) -> None:
        """The broker is the only shared state."""
        _fill(broker, clock)
        other = make_broker()
        assert everything(other) == everything(broker)
        assert other.queues() == broker.queues()
        assert other.workers() == broker.workers()

    def test_find_lists_the_last_enqueued_first(self, broker: Broker, clock: FakeClock) -> None:
        """Lists jobs without ``errors``, the last enqueued first."""
        _fill(broker, clock)
        found = broker.find(JobFilter())
        assert ids(found) == ["f", "e", "d", "c", "b", "a"]
        assert all(job.errors == () for job in found)
        assert broker.get(["c"])[0] != found[3]

    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            (JobFilter(states=frozenset({JobState.AVAILABLE})), "fd"),
            (JobFilter(states=frozenset({JobState.DEAD, JobState.RUNNING})), "cb"),
            (JobFilter(states=frozenset()), ""),
            (JobFilter(queue="mail"), "ed"),
            (JobFilter(queue="unknown"), ""),
            (JobFilter(task="send"), "fe"),
            (JobFilter(task="send", queue="mail"), "e"),
            (JobFilter(task="send", states=frozenset({JobState.AVAILABLE})), "f"),
            (JobFilter(parked=True), ""),
            (JobFilter(parked=False), "fedcba"),
            (JobFilter(limit=2), "fe"),
            (JobFilter(limit=0), ""),
            (JobFilter(limit=2, after="d"), "cb"),
            (JobFilter(after="a"), ""),
            (JobFilter(after="e", queue="default", limit=2), "cb"),
        ],
    )
    def test_find_narrows(self, broker: Broker, clock: FakeClock, where: JobFilter, expected: str) -> None:
        """None does not narrow. At most ``limit``."""
        _fill(broker, clock)
        assert ids(broker.find(where)) == list(expected)

    @pytest.mark.parametrize("size", [1, 2, 3, 7])
    def test_pages_list_every_job_once(self, broker: Broker, size: int) -> None:
        """Following ``after`` from page to page lists every job that stays as it is once."""
        names = [f"j{n}" for n in range(10)]
        complete(broker, *names[:5])
        enqueue(broker, *names[5:])
        seen: list[str] = []
        page = broker.find(JobFilter(limit=size))
        while page:
            assert len(page) <= size
            seen += ids(page)
            page = broker.find(JobFilter(limit=size, after=seen[-1]))
        assert seen == names[::-1]

    def test_pages_while_jobs_change(self, broker: Broker) -> None:
        """Following ``after`` from page to page lists every job that stays as it is once."""
        enqueue(broker, *[f"j{n}" for n in range(10)])
        seen: list[str] = []
        page = broker.find(JobFilter(limit=2))
        while page:
            seen += ids(page)
            enqueue(broker, f"new{len(seen)}")
            if len(seen) == 2:
                leases = {lease.id: lease for lease in claim(broker, 20)}
                settle(broker, outcome(leases[seen[-1]], JobState.COMPLETED))
            page = broker.find(JobFilter(limit=2, after=seen[-1]))
        unchanged = [id for id in seen if not id.startswith("new")]
        assert unchanged == [f"j{n}" for n in range(9, -1, -1)]

    def test_queues_count_by_state(self, broker: Broker, clock: FakeClock) -> None:
        """Every queue that ever had a job or was paused, by name; only counts that are not 0."""
        assert broker.queues() == []
        _fill(broker, clock)
        broker.pause("a")
        clock.advance(0.5)
        a, default, mail = broker.queues()
        assert (a.name, dict(a.counts), a.oldest, a.paused) == ("a", {}, None, True)
        assert (default.name, default.oldest, default.paused) == ("default", 500, False)
        assert dict(default.counts) == {
            JobState.COMPLETED: 1,
            JobState.RUNNING: 1,
            JobState.DEAD: 1,
            JobState.AVAILABLE: 1,
        }
        assert (mail.name, mail.oldest) == ("mail", 500)
        assert dict(mail.counts) == {JobState.AVAILABLE: 1, JobState.SCHEDULED: 1}

    def test_queues_stay_when_their_jobs_are_gone(self, broker: Broker) -> None:
        """Every queue that ever had a job or was paused."""
        enqueue(broker, "a", queue="mail")
        enqueue(broker, "b", queue="news")
        broker.delete(["a"])
        broker.purge("news", 10)
        broker.resume("never heard of")
        assert [(queue.name, dict(queue.counts)) for queue in broker.queues()] == [("mail", {}), ("news", {})]

    def test_the_oldest_is_the_one_that_waits_longest(self, broker: Broker, clock: FakeClock) -> None:
        """How long its oldest available job waits (ms)."""
        enqueue(broker, "a")
        clock.advance(1)
        enqueue(broker, "b", priority=100)
        clock.advance(1)
        assert broker.queues()[0].oldest == 2000
        assert claim_one(broker).id == "b"
        assert broker.queues()[0].oldest == 2000
        claim_one(broker)
        assert broker.queues()[0].oldest is None
