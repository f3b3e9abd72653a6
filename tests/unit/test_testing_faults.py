"""``mouso.testing.faults``: a broker that fails at its Nth call."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import cast

import pytest

from mouso import Mouso
from mouso.brokers import connect
from mouso.brokers.base import Broker, JobFilter, Want
from mouso.errors import BrokerUnavailable, OptionError, OutcomeUnknown
from mouso.job import Job, JobState, Outcome
from mouso.testing.faults import READING, Fault, FaultyBroker, fail_each, fail_nth

names = itertools.count()


@pytest.fixture
def app() -> Mouso:
    return Mouso("test", broker=f"memory://faults-{next(names)}")


def test_it_fails_before_anything_happened(app: Mouso) -> None:
    faulty = fail_nth(app, 2, Fault.BEFORE)
    app.broker.enqueue([Job(id="one", task="t")])
    with pytest.raises(BrokerUnavailable, match="enqueue was not done"):
        app.broker.enqueue([Job(id="two", task="t")])
    app.broker.enqueue([Job(id="three", task="t")])
    assert {job.id for job in app.jobs()} == {"one", "three"}
    assert (faulty.struck, faulty.calls) == ("enqueue", ["enqueue"] * 3 + ["find"])


def test_it_does_the_work_and_loses_the_answer(app: Mouso) -> None:
    faulty = fail_nth(app, 1, Fault.AFTER)
    with pytest.raises(OutcomeUnknown, match="enqueue was done"):
        app.broker.enqueue([Job(id="one", task="t")])
    assert faulty.struck == "enqueue"
    assert [enqueued.created for enqueued in app.broker.enqueue([Job(id="one", task="t")])] == [False]


@pytest.mark.parametrize("fault", [Fault.BEFORE, Fault.AFTER])
def test_a_verb_that_only_reads_leaves_nothing_unknown(app: Mouso, fault: Fault) -> None:
    fail_nth(app, 1, fault)
    with pytest.raises(BrokerUnavailable):
        app.jobs()


def test_only_chosen_verbs_count(app: Mouso) -> None:
    faulty = fail_nth(app, 2, Fault.BEFORE, verbs=["exchange"])
    for n in range(3):
        app.broker.enqueue([Job(id=str(n), task="t")])
    assert len(app.broker.exchange("w", [], Want(limit=1)).leases) == 1
    with pytest.raises(BrokerUnavailable):
        app.broker.exchange("w", [], Want(limit=1))
    assert faulty.calls == ["exchange", "exchange"]


def test_a_new_arrangement_replaces_the_old_one(app: Mouso) -> None:
    inner = app.broker
    fail_nth(app, 1, Fault.BEFORE)
    faulty = fail_nth(app, 0, Fault.BEFORE)
    assert faulty.broker is inner
    app.jobs()
    assert faulty.struck == ""


def test_every_call_of_a_scenario_fails_once(app: Mouso) -> None:
    inner = app.broker
    struck = []
    for faulty in fail_each(app, Fault.AFTER):
        before = len(faulty.broker.find(JobFilter()))
        for n in range(3):
            job = Job(id=f"{before}-{n}", task="t")
            try:
                app.broker.enqueue([job])
            except OutcomeUnknown:
                app.broker.enqueue([job])
        struck.append(faulty.struck)
        assert len(faulty.broker.find(JobFilter())) == before + 3
    assert struck == ["enqueue"] * 3 + [""]
    assert app.broker is inner


def test_a_loop_that_is_left_early_leaves_no_fault(app: Mouso) -> None:
    inner = app.broker
    loop = fail_each(app, Fault.BEFORE)
    next(loop)
    loop.close()
    assert app.broker is inner


def test_a_settle_whose_answer_is_lost_is_fenced_when_repeated(app: Mouso) -> None:
    faulty = fail_nth(app, 2, Fault.AFTER, verbs=["exchange"])
    broker = cast(Broker, faulty)
    broker.enqueue([Job(id="one", task="t")])
    (lease,) = broker.exchange("w", [], Want(limit=1)).leases
    done = [Outcome(lease.key, lease.token, lease.id, lease.task, lease.queue, JobState.COMPLETED)]
    with pytest.raises(OutcomeUnknown):
        broker.exchange("w", done, Want(limit=0))
    assert broker.exchange("w", done, Want(limit=0)).fenced == [lease.key]
    assert [job.state for job in app.jobs()] == ["completed"]


@pytest.mark.parametrize(("fault", "stored"), [(Fault.KILL_BEFORE, ["one"]), (Fault.KILL_AFTER, ["one", "two"])])
def test_it_kills_the_process(tmp_path: Path, fault: Fault, stored: list[str]) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    script = """
        import sys
        from mouso import Mouso
        from mouso.job import Job
        from mouso.testing.faults import Fault, fail_nth

        app = Mouso("test", broker=sys.argv[1])
        fail_nth(app, 2, Fault(sys.argv[2]))
        for name in ("one", "two", "three"):
            app.broker.enqueue([Job(id=name, task="t")])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), url, fault])
    assert done.returncode == -9
    with Mouso("test", broker=url) as app:
        assert sorted(job.id for job in app.jobs()) == sorted(stored)


def test_verbs_that_only_read_are_verbs() -> None:
    assert vars(Broker).keys() > READING


def test_what_cannot_be_asked_for() -> None:
    broker = connect("memory://faults")
    with pytest.raises(OptionError, match="interrupt"):
        FaultyBroker(broker, 1, Fault.BEFORE, verbs=["interrupt"])
    with pytest.raises(OptionError, match="enqeue"):
        FaultyBroker(broker, 1, Fault.BEFORE, verbs=["enqeue"])
    with pytest.raises(OptionError, match="nth=-1"):
        FaultyBroker(broker, -1, Fault.BEFORE)


def test_it_shows_what_it_wraps(app: Mouso) -> None:
    faulty = fail_nth(app, 3, Fault.BEFORE)
    assert repr(faulty) == f"FaultyBroker({faulty.broker!r}, 3, 'before')"
    assert app.broker.url == faulty.broker.url
    assert app.broker.capabilities is faulty.broker.capabilities
    assert app.broker.exchange.__name__ == "exchange"
    app.close()
    assert faulty.calls == []
