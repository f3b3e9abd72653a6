"""Jobs that end in their own transaction: their data, their end, their result and their jobs are one."""

from typing import Any

import pytest

from mouso import JobFailed
from tests.integration.effects import Effects
from tests.integration.harness import WAIT, Bench

pytestmark = pytest.mark.every_broker

SOURCE = """
    @app.on("job.completed", "job.failed")
    def told(event) -> None:
        note(event.name, event.task)

    @app.task
    def follow(n: int) -> int:
        return n

    def pay(ctx: Context, n: int) -> int:
        ctx.log.info("paying %d", n)
        ctx.progress(1, 3, "paying")
        db = ctx.transaction()
        db.execute({insert!r}, (ctx.job_id, n))
        follow.delay(n)
        ctx.progress(2, 3, "paid")
        return n

    @app.task
    def function(ctx: Context, n: int) -> int:
        return pay(ctx, n)

    @app.task
    async def coroutine(ctx: Context, n: int) -> int:
        await asyncio.sleep(0)
        return pay(ctx, n)

    @app.task(isolated=True)
    def isolated(ctx: Context, n: int) -> int:
        return pay(ctx, n)

    @app.task(backoff=constant(0.01))
    def raises(ctx: Context, n: int) -> int:
        pay(ctx, n)
        if ctx.attempt == 1:
            raise ValueError("not yet")
        return n

    @app.task(backoff=constant(0.01))
    async def raises_in_a_coroutine(ctx: Context, n: int) -> int:
        pay(ctx, n)
        if ctx.attempt == 1:
            raise ValueError("not yet")
        return n

    @app.task(backoff=constant(0.01))
    def snoozes(ctx: Context, n: int) -> int:
        pay(ctx, n)
        if ctx.token == 1:
            raise Snooze(0.01)
        return n

    @app.task(attempts=1)
    def returns_what_cannot_be_stored(ctx: Context, n: int) -> object:
        pay(ctx, n)
        return threading.Lock()

    @app.task(attempts=1)
    def begins_twice(ctx: Context, n: int) -> None:
        pay(ctx, n)
        ctx.transaction()

    @app.task(attempts=1)
    def commits(ctx: Context, n: int) -> None:
        ctx.transaction().commit()

    def pay_and_fork(ctx: Context, n: int) -> int:
        pay(ctx, n)
        for code, how in enumerate(("returns", "raises")):
            pid = os.fork()
            if pid == 0 and how == "raises":
                raise ValueError("in a fork")
            if pid == 0:
                return -1
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
        return n

    @app.task
    def forks(ctx: Context, n: int) -> int:
        return pay_and_fork(ctx, n)

    @app.task
    async def forks_in_a_coroutine(ctx: Context, n: int) -> int:
        return pay_and_fork(ctx, n)

    @app.task
    def enqueues(n: int) -> int:
        follow.delay(n)
        raise Discard("its own job is there all the same")
"""


@pytest.fixture
def effects(bench: Bench, broker_name: str) -> Effects:
    if broker_name == "redis":
        pytest.skip("Redis has no transactions to join")
    return Effects(bench)


def app(bench: Bench, effects: Effects) -> Any:
    return bench.app(SOURCE.replace("{insert!r}", repr(effects.insert)))


@pytest.mark.parametrize("kind", ["function", "coroutine", "isolated"])
def test_all_of_it_is_committed(bench: Bench, effects: Effects, kind: str) -> None:
    jobs = app(bench, effects)
    bench.worker()
    handles = [getattr(jobs, kind).delay(n) for n in range(3)]
    assert [handle.get(timeout=WAIT) for handle in handles] == [0, 1, 2]
    assert effects.rows() == [(handle.id, n) for n, handle in enumerate(handles)]
    for n, handle in enumerate(handles):
        record = handle.record
        assert (record.attempts, record.claims, record.progress and record.progress.message) == (0, 1, "paid")
        [run] = jobs.app.broker.runs(handle.id)
        assert (run.end, [line.message for line in run.lines]) == ("completed", [f"paying {n}"])
    bench.wait_final([jobs.app.job(job.id) for job in jobs.app.jobs(task="jobs.follow")])
    assert sorted(job.result or b"" for job in jobs.app.jobs(task="jobs.follow")) == [b"0", b"1", b"2"]
    told = [line.text for line in bench.wait_for("job.completed", 6)]
    assert sorted(told) == sorted([f"jobs.{kind}", "jobs.follow"] * 3)
    assert not any("too late" in worker.log for worker in bench.workers)


@pytest.mark.parametrize("kind", ["forks", "forks_in_a_coroutine"])
def test_a_fork_ends_no_transaction(bench: Bench, effects: Effects, kind: str) -> None:
    """Not by its return and not by its error: the connection, and the job, are those of the process that made it."""
    jobs = app(bench, effects)
    worker = bench.worker()
    worker.quiet = False  # the fork shows its error
    handles = [getattr(jobs, kind).delay(n) for n in range(3)]
    assert [handle.get(timeout=WAIT) for handle in handles] == [0, 1, 2]
    assert effects.rows() == [(handle.id, n) for n, handle in enumerate(handles)]
    assert [handle.record.attempts for handle in handles] == [0] * 3  # what waits behind a blocked loop may go back
    assert len(jobs.app.jobs(task="jobs.follow")) == 3


@pytest.mark.parametrize("kind", ["raises", "raises_in_a_coroutine", "snoozes"])
def test_an_attempt_that_does_not_complete_leaves_nothing(bench: Bench, effects: Effects, kind: str) -> None:
    jobs = app(bench, effects)
    bench.worker()
    handle = getattr(jobs, kind).delay(7)
    assert handle.get(timeout=WAIT) == 7
    assert effects.rows() == [(handle.id, 7)]
    assert (handle.record.attempts, handle.record.claims) == (kind != "snoozes", 2)
    assert len(jobs.app.jobs(task="jobs.follow")) == 1


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("returns_what_cannot_be_stored", "lock cannot be encoded"),
        ("begins_twice", "this run has its transaction already"),
        ("commits", "leave commit, rollback and close to Mouso"),
    ],
)
def test_a_job_that_is_wrong_about_it(bench: Bench, effects: Effects, kind: str, why: str) -> None:
    jobs = app(bench, effects)
    bench.worker()
    handle = getattr(jobs, kind).delay(7)
    with pytest.raises(JobFailed, match=why):
        handle.get(timeout=WAIT)
    assert effects.rows() == []
    assert jobs.app.jobs(task="jobs.follow") == []


def test_the_next_job_of_the_thread_enqueues_by_itself(bench: Bench, effects: Effects) -> None:
    """A transaction ends with its job, however that ends, and takes no enqueue of another with it."""
    jobs = app(bench, effects)
    bench.worker(concurrency=1)
    for before in (jobs.function, jobs.raises):
        before.delay(1).get(timeout=WAIT)
        count = len(jobs.app.jobs(task="jobs.follow"))
        with pytest.raises(JobFailed, match="its own job is there all the same"):
            jobs.enqueues.delay(2).get(timeout=WAIT)
        assert len(jobs.app.jobs(task="jobs.follow")) == count + 1


def test_a_broker_without_transactions_says_so(bench: Bench, broker_name: str) -> None:
    if broker_name != "redis":
        pytest.skip("this broker has transactions")
    jobs = bench.app(
        """
        @app.task(attempts=1)
        def pay(ctx: Context) -> None:
            ctx.transaction()
        """
    )
    bench.worker()
    with pytest.raises(JobFailed, match="redis has no transactions"):
        jobs.pay.delay().get(timeout=WAIT)
