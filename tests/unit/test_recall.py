"""A child that does not answer is relieved of what it has not started, and of nothing else."""

from collections.abc import Iterator

import pytest

from mouso.clock import SYSTEM
from mouso.job import Lease, Outcome
from mouso.worker import frames
from mouso.worker.deaths import STUBBORN, Coroner
from mouso.worker.process import ChildProcess


def lease(key: int) -> Lease:
    return Lease(key, 1, f"job-{key}", "task", "default", b"{}", "json", 0, 0, 0, 0, None, None)


class Spoken(ChildProcess):
    """A child without a process; what it is told is kept."""

    def __init__(self) -> None:
        super().__init__(2, lambda child, message: None, lambda child: None)
        self.told: list[frames.ToChild] = []
        self.ready = True

    def send(self, message: frames.ToChild) -> None:
        self.told.append(message)

    def answer(self) -> None:
        """It says that it lives."""
        frame = frames.encode(frames.Pong())
        self.get_buffer(-1)[: len(frame)] = frame
        self.buffer_updated(len(frame))


@pytest.fixture
def child() -> Iterator[Spoken]:
    made = Spoken()
    yield made
    made.close()


class TestRecall:
    def test_what_has_not_started_goes_back(self, child: Spoken) -> None:
        child.assign([lease(1), lease(2), lease(3)])
        assert child.board.start(0, 1, 1, None)
        assert [back.key for back in child.take_back(child.recall())] == [2, 3]
        assert list(child.leases) == [1]

    def test_and_is_started_no_more_though_the_child_has_answered(self, child: Spoken) -> None:
        """A thread may have taken it from the queue and not come to start it, and others of the child answer."""
        child.assign([lease(1), lease(2)])
        last = child.recall()
        child.take_back(last)
        child.answer()
        child.assign([lease(3)])
        assert not child.board.start(0, 1, 1, None)
        assert not child.board.start(1, 2, 2, None)
        assert child.board.start(0, 3, 3, None)

    def test_what_came_after_the_answer_stays(self, child: Spoken) -> None:
        """It has answered, and been given more, in the moment before what was recalled is taken back."""
        child.assign([lease(1), lease(2)])
        assert child.board.start(0, 1, 1, None)
        last = child.recall()
        child.answer()
        child.assign([lease(3)])
        assert [back.key for back in child.take_back(last)] == [2]
        assert list(child.leases) == [1, 3]

    def test_a_child_with_nothing(self, child: Spoken) -> None:
        assert child.take_back(child.recall()) == []


class TestSilence:
    """Seconds without an answer are those in which the supervisor could have read one."""

    @pytest.fixture(autouse=True)
    def quiet(self, child: Spoken, monkeypatch: pytest.MonkeyPatch) -> None:
        heard = SYSTEM.monotonic()
        monkeypatch.setattr(SYSTEM, "monotonic", lambda: heard + 3600.0)

    def test_it_is_asked_first(self, child: Spoken) -> None:
        child.assign([lease(1)])
        assert child.silence(0.25) == 0.0
        assert child.told == [frames.Ping()]

    def test_only_what_is_counted_counts(self, child: Spoken) -> None:
        child.assign([lease(1)])
        assert [child.silence(0.25) for _ in range(4)] == [0.0, 0.25, 0.5, 0.75]
        child.answer()
        assert child.silence(0.25) == 0.0

    def test_a_child_without_jobs_owes_no_answer(self, child: Spoken) -> None:
        assert child.silence(0.25) == 0.0
        assert child.told == []


class TestOverdue:
    """Worker and child may have been stopped together: what passed meanwhile is not the job's."""

    LONG_AGO = -10 * STUBBORN

    @staticmethod
    def verdicts(child: Spoken, awake: float) -> list[Outcome]:
        return list(Coroner().overdue(child, awake).values())

    def test_a_timeout(self, child: Spoken) -> None:
        child.assign([lease(1)])
        assert child.board.start(0, 1, 1, self.LONG_AGO)
        now = SYSTEM.monotonic()
        assert self.verdicts(child, now) == []
        assert self.verdicts(child, now - STUBBORN / 2) == []
        assert self.verdicts(child, now - STUBBORN)

    def test_a_job_that_was_asked_to_stop(self, child: Spoken) -> None:
        child.assign([lease(1)])
        assert child.board.start(0, 1, 1, None)
        now = SYSTEM.monotonic()
        child.stops[1] = (now + self.LONG_AGO, "cancelled")
        assert self.verdicts(child, now) == []
        assert self.verdicts(child, now - STUBBORN)
