"""Jobs without a timeout that run for far longer than usual are told, once."""

import time
from collections.abc import Iterator

import pytest

from mouso.job import Charge, JobState, Lease, Outcome
from mouso.worker.deaths import Coroner
from mouso.worker.process import ChildProcess
from mouso.worker.usual import RunTimes

LEASE = Lease(7, 1, "the-job", "report", "default", b"{}", "json", 0, 0, 0, 0, None, None)


def outcome(seconds: float, task: str = "report", charge: Charge = Charge.NONE) -> Outcome:
    return Outcome(1, 1, "id", task, "default", JobState.COMPLETED, seconds, charge=charge)


class Child:
    """As much of a child as a sample is taken from."""

    latest: Outcome | None = None


def sample(times: RunTimes, ended: Outcome | None) -> None:
    child = Child()
    child.latest = ended
    times.sample(child)  # type: ignore[arg-type]  # as much of it as is asked for
    assert child.latest is None


def known(*seconds: float) -> RunTimes:
    times = RunTimes()
    for each in seconds:
        sample(times, outcome(each))
    return times


class Running:
    """A child that has run a job, on a real board, for so long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.child = ChildProcess(1, lambda child, message: None, lambda child: None)
        self.child.leases[LEASE.key] = LEASE
        self.coroner = Coroner()

    def since(self, seconds: float, timeout: float | None = None) -> None:
        began = time.monotonic_ns() - int(seconds * 1e9)
        with self._patch.context() as patch:
            patch.setattr(time, "monotonic_ns", lambda: began)
            assert self.child.board.start(0, LEASE.key, 1, timeout)
        assert self.coroner.overdue(self.child) == {}


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    made = Running(monkeypatch)
    yield made
    made.child.close()


def test_few_runs_tell_nothing() -> None:
    assert RunTimes().p99("report") is None
    assert known(*[1.0] * 99).p99("report") is None
    assert known(*[1.0] * 100).p99("another") is None


@pytest.mark.parametrize(
    ("seconds", "p99"),
    [
        ([0.3] * 100, 0.5),
        ([0.3] * 1000 + [100.0] * 10, 0.5),
        ([0.3] * 1000 + [100.0] * 11, 128.0),
        ([0.0] * 100, 2**-9),
        ([3600.0] * 100, 4096.0),
    ],
)
def test_what_99_of_100_stay_below(seconds: list[float], p99: float) -> None:
    assert known(*seconds).p99("report") == p99


def test_a_child_that_has_ended_nothing_and_a_release_tell_nothing() -> None:
    times = known(*[0.3] * 99)
    sample(times, None)
    sample(times, outcome(50.0, charge=Charge.RELEASE))
    assert times.p99("report") is None
    sample(times, outcome(0.3))
    assert times.p99("report") == 0.5


def test_what_was_long_ago_is_forgotten() -> None:
    times = known(*[40.0] * 10_000)
    assert times.p99("report") == 64.0
    for _ in range(100_000):
        sample(times, outcome(0.3))
    assert times.p99("report") == 0.5


def test_after_ten_minutes(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    running.since(599)
    assert not caplog.messages
    running.since(601)
    running.since(602)
    (message,) = caplog.messages
    assert message == (
        "job the-job (report) has run for 10 minutes; it has no timeout: if that is not meant, give its task one"
    )


def test_ten_times_as_long_as_usual(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    running.coroner.usual = known(*[1.5] * 100)
    running.since(19)
    assert not caplog.messages
    running.since(21)
    running.since(700)
    (message,) = caplog.messages
    assert "has run for 21 s, and 99 of 100 runs of its task take less than 2 s; it has no timeout" in message


def test_a_few_seconds_are_nothing_to_tell(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    running.coroner.usual = known(*[0.001] * 100)
    running.since(9)
    assert not caplog.messages
    running.since(11)
    assert len(caplog.messages) == 1


def test_who_has_a_timeout_is_left_alone(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    running.coroner.usual = known(*[0.001] * 100)
    running.since(700, timeout=900)
    assert not caplog.messages
