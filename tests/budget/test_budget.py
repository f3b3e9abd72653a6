"""How far one job travels, and what an import costs: numbers that can only go up if nobody looks.

Counted are the functions and files of Mouso itself that one job touches in each process, when everything is warm.
"""

import json
import os
import shutil
import signal
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
IMPORT = "from mouso import Mouso"
APP = """
from mouso import Mouso

app = Mouso("shop", broker="sqlite:///shop.db")

@app.task(queue="mail", attempts=8, timeout="30s")
def add(x: int, y: int) -> int:
    return x + y
"""
"""What an application does at its start. `import mouso` alone would load nothing: its names are found on demand."""
COMPARED = "import asyncio, http.client"
MOST = 2.0
"""Times as long as that."""
STARTS = ("socket.", "sqlite3.", "subprocess.", "os.fork", "os.posix_spawn")
"""Audit events of what nobody wants at an import, beside threads."""
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


@pytest.mark.parametrize("program", [IMPORT, APP], ids=["import", "app"])
def test_import_time(tmp_path: Path, program: str) -> None:
    """CPU time of a process alone, as a multiple of what others take: on a slow machine both are slow."""
    timed = "import time; began = time.process_time()\n{}\nprint(time.process_time() - began)"
    programs = [timed.format(text) for text in (program, COMPARED)]
    rounds = [[float(run(text, tmp_path, cache=True)) for text in programs] for _ in range(12)][1:]
    ours, theirs = (min(seconds) for seconds in zip(*rounds, strict=True))
    assert ours <= MOST * theirs, f"{ours:.3f} s, {ours / theirs:.1f} times {theirs:.3f} s"


@pytest.mark.parametrize("program", [IMPORT, APP], ids=["import", "app"])
def test_import_pulls_in_msgspec_and_the_standard_library_only(tmp_path: Path, program: str) -> None:
    listed = f"import sys, msgspec; before = set(sys.modules)\n{program}\nprint(*set(sys.modules) - before)"
    modules = set(run(listed, tmp_path).split())
    assert "mouso.task" in modules
    assert {name.partition(".")[0] for name in modules} - sys.stdlib_module_names == {"mouso"}


@pytest.mark.parametrize("program", [IMPORT, APP], ids=["import", "app"])
def test_import_opens_and_starts_nothing(tmp_path: Path, program: str) -> None:
    counted = f"""
import os, sys, threading
print(len(os.listdir("/proc/self/fd")))
threading.Thread.start = lambda thread: print("a-thread")
sys.addaudithook(lambda event, _: print(event) if event.startswith({STARTS}) else None)
{program}
print(len(os.listdir("/proc/self/fd")))
"""
    before, *started, after = run(counted, tmp_path).split()
    assert started == []
    assert after == before
    assert not list(tmp_path.iterdir())


def run(program: str, folder: Path, *, cache: bool = False) -> str:
    """What a fresh interpreter prints; with a cache it compiles nothing twice, as for an installed package."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    if cache:
        env["PYTHONPYCACHEPREFIX"] = str(folder)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env, cwd=folder)
    return done.stdout
