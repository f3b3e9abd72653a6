"""What the caller holds of a job: its state, its value, its end."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from mouso import (
    JobCancelled,
    JobExpired,
    JobFailed,
    JobHandle,
    JobState,
    JobUnknown,
    Mouso,
)
from mouso.brokers.base import Update, Want
from mouso.errors import ArgumentError, ConfigError, ErrorInfo, JobError, OptionError, ResultError, ResultTimeout
from mouso.job import Charge, Lease, Outcome, Progress, new_id
from tests.stalls import elapsed
from tests.support import wait_until


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mouso]:
    url = f"sqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else f"memory://{new_id()}"
    with Mouso("shop", broker=url) as app:
        yield app


@pytest.fixture
def job(app: Mouso) -> JobHandle[dict[str, date]]:
    """A job that waits."""

    @app.task
    def plan(day: date) -> dict[str, date]:
        return {"day": day}

    return plan.delay(date(2030, 1, 2))


VALUE = {"day": date(2030, 1, 2)}
STORED = b'{"day":"2030-01-02"}'
ERROR = ErrorInfo(type="ValueError", message="wrong", traceback="Traceback …", attempt=1, reason="attempts")


def claim(app: Mouso) -> Lease:
    (lease,) = app.broker.exchange("w", [], Want(limit=1)).leases
    return lease


def settle(app: Mouso, lease: Lease, state: JobState, **more: Any) -> None:
    outcome = Outcome(lease.key, lease.token, lease.id, lease.task, lease.queue, state, **more)
    assert app.broker.exchange("w", [outcome], Want(limit=0)).fenced == []


def complete(app: Mouso, result: bytes | None = STORED) -> None:
    settle(app, claim(app), JobState.COMPLETED, result=result)


def die(app: Mouso) -> None:
    settle(app, claim(app), JobState.DEAD, reason="attempts", error=ERROR, charge=Charge.ATTEMPT)


def expire(app: Mouso) -> None:
    settle(app, claim(app), JobState.EXPIRED, reason="expired")


@contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """Does something in another thread once the listener is there."""

    def act() -> None:
        wait_until(lambda: any(thread.name == "mouso-listener" for thread in threading.enumerate()))
        action()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


# -- what it is


def test_a_handle_is_known_by_its_id(app: Mouso, job: JobHandle[Any]) -> None:
    assert repr(job) == f"<JobHandle {job.id}>"
    assert job == app.job(job.id)
    assert len({job, app.job(job.id)}) == 1
    assert job != app.job("other")
    assert job != job.id


def test_state_is_read_anew_and_the_record_is_kept(app: Mouso, job: JobHandle[Any]) -> None:
    states = [job.state]
    record = job.record
    claim(app)
    assert job.record is record
    states.append(job.state)
    assert states == [JobState.AVAILABLE, JobState.RUNNING]
    assert job.record.worker == "w"
    assert job.refresh() is job


def test_progress_and_errors_are_read_anew(app: Mouso, job: JobHandle[Any]) -> None:
    assert (job.progress, job.errors) == (None, ())
    lease = claim(app)
    app.broker.report("w", [Update(lease.key, lease.token, Progress(1, 3, "rendering"))])
    assert job.progress == Progress(1, 3, "rendering")
    settle(app, lease, JobState.DEAD, error=ERROR, reason="attempts")
    assert [error.type for error in job.errors] == ["ValueError"]


# -- the value


def test_get_returns_the_value_in_the_type_of_the_annotation(app: Mouso, job: JobHandle[dict[str, date]]) -> None:
    complete(app)
    assert job.get(timeout=10) == VALUE


def test_get_waits_for_the_end(app: Mouso, job: JobHandle[dict[str, date]]) -> None:
    with meanwhile(lambda: complete(app)):
        assert job.get(timeout=10) == VALUE


def test_aget_waits_without_blocking_the_loop(app: Mouso, job: JobHandle[dict[str, date]]) -> None:
    async def take_turns() -> None:
        for _ in range(5):
            await asyncio.sleep(0.001)
        complete(app)

    async def main() -> Any:
        turns = asyncio.create_task(take_turns())
        value = await job.aget(timeout=10)
        await turns
        return value

    assert asyncio.run(main()) == VALUE


def test_get_by_id_alone_knows_the_type_too(app: Mouso, job: JobHandle[Any]) -> None:
    complete(app)
    assert app.job(job.id).get(timeout=10) == VALUE


def test_get_of_a_task_that_is_not_registered_here_gives_plain_json(app: Mouso, job: JobHandle[Any]) -> None:
    complete(app)
    app.tasks.clear()
    assert app.job(job.id).get(timeout=10) == {"day": "2030-01-02"}


def test_get_of_an_id_that_another_tasks_job_holds_gives_that_ones_type(app: Mouso, job: JobHandle[Any]) -> None:
    @app.task
    def count() -> int:
        return 3

    complete(app)
    other = count.options(id=job.id).delay()
    assert other.get(timeout=10) == VALUE  # type: ignore[comparison-overlap]  # why: the id was taken


def test_no_result_is_none(app: Mouso, job: JobHandle[Any]) -> None:
    complete(app, result=None)
    assert job.get(timeout=10) is None


def test_a_result_of_another_type_is_an_error(app: Mouso, job: JobHandle[Any]) -> None:
    complete(app, result=b"[1]")
    with pytest.raises(ResultError, match="does not fit its return annotation"):
        job.get(timeout=10)


# -- other ends


def test_a_dead_job_raises_with_its_error(app: Mouso, job: JobHandle[Any]) -> None:
    die(app)
    with pytest.raises(
        JobFailed, match=rf"^job {job.id} \(.*plan\) is dead \(attempts\): ValueError: wrong$"
    ) as caught:
        job.get(timeout=10)
    failed = caught.value
    assert (failed.job_id, failed.error.type, failed.error.message) == (job.id, "ValueError", "wrong")
    assert (failed.error.traceback, failed.error.attempt, failed.error.reason) == ("Traceback …", 1, "attempts")


def test_a_dead_job_without_a_recorded_error_tells_its_reason(app: Mouso, job: JobHandle[Any]) -> None:
    settle(app, claim(app), JobState.DEAD, reason="poison")
    with pytest.raises(JobFailed, match="is dead \\(poison\\)") as caught:
        job.get(timeout=10)
    assert caught.value.error.reason == "poison"


def test_a_cancelled_job_raises(app: Mouso, job: JobHandle[Any]) -> None:
    assert job.cancel() == "cancelled"
    with pytest.raises(JobCancelled, match="was cancelled"):
        job.get(timeout=10)


def test_a_job_cancelled_meanwhile_raises(app: Mouso, job: JobHandle[Any]) -> None:
    with meanwhile(job.cancel), pytest.raises(JobCancelled):
        job.get(timeout=10)


def test_an_expired_job_raises(app: Mouso, job: JobHandle[Any]) -> None:
    expire(app)
    with pytest.raises(JobExpired, match="expired while it waited to run"):
        job.get(timeout=10)


def test_the_exception_is_returned_on_request(app: Mouso, job: JobHandle[Any]) -> None:
    die(app)
    error: Any = job.get(timeout=10, propagate=False)
    assert isinstance(error, JobFailed)
    error = asyncio.run(job.aget(timeout=10, propagate=False))
    assert isinstance(error, JobFailed)


def test_every_such_error_is_a_job_error_with_the_id(app: Mouso, job: JobHandle[Any]) -> None:
    job.cancel()
    with pytest.raises(JobError) as caught:
        job.get(timeout=10)
    assert caught.value.job_id == job.id


@pytest.mark.parametrize("way", ["get", "aget", "watch", "awatch", "state", "refresh"])
def test_an_unknown_id_is_an_error_at_once(app: Mouso, way: str) -> None:
    app.broker.open()
    handle = app.job("nothing")

    async def awatch() -> None:
        async for _ in handle.awatch():
            pass

    ways: dict[str, Callable[[], object]] = {
        "get": handle.get,
        "aget": lambda: asyncio.run(handle.aget()),
        "watch": lambda: list(handle.watch()),
        "awatch": lambda: asyncio.run(awatch()),
        "state": lambda: handle.state,
        "refresh": handle.refresh,
    }
    started = time.monotonic()
    with pytest.raises(JobUnknown, match="no job has the id nothing; it was deleted, its retention is over, or the"):
        ways[way]()
    assert elapsed(started) < 5


def test_a_job_deleted_meanwhile_is_unknown(app: Mouso, job: JobHandle[Any]) -> None:
    with meanwhile(lambda: app.broker.delete([job.id])), pytest.raises(JobUnknown):
        job.get(timeout=10)


@pytest.mark.parametrize("timeout", [0.05, "50ms"])
@pytest.mark.parametrize("way", ["get", "aget"])
def test_a_job_that_does_not_end_in_time_is_a_timeout_error(
    app: Mouso, job: JobHandle[Any], way: str, timeout: Any
) -> None:
    started = time.monotonic()
    ways: dict[str, Callable[[], object]] = {
        "get": lambda: job.get(timeout),
        "aget": lambda: asyncio.run(job.aget(timeout)),
    }
    with pytest.raises(TimeoutError, match=rf"job {job.id} was not final within 0.05 s; is a worker") as caught:
        ways[way]()
    assert isinstance(caught.value, ResultTimeout)
    assert time.monotonic() - started >= 0.04
    assert elapsed(started) < 5


@pytest.mark.parametrize("timeout", [math.nan, "soon", True, 1e12])
def test_a_timeout_that_is_no_duration_is_refused(job: JobHandle[Any], timeout: Any) -> None:
    for wait in (job.get, lambda given: asyncio.run(job.aget(given)), lambda given: list(job.watch(given)), job.stack):
        with pytest.raises(OptionError, match="timeout"):
            wait(timeout)


# -- watching


def test_watch_yields_the_state_as_it_is_then_every_change_and_the_end(app: Mouso, job: JobHandle[Any]) -> None:
    updates = job.watch(timeout=10)
    assert next(updates).state is JobState.AVAILABLE
    lease = claim(app)
    app.broker.report("w", [Update(lease.key, lease.token, Progress(1, 2))])
    seen = next(updates)
    while seen.progress is None:
        seen = next(updates)
    assert (seen.state, seen.progress) == (JobState.RUNNING, Progress(1, 2))
    settle(app, lease, JobState.COMPLETED, result=STORED)
    assert [update.state for update in updates] == [JobState.COMPLETED]


def test_awatch_does_the_same(app: Mouso, job: JobHandle[Any]) -> None:
    async def main() -> list[JobState | None]:
        return [update.state async for update in job.awatch(timeout=10)]

    with meanwhile(lambda: complete(app)):
        states = asyncio.run(main())
    assert states[-1] is JobState.COMPLETED


def test_watching_a_finished_job_yields_its_end(app: Mouso, job: JobHandle[Any]) -> None:
    complete(app)
    assert [update.state for update in job.watch(timeout=10)] == [JobState.COMPLETED]


def test_a_watch_may_be_left_early(app: Mouso, job: JobHandle[Any]) -> None:
    for _ in job.watch(timeout=10):
        break
    complete(app)
    assert job.get(timeout=10) == VALUE


# -- acting


def test_a_running_job_is_asked_to_stop(app: Mouso, job: JobHandle[Any]) -> None:
    claim(app)
    assert job.cancel() == "requested"


def test_a_finished_job_cannot_be_cancelled(app: Mouso, job: JobHandle[Any]) -> None:
    complete(app)
    assert job.cancel() == "done"
    assert app.job("nothing").cancel() == "unknown"


def test_a_dead_job_can_be_retried(app: Mouso, job: JobHandle[Any]) -> None:
    die(app)
    assert job.retry() == "retried"
    assert job.state is JobState.AVAILABLE
    complete(app)
    assert job.get(timeout=10) == VALUE
    assert job.retry() == "done"


def test_a_job_is_retried_with_other_arguments(app: Mouso, job: JobHandle[Any]) -> None:
    die(app)
    assert job.retry({"day": date(2031, 1, 2)}) == "retried"
    lease = claim(app)
    assert (lease.id, lease.payload) == (job.id, b'{"day":"2031-01-02"}')
    settle(app, lease, JobState.DEAD, reason="attempts", error=ERROR)
    assert job.retry(arguments={"day": "2032-01-02"}) == "retried", "as JSON writes it"
    assert claim(app).payload == b'{"day":"2032-01-02"}'


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"day": "soon"}, "task .*plan: argument 'day': Invalid RFC3339 encoded date"),
        ({"dya": "2030-01-02"}, "has no parameter 'dya'; did you mean 'day'"),
        ({}, "missing required field `day`"),
        ({"day": object()}, "the new arguments cannot be encoded: an object of type object cannot be encoded"),
        ({"day": math.nan}, "the new arguments hold NaN or Infinity"),
        ([1], "new arguments are a mapping by parameter name, such as"),
        ({1: 2}, "new arguments are a mapping by parameter name, such as"),
    ],
)
def test_new_arguments_that_do_not_fit_change_nothing(
    app: Mouso, job: JobHandle[Any], arguments: Any, why: str
) -> None:
    die(app)
    with pytest.raises(ArgumentError, match=why):
        job.retry(arguments)
    assert (job.state, job.record.payload) == (JobState.DEAD, b'{"day":"2030-01-02"}')


def test_a_job_that_is_unique_by_its_arguments_keeps_them(app: Mouso) -> None:
    """With others it would hold a key that is not theirs: a call with the old ones would get it for an answer."""

    @app.task(name="rebuild", unique=True)
    def rebuild(shelf: str, deep: bool = False) -> str:
        return shelf

    job = rebuild.delay("books")
    die(app)
    with pytest.raises(ArgumentError, match=f"job {job.id} is unique by its arguments; enqueue rebuild with the new"):
        job.retry(arguments={"shelf": "films"})
    assert job.retry(arguments={"shelf": "books", "deep": False}) == "retried", "the same, said otherwise"
    own = rebuild.options(unique="mine").delay("books")
    die(app)
    die(app)
    assert own.retry(arguments={"shelf": "films"}) == "retried"


def test_new_arguments_beside_a_hidden_one_that_do_not_fit_are_told_as_others(app: Mouso) -> None:
    @app.task
    def login(user: int, password: str) -> None: ...

    job = login.delay(1, "x")
    with pytest.raises(ArgumentError) as refused:
        job.retry({"user": "Ann", "password": "y"})
    assert str(refused.value) == f"task {login.name}: argument 'user': Expected `int`, got `str`"


def test_new_arguments_for_a_job_that_is_gone_or_of_an_unknown_task(app: Mouso, job: JobHandle[Any]) -> None:
    with pytest.raises(JobUnknown, match="no job has the id nothing"):
        app.job("nothing").retry({"day": "2030-01-02"})
    app.tasks.clear()
    with pytest.raises(ConfigError, match="no task is called"):
        job.retry({"day": "2030-01-02"})


def test_a_job_is_deleted(app: Mouso, job: JobHandle[Any]) -> None:
    lease = claim(app)
    assert job.delete() == "running"
    settle(app, lease, JobState.DEAD, reason="attempts", error=ERROR)
    assert job.delete() == "deleted"
    assert job.delete() == "unknown"
    with pytest.raises(JobUnknown):
        job.refresh()


def test_coroutines_act_on_jobs_as_well(app: Mouso, job: JobHandle[Any]) -> None:
    async def act() -> list[str]:
        answers: list[str] = [await job.acancel(), await job.aretry({"day": date(2031, 1, 2)})]
        return [*answers, await job.adelete()]

    assert asyncio.run(act()) == ["cancelled", "retried", "deleted"]


# -- Celery's spellings


def test_a_result_in_celerys_words(app: Mouso, job: JobHandle[Any]) -> None:
    assert (job.task_id, job.status, job.ready(), job.result) == (job.id, "available", False, None)
    complete(app)
    assert (job.status, job.ready(), job.successful(), job.failed()) == ("completed", True, True, False)
    assert (job.result, job.traceback) == (VALUE, None)


def test_a_failure_in_celerys_words(app: Mouso, job: JobHandle[Any]) -> None:
    die(app)
    assert (job.status, job.ready(), job.successful(), job.failed()) == ("dead", True, False, True)
    assert isinstance(job.result, JobFailed)
    assert job.traceback == "Traceback …"


def test_apply_async_gives_such_a_handle(app: Mouso) -> None:
    @app.task
    def add(x: int, y: int = 0) -> int:
        return x + y

    handle = add.apply_async((4,), {"y": 4}, countdown=0, task_id="celery-1")
    assert (handle.task_id, handle.status) == ("celery-1", "available")
    complete(app, b"8")
    assert handle.get(timeout=10) == 8
