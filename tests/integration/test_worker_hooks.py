"""What the app hooks into: lifespans, middleware and events."""

from typing import Any

import pytest

from mouso import JobFailed
from mouso.handle import JobHandle
from tests.integration.harness import WAIT, Bench
from tests.support import wait_until


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
    assert worker.wait() == 75
    lines = worker.log.strip().splitlines()
    assert len(lines) == 1, worker.log
    assert "'model'" in lines[0]
    assert "jobs.py" in lines[0]
    assert "FileNotFoundError: weights.bin is missing" in lines[0]


def test_a_lifespan_that_fails_at_its_end_is_named_and_the_others_are_left(bench: Bench) -> None:
    bench.app(
        """
        import sys

        @app.task
        def job() -> None: ...

        @app.lifespan
        async def database():
            yield
            note("leave", "database")

        @app.lifespan
        async def model():
            yield
            sys.exit(3)

        @app.lifespan
        async def cache():
            yield
            raise OSError("no cache")
        """
    )
    worker = bench.worker()
    worker.quiet = False
    assert worker.stop() == 0
    assert [line.text for line in bench.history("leave")] == ["database"]
    told = [line for line in worker.log.splitlines() if "the lifespan" in line]
    assert ["the lifespan 'cache' failed at its end: " in told[0], "OSError: no cache" in told[0]] == [True, True], told
    assert ["the lifespan 'model' failed at its end: " in told[1], "SystemExit: 3" in told[1]] == [True, True], told
    assert "Traceback" not in worker.log


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


def test_events_of_a_job_that_kills_the_only_child_are_told_by_its_successor(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.on("job.failed", "job.dead")
        def tell(event) -> None:
            note(event.name, event.reason)

        @app.task
        def kills() -> None:
            os.kill(os.getpid(), 9)
        """
    )
    worker = bench.worker(processes=1)
    worker.quiet = False
    bench.wait_final([jobs.kills.delay()])
    bench.wait_for("job.dead")
    assert [(line.event, line.text) for line in bench.history()] == [("job.failed", "poison"), ("job.dead", "poison")]


@pytest.mark.parametrize(
    "failure", ["raise ValueError('handler')", "sys.exit(3)", "while not Path('go').exists(): time.sleep(0.01)"]
)
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
    assert [handle.get(timeout=WAIT) for handle in jobs.job.map([(n,) for n in range(50)])] == list(range(50))
    (bench.folder / "go").touch()  # jobs do not wait for handlers
    bench.wait_for("told", count=2)
    if "sleep" not in failure:
        bench.wait_for("told", count=51)
        wait_until(lambda: worker.log.count("failed") >= 51, message="each failure is in the log")
        bench.wait_for("heard", count=51)
    assert worker.children() == [child]
