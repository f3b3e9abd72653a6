"""What a real worker leaves of each run: length, CPU, memory, process, worker, and the last lines of its log."""

import json
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from mouso.handle import JobHandle
from mouso.job import RunInfo
from tests.integration.harness import WAIT, Bench
from tests.support import wait_until

pytestmark = pytest.mark.every_broker

TASKS = """
def burn(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass

@app.task
def work(ctx: Context, seconds: float) -> None:
    ctx.log.info("working for %s s", seconds)
    note("start")
    burn(seconds)

@app.task
async def work_coroutine(ctx: Context, seconds: float) -> None:
    ctx.log.info("working for %s s", seconds)
    note("start")
    burn(seconds)
    await asyncio.sleep(seconds)

@app.task(attempts=2, backoff=constant(0))
def fail(ctx: Context) -> None:
    ctx.log.error("attempt %d fails", ctx.attempt)
    burn(0.01)
    raise ValueError("no")

@app.task
def memory(mib: int) -> None:
    bytes(mib << 20).replace(b"\\0", b"\\1")

@app.task
def crash(ctx: Context) -> None:
    ctx.log.warning("last words")
    note("start")
    time.sleep(0.3)
    os.kill(os.getpid(), 9)

@app.task
def wait(ctx: Context) -> None:
    ctx.log.info("waiting")
    note("start")
    while not ctx.should_stop:
        time.sleep(0.01)
    ctx.check()

@app.task
def stubborn(ctx: Context) -> None:
    ctx.log.info("deaf")
    note("start")
    while True:
        time.sleep(0.01)

@app.task
def again(ctx: Context) -> None:
    ctx.log.info("not yet")
    raise Snooze("1h")

@app.task(attempts=2, backoff=constant(0))
def leaves_a_thread(ctx: Context) -> str:
    if ctx.attempt == 1:
        threading.Thread(target=speak_late, args=(ctx,), daemon=True).start()
        raise ValueError("the first time")
    note("second")
    for _ in range(100):
        time.sleep(0.01)
        ctx.check()
    return "undisturbed"

def speak_late(ctx: Context) -> None:
    for n in range(200):
        ctx.progress(n)
        ctx.log.info("too late")
        time.sleep(0.005)

@app.task
def chatty(ctx: Context, lines: int) -> None:
    for n in range(lines):
        ctx.log.info("line %04d", n)
    note("start")
    while not Path("go").exists():
        time.sleep(0.01)
"""
ISOLATED = """
def burn(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass

@app.task(isolated=True)
def isolated(ctx: Context, seconds: float) -> int:
    ctx.log.info("alone")
    thread = threading.Thread(target=burn, args=(seconds,))
    thread.start()
    thread.join()
    return os.getpid()
"""


@pytest.fixture
def jobs(bench: Bench) -> Any:
    return bench.app(TASKS)


def only_run(handle: JobHandle[Any]) -> RunInfo:
    [run] = handle.runs()
    return run


def messages(run: RunInfo) -> list[str]:
    return [line.message for line in run.lines]


@pytest.mark.parametrize("task", ["work", "work_coroutine"])
def test_a_completed_run(bench: Bench, jobs: Any, task: str) -> None:
    worker = bench.worker()
    before = time.time() * 1000
    handle = getattr(jobs, task).delay(0.05)
    handle.get(timeout=WAIT)
    job, run = handle.refresh().record, only_run(handle)
    assert (run.end, run.attempt, run.token, messages(run)) == ("completed", 1, 1, ["working for 0.05 s"])
    assert job.cpu_seconds is not None
    assert job.run_seconds is not None
    assert job.run_seconds >= (0.05 if task == "work" else 0.1)
    assert 0.05 <= job.cpu_seconds <= job.run_seconds - (0 if task == "work" else 0.04)
    assert job.pid == worker.children()[0]
    assert job.peak_memory is not None
    assert 8 << 20 < job.peak_memory < 500 << 20
    assert job.started_at is not None
    assert job.finished_at is not None
    assert before - 5 <= job.started_at <= job.finished_at
    assert (job.worker, job.started_at, job.cpu_seconds) == (run.worker, run.started_at, run.cpu_seconds)
    assert [info.id for info in bench.producer.workers()] == [run.worker]


def test_failed_runs(bench: Bench, jobs: Any) -> None:
    worker = bench.worker()
    handle = jobs.fail.delay()
    bench.wait_state(handle, "dead")
    errors, runs = handle.errors, handle.runs()
    assert [(run.end, run.attempt, messages(run)) for run in runs] == [
        ("failed", 1, ["attempt 1 fails"]),
        ("failed", 2, ["attempt 2 fails"]),
    ]
    for error, run in zip(errors, runs, strict=True):
        assert (error.token, error.attempt, error.worker, error.pid) == (run.token, run.attempt, run.worker, run.pid)
        assert error.pid == worker.children()[0]
        assert error.cpu_seconds is not None
        assert error.run_seconds is not None
        assert 0.01 <= error.cpu_seconds <= error.run_seconds
        assert error.started_at is not None
    assert [line.message for line in handle.logs()] == ["attempt 1 fails", "attempt 2 fails"]


def test_peak_memory(bench: Bench, jobs: Any) -> None:
    bench.worker()
    small, large, after = jobs.memory.delay(1), jobs.memory.delay(200), jobs.memory.delay(1)
    peaks = [record.peak_memory for record in bench.wait_final([small, large])]
    assert None not in peaks
    assert peaks[1] is not None
    assert peaks[1] >= 200 << 20
    assert bench.wait_final([after])[0].peak_memory is not None


def test_crashes_are_measured_and_their_log_stays(bench: Bench, jobs: Any) -> None:
    worker = bench.worker()
    handle = jobs.crash.delay()
    record = bench.wait_final([handle])[0]
    worker.quiet = False
    assert record.reason == "poison"
    runs, pids = handle.runs(), [line.pid for line in bench.history("start")]
    assert [(run.end, messages(run), run.pid) for run in runs] == [("crashed", ["last words"], pid) for pid in pids]
    for error in record.errors:
        assert error.run_seconds is not None
        assert 0.25 < error.run_seconds < WAIT
        assert error.peak_memory is not None
        assert error.peak_memory > 8 << 20


def test_snoozed_and_cancelled_runs(bench: Bench, jobs: Any) -> None:
    bench.worker()
    snoozed, cancelled = jobs.again.delay(), jobs.wait.delay()
    bench.wait_state(snoozed, "scheduled")
    bench.wait_for("start")
    cancelled.cancel()
    bench.wait_state(cancelled, "cancelled")
    assert [(run.end, messages(run)) for run in snoozed.runs()] == [("snoozed", ["not yet"])]
    run = only_run(cancelled)
    assert (run.end, messages(run)) == ("cancelled", ["waiting"])
    assert run.run_seconds is not None
    assert run.cpu_seconds is not None
    assert run.run_seconds > run.cpu_seconds


@pytest.mark.parametrize("task", ["wait", "stubborn"])
def test_a_run_that_a_shutdown_interrupts(bench: Bench, jobs: Any, task: str) -> None:
    worker = bench.worker("--grace", "0.2")
    handle = getattr(jobs, task).delay()
    bench.wait_for("start")
    assert worker.stop() == 0
    run = only_run(handle)
    assert (run.end, run.attempt, run.pid) == ("released", 1, bench.history("start")[0].pid)
    assert messages(run) == [{"wait": "waiting", "stubborn": "deaf"}[task]]
    assert run.run_seconds is not None
    assert 0.2 <= run.run_seconds < WAIT


def test_the_run_of_a_killed_worker_is_lost_and_its_log_stays(bench: Bench, jobs: Any) -> None:
    worker = bench.worker()
    handle = jobs.wait.delay()
    wait_until(lambda: handle.logs(), timeout=WAIT)
    worker.send(signal.SIGKILL)
    worker.wait()
    wait_until(lambda: not worker.survivors(), timeout=WAIT)
    second = bench.worker()
    bench.wait_for("start", 2)
    wait_until(lambda: len(handle.runs()) == 2, timeout=WAIT)
    assert [(run.end, messages(run)) for run in handle.runs()] == [("lost", ["waiting"]), ("", ["waiting"])]
    handle.cancel()
    bench.wait_state(handle, "cancelled")
    assert second.stop() == 0
    for bell in bench.bells():  # a killed process cannot remove its own
        bell.unlink()


def test_a_long_log_is_read_while_the_job_runs_and_keeps_its_end(bench: Bench, jobs: Any) -> None:
    bench.worker()
    handle = jobs.chatty.delay(1000)
    bench.wait_for("start")
    wait_until(lambda: [line.message for line in handle.logs()][-1:] == ["line 0999"], timeout=WAIT)
    run = only_run(handle)
    assert (run.end, run.left_out, len(run.lines)) == ("", 900, 100)
    assert [line.message for line in run.lines] == [f"line {n:04}" for n in range(900, 1000)]
    (bench.folder / "go").touch()
    handle.get(timeout=WAIT)
    after = only_run(handle)
    assert (after.end, after.lines, after.left_out) == ("completed", run.lines, 900)
    assert bench.producer.broker.delete([handle.id]) == ["deleted"]
    assert bench.producer.broker.runs(handle.id) == []


def test_late_news_of_a_run_do_not_disturb_the_next(bench: Bench, jobs: Any) -> None:
    bench.worker()
    handle = jobs.leaves_a_thread.delay()
    assert handle.get(timeout=WAIT) == "undisturbed"
    first, second = handle.runs()
    assert (first.end, second.end, second.lines) == ("failed", "completed", ())
    assert "taken over" not in bench.workers[0].log


@pytest.mark.only_sqlite("writes into its tables")
def test_what_another_program_wrote_of_a_run_does_no_harm(bench: Bench, jobs: Any) -> None:
    bench.worker()
    handle = jobs.fail.delay()
    bench.wait_state(handle, "dead")
    for junk in ("", "garbage", "[]", "null", "{}", '{"end": 5}', "[1]", "[0, [[1]]]", '["x", 2]'):
        bench.sql("UPDATE mouso_runs SET run = ?, log = ?, stack = ? WHERE claims = 1", junk, junk, junk)
        broken, sound = handle.runs()
        assert (broken.token, broken.lines, broken.stack) == (1, (), None), junk
        assert (sound.end, messages(sound)) == ("failed", ["attempt 2 fails"])
        assert len(handle.errors) == 2


def test_a_run_in_a_process_of_its_own_has_all_its_cpu(bench: Bench) -> None:
    jobs = bench.app(ISOLATED)
    bench.start("-p", "1")
    handle = jobs.isolated.delay(0.1)
    pid = handle.get(timeout=WAIT)
    run = only_run(handle)
    assert run.pid == pid
    assert (run.end, messages(run)) == ("completed", ["alone"])
    assert run.cpu_seconds is not None
    assert run.cpu_seconds >= 0.1


def test_the_command_line_shows_runs_and_logs(bench: Bench, jobs: Any) -> None:
    worker = bench.worker()
    handle = jobs.fail.delay()
    bench.wait_state(handle, "dead")
    text = cli(bench, "job", handle.id)
    assert "attempt 1 failed, " in text
    assert " of CPU, " in text
    assert "2 lines, see --logs" in text
    assert f"process {worker.children()[0]}" in text
    logs = cli(bench, "job", handle.id, "--logs").splitlines()
    assert logs[0] == "-- attempt 1, failed"
    assert logs[1].endswith(" ERROR    attempt 1 fails")
    document = json.loads(cli(bench, "job", handle.id, "--json"))
    assert [run["end"] for run in document["runs"]] == ["failed", "failed"]
    assert document["runs"][1]["lines"][0]["message"] == "attempt 2 fails"
    assert document["errors"][0]["cpu_seconds"] == document["runs"][0]["cpu_seconds"]
    assert document["peak_memory"] > 8 << 20


def cli(bench: Bench, command: str, *arguments: str) -> str:
    """What a command prints."""
    line = [sys.executable, "-m", "mouso", command, "jobs:app", *arguments]
    done = subprocess.run(
        line, cwd=bench.folder, env=bench.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
