"""What a handle tells of the job's runs: how they went, what they logged, where one is."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mouso import JobHandle, JobState, JobUnknown, Mouso
from mouso.brokers.base import Update, Want, WorkerInfo
from mouso.errors import JobError
from mouso.job import Charge, Lease, LogLine, Outcome, encode_log, new_id
from mouso.testing.inline import run_until_idle
from tests.support import wait_until

LINES = [LogLine(1, "INFO", "one"), LogLine(2, "ERROR", "two")]
TOOK: dict[str, Any] = {"started_at": 5, "run_seconds": 2.0, "cpu_seconds": 0.5, "peak_memory": 1 << 20, "pid": 12}


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mouso]:
    url = f"sqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else f"memory://{new_id()}"
    with Mouso("shop", broker=url) as app:
        yield app


@pytest.fixture
def job(app: Mouso) -> JobHandle[None]:
    """A job that waits."""

    @app.task
    def work() -> None: ...

    return work.delay()


def claim(app: Mouso) -> Lease:
    (lease,) = app.broker.exchange("w", [], Want(limit=1)).leases
    return lease


def settle(app: Mouso, lease: Lease, state: JobState, **more: Any) -> None:
    outcome = Outcome(lease.key, lease.token, lease.id, lease.task, lease.queue, state, **more)
    assert app.broker.exchange("w", [outcome], Want(limit=0)).fenced == []


@contextmanager
def answering(app: Mouso, lease: Lease, text: str) -> Iterator[None]:
    """A worker that reports a stack when it is asked."""
    asked = threading.Event()

    def answer() -> None:
        asked.wait(10)
        app.broker.report("w", [Update(lease.key, lease.token, stack=text)])

    ask = app.broker.ask_stack
    thread = threading.Thread(target=answer)
    thread.start()
    app.broker.ask_stack = lambda id: (ask(id), asked.set())[0]  # type: ignore[func-returns-value,method-assign]  # why: a look at the call
    try:
        yield
    finally:
        asked.set()
        thread.join()


def test_runs_and_logs(app: Mouso, job: JobHandle[None]) -> None:
    assert (job.runs(), job.logs()) == ([], [])
    first = claim(app)
    settle(app, first, JobState.RETRYABLE, charge=Charge.ATTEMPT, log=encode_log(LINES[:1], 0), **TOOK)
    app.broker.promote(10)
    settle(app, claim(app), JobState.COMPLETED, log=encode_log(LINES[1:], 0), **TOOK)
    assert [(run.attempt, run.end, run.pid) for run in job.runs()] == [(1, "failed", 12), (2, "completed", 12)]
    assert job.logs() == LINES
    assert (job.refresh().record.cpu_seconds, job.record.started_at) == (0.5, 5)


def test_where_it_is(app: Mouso, job: JobHandle[None]) -> None:
    lease = claim(app)
    app.broker.report("w", [Update(lease.key, lease.token, stack="before")])
    with answering(app, lease, "in deep\n"):
        assert job.stack() == "in deep\n"


def test_only_a_running_job_is_somewhere(app: Mouso, job: JobHandle[None]) -> None:
    with pytest.raises(JobError, match=f"job {job.id} is available; only a job that runs has a stack"):
        job.stack()
    with pytest.raises(JobUnknown):
        app.job("unknown").stack()


def test_a_worker_that_does_not_answer(app: Mouso, job: JobHandle[None]) -> None:
    claim(app)
    with pytest.raises(JobError, match=r"did not answer within 0\.1 s; is it alive\?"):
        job.stack(timeout=0.1)


def test_a_job_that_ends_meanwhile(app: Mouso, job: JobHandle[None]) -> None:
    lease = claim(app)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            job.stack()
        except JobError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    worker = WorkerInfo(id="w", name="w", host="h", pid=1)
    wait_until(lambda: [command.kind for command in app.broker.heartbeat(worker)] == ["stack"])
    settle(app, lease, JobState.COMPLETED)
    thread.join(10)
    assert [str(error) for error in errors] in (
        [f"job {job.id} ended before its worker could tell where it was"],
        [f"job {job.id} is completed; only a job that runs has a stack"],
    )


def test_jobs_that_a_test_runs_itself_have_runs_too(app: Mouso) -> None:
    @app.task(name="chatty")
    def chatty() -> None:
        from mouso import Context

        Context.current().log.info("hello")

    job = chatty.delay()
    run_until_idle(app)
    [run] = job.runs()
    assert (run.end, [line.message for line in run.lines]) == ("completed", ["hello"])
    assert run.run_seconds is not None
