"""``mouso job ID --stack`` and SIGQUIT: where a running job is, also when nothing moves in its process any more."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from typing import Any

import pytest

from mouso.errors import JobError, JobUnknown
from mouso.handle import JobHandle
from tests.integration.harness import WAIT, Bench, Worker
from tests.support import wait_until

TASKS = """
import ctypes
import re as regex

@app.task
def waits() -> None:
    note("start")
    deep_inside()

def deep_inside() -> None:
    while not Path("go").exists():
        time.sleep(0.01)

@app.task
async def waits_coroutine() -> None:
    note("start")
    await deep_inside_coroutine()

async def deep_inside_coroutine() -> None:
    while not Path("go").exists():
        await asyncio.sleep(0.01)

@app.task
async def waits_for_several() -> None:
    note("start")
    await asyncio.gather(deep_inside_coroutine(), deep_inside_coroutine())

@app.task
async def blocks() -> None:
    note("start")
    deep_inside()

@app.task
def holds() -> None:
    note("start")
    c_code_that_holds_the_interpreter()

def c_code_that_holds_the_interpreter() -> None:
    regex.match("(a+)+$", "a" * 60 + "b")

@app.task(timeout=3600)
def holds_with_a_timeout() -> None:
    note("start")
    c_code_that_holds_the_interpreter()

@app.task
def holds_asleep() -> None:
    note("start")
    sleep_with_the_interpreter()

def sleep_with_the_interpreter() -> None:
    ctypes.PyDLL(None).sleep(3600)

@app.task
def busy() -> None:
    note("start")
    while not Path("go").exists():
        deeper(20)

def deeper(depth: int) -> int:
    return deeper(depth - 1) + 1 if depth else 0

@app.task
def quick() -> None: ...
"""
ISOLATED = """
@app.task(isolated=True)
def isolated() -> None:
    note("start")
    deep_inside()
"""


@pytest.fixture
def jobs(bench: Bench) -> Any:
    return bench.app(TASKS)


def go(bench: Bench) -> None:
    (bench.folder / "go").touch()


def _answer(handle: JobHandle[None]) -> str:
    """Its stack; nothing if its process was too busy to tell it by itself."""
    text = handle.stack(timeout=WAIT)
    return "" if "does not answer" in text else text


@pytest.mark.parametrize("task", ["waits", "waits_coroutine", "waits_for_several", "blocks", "isolated"])
def test_where_a_job_is(bench: Bench, task: str) -> None:
    jobs = bench.app(TASKS + ISOLATED if task == "isolated" else TASKS)
    bench.start("-p", "1")
    handle = getattr(jobs, task).delay()
    bench.wait_for("start")
    text = wait_until(partial(_answer, handle), timeout=WAIT, message="its process answers")
    lines = text.splitlines()
    assert re.fullmatch(rf'  File "{bench.folder}/jobs.py", line \d+, in {task}', lines[0]), text
    assert "deep_inside" in lines[1]
    assert text.count("in deep_inside") == (2 if task == "waits_for_several" else 1)
    go(bench)
    handle.get(timeout=WAIT)
    [run] = handle.runs()
    assert run.stack is not None
    assert run.stack.text == text


@pytest.mark.parametrize("task", ["holds", "holds_with_a_timeout"])
def test_where_a_job_is_that_holds_the_interpreter_in_c_code(bench: Bench, jobs: Any, task: str) -> None:
    worker = bench.worker()
    handle = getattr(jobs, task).delay()
    bench.wait_for("start")
    text = handle.stack(timeout=WAIT)
    first, *lines = text.splitlines()
    assert first == f"process {worker.children()[0]} does not answer, as if something held its interpreter:"
    assert re.fullmatch(rf'  File "{bench.folder}/jobs.py", line \d+ in {task}', lines[0]), text
    assert "in c_code_that_holds_the_interpreter" in lines[1]
    assert "in match" in lines[-1]
    end(bench, handle)


def test_where_a_job_is_that_sleeps_with_the_interpreter(bench: Bench, jobs: Any) -> None:
    bench.worker()
    handle = jobs.holds_asleep.delay()
    bench.wait_for("start")
    first, *lines = handle.stack(timeout=WAIT).splitlines()
    assert first.endswith("does not answer, as if something held its interpreter:")
    assert re.fullmatch(rf'  File "{bench.folder}/jobs.py", line \d+ in holds_asleep', lines[0])
    assert lines[1].endswith("in sleep_with_the_interpreter")
    end(bench, handle)


def test_a_process_that_was_stopped(bench: Bench, jobs: Any) -> None:
    worker = bench.worker()
    handle = jobs.waits.delay()
    bench.wait_for("start")
    (child,) = worker.children()
    os.kill(child, signal.SIGSTOP)
    assert handle.stack(timeout=WAIT) == f"process {child} was stopped by a signal\n"
    wait_until(lambda: f"child {child} does not answer: it was stopped by a signal" in worker.log, timeout=WAIT)
    os.kill(child, signal.SIGCONT)
    go(bench)
    handle.get(timeout=WAIT)
    assert worker.children() == [child]


def worker_shows(worker: Worker, text: str, times: int) -> bool:
    return worker.log.count(text) == times


def test_looking_kills_nobody(bench: Bench, jobs: Any) -> None:
    """The stacks of threads that move are written by a thread for which they wait."""
    worker = bench.start("-p", "1", "-c", "4")
    handles = [jobs.busy.delay() for _ in range(4)]
    bench.wait_for("start", 4)
    children = worker.children()
    shown = partial(worker_shows, worker, f"child {children[0]}:")
    for times in range(1, 31):
        worker.send(signal.SIGQUIT)
        os.kill(children[0], signal.SIGQUIT)
        wait_until(partial(shown, times), timeout=WAIT, message="they are shown")
    go(bench)
    for handle in handles:
        handle.get(timeout=WAIT)
    assert worker.children() == children
    assert "died" not in worker.log


def end(bench: Bench, handle: JobHandle[Any]) -> None:
    """Ends a job that runs alone and that nothing else can end."""
    handle.cancel()
    for child in bench.workers[-1].children():
        os.kill(child, signal.SIGKILL)
    bench.wait_state(handle, "cancelled")


def test_a_coroutine_beside_one_that_holds_the_interpreter(bench: Bench, jobs: Any) -> None:
    bench.worker()
    waiting = jobs.waits_coroutine.delay()
    bench.wait_for("start")
    holding = jobs.holds.delay()
    bench.wait_for("start", 2)
    text = waiting.stack(timeout=WAIT)
    assert "does not answer" in text
    assert "in run_forever" in text  # where the loop is is all that can be seen from outside
    go(bench)
    holding.cancel()  # its process is killed when it goes on, and the other runs again
    bench.wait_state(holding, "cancelled")
    waiting.get(timeout=WAIT)


def test_several_that_ask_at_once(bench: Bench, jobs: Any) -> None:
    bench.worker()
    handles = [jobs.waits.delay() for _ in range(3)]
    bench.wait_for("start", 3)
    command = [sys.executable, "-m", "mouso", "job", "jobs:app"]
    asking = [
        subprocess.Popen(
            [*command, handle.id, "--stack"], cwd=bench.folder, env=bench.environment(), stdout=-1, text=True
        )
        for handle in handles * 2
    ]
    for process in asking:
        with process:
            out, _ = process.communicate(timeout=60)
            assert process.returncode == 0
            assert "in deep_inside" in out
    go(bench)
    for handle in handles:
        handle.get(timeout=WAIT)


def test_the_command_line(bench: Bench, jobs: Any) -> None:
    bench.worker()
    handle, done = jobs.waits.delay(), jobs.quick.delay()
    done.get(timeout=WAIT)
    bench.wait_for("start")
    code, out, err = mouso(bench, handle.id, "--stack")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].endswith("in waits")
    code, out, err = mouso(bench, handle.id, "--stack", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["id"] == handle.id
    assert "in deep_inside" in json.loads(out)["stack"]
    code, out, err = mouso(bench, done.id, "--stack")
    assert (code, out) == (1, "")
    assert err == f"mouso: error: job {done.id} is completed; only a job that runs has a stack\n"
    code, out, err = mouso(bench, "unknown", "--stack")
    assert (code, out) == (1, "")
    assert "no job has the id unknown" in err
    code, out, err = mouso(bench, handle.id, "--stack", "--logs")
    assert (code, out) == (2, "")
    assert "choose one of --logs and --stack" in err
    go(bench)
    handle.get(timeout=WAIT)


def mouso(bench: Bench, *arguments: str) -> tuple[int, str, str]:
    line = [sys.executable, "-m", "mouso", "job", "jobs:app", *arguments]
    done = subprocess.run(
        line, cwd=bench.folder, env=bench.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_job_that_has_no_stack(bench: Bench, jobs: Any) -> None:
    waiting = jobs.waits.delay()
    with pytest.raises(JobError, match="is available; only a job that runs has a stack"):
        waiting.stack()
    with pytest.raises(JobUnknown):
        bench.producer.job("unknown").stack()


def test_a_worker_that_does_not_answer(bench: Bench, jobs: Any) -> None:
    worker = bench.worker()
    handle = jobs.waits.delay()
    bench.wait_for("start")
    worker.send(signal.SIGSTOP)
    try:
        with pytest.raises(JobError, match=r"did not answer within 0\.5 s; is it alive"):
            handle.stack(timeout=0.5)
    finally:
        worker.send(signal.SIGCONT)
    assert "in deep_inside" in handle.stack(timeout=WAIT)
    go(bench)
    handle.get(timeout=WAIT)


def test_sigquit_names_the_jobs_of_each_thread(bench: Bench, jobs: Any) -> None:
    worker = bench.worker(processes=2)
    plain, coroutine = jobs.waits.delay(), jobs.waits_coroutine.delay()
    bench.wait_for("start", 2)
    worker.send(signal.SIGQUIT)
    for handle, task in ((plain, "waits"), (coroutine, "waits_coroutine")):
        line = f"  runs job {handle.id} (jobs.{task})\n"
        wait_until(lambda line=line: line in worker.log, timeout=WAIT, message=line)  # type: ignore[misc]  # why: binds the loop variable
    before, after = worker.log.split(f"  runs job {plain.id} (jobs.waits)\n")
    assert before.splitlines()[-1].startswith("Thread 0x")
    assert "in deep_inside" in after.split("\n\n")[0]
    assert {int(pid) for pid in re.findall(r"^child (\d+):$", worker.log, re.MULTILINE)} == set(worker.children())
    go(bench)
    for handle in (plain, coroutine):
        handle.get(timeout=WAIT)


def test_sigquit_while_a_job_holds_the_interpreter(bench: Bench, jobs: Any) -> None:
    worker = bench.worker()
    handle = jobs.holds.delay()
    bench.wait_for("start")
    worker.send(signal.SIGQUIT)
    wait_until(lambda: f"runs job {handle.id}" in worker.log, timeout=WAIT)
    assert "in c_code_that_holds_the_interpreter" in worker.log.split(f"runs job {handle.id}")[1]
    end(bench, handle)
