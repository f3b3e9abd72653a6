"""Jobs that end before they are done: at their timeout, when they have expired, or because they are cancelled."""

import time

import pytest

from mouso import JobCancelled, JobExpired
from tests.integration.harness import WAIT, Bench
from tests.stalls import elapsed
from tests.support import wait_until

pytestmark = pytest.mark.every_broker

KILLED = 5.0 + 2.0
"""Seconds after its timeout within which a stubborn job's process is killed."""

BYSTANDER = """
@app.task(attempts=1)
def bystander() -> str:
    note("bystander")
    time.sleep(30 if not Path("second").exists() else 0)
    return "done"
"""


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
    assert 0.45 <= bench.history("cleaned")[0].at - bench.history("start")[0].at < 0.5 + 5.0
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
    assert 0.45 <= bench.history("saw")[0].at - bench.history("start")[0].at < 0.5 + 5.0
    assert worker.children() == [child]


STUBBORN = """
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
"""


@pytest.mark.parametrize("task", ["function", "blocks_the_loop", "swallows_cancellation", "spins"])
def test_a_stubborn_job_is_killed_with_its_process(bench: Bench, task: str) -> None:
    jobs = bench.app(STUBBORN + BYSTANDER)
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
    assert elapsed(at) < 5.0
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
        BYSTANDER
        + """
@app.task
def deaf() -> None:
    note("start")
    time.sleep(600)
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
    assert elapsed(at) < 1.0 + KILLED
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
