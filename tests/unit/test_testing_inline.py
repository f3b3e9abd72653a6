"""``mouso.testing.inline``: an app's jobs run in the test's own process."""

from __future__ import annotations

import itertools

import pytest

from mouso import Context, Mouso, MousoError, Retry, constant
from mouso.testing.inline import fake_time, run_until_idle

names = itertools.count()


@pytest.fixture
def app() -> Mouso:
    return Mouso("test", broker=f"memory://inline-{next(names)}")


def test_functions_and_coroutines_run(app: Mouso) -> None:
    @app.task
    def double(x: int) -> int:
        return 2 * x

    @app.task
    async def triple(x: int) -> int:
        return 3 * x

    jobs = [double.delay(2), triple.delay(2)]
    assert run_until_idle(app) == 2
    assert [job.get(timeout=1) for job in jobs] == [4, 6]


def test_retries_over_two_hours_take_no_time(app: Mouso) -> None:
    clock = fake_time(app)
    start = clock.now()

    @app.task(attempts=4, backoff=constant("40m"))
    def fetch(ctx: Context) -> str:
        if ctx.attempt < 4:
            raise Retry
        return "done"

    job = fetch.delay()
    run_until_idle(app, clock)
    assert job.get(timeout=1) == "done"
    assert clock.now() - start == 2 * 3_600_000


def test_a_delayed_job_waits_without_a_clock(app: Mouso) -> None:
    @app.task
    def later() -> None: ...

    job = later.options(delay="1h").delay()
    assert run_until_idle(app) == 0
    assert job.state == "scheduled"


def test_jobs_that_enqueue_jobs(app: Mouso) -> None:
    seen = []

    @app.task
    def count(n: int) -> None:
        seen.append(n)
        if n:
            count.delay(n - 1)

    count.delay(3)
    run_until_idle(app)
    assert seen == [3, 2, 1, 0]


def test_endless_work_is_an_error(app: Mouso) -> None:
    @app.task
    def again() -> None:
        again.delay()

    again.delay()
    with pytest.raises(MousoError, match="after 20 runs"):
        run_until_idle(app, most=20)


def test_progress_is_stored(app: Mouso) -> None:
    @app.task
    def half(ctx: Context) -> None:
        ctx.progress(1, 2, "half")

    job = half.delay()
    run_until_idle(app)
    progress = job.progress
    assert progress is not None
    assert (progress.done, progress.total, progress.message) == (1, 2, "half")
