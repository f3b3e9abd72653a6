"""What a run takes, as the executor measures it: length, CPU, memory, process, start."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from mouso import Context, Mouso, Retry, Snooze
from mouso.clock import SYSTEM
from mouso.errors import ConfigError, JobControl
from mouso.job import Charge, JobState, Lease, LogLine, Outcome, Progress, decode_log
from mouso.worker import meter as module
from mouso.worker.executor import Executor, Run
from mouso.worker.meter import Meter
from tests.support import wait_until_async

WORK = 0.03


def burn(seconds: float) -> None:
    """Uses so much CPU of this thread, however long that takes."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


class Bench:
    """An app, and its executor."""

    def __init__(self, **settings: Any) -> None:
        self.app = Mouso("measures", broker="memory://measures", **settings)
        self.told: list[Progress | LogLine] = []
        self.executor = Executor(self.app, "0" * 16, lambda context, what: self.told.append(what))

    def prepare(self, function: Callable[..., Any], attempts: int = 0) -> Run:
        task = self.app.task(name=f"work{len(self.app.tasks)}")(function)
        lease = Lease(7, 3, "a", task.name, "default", b"{}", "json", attempts, 0, 0, 0, None, None)
        run = self.executor.prepare(lease)
        assert isinstance(run, Run)
        return run

    def function(self, function: Callable[..., Any], meter: Meter | None = None) -> Outcome:
        return self.executor.run_function(self.prepare(function), meter)

    def coroutine(self, function: Callable[..., Coroutine[Any, Any, Any]]) -> Outcome:
        with asyncio.Runner() as runner:
            return runner.run(self.executor.run_coroutine(self.prepare(function)))


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.app.close()


def test_work_is_cpu(bench: Bench) -> None:
    outcome = bench.function(work)
    assert outcome.cpu_seconds is not None
    assert WORK <= outcome.cpu_seconds < 2 * WORK
    assert outcome.run_seconds >= outcome.cpu_seconds


def work() -> None:
    burn(WORK)


def test_sleep_is_none(bench: Bench) -> None:
    def sleep() -> None:
        time.sleep(WORK)

    outcome = bench.function(sleep)
    assert outcome.run_seconds >= WORK
    assert outcome.cpu_seconds is not None
    assert outcome.cpu_seconds < WORK / 2


def test_a_short_run_counts_as_cpu_for_its_length(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mouso.worker.executor.FINE", 10.0)

    def sleep() -> None:
        time.sleep(WORK)

    outcome = bench.function(sleep)
    assert outcome.cpu_seconds == outcome.run_seconds >= WORK


def test_what_the_thread_did_before_is_not_counted(bench: Bench) -> None:
    meter = Meter()
    first = bench.prepare(work)
    bench.executor.run_function(first, meter)
    burn(WORK)
    second = bench.executor.prepare(first.lease)
    assert isinstance(second, Run)
    outcome = bench.executor.run_function(second, meter)
    assert outcome.cpu_seconds is not None
    assert outcome.cpu_seconds < 2 * WORK


def test_a_coroutine_has_the_cpu_of_its_own_steps(bench: Bench) -> None:
    async def mixed() -> str:
        burn(WORK)
        beside = asyncio.create_task(asyncio.to_thread(burn, WORK))
        other = asyncio.create_task(burning())
        await asyncio.sleep(WORK)
        await asyncio.gather(beside, other)
        burn(WORK)
        return "done"

    async def burning() -> None:
        burn(WORK)

    outcome = bench.coroutine(mixed)
    assert (outcome.state, outcome.result) == (JobState.COMPLETED, b'"done"')
    assert outcome.cpu_seconds is not None
    assert 2 * WORK <= outcome.cpu_seconds < 2.9 * WORK
    assert outcome.run_seconds >= 3 * WORK


def test_a_coroutine_that_waits_has_none(bench: Bench) -> None:
    async def wait() -> None:
        for _ in range(5):
            await asyncio.sleep(WORK / 5)

    outcome = bench.coroutine(wait)
    assert outcome.cpu_seconds is not None
    assert outcome.run_seconds >= WORK > 2 * outcome.cpu_seconds


def test_a_cancelled_coroutine_cleans_up_and_is_measured(bench: Bench) -> None:
    began: list[bool] = []
    cleaned: list[bool] = []

    async def stubborn() -> None:
        began.append(True)
        try:
            await asyncio.sleep(10)
        finally:
            burn(WORK)
            await asyncio.sleep(0.001)
            cleaned.append(True)

    async def main() -> Outcome:
        run = bench.prepare(stubborn)
        task = asyncio.create_task(bench.executor.run_coroutine(run))
        await wait_until_async(lambda: began)
        run.context.request_stop("cancelled")
        task.cancel()
        return await task

    outcome = asyncio.run(main())
    assert (outcome.state, cleaned) == (JobState.CANCELLED, [True])
    assert outcome.cpu_seconds is not None
    assert WORK <= outcome.cpu_seconds < 2 * WORK


def test_a_coroutine_that_never_began_has_no_cpu(bench: Bench) -> None:
    async def never() -> None: ...

    run = bench.prepare(never)
    outcome = bench.executor.ended(run, asyncio.CancelledError())
    assert (outcome.cpu_seconds, outcome.pid) == (None, os.getpid())


def test_a_coroutine_function_that_cannot_be_called(bench: Bench) -> None:
    async def wrong() -> None: ...

    run = bench.prepare(wrong)
    run.args = (1, 2, 3)
    with asyncio.Runner() as runner:
        outcome = runner.run(bench.executor.run_coroutine(run))
    assert outcome.error is not None
    assert "takes 0 positional arguments" in outcome.error.message
    assert outcome.cpu_seconds is not None


@pytest.mark.parametrize("end", ["completed", "failed", "snoozed", "unstorable"])
def test_every_end_is_measured(bench: Bench, end: str) -> None:
    def run() -> object:
        burn(0.005)
        if end == "failed":
            raise ValueError("no")
        if end == "snoozed":
            raise Snooze(1)
        return object() if end == "unstorable" else None

    before = SYSTEM.now()
    outcome = bench.function(run)
    assert outcome.started_at is not None
    assert before - 5 <= outcome.started_at <= SYSTEM.now()
    assert outcome.pid == os.getpid()
    assert outcome.cpu_seconds is not None
    assert 0.005 <= outcome.cpu_seconds <= outcome.run_seconds
    assert outcome.peak_memory is not None
    assert outcome.peak_memory > 8 << 20


def test_peak_memory_is_seen(bench: Bench) -> None:
    def little() -> None: ...

    def much() -> int:
        return len(bytes(64 << 20).replace(b"\0", b"\1"))

    first = bench.function(little)
    second = Bench()
    after = second.function(much)
    assert first.peak_memory is not None
    assert after.peak_memory is not None
    assert after.peak_memory >= 64 << 20
    second.app.close()


def test_a_system_that_tells_nothing_of_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptor(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", no_descriptor)
    outcome = bench.function(work)
    assert (outcome.state, outcome.peak_memory) == (JobState.COMPLETED, None)


def test_the_cpu_of_a_process_is_that_of_all_its_threads(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meter, "clock", staticmethod(time.thread_time))
    module.measure_process()

    def threaded() -> None:
        thread = threading.Thread(target=burn, args=(WORK,))
        thread.start()
        thread.join()

    outcome = bench.function(threaded)
    assert outcome.cpu_seconds is not None
    assert outcome.cpu_seconds >= WORK


# -- logs


def test_lines_go_with_the_outcome_and_are_told_before(bench: Bench) -> None:
    def logging_task(ctx: Context) -> None:
        ctx.log.info("one")
        ctx.log.error("two")

    outcome = bench.function(logging_task)
    kept = decode_log(outcome.log)
    assert [(line.level, line.message) for line in kept["lines"]] == [("INFO", "one"), ("ERROR", "two")]
    assert kept["left_out"] == 0
    assert [told.message for told in bench.told] == ["one", "two"]


def test_a_run_that_logs_nothing_brings_nothing(bench: Bench) -> None:
    assert bench.function(work).log is None


@pytest.mark.parametrize(("lines", "size", "kept"), [(2, 1000, 2), (100, 12, 3), (0, 1000, None), (100, 0, 0)])
def test_how_much_is_kept_is_up_to_the_app(lines: int, size: int, kept: int | None) -> None:
    bench = Bench(log_lines=lines, log_bytes=size)

    def chatty(ctx: Context) -> None:
        for n in range(50):
            ctx.log.info("%04d", n)

    outcome = bench.function(chatty)
    if kept is None:
        assert (outcome.log, bench.told) == (None, [])
    else:
        found = decode_log(outcome.log)
        assert [line.message for line in found["lines"]] == [f"{n:04}" for n in range(50 - kept, 50)]
        assert found["left_out"] == 50 - kept
    bench.app.close()


@pytest.mark.parametrize("setting", ["log_lines", "log_bytes"])
@pytest.mark.parametrize("value", [-1, 1 << 40, 1.5, "many", True, None])
def test_a_setting_out_of_range_is_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{setting}={value!r} is out of range; use a whole number from 0 to "):
        Bench(**{setting: value})


def test_lines_of_several_threads_of_a_job(bench: Bench) -> None:
    def threads(ctx: Context) -> None:
        def chat() -> None:
            for _ in range(10):
                ctx.log.info("x")

        crew = [threading.Thread(target=chat) for _ in range(8)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()

    found = decode_log(bench.function(threads).log)
    assert len(found["lines"]) == 80


@pytest.mark.parametrize(
    ("control", "words"), [(Retry("zz"), "Retry delay='zz' is no"), (Snooze("abc"), "Snooze delay")]
)
def test_a_delay_that_is_none_makes_an_ordinary_failed_attempt(bench: Bench, control: JobControl, words: str) -> None:
    def work() -> None:
        raise control

    outcome = bench.function(work)
    assert (outcome.state, outcome.charge, outcome.reason) == (JobState.RETRYABLE, Charge.ATTEMPT, "")
    assert outcome.error is not None
    assert words in outcome.error.message
    assert "raise control" in outcome.error.traceback
