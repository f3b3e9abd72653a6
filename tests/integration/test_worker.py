"""How a worker runs jobs: retries, time limits, cancellation, results, and what the app hooks into."""

import os
import signal
import time
from datetime import date, datetime, timedelta
from typing import Any

import pytest

from mouso import JobCancelled, JobExpired, JobFailed, JobUnknown
from mouso.errors import ResultError, ResultTimeout
from mouso.handle import JobHandle
from tests.integration.harness import WAIT, Bench
from tests.support import wait_until

KILLED = 5.0 + 2.0
"""Seconds after its timeout within which a stubborn job's process is killed."""


# -- retries


def test_it_is_retried_with_back_off_until_it_completes(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task(attempts=4, backoff=exponential(0.2, jitter=False))
        def third_time(ctx: Context) -> int:
            note("start")
            if ctx.attempt < 3:
                raise OSError(f"try {ctx.attempt}")
            return ctx.attempt
        """
    )
    bench.worker()
    handle = jobs.third_time.delay()
    assert handle.get(timeout=WAIT) == 3
    starts = bench.history("start")
    assert [line.attempt for line in starts] == [1, 2, 3]
    assert 0.2 <= starts[1].at - starts[0].at < 1.2
    assert 0.4 <= starts[2].at - starts[1].at < 1.4
    record = handle.refresh().record
    assert (record.attempts, record.crashes) == (2, 0)
    assert [(e.type, e.message, e.attempt, e.reason) for e in record.errors] == [
        ("OSError", "try 1", 1, ""),
        ("OSError", "try 2", 2, ""),
    ]
    assert 'raise OSError(f"try {ctx.attempt}")' in record.errors[0].traceback


@pytest.mark.parametrize(
    ("task", "runs", "reason"),
    [
        ("always", 3, "attempts"),
        ("once", 1, "attempts"),
        ("not_this_one", 1, "not_retryable"),
        ("a_subclass", 2, "attempts"),
        ("never_this_one", 1, "discarded"),
        ("function_gives_up", 2, "discarded"),
        ("function_fails", 1, "attempts"),
        ("discards", 1, "discarded"),
        ("bad_delay", 1, "discarded"),
        ("unstorable", 1, "bad_result"),
        ("too_large", 1, "bad_result"),
        ("slow", 2, "timeout"),
    ],
)
def test_why_it_is_dead(bench: Bench, task: str, runs: int, reason: str) -> None:
    jobs = bench.app(
        """
        @app.task(attempts=3, backoff=constant(0))
        def always() -> None:
            note("start")
            raise ValueError("no")

        @app.task(attempts=1)
        async def once() -> None:
            note("start")
            raise ValueError("no")

        @app.task(retry_on=(OSError,), backoff=constant(0))
        def not_this_one() -> None:
            note("start")
            raise ValueError("no")

        @app.task(retry_on=(OSError,), backoff=constant(0), attempts=2)
        def a_subclass() -> None:
            note("start")
            raise FileNotFoundError("no")

        @app.task(retry_on=(OSError,), discard_on=(FileNotFoundError,), backoff=constant(0))
        async def never_this_one() -> None:
            note("start")
            raise FileNotFoundError("no")

        @app.task(backoff=lambda error, attempt: 0.01 if attempt < 2 else None)
        def function_gives_up() -> None:
            note("start")
            raise ValueError("no")

        def broken(error: BaseException, attempt: int) -> float:
            raise RuntimeError("the policy itself")

        @app.task(backoff=broken, attempts=1)
        def function_fails() -> None:
            note("start")
            raise ValueError("no")

        @app.task
        def discards() -> None:
            note("start")
            raise Discard("not worth it")

        @app.task
        def bad_delay() -> None:
            note("start")
            raise Retry(delay="soon")

        @app.task
        def unstorable() -> object:
            note("start")
            return object()

        @app.task
        def too_large() -> str:
            note("start")
            return "x" * (1 << 20)

        @app.task(attempts=2, timeout=0.2, backoff=constant(0))
        async def slow() -> None:
            note("start")
            await asyncio.sleep(60)
        """
    )
    worker = bench.worker()
    worker.quiet = task != "bad_delay"
    handle = getattr(jobs, task).delay()
    with pytest.raises(JobFailed) as caught:
        handle.get(timeout=WAIT)
    record = handle.record
    assert (record.state, record.reason) == ("dead", reason)
    assert len(bench.history("start")) == runs
    assert len(record.errors) == runs
    assert record.attempts == runs
    assert caught.value.error == record.errors[-1]
    assert caught.value.error.reason == reason
    assert reason in str(caught.value)


def test_one_job_overrides_the_policy_of_its_task(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task(attempts=1, timeout=0.2)
        async def fails(seconds: float) -> None:
            note("start")
            await asyncio.sleep(seconds)
            raise ValueError("no")
        """
    )
    bench.worker()
    from mouso import constant

    handle = jobs.fails.options(attempts=3, timeout=60, backoff=constant(0), discard_on=(KeyError,)).delay(0.4)
    record = bench.wait_final([handle])[0]
    assert (record.reason, record.attempts) == ("attempts", 3)
    assert {error.type for error in record.errors} == {"ValueError"}


def test_retry_snooze_cancel_and_discard(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task(attempts=2)
        def retries(ctx: Context) -> str:
            note("start")
            if ctx.attempt == 1:
                raise Retry(delay=0.3, reason="not yet")
            return "done"

        @app.task(attempts=1)
        async def snoozes(ctx: Context) -> str:
            note("snooze")
            if not Path("awake").exists():
                Path("awake").touch()
                raise Snooze("300ms")
            return f"attempt {ctx.attempt}"

        @app.task
        def cancels() -> None:
            raise Cancel("changed my mind")

        @app.task
        async def discards() -> None:
            raise Discard("useless")
        """
    )
    bench.worker()
    handle = jobs.retries.delay()
    assert handle.get(timeout=WAIT) == "done"
    first, second = bench.history("start")
    assert 0.3 <= second.at - first.at < 1.3
    assert handle.record.attempts == 1
    assert handle.errors[0].message == "not yet"

    handle = jobs.snoozes.delay()
    assert handle.get(timeout=WAIT) == "attempt 1"
    first, second = bench.history("snooze")
    assert 0.3 <= second.at - first.at < 1.3
    assert (handle.record.attempts, handle.record.releases, handle.errors) == (0, 0, ())

    handle = jobs.cancels.delay()
    with pytest.raises(JobCancelled, match="changed my mind"):
        handle.get(timeout=WAIT)
    assert handle.record.attempts == 0

    handle = jobs.discards.delay()
    with pytest.raises(JobFailed, match="useless"):
        handle.get(timeout=WAIT)
    assert handle.record.reason == "discarded"


def test_a_dead_job_is_mended_and_retried(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task(attempts=2, backoff=constant(0))
        def divide(x: int, y: int) -> float:
            return x / y
        """
    )
    bench.worker()
    handle = jobs.divide.delay(1, 0)
    assert bench.wait_final([handle])[0].state == "dead"
    assert handle.retry() == "retried"
    assert bench.wait_final([handle])[0].attempts == 2, "the counters begin anew"
    payload = jobs.divide.job(1, 4).payload
    assert jobs.app.broker.retry([handle.id], payload=payload) == ["retried"]
    assert handle.get(timeout=WAIT) == 0.25
    record = handle.record
    assert (record.state, record.attempts, record.reason) == ("completed", 0, "")
    assert len(record.errors) == 4, "what happened before stays on record"


# -- time limits


def test_a_coroutine_is_cancelled_at_its_timeout(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task(timeout=0.5, attempts=1)
        async def slow() -> None:
            note("start")
            try:
                await asyncio.sleep(60)
            finally:
                note("cleaned")
        """
    )
    worker = bench.worker()
    (child,) = worker.children()
    record = bench.wait_final([jobs.slow.delay()])[0]
    assert (record.state, record.reason) == ("dead", "timeout")
    assert record.errors[0].type == "TimeoutError"
    assert "0.5 s" in record.errors[0].message
    assert 0.5 <= bench.history("cleaned")[0].at - bench.history("start")[0].at < 1.5
    assert worker.children() == [child]


def test_a_function_sees_that_it_should_stop(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task(timeout=0.5, attempts=1)
        def checks(ctx: Context) -> None:
            note("start")
            while True:
                ctx.check()
                time.sleep(0.01)

        @app.task(timeout=0.5)
        def looks(ctx: Context) -> str:
            while not ctx.should_stop:
                time.sleep(0.01)
            note("saw")
            return f"stopped: {ctx.stop_reason}, {time.monotonic() > ctx.deadline}"

        @app.task(timeout=0.5, attempts=1)
        def tracks(ctx: Context) -> None:
            for _ in ctx.track(range(10**9)):
                time.sleep(0.01)
        """
    )
    worker = bench.worker()
    (child,) = worker.children()
    handles = [jobs.checks.delay(), jobs.looks.delay(), jobs.tracks.delay()]
    records = bench.wait_final(handles)
    assert [(r.state, r.reason) for r in records] == [("dead", "timeout"), ("completed", ""), ("dead", "timeout")]
    assert handles[1].get() == "stopped: timeout, True"
    assert 0.5 <= bench.history("saw")[0].at - bench.history("start")[0].at < 1.5
    assert worker.children() == [child]


@pytest.mark.parametrize("task", ["function", "blocks_the_loop", "swallows_cancellation", "spins"])
def test_a_stubborn_job_is_killed_with_its_process(bench: Bench, task: str) -> None:
    jobs = bench.app(
        """
        @app.task(timeout=0.5, attempts=1)
        def function() -> None:
            note("start")
            time.sleep(600)

        @app.task(timeout=0.5, attempts=1)
        async def blocks_the_loop() -> None:
            note("start")
            time.sleep(600)

        @app.task(timeout=0.5, attempts=1)
        async def swallows_cancellation() -> None:
            note("start")
            while True:
                try:
                    await asyncio.sleep(600)
                except asyncio.CancelledError:
                    pass

        @app.task(timeout=0.5, attempts=1)
        def spins() -> None:
            note("start")
            while True:
                pass

        @app.task(attempts=1)
        def bystander() -> str:
            note("bystander")
            time.sleep(30 if not Path("second").exists() else 0)
            return "done"
        """
    )
    worker = bench.worker()
    (child,) = worker.children()
    beside = jobs.bystander.delay()
    bench.wait_for("bystander")
    handle = getattr(jobs, task).delay()
    start = bench.wait_for("start")[0]
    (bench.folder / "second").touch()
    record = bench.wait_final([handle])[0]
    late = time.monotonic() - (start.at + 0.5)
    assert (record.state, record.reason, record.attempts, record.crashes) == ("dead", "timeout", 1, 0)
    assert "killed" in record.errors[0].message
    assert 5.0 <= late < KILLED
    assert beside.get(timeout=WAIT) == "done"
    assert (beside.record.attempts, beside.record.crashes) == (0, 0)
    assert worker.children() != [child]


def test_a_killed_attempt_is_retried(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task(timeout=0.3, attempts=2, backoff=constant(0))
        def slow_at_first(ctx: Context) -> int:
            if ctx.attempt == 1:
                time.sleep(600)
            return ctx.attempt
        """
    )
    bench.worker()
    handle = jobs.slow_at_first.delay()
    assert handle.get(timeout=WAIT) == 2
    assert [(e.type, e.reason) for e in handle.record.errors] == [("TimeoutError", "timeout")]


# -- expiry


def test_an_expired_job_never_starts(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def job(n: int) -> int:
            note("start", str(n))
            return n
        """
    )
    late = jobs.job.options(expires=0.2).delay(1)
    late_and_delayed = jobs.job.options(expires=0.2, delay=0.5).delay(2)
    in_time = jobs.job.options(expires="1h").delay(3)
    created = time.monotonic()
    wait_until(lambda: time.monotonic() > created + 0.3)
    bench.worker()
    assert in_time.get(timeout=WAIT) == 3
    for handle in (late, late_and_delayed):
        with pytest.raises(JobExpired):
            handle.get(timeout=WAIT)
    assert [line.text for line in bench.history("start")] == ["3"]


# -- cancelling


def test_cancel_in_every_state(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def job() -> None:
            note("start")

        @app.task(attempts=5, backoff=constant(60))
        def fails() -> None:
            note("failed")
            raise ValueError

        @app.task
        def waits(ctx: Context) -> None:
            note("waits")
            while True:
                ctx.check()
                time.sleep(0.01)

        @app.task
        async def waits_too() -> None:
            note("waits")
            await asyncio.sleep(600)

        @app.task
        def goes_on(ctx: Context) -> str:
            note("waits")
            while not ctx.should_stop:
                time.sleep(0.01)
            return ctx.stop_reason
        """
    )
    app = jobs.app
    assert app.job("nobody").cancel() == "unknown"
    available, scheduled = jobs.job.delay(), jobs.job.options(delay=0.5).delay()
    assert available.cancel() == "cancelled"
    assert scheduled.cancel() == "cancelled"
    bench.worker()

    retryable = jobs.fails.delay()
    bench.wait_state(retryable, "retryable")
    assert retryable.cancel() == "cancelled"

    running = [jobs.waits.delay(), jobs.waits_too.delay(), jobs.goes_on.delay()]
    bench.wait_for("waits", count=3)
    at = time.monotonic()
    assert [handle.cancel() for handle in running] == ["requested"] * 3
    records = bench.wait_final(running)
    assert time.monotonic() - at < 3.0
    assert [r.state for r in records] == ["cancelled", "cancelled", "completed"]
    assert running[2].get() == "cancelled"
    assert [r.attempts for r in records] == [0] * 3

    assert running[2].cancel() == "done"
    with pytest.raises(JobCancelled):
        available.get(timeout=1)
    named = jobs.job.options(id="nobody").delay()
    assert named.get(timeout=WAIT) is None, "a cancel of an unknown id is not kept"
    assert {line.job for line in bench.history("start")} == {"nobody"}
    assert len(bench.history("failed")) == 1


def test_a_job_that_ignores_its_cancellation_is_killed(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def deaf() -> None:
            note("start")
            time.sleep(600)

        @app.task
        def bystander() -> str:
            note("bystander")
            time.sleep(30 if not Path("second").exists() else 0)
            return "done"
        """
    )
    bench.worker()
    handle, beside = jobs.deaf.delay(), jobs.bystander.delay()
    bench.wait_for("start")
    bench.wait_for("bystander")
    (bench.folder / "second").touch()
    at = time.monotonic()
    assert handle.cancel() == "requested"
    record = bench.wait_final([handle])[0]
    assert (record.state, record.attempts, record.crashes) == ("cancelled", 0, 0)
    assert time.monotonic() - at < 1.0 + KILLED
    assert beside.get(timeout=WAIT) == "done"
    assert (beside.record.attempts, beside.record.crashes) == (0, 0)


def test_cleaning_up_after_a_cancellation_is_not_interrupted(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        async def tidy() -> None:
            note("start")
            try:
                await asyncio.sleep(600)
            finally:
                await asyncio.sleep(2.5)
                note("tidied")
        """
    )
    bench.worker()
    handle = jobs.tidy.delay()
    bench.wait_for("start")
    handle.cancel()
    assert bench.wait_final([handle])[0].state == "cancelled"
    assert len(bench.history("tidied")) == 1


# -- progress and watching


def test_progress_is_seen_while_it_runs(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        async def steps(ctx: Context) -> str:
            for n in range(1, 4):
                ctx.progress(n, 3, f"step {n}")
                while not Path(f"go-{n}").exists():
                    await asyncio.sleep(0.01)
            return "done"
        """
    )
    bench.worker()
    handle: JobHandle[str] = jobs.steps.delay()
    seen: list[tuple[str, Any]] = []
    for update in handle.watch(timeout=WAIT):
        seen.append((str(update.state), update.progress))
        if update.progress is not None:
            (bench.folder / f"go-{int(update.progress.done)}").touch()
    assert seen[-1][0] == "completed"
    steps = [progress for _, progress in seen if progress is not None]
    assert [p.message for p in dict.fromkeys(steps)] == ["step 1", "step 2", "step 3"]
    assert (steps[-1].done, steps[-1].total) == (3, 3)
    assert handle.progress == steps[-1]


def test_a_single_report_is_seen_at_once(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def reports(ctx: Context, n: int) -> None:
            ctx.progress(n, None, "only once")
            while not Path("go").exists():
                time.sleep(0.01)
        """
    )
    bench.worker(concurrency=20)
    handles = jobs.reports.map([(n,) for n in range(20)])
    wait_until(lambda: all(handle.progress for handle in handles), timeout=WAIT, message="every report has arrived")
    assert [handle.record.progress.done for handle in handles] == list(range(20))
    (bench.folder / "go").touch()
    bench.wait_final(handles)


def test_what_get_raises(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def job() -> int:
            return 1
        """
    )
    handle = jobs.job.delay()
    with pytest.raises(ResultTimeout, match="worker"):
        handle.get(timeout=0.1)
    with pytest.raises(TimeoutError):
        handle.get(timeout=0.1)
    with pytest.raises(JobUnknown):
        jobs.app.job("nobody").get(timeout=1)
    bench.worker()
    assert handle.get(timeout=WAIT) == 1


# -- arguments and results

VALUES = """
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

class Colour(Enum):
    RED = "red"

@dataclass
class Point:
    x: int
    y: float

class Pair(NamedTuple):
    left: str
    right: int

class Film(TypedDict):
    title: str
    year: int

@app.task
def text(value: str) -> str:
    return value

@app.task
def binary(value: bytes) -> bytes:
    return value

@app.task
def number(value: Decimal) -> Decimal:
    return value

@app.task
def instant(value: datetime) -> datetime:
    return value

@app.task
async def day(value: date) -> date:
    return value

@app.task
def span(value: timedelta) -> timedelta:
    return value

@app.task
def uuid(value: UUID) -> UUID:
    return value

@app.task
def colour(value: Colour) -> Colour:
    return value

@app.task
def point(value: Point) -> Point:
    return value

@app.task
def pair(value: Pair) -> Pair:
    return value

@app.task
def film(value: Film) -> Film:
    return value

@app.task
def path(value: Path) -> Path:
    return value

@app.task
def many(value: dict[str, list[Point | None]]) -> dict[str, list[Point | None]]:
    return value

@app.task
def anything(value: object) -> object:
    return value

@app.task
def spread(*values: int, **names: str) -> list[object]:
    return [values, names]

@app.task
def empty(value: str) -> None:
    return None
"""


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_arguments_and_results_of_all_kinds(bench: Bench, codec: str) -> None:
    from decimal import Decimal
    from pathlib import Path
    from uuid import UUID

    jobs = bench.app(VALUES)
    bench.worker()
    values: list[tuple[str, Any]] = [
        ("text", "Grüße \0 \u2028 \U0001f600"),
        ("text", ""),
        ("binary", bytes(range(256))),
        ("binary", b""),
        ("number", Decimal("0.1000")),
        ("instant", datetime.fromisoformat("2026-11-20T10:00:00.123456+01:00")),
        ("day", date(2026, 2, 28)),
        ("span", timedelta(days=-1, microseconds=5)),
        ("uuid", UUID(int=5)),
        ("colour", jobs.Colour.RED),
        ("point", jobs.Point(1, 2.5)),
        ("pair", jobs.Pair("a", 0)),
        ("film", {"title": "Alien", "year": 1979}),
        ("path", Path("/tmp/x")),
        ("many", {"": [], "a": [jobs.Point(0, 0.0), None]}),
        ("empty", "x"),
    ]
    plain: list[Any] = [None, True, 0, 1, 127, 128, 255, -1, 2**53 + 1, 2**63 - 1, -(2**63), 0.5, -0.0, 1e308]
    plain += [[], {}, [[[]]], "\0", [0, 0], {"\0": 0}]
    values += [("anything", value) for value in plain]
    handles = [getattr(jobs, name).options(codec=codec).delay(value) for name, value in values]
    handles.append(jobs.spread.options(codec=codec).delay(1, 2, a="b"))
    bench.wait_final(handles)
    for (name, value), handle in zip(values, handles, strict=False):
        result = handle.get(timeout=WAIT)
        expected: Any = None if name == "empty" else value
        assert result == expected, name
        assert type(result) is type(expected), name
    assert handles[-1].get() == [[1, 2], {"a": "b"}]


def test_results_that_are_not_kept_or_kept_shortly(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task(keep_result=False)
        def not_kept() -> object:
            return object()

        @app.task(keep_result="1s")
        def kept_shortly() -> int:
            return 1
        """
    )
    bench.worker()
    handle = jobs.not_kept.delay()
    assert handle.get(timeout=WAIT) is None
    assert handle.record.result is None
    handle = jobs.kept_shortly.delay()
    assert handle.get(timeout=WAIT) == 1


def test_a_result_that_json_cannot_hold_is_refused(bench: Bench) -> None:
    """JSON has no NaN; as `null` it would come back as something else than was returned."""
    jobs = bench.app(
        """
        @app.task
        def job() -> float:
            return float("nan")

        @app.task
        def untyped():
            return [1, float("inf")]
        """
    )
    bench.worker()
    for handle in (jobs.job.delay(), jobs.untyped.delay()):
        record = bench.wait_final([handle])[0]
        assert (record.state, record.reason) == ("dead", "bad_result")


def test_the_largest_result(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def size(n: int) -> str:
            return "x" * n
        """
    )
    bench.worker()
    limit = (1 << 20) - 2  # the quotes count
    fits, too_large = jobs.size.delay(limit), jobs.size.delay(limit + 1)
    assert len(fits.get(timeout=WAIT)) == limit
    with pytest.raises(JobFailed, match="1,048,577 bytes, the limit is 1,048,576"):
        too_large.get(timeout=WAIT)
    assert len(bench.history()) == 0


def test_a_result_that_no_longer_fits_its_annotation(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def job() -> int:
            return "not a number"
        """
    )
    bench.worker()
    handle = jobs.job.delay()
    assert bench.wait_final([handle])[0].state == "completed"
    with pytest.raises(ResultError, match="annotation"):
        handle.get(timeout=WAIT)


# -- what the app hooks into


def test_lifespans_surround_the_life_of_each_child(bench: Bench) -> None:
    jobs = bench.app(
        """
        pool = []

        @app.lifespan
        async def outer():
            note("enter", "outer")
            pool.append(asyncio.get_running_loop())
            yield
            note("leave", "outer")

        @app.lifespan
        async def inner():
            note("enter", "inner")
            yield
            note("leave", "inner")

        @app.task
        async def same_loop() -> bool:
            return pool == [asyncio.get_running_loop()]

        @app.task
        def in_a_thread() -> int:
            return len(pool)
        """
    )
    worker = bench.worker(processes=2)
    children = worker.children()
    assert all(handle.get(timeout=WAIT) is True for handle in jobs.same_loop.map([()] * 10))
    assert jobs.in_a_thread.delay().get(timeout=WAIT) == 1
    assert worker.stop() == 0
    for pid in children:
        own = [(line.event, line.text) for line in bench.history() if line.pid == pid]
        assert own == [("enter", "outer"), ("enter", "inner"), ("leave", "inner"), ("leave", "outer")]


def test_lifespan_is_left_although_a_later_one_fails(bench: Bench) -> None:
    bench.app(
        """
        @app.task
        def job() -> None: ...

        @app.lifespan
        async def database():
            note("enter")
            yield
            note("leave")

        @app.lifespan
        async def model():
            raise FileNotFoundError("weights.bin is missing")
            yield
        """
    )
    worker = bench.start("-p", "2")
    assert worker.wait() == 2
    lines = worker.log.strip().splitlines()
    assert len(lines) == 1, worker.log
    assert "'model'" in lines[0]
    assert "jobs.py" in lines[0]
    assert "FileNotFoundError: weights.bin is missing" in lines[0]


def test_middleware_around_functions_and_coroutines(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.middleware
        def outer(job, call):
            note("outer", job.task)
            try:
                return call() + 1
            finally:
                note("ended")

        @app.middleware
        def inner(job, call):
            note("inner", job.job_id)
            return call() * 10

        @app.middleware
        async def around_coroutines(job, call):
            note("async", job.task)
            return await call() + 100

        @app.task
        def function(n: int) -> int:
            note("start")
            return n

        @app.task
        async def coroutine(n: int) -> int:
            note("start")
            return n

        @app.task(attempts=1)
        def fails() -> int:
            raise ValueError("through all layers")
        """
    )
    bench.worker()
    assert jobs.function.delay(1).get(timeout=WAIT) == 11
    assert [line.event for line in bench.history()] == ["outer", "inner", "start", "ended"]
    assert jobs.coroutine.delay(1).get(timeout=WAIT) == 101
    assert [line.event for line in bench.history()][4:] == ["async", "start"]
    with pytest.raises(JobFailed, match="through all layers"):
        jobs.fails.delay().get(timeout=WAIT)


def test_middleware_decides_what_becomes_of_a_job(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.middleware
        def gate(job, call):
            if job.headers.get("closed"):
                raise Discard("the gate is closed")
            return call()

        @app.middleware
        async def gate_too(job, call):
            if job.headers.get("closed"):
                return "not called"
            return await call()

        @app.task
        def function() -> str:
            return "called"

        @app.task
        async def coroutine() -> str:
            return "called"
        """
    )
    bench.worker()
    assert jobs.function.delay().get(timeout=WAIT) == "called"
    with pytest.raises(JobFailed, match="the gate is closed"):
        jobs.function.options(headers={"closed": "1"}).delay().get(timeout=WAIT)
    assert jobs.coroutine.options(headers={"closed": "1"}).delay().get(timeout=WAIT) == "not called"


EVENTS = """
@app.on("job.completed", "job.failed", "job.dead", "job.cancelled", "job.expired", "job.snoozed", "job.released")
def tell(event) -> None:
    note(event.name, f"{event.job_id} {event.reason} {event.error.type if event.error else '-'}")

@app.task
def completes() -> None: ...

@app.task(attempts=2, backoff=constant(0))
def fails() -> None:
    raise ValueError

@app.task
async def snoozes() -> None:
    if not Path("awake").exists():
        Path("awake").touch()
        raise Snooze(0)

@app.task
def cancels() -> None:
    raise Cancel("why")

@app.task
async def ends_in_the_grace() -> None:
    note("start")
    await asyncio.sleep(0.5)

@app.task
async def is_released() -> None:
    note("start")
    await asyncio.sleep(600)
"""


def test_events_tell_what_is_stored(bench: Bench) -> None:
    jobs = bench.app(EVENTS)
    worker = bench.worker("--grace", "2", processes=2)
    names = ("completes", "fails", "snoozes", "cancels")
    handles = {name: getattr(jobs, name).delay() for name in names}
    bench.wait_final(handles.values())
    bench.wait_for("job.dead")
    bench.wait_for("job.completed", count=2)
    bench.wait_for("job.cancelled")

    def told(handle: JobHandle[Any]) -> list[tuple[str, str]]:
        lines = [line for line in bench.history() if line.text.startswith(handle.id)]
        return [(line.event, line.text.removeprefix(handle.id).strip()) for line in lines]

    assert told(handles["completes"]) == [("job.completed", "-")]
    assert told(handles["fails"]) == [
        ("job.failed", "ValueError"),
        ("job.failed", "attempts ValueError"),
        ("job.dead", "attempts ValueError"),
    ]
    assert told(handles["snoozes"]) == [("job.snoozed", "-"), ("job.completed", "-")]
    assert told(handles["cancels"]) == [("job.cancelled", "why -")]

    last = [jobs.ends_in_the_grace.delay(), jobs.is_released.delay()]
    bench.wait_for("start", count=2)
    assert worker.stop() == 0
    assert told(last[0]) == [("job.completed", "-")], "events of the last jobs are told as well"
    assert told(last[1]) == [("job.released", "-")]


@pytest.mark.parametrize("failure", ["raise ValueError('handler')", "sys.exit(3)", "time.sleep(1.5)"])
def test_a_handler_can_break_nothing(bench: Bench, failure: str) -> None:
    jobs = bench.app(
        f"""
        @app.on("job.completed")
        def broken(event) -> None:
            note("told")
            {failure}

        @app.on("job.completed")
        def sound(event) -> None:
            note("heard")

        @app.task(timeout=5)
        async def job(n: int) -> int:
            return n
        """
    )
    worker = bench.worker()
    worker.quiet = False
    (child,) = worker.children()
    assert jobs.job.delay(0).get(timeout=WAIT) == 0
    bench.wait_for("told")
    at = time.monotonic()
    assert [handle.get(timeout=WAIT) for handle in jobs.job.map([(n,) for n in range(50)])] == list(range(50))
    assert time.monotonic() - at < 1.4, "jobs do not wait for handlers"
    bench.wait_for("told", count=2)
    if "sleep" not in failure:
        bench.wait_for("told", count=51)
        wait_until(lambda: worker.log.count("failed") >= 51, message="each failure is in the log")
    if "raise" in failure:
        bench.wait_for("heard", count=51)
    assert worker.children() == [child]


def test_headers_and_the_context(bench: Bench) -> None:
    jobs = bench.app(
        """
        def below() -> str:
            return Context.current().job_id

        @app.task(timeout=30, queue="mail")
        def function(x: int, ctx: Context, *, y: int = 2) -> dict[str, object]:
            return fields(ctx) | {"x": x, "y": y}

        @app.task(timeout=30, queue="mail")
        async def coroutine(ctx: Context, x: int, y: int = 2) -> dict[str, object]:
            await asyncio.sleep(0)
            return fields(ctx) | {"x": x, "y": y}

        def fields(ctx: Context) -> dict[str, object]:
            note("start")
            ctx.log.warning("a line of the task")
            return {
                "id": ctx.job_id, "below": below(), "attempt": ctx.attempt, "token": ctx.token, "queue": ctx.queue,
                "task": ctx.task, "headers": dict(ctx.headers), "age": (datetime.now().astimezone() -
                ctx.enqueued_at).total_seconds(), "left": ctx.deadline - time.monotonic(), "stop": ctx.should_stop,
            }

        @app.task(bind=True)
        def celery(self, x: int) -> list[object]:
            return [self.request.id, self.request.retries, x]
        """
    )
    worker = bench.worker()
    headers = {"trace": "ünïcode", "": "empty"}
    for name in ("function", "coroutine"):
        handle = getattr(jobs, name).options(headers=headers, id=f"job-{name}").delay(x=5)
        got = handle.get(timeout=WAIT)
        assert 0 <= got.pop("age") < 10
        assert 20 < got.pop("left") <= 30
        assert got == {
            "id": handle.id,
            "below": handle.id,
            "attempt": 1,
            "token": handle.record.claims,
            "queue": "mail",
            "task": f"jobs.{name}",
            "headers": headers,
            "stop": False,
            "x": 5,
            "y": 2,
        }
    handle = jobs.celery.delay(7)
    assert handle.get(timeout=WAIT) == [handle.id, 0, 7]
    wait_until(lambda: worker.log.count("a line of the task") == 2, message="what a task logs is seen")


def test_contexts_do_not_mix(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        async def coroutine() -> str:
            await asyncio.sleep(0.01)
            return Context.current().job_id

        @app.task
        def function() -> str:
            time.sleep(0.005)
            return Context.current().job_id
        """
    )
    bench.worker(concurrency=16)
    handles = jobs.coroutine.map([()] * 100) + jobs.function.map([()] * 100)
    bench.wait_final(handles)
    assert all(handle.get() == handle.id for handle in handles)


# -- jobs that use the app themselves


def test_jobs_enqueue_jobs_and_wait_for_them(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def add(x: int, y: int) -> int:
            return x + y

        @app.task
        def total(n: int) -> int:
            return sum(handle.get(timeout=20) for handle in add.map([(i, 1) for i in range(n)]))

        @app.task
        async def total_too(n: int) -> int:
            handles = await asyncio.gather(*(add.adelay(i, 1) for i in range(n)))
            return sum(await asyncio.gather(*(handle.aget(timeout=20) for handle in handles)))

        @app.task
        def again(n: int) -> None:
            note("start")
            if n:
                again.delay(n - 1)
        """
    )
    worker = bench.worker(processes=2)
    handles = [jobs.total.delay(20), jobs.total_too.delay(20)]
    assert [handle.get(timeout=WAIT) for handle in handles] == [210, 210]
    jobs.again.delay(100)
    bench.wait_for("start", count=101)
    wait_until(lambda: bench.states() == {"completed": 2 + 40 + 101}, timeout=WAIT)
    assert worker.stop() == 0


def test_enqueued_in_the_transaction_of_the_caller(bench: Bench) -> None:
    import sqlite3

    jobs = bench.app(
        """
        @app.task
        def rows() -> int:
            import sqlite3
            return sqlite3.connect("jobs.db").execute("SELECT count(*) FROM orders").fetchone()[0]
        """
    )
    bench.worker()
    connection = sqlite3.connect(bench.store, isolation_level=None)
    connection.execute("CREATE TABLE orders (id INTEGER)")
    try:
        for n in range(1, 6):
            connection.execute("BEGIN")
            connection.execute("INSERT INTO orders VALUES (1)")
            with jobs.app.enqueue_in(connection):
                handle = jobs.rows.delay()
            assert jobs.app.broker.get([handle.id]) == [None], "nobody sees it before the commit"
            connection.execute("COMMIT")
            assert handle.get(timeout=WAIT) == n
        connection.execute("BEGIN")
        with jobs.app.enqueue_in(connection):
            handle = jobs.rows.delay()
        connection.execute("ROLLBACK")
        with pytest.raises(JobUnknown):
            handle.get(timeout=1)
    finally:
        connection.close()


def test_the_worker_survives_signals_that_are_not_for_it(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def job() -> int:
            return os.getpid()
        """
    )
    worker = bench.worker()
    (child,) = worker.children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(child, number)
        assert jobs.job.delay().get(timeout=WAIT) == child
    assert worker.children() == [child]
