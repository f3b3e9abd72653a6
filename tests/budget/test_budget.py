"""How far one job travels, and what an import costs: numbers that can only go up if nobody looks.

Counted are the functions and files of Mouso itself that one job touches in each process, when everything is warm.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.budget import recorder
from tests.integration.harness import WAIT, Bench, Worker
from tests.support import wait_until

ENQUEUE = (18, 10)
EXECUTE = {"supervisor": (32, 10), "child": (32, 7)}
"""Functions and files; why the files are so many is in docs/design/0005-small-files.md."""
IMPORT = 0.060
"""Seconds of CPU."""
ROUNDS = 12

JOBS = """
@app.task
def add(x: int, y: int) -> int:
    return x + y

@app.task
async def add_too(x: int, y: int) -> int:
    return x + y
"""

Calls = set[tuple[str, str]]


def test_enqueue(bench: Bench) -> None:
    jobs = bench.app(JOBS)
    jobs.add.delay(1, 2)
    recording = recorder.Recorder()
    sys.setprofile(recording.profile)
    try:
        jobs.add.delay(3, 4)
    finally:
        sys.setprofile(None)
    check(recording.calls(), ENQUEUE, "delay()")


@pytest.mark.parametrize("process", ["supervisor", "child"])
@pytest.mark.parametrize("task", ["add", "add_too"])
def test_execute(bench: Bench, task: str, process: str) -> None:
    jobs = bench.app(JOBS)
    shutil.copy(recorder.__file__, bench.folder / "sitecustomize.py")
    worker = bench.start("-p", "1", "-c", "4", MOUSO_TEST_CALLS=str(bench.folder / "calls"))
    bench.wait_ready(worker)
    pid = worker.pid if process == "supervisor" else worker.children()[0]
    call = getattr(jobs, task)
    assert [call.delay(n, 1).get(timeout=WAIT) for n in range(3)] == [1, 2, 3]
    rounds: list[Calls] = []
    for n in range(ROUNDS):
        begin(bench, pid)
        bench.wait_state(call.delay(n, 1), "completed")
        rounds.append(end(bench, pid))
    # The smallest: what runs now and then, such as a heartbeat, is no part of the job's way.
    check(min(rounds, key=len), EXECUTE[process], f"{process}, {task}")
    stop(worker)


def begin(bench: Bench, pid: int) -> None:
    """Lets a process begin to record."""
    begun, calls = bench.folder / f"calls-{pid}-begun", bench.folder / f"calls-{pid}"
    begun.unlink(missing_ok=True)
    calls.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    wait_until(begun.exists, interval=0.002)


def end(bench: Bench, pid: int) -> Calls:
    """What a process has called since."""
    calls = bench.folder / f"calls-{pid}"
    os.kill(pid, signal.SIGUSR2)
    wait_until(calls.exists, interval=0.002)
    return {(file, function) for file, function in json.loads(calls.read_text())}


def stop(worker: Worker) -> None:
    assert worker.stop() == 0, worker.log


def check(calls: Calls, most: tuple[int, int], what: str) -> None:
    files = {file for file, _ in calls}
    listed = "\n  ".join(f"{file}: {function}" for file, function in sorted(calls))
    found = (len(calls), len(files))
    assert calls, "nothing was recorded"
    assert found[0] <= most[0], f"{what}: {found[0]} functions, at most {most[0]}:\n  {listed}"
    assert found[1] <= most[1], f"{what}: {found[1]} files, at most {most[1]}:\n  {listed}"


def test_import_time(tmp_path: Path) -> None:
    """CPU time of this process alone: a busy machine makes it late, not busier."""
    program = "import time; began = time.process_time(); import mouso; print(time.process_time() - began)"
    seconds = [float(run(program, tmp_path)) for _ in range(12)][1:]
    assert statistics.median(seconds) <= IMPORT, f"{min(seconds):.3f} to {max(seconds):.3f} s"


def test_import_pulls_in_msgspec_and_the_standard_library_only() -> None:
    program = "import sys, msgspec; before = set(sys.modules); import mouso; print(*sorted(set(sys.modules) - before))"
    names = {name.partition(".")[0] for name in run(program).split()}
    assert names - sys.stdlib_module_names == {"mouso"}


def test_import_opens_nothing() -> None:
    program = (
        "import os, threading; before = os.listdir('/proc/self/fd'); import mouso; "
        "print(len(os.listdir('/proc/self/fd')) - len(before), threading.active_count())"
    )
    assert run(program).split() == ["0", "1"]


def run(program: str, cache: Path | None = None) -> str:
    """What a fresh interpreter prints; with a cache it compiles nothing twice, as for an installed package."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    if cache is not None:
        env["PYTHONPYCACHEPREFIX"] = str(cache)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env)
    return done.stdout
