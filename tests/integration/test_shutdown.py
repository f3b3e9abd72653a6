"""SIGTERM, SIGINT and SIGQUIT under load: nothing new starts, nothing is charged, nothing is left running."""

import os
import signal
import time
from collections import Counter
from contextlib import suppress

import pytest

from mouso.job import Job, JobState
from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import PAUSES
from tests.stalls import elapsed
from tests.support import crowd, wait_until

pytestmark = pytest.mark.every_broker

JOBS = 2000
GRACE = 2.0
IN_FLIGHT = 0.25
"""Seconds after the signal in which a job may still start: its claim was under way."""

LONG_ONES = """
def long(kind: str) -> float:
    '''How long a long job takes: for ever the first time, an instant the second.'''
    note("start", kind)
    return 0.01 if Path("second").exists() else 120.0

@app.task(attempts=1)
def polite(ctx: Context) -> str:
    '''Looks whether it should stop.'''
    until = time.monotonic() + long("polite")
    while time.monotonic() < until:
        ctx.check()
        time.sleep(0.01)
    note("end")
    return "polite"

@app.task(attempts=1)
async def cancellable() -> str:
    await asyncio.sleep(long("cancellable"))
    note("end")
    return "cancellable"

@app.task(attempts=1)
async def upset() -> str:
    '''Turns its cancellation into an error of its own, as many libraries do.'''
    try:
        await asyncio.sleep(long("upset"))
    except asyncio.CancelledError:
        raise ConnectionError("the request was interrupted")
    note("end")
    return "upset"

@app.task(attempts=1)
def deaf() -> str:
    time.sleep(long("deaf"))
    note("end")
    return "deaf"

@app.task(attempts=1)
async def stubborn() -> str:
    '''Swallows its cancellation.'''
    until = time.monotonic() + long("stubborn")
    while time.monotonic() < until:
        try:
            await asyncio.sleep(until - time.monotonic())
        except asyncio.CancelledError:
            pass
    note("end")
    return "stubborn"

@app.task(attempts=1)
async def blocking() -> str:
    '''Blocks the event loop.'''
    time.sleep(long("blocking"))
    note("end")
    return "blocking"

@app.task(attempts=1)
def threads() -> str:
    '''Leaves a thread that nobody ends.'''
    threading.Thread(target=time.sleep, args=(300,)).start()
    note("start", "threads")
    note("end")
    return "threads"
"""

APP = PAUSES + LONG_ONES
LONG = ("polite", "cancellable", "upset", "deaf", "stubborn")


def test_sigterm_under_load(bench: Bench) -> None:
    jobs = bench.app(APP)
    long = [getattr(jobs, name).options(priority=10).delay() for name in LONG]
    calls = [(n, 0.005) for n in range(JOBS // 2)]
    short = jobs.pause.map(calls) + jobs.pause_coroutine.map(calls)
    worker = bench.worker("--grace", str(GRACE), processes=2, concurrency=6)
    wait_until(lambda: {line.text for line in bench.history("start")} >= set(LONG), message="the long ones run")
    bench.wait_for("end", count=100)
    before = {record.id: record.releases for record in bench.records(handle.id for handle in long)}

    at = worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log
    assert elapsed(at) < GRACE + 3.0
    wait_until(lambda: not worker.survivors(), timeout=5, message="its children are gone")

    lines = bench.history()
    assert max(line.at for line in lines if line.event == "start") < at + IN_FLIGHT * crowd()
    assert bench.states()["available"] > len(LONG), "there was more to start"
    started = Counter(line.job for line in lines if line.event == "start")
    ended = Counter(line.job for line in lines if line.event == "end")
    assert set(started.values()) == {1}
    for record in bench.records(handle.id for handle in short):
        # Whoever started was short enough to end; whoever had not was given back or never claimed.
        assert (record.state is JobState.COMPLETED) == (started[record.id] == 1) == (ended[record.id] == 1)
        assert record.state in (JobState.COMPLETED, JobState.AVAILABLE)
        assert (record.attempts, record.crashes) == (0, 0)
    for record in bench.records(handle.id for handle in long):
        assert interrupted(record, before[record.id]), record
    assert bench.states()["running"] == 0
    assert bench.producer.workers() == []
    assert not bench.bells()

    (bench.folder / "second").touch()
    bench.worker(processes=2, concurrency=6)
    records = bench.wait_final([*long, *short], timeout=60)
    assert {record.state for record in records} == {"completed"}
    assert [jobs.app.job(handle.id).get(timeout=1) for handle in long] == list(LONG)
    started = Counter(line.job for line in bench.history("start"))
    assert [started[handle.id] for handle in long] == [2] * len(long)
    assert {started[handle.id] for handle in short} == {1}


def interrupted(record: Job, releases: int = 0) -> bool:
    """Whether a job that ran at the shutdown is as it was before it started, but for one release."""
    counters = (record.state, record.attempts, record.crashes, record.releases)
    return counters == (JobState.AVAILABLE, 0, 0, releases + 1)


@pytest.mark.parametrize("name", [*LONG, "blocking"])
def test_each_kind_of_long_job_is_released(bench: Bench, name: str) -> None:
    jobs = bench.app(APP)
    worker = bench.worker("--grace", "0.5")
    handle = getattr(jobs, name).delay()
    bench.wait_for("start")
    at = worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log
    assert elapsed(at) < 0.5 + 3.0
    assert interrupted(handle.refresh().record), handle.record
    (bench.folder / "second").touch()
    bench.worker()
    assert handle.get(timeout=WAIT) == name
    assert [line.attempt for line in bench.history("start")] == [1, 1]


def test_long_jobs_that_end_within_the_grace_complete(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def function() -> str:
            note("start")
            time.sleep(1.0)
            return "done"

        @app.task
        async def coroutine() -> str:
            note("start")
            await asyncio.sleep(1.0)
            return "done"
        """
    )
    worker = bench.worker("--grace", "10")
    handles = [jobs.function.delay(), jobs.coroutine.delay()]
    bench.wait_for("start", count=2)
    at = worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert elapsed(at) < 10, "it does not wait longer than its jobs need"
    assert [(r.state, r.releases) for r in bench.records(h.id for h in handles)] == [("completed", 0)] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_twice_to_the_process_group(bench: Bench, number: int) -> None:
    jobs = bench.app(APP)
    worker = bench.worker("--grace", "1.5", processes=2)
    long = [jobs.polite.delay(), jobs.deaf.delay(), jobs.cancellable.delay()]
    bench.wait_for("start", count=3)
    at = worker.send_group(number)
    wait_until(lambda: "stopping: " in worker.log, timeout=WAIT, message="the first signal has arrived")
    worker.send_group(number)
    assert worker.wait() == 0, worker.log
    assert time.monotonic() - at > 1.4, "the second signal does not cut the grace"
    assert elapsed(at) < 1.5 + 3.0
    assert all(interrupted(record) for record in bench.records(h.id for h in long))
    wait_until(lambda: not worker.survivors(), timeout=5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_worker_ends_at_once(bench: Bench, number: int) -> None:
    bench.app(APP)
    worker = bench.worker("--grace", "15", processes=2)
    at = worker.send(number)
    assert worker.wait() == 0
    assert elapsed(at) < 15, "it does not wait for its grace"
    assert bench.producer.workers() == []


@pytest.mark.parametrize("nohup", [False, True])
def test_its_terminal_is_gone(bench: Bench, nohup: bool) -> None:
    """SIGHUP to all of the terminal's processes stops it as SIGTERM does; under nohup it lives on."""
    jobs = bench.app(APP)
    start = f"-m mouso worker jobs:app -p 1 -c 4 --grace {GRACE}".split()
    worker = bench.program(
        f"import os, signal, sys\nsignal.signal(signal.SIGHUP, signal.{'SIG_IGN' if nohup else 'SIG_DFL'})\n"
        f"os.execv(sys.executable, [sys.executable, *{start!r}])"
    )
    bench.wait_ready(worker)
    long = jobs.deaf.delay()
    bench.wait_for("start", count=1)
    at = worker.send_group(signal.SIGHUP)
    if nohup:
        assert jobs.pause.delay(1, 0).get(timeout=WAIT) == 1
        worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log
    assert elapsed(at) < GRACE + 3.0 + nohup * WAIT
    assert interrupted(bench.records([long.id])[0])
    wait_until(lambda: not worker.survivors(), timeout=5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_signals_without_end(bench: Bench, number: int) -> None:
    """Until the process is gone: not even one in its last moments changes how it ends."""
    bench.app(APP)
    worker = bench.worker(processes=1)
    worker.send(signal.SIGTERM)

    def gone() -> bool:
        with suppress(ProcessLookupError):
            os.kill(worker.pid, number)
        return not worker.alive

    wait_until(gone, timeout=30, interval=0.02 if number == signal.SIGQUIT else 0.002)
    assert worker.wait() == 0, worker.log


def test_signal_while_it_starts(bench: Bench) -> None:
    jobs = bench.app(APP)
    bench.write('note("importing")\nif "SLOW" in os.environ:\n    time.sleep(60)\n' + APP)
    worker = bench.start("-p", "2", SLOW="1")
    bench.wait_for("importing", count=2)
    assert worker.stop() == 0, worker.log
    assert "Traceback" not in worker.log
    wait_until(lambda: not worker.survivors(), timeout=5)
    assert jobs.app.workers() == []


def test_a_thread_left_by_a_job_does_not_hold_the_worker(bench: Bench) -> None:
    jobs = bench.app(APP)
    worker = bench.worker()
    assert jobs.threads.delay().get(timeout=WAIT) == "threads"
    assert worker.stop() == 0
    wait_until(lambda: not worker.survivors(), timeout=5)


def test_sigquit_dumps_all_stacks_and_the_worker_lives(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def a_function_that_waits() -> str:
            note("start")
            while not Path("go").exists():
                time.sleep(0.01)
            return "went on"

        @app.task
        async def a_coroutine_that_waits() -> str:
            note("start")
            while not Path("go").exists():
                await inside()
            return "went on"

        async def inside() -> None:
            await asyncio.sleep(1)
        """
    )
    worker = bench.worker(processes=2)
    handle, coroutine = jobs.a_function_that_waits.delay(), jobs.a_coroutine_that_waits.delay()
    bench.wait_for("start", 2)
    worker.send(signal.SIGQUIT)
    wait_until(lambda: "Current thread" in worker.log, message="the supervisor's stacks")
    wait_until(lambda: "a_function_that_waits" in worker.log, message="the children's stacks")
    wait_until(lambda: "in inside\n" in worker.log, message="where the coroutine waits")
    assert f"Coroutine of job {coroutine.id} (jobs.a_coroutine_that_waits)" in worker.log
    (bench.folder / "go").touch()
    assert [each.get(timeout=WAIT) for each in (handle, coroutine)] == ["went on"] * 2
    assert worker.alive
    worker.quiet = False
    assert worker.stop() == 0


def test_children_do_not_outlive_a_killed_supervisor(bench: Bench) -> None:
    jobs = bench.app(APP)
    worker = bench.worker("--grace", "0.5", processes=2)
    handles = [jobs.polite.delay(), jobs.cancellable.delay(), jobs.deaf.delay()]
    bench.wait_for("start", count=3)
    worker.send(signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    wait_until(lambda: not worker.survivors(), timeout=0.5 + 2 + 3, message="orphans have ended")
    assert [r.state for r in bench.records(h.id for h in handles)] == ["running"] * 3
    for bell in bench.bells():  # a killed process cannot remove its own
        bell.unlink()


def test_children_of_a_killed_supervisor_start_nothing_more(bench: Bench) -> None:
    jobs = bench.app(APP)
    jobs.pause.map([(n, 0.01) for n in range(JOBS)])
    worker = bench.worker(processes=2)
    bench.wait_for("end", count=50)
    at = worker.send(signal.SIGKILL)
    worker.wait()
    wait_until(lambda: not worker.survivors(), timeout=5, message="orphans have ended")
    assert max(line.at for line in bench.history("start")) < at + IN_FLIGHT * crowd()
    assert len(bench.history("start")) < JOBS, "there was more to start"
    for bell in bench.bells():
        bell.unlink()


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
