"""What a running job knows about itself."""

import logging
import math
from datetime import UTC, datetime
from typing import Any

import pytest

from mouso import Context, MousoError, Retry, StopRequested
from mouso.clock import SYSTEM
from mouso.context import CURRENT, Log
from mouso.job import LogLine, Progress, decode_log


class Reports:
    """Keeps what a job reports."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []

    def __call__(self, context: Context, what: Progress | LogLine) -> None:
        assert isinstance(what, Progress)
        self.progress.append(what)

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


def test_a_tracked_loop_that_is_left_tells_what_was_done() -> None:
    reports = Reports()
    for number in Context(report=reports).track(range(10), message="rows"):
        if number == 3:
            break
    assert reports.progress == [Progress(0, 10, "rows"), Progress(3, 10, "rows")]


def test_a_tracked_loop_whose_items_fail_tells_what_was_done() -> None:
    reports = Reports()
    with pytest.raises(ZeroDivisionError):
        list(Context(report=reports).track(1 // (2 - number) for number in range(10)))
    assert reports.progress == [Progress(0, None, ""), Progress(2, None, "")]


def test_a_tracked_loop_that_stops_at_its_first_item_tells_it_once() -> None:
    reports = Reports()
    for _ in Context(report=reports).track("abc"):
        break
    assert reports.progress == [Progress(0, 3, "")]


# -- the log


class Lines:
    """Keeps the lines that a context hands over."""

    def __init__(self) -> None:
        self.kept: list[LogLine] = []

    def __call__(self, context: Context, what: Progress | LogLine) -> None:
        assert isinstance(what, LogLine)
        self.kept.append(what)

    @property
    def texts(self) -> list[tuple[str, str]]:
        return [(line.level, line.message) for line in self.kept]


def test_log_lines_are_handed_over_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    lines = Lines()
    context = Context(job_id="a", task="shop.work", queue="mail", attempt=2, report=lines)
    with caplog.at_level("INFO", logger="mouso.job"):
        before = SYSTEM.now()
        context.log.info("%d rows", 3)
        context.log.error("no %s", "network", extra={"user": 7})
    assert lines.texts == [("INFO", "3 rows"), ("ERROR", "no network")]
    assert before <= lines.kept[0].at <= SYSTEM.now()
    facts = vars(caplog.records[0])
    assert (facts["job_id"], facts["task"], facts["queue"], facts["attempt"]) == ("a", "shop.work", "mail", 2)
    assert vars(caplog.records[1])["user"] == 7
    assert [record.filename for record in caplog.records] == ["test_context.py"] * 2


def test_lines_are_kept_from_info_on_whatever_the_log_shows(caplog: pytest.LogCaptureFixture) -> None:
    lines = Lines()
    context = Context(report=lines)
    with caplog.at_level("ERROR", logger="mouso.job"):
        context.log.debug("dull")
        context.log.info("kept")
    assert (lines.texts, caplog.records) == ([("INFO", "kept")], [])
    with caplog.at_level("DEBUG", logger="mouso.job"):
        context.log.debug("dull")
    assert lines.texts[1:] == [("DEBUG", "dull")]


def test_a_traceback_is_part_of_its_line() -> None:
    lines = Lines()
    try:
        raise ValueError("no")
    except ValueError as error:
        Context(report=lines).log.exception("it failed")
        Context(report=lines).log.warning("again", exc_info=error)
    for _, text in lines.texts:
        assert "Traceback (most recent call last):" in text
        assert text.endswith("ValueError: no")


@pytest.mark.parametrize(
    ("message", "args", "kept"),
    [
        ("a\ud800b", (), "a?b"),
        ("%d rows", ("many",), "a line that cannot be written: TypeError"),
        ("x" * 10_000, (), "x" * 2048 + " … " + "x" * 2048),
        (None, (), "None"),
    ],
)
def test_a_line_that_cannot_be_kept_as_it_is(message: str, args: tuple[object, ...], kept: str) -> None:
    lines = Lines()
    context = Context(report=lines)
    context.log.logger.disabled = True  # logging itself would write about the wrong call to stderr
    try:
        context.log.info(message, *args)
    finally:
        context.log.logger.disabled = False
    assert lines.texts == [("INFO", kept)]


def test_logging_outside_a_worker_only_logs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="mouso.job"):
        Context().log.info("hello")
    assert caplog.messages == ["hello"]


def test_the_last_lines_are_kept() -> None:
    log = Log(3, 1000)
    for n in range(5):
        log.add(LogLine(n, "INFO", f"line {n}"))
    assert decode_log(log.encoded()) == {
        "lines": tuple(LogLine(n, "INFO", f"line {n}") for n in (2, 3, 4)),
        "left_out": 2,
    }


def test_kept_lines_are_bounded_in_bytes() -> None:
    log = Log(100, 10)
    for text in ("aaaa", "éé", "bb", "c"):
        log.add(LogLine(0, "INFO", text))
    kept = decode_log(log.encoded())
    assert ([line.message for line in kept["lines"]], kept["left_out"]) == (["éé", "bb", "c"], 1)
    log.add(LogLine(0, "INFO", "d" * 11))
    assert decode_log(log.encoded()) == {"lines": (), "left_out": 5}


# -- Celery's spellings


def test_request_id_and_retries_are_where_celery_has_them() -> None:
    context = Context(job_id="a", attempt=3)
    assert (context.request.id, context.request.retries) == ("a", 2)


def test_retry_raises_with_countdown_and_cause() -> None:
    cause = OSError("no network")
    with pytest.raises(Retry, match="no network") as caught:
        Context().retry(exc=cause, countdown=30, max_retries=5)
    assert (caught.value.delay, caught.value.__cause__) == (30, cause)
