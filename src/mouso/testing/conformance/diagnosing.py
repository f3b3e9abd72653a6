"""``diagnose``: looking without a trace."""

from __future__ import annotations

from contextlib import closing

import pytest

from mouso.brokers.base import Broker, Finding, JobFilter, Level, Retention, WorkerInfo
from mouso.job import JobState
from mouso.testing.clock import FakeClock
from mouso.testing.conformance.kit import (
    MakeBroker,
    Suite,
    claim_one,
    complete,
    enqueue,
    everything,
    failure,
    join,
    require_inspection,
    settle,
    state,
)


def _diagnose(broker: Broker, *, full: bool = False, retention: Retention | None = None) -> list[Finding]:
    """The findings; the view, if there is one, is closed."""
    diagnosis = broker.diagnose(retention=retention or Retention(), full=full)
    if diagnosis.view is not None:
        diagnosis.view.close()
    return diagnosis.findings


def _fill(broker: Broker) -> None:
    """A completed job, a dead one, a running one, one that waits, and a worker."""
    complete(broker, "completed")
    enqueue(broker, "dead")
    settle(broker, failure(claim_one(broker), JobState.DEAD))
    enqueue(broker, "running")
    claim_one(broker)
    enqueue(broker, "waiting", queue="mail")


class Diagnosing(Suite):
    """``diagnose``."""

    @pytest.mark.parametrize("full", [False, True])
    def test_a_diagnosis_changes_nothing(self, broker: Broker, make_broker: MakeBroker, full: bool) -> None:
        """Nothing is changed or created."""
        _fill(broker)
        before = everything(broker), broker.queues(), broker.workers()
        for one in (broker, make_broker()):
            assert all(finding.level is not Level.ERROR for finding in _diagnose(one, full=full))
        assert (everything(broker), broker.queues(), broker.workers()) == before

    def test_a_diagnosis_of_what_does_not_exist(self, make_broker: MakeBroker) -> None:
        """Nothing is changed or created, not even a store that does not exist."""
        for _ in range(2):
            broker = make_broker()
            assert all(finding.level is not Level.ERROR for finding in _diagnose(broker))
            broker.close()
        assert make_broker().queues() == []

    @pytest.mark.parametrize("full", [False, True])
    def test_a_store_that_cannot_be_used(self, request: pytest.FixtureRequest, broker: Broker, full: bool) -> None:
        """A store that cannot be used, whatever is the matter with it, is a finding, not an exception."""
        if not broker.capabilities.shared:
            pytest.skip(f"{broker.capabilities.name} is this process's own memory, which is always there")
        broken: Broker = request.getfixturevalue("broken")
        with closing(broken):
            worst = [finding for finding in _diagnose(broken, full=full) if finding.level is Level.ERROR]
            assert worst
            assert all(finding.remedy for finding in worst)

    def test_each_finding_says_what_to_do(self, broker: Broker, clock: FakeClock) -> None:
        """What there is, and what to do about it where there is anything to do."""
        _fill(broker)
        enqueue(broker, "expired", ttl=1000)
        clock.advance(3 * 86_400)
        findings = _diagnose(broker, full=True, retention=Retention(finished=1, dead=1))
        for finding in findings:
            assert finding.check.isalpha()
            assert finding.check.islower()
            assert finding.what
            assert not finding.what.endswith(".")
            assert bool(finding.remedy) == (finding.level is not Level.OK), finding

    def test_the_view_shows_what_the_broker_shows(self, broker: Broker, make_broker: MakeBroker) -> None:
        """A broker on the same store whose ``get``, ``find``, ``queues`` and ``workers`` leave it as it is."""
        require_inspection(broker)
        _fill(broker)
        for one in (broker, make_broker()):
            view = one.diagnose(retention=Retention()).view
            assert view is not None
            with closing(view):
                assert everything(view) == everything(broker)
                assert view.queues() == broker.queues()
                assert view.workers() == broker.workers()
                assert view.find(JobFilter(limit=1)) == broker.find(JobFilter(limit=1))
            assert state(broker, "running") is JobState.RUNNING

    def test_work_goes_on_after_a_diagnosis(self, broker: Broker) -> None:
        """Nothing is changed, the broker object that was asked included."""
        _diagnose(broker)
        join(broker)
        complete(broker, "a")
        _diagnose(broker)
        complete(broker, "b")
        assert {id: job.state for id, job in everything(broker).items()} == dict.fromkeys("ab", JobState.COMPLETED)
        assert [type(worker) for worker in broker.workers()] == [WorkerInfo]
