"""How a failed job is retried, and when it is dead instead."""

import pytest

from mouso import JobCancelled, JobFailed, constant
from tests.integration.harness import WAIT, Bench

pytestmark = pytest.mark.every_broker


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
    assert starts[1].at - starts[0].at >= 0.2
    assert starts[2].at - starts[1].at >= 0.4
    record = handle.refresh().record
    assert (record.attempts, record.crashes) == (2, 0)
    assert [(e.type, e.message, e.attempt, e.reason) for e in record.errors] == [
        ("OSError", "try 1", 1, ""),
        ("OSError", "try 2", 2, ""),
    ]
    assert 'raise OSError(f"try {ctx.attempt}")' in record.errors[0].traceback


FAILURES = """
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

@app.task(attempts=2, backoff=constant(0))
def bad_delay() -> None:
    note("start")
    raise Retry(delay="soon")

@app.task(attempts=2, backoff=constant(0))
async def bad_snooze() -> None:
    note("start")
    raise Snooze("abc")

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
        ("bad_delay", 2, "attempts"),
        ("bad_snooze", 2, "attempts"),
        ("unstorable", 1, "bad_result"),
        ("too_large", 1, "bad_result"),
        ("slow", 2, "timeout"),
    ],
)
def test_why_it_is_dead(bench: Bench, task: str, runs: int, reason: str) -> None:
    jobs = bench.app(FAILURES)
    bench.worker()
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


def test_the_error_that_retry_was_given_is_the_last_ones(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task(bind=True, attempts=2)
        def celerys(self) -> None:
            try:
                raise OSError("no network")
            except OSError as error:
                raise self.retry(exc=error, countdown=0)

        @app.task(attempts=1)
        def own() -> None:
            try:
                raise OSError("no network")
            except OSError as error:
                raise Retry(0, "not yet") from error
        """
    )
    bench.worker()
    celerys, own = jobs.celerys.delay(), jobs.own.delay()
    for handle in (celerys, own):
        with pytest.raises(JobFailed):
            handle.get(timeout=WAIT)
    first, last = celerys.record.errors
    assert [(e.type, e.message) for e in (first, last)] == [
        ("mouso.errors.Retry", "no network"),
        ("OSError", "no network"),
    ]
    assert last.reason == "attempts"
    assert "OSError: no network" in last.traceback
    assert "mouso.errors.Retry: no network" in last.traceback
    assert [(e.type, e.message) for e in own.record.errors] == [("mouso.errors.Retry", "not yet")]


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
    assert second.at - first.at >= 0.3
    assert handle.record.attempts == 1
    assert handle.errors[0].message == "not yet"

    handle = jobs.snoozes.delay()
    assert handle.get(timeout=WAIT) == "attempt 1"
    first, second = bench.history("snooze")
    assert second.at - first.at >= 0.3
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
