"""What a running job knows about itself."""

import logging
import math
from datetime import UTC, datetime
from typing import Any

import pytest

from mouso import Context, MousoError, Retry, StopRequested
from mouso.context import CURRENT
from mouso.job import Progress


class Reports:
    """Keeps what a job reports."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []

    def __call__(self, context: Context, progress: Progress) -> None:
        self.progress.append(progress)

    @property
    def done(self) -> list[float]:
        return [progress.done for progress in self.progress]


def test_a_context_knows_its_job() -> None:
    context = Context(job_id="a", task="shop.add", queue="mail", attempt=2, token=7, headers={"user": "ann"})
    assert (context.job_id, context.task, context.queue) == ("a", "shop.add", "mail")
    assert (context.attempt, context.token, context.headers) == (2, 7, {"user": "ann"})


def test_the_time_of_the_enqueue_is_an_aware_datetime() -> None:
    assert Context(enqueued_at=1_893_499_200_123).enqueued_at == datetime(2030, 1, 1, 12, 0, 0, 123_000, tzinfo=UTC)


def test_in_a_plain_call_the_enqueue_is_now() -> None:
    before = datetime.now(UTC)
    assert (Context().enqueued_at - before).total_seconds() < 60


def test_the_log_carries_job_task_and_attempt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mouso.job"):
        Context(job_id="a", task="shop.add", attempt=2).log.info("halfway")
    record: Any = caplog.records[0]
    assert (record.job_id, record.task, record.attempt, record.message) == ("a", "shop.add", 2, "halfway")


# -- the current context


def test_outside_a_job_there_is_no_current_context() -> None:
    with pytest.raises(MousoError, match="no job runs here"):
        Context.current()


def test_code_below_a_job_finds_its_context() -> None:
    context = Context(job_id="a")
    token = CURRENT.set(context)
    try:
        assert Context.current() is context
    finally:
        CURRENT.reset(token)


# -- stopping


def test_a_job_that_nobody_asked_to_stop_goes_on() -> None:
    context = Context()
    context.check()
    assert (context.should_stop, context.stop_reason) == (False, "")


def test_a_job_that_was_asked_to_stop_learns_why() -> None:
    context = Context()
    context.request_stop("cancelled")
    assert (context.should_stop, context.stop_reason) == (True, "cancelled")
    with pytest.raises(StopRequested, match="asked to stop: cancelled") as caught:
        context.check()
    assert caught.value.reason == "cancelled"


def test_the_first_reason_to_stop_stands() -> None:
    context = Context()
    context.request_stop("timeout")
    context.request_stop("shutdown")
    assert context.stop_reason == "timeout"


# -- progress


def test_progress_is_reported_with_total_and_text() -> None:
    reports = Reports()
    Context(report=reports).progress(1, 3, "rendering")
    assert reports.progress == [Progress(1, 3, "rendering")]


def test_progress_that_nobody_watches_is_no_error() -> None:
    Context().progress(1, 3)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, pytest.param(10**400, id="400 digits")])
def test_a_number_that_cannot_be_stored_does_not_harm_the_job(number: float) -> None:
    reports = Reports()
    Context(report=reports).progress(number, number)
    assert reports.progress == [Progress(0.0, None, "")]


def test_a_text_that_cannot_be_stored_does_not_harm_the_job() -> None:
    reports = Reports()
    Context(report=reports).progress(1, message="a\ud800b" + "x" * 2000)
    assert reports.progress[0].message.startswith("a?bxxx")
    assert len(reports.progress[0].message) == 1000


def test_a_tracked_loop_yields_everything_and_ends_complete() -> None:
    reports = Reports()
    assert list(Context(report=reports).track([1, 2, 3], message="rows")) == [1, 2, 3]
    assert reports.progress[0] == Progress(0, 3, "rows")
    assert reports.progress[-1] == Progress(3, 3, "rows")


def test_the_total_of_an_iterator_may_be_given_or_is_known_at_its_end() -> None:
    reports = Reports()
    list(Context(report=reports).track(iter("ab"), total=2))
    list(Context(report=reports).track(iter("ab")))
    assert [progress.total for progress in reports.progress] == [2, 2, None, 2]


def test_a_fast_loop_does_not_flood_whoever_watches() -> None:
    reports = Reports()
    for _ in Context(report=reports).track(range(10_000)):
        pass
    assert len(reports.progress) < 1000
    assert reports.done[-1] == 10_000


def test_a_tracked_loop_stops_when_asked_to() -> None:
    context = Context()
    rows = context.track(range(10))
    assert [next(rows), next(rows)] == [0, 1]
    context.request_stop("cancelled")
    with pytest.raises(StopRequested):
        next(rows)


# -- Celery's spellings


def test_request_id_and_retries_are_where_celery_has_them() -> None:
    context = Context(job_id="a", attempt=3)
    assert (context.request.id, context.request.retries) == ("a", 2)


def test_retry_raises_with_countdown_and_cause() -> None:
    cause = OSError("no network")
    with pytest.raises(Retry, match="no network") as caught:
        Context().retry(exc=cause, countdown=30, max_retries=5)
    assert (caught.value.delay, caught.value.__cause__) == (30, cause)
