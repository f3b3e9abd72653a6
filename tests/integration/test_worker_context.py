"""What a job knows about itself, and jobs that are enqueued by other jobs or inside a transaction."""

import sqlite3

import pytest

from mouso import JobUnknown
from tests.integration.harness import WAIT, Bench
from tests.support import wait_until


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


@pytest.mark.only_sqlite("a transaction of SQLite")
def test_enqueued_in_the_transaction_of_the_caller(bench: Bench) -> None:
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
