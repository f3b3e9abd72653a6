"""The app's code is edited while its worker runs with ``--reload``: real files, real workers."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import WAIT, Bench, Worker
from tests.stalls import elapsed
from tests.support import wait_until

BODY = """
VERSION = 1

@app.task
def version() -> int:
    return VERSION

@app.task
def long() -> int:
    note("long")
    while not Path("go").exists():
        time.sleep(0.01)
    return VERSION

@app.task
async def long_coroutine() -> int:
    note("long")
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    return VERSION
"""
ALONE = """
@app.task(isolated=True)
def alone() -> int:
    return VERSION

@app.task(isolated=True)
def long_alone() -> int:
    note("long")
    while not Path("go").exists():
        time.sleep(0.01)
    return VERSION
"""
RUNS = "the new version runs"

WITHOUT_WATCHFILES = """
import sys
sys.modules["watchfiles"] = None
from mouso.worker import WorkerOptions, run
sys.exit(run(WorkerOptions(app="jobs:app", processes=1, concurrency=4, reload=True)))
"""


def edit(bench: Bench, old: str, new: str, name: str = "jobs.py") -> None:
    """Writes a new version of a file, as an editor does: beside it first, then in its place."""
    path = bench.folder / name
    text = path.read_text()
    assert old in text
    beside = path.with_suffix(".new")
    beside.write_text(text.replace(old, new))
    beside.replace(path)


def edited(bench: Bench, worker: Worker, old: str, new: str) -> None:
    """Writes a new version and waits until it runs."""
    before = worker.log.count(RUNS)
    edit(bench, old, new)
    wait_until(lambda: worker.log.count(RUNS) > before, timeout=WAIT, message=f"the new version runs: {worker.log}")


def wait_version(jobs: Any, number: int) -> None:
    """Waits until jobs run this version."""
    wait_until(lambda: jobs.version.delay().get(timeout=WAIT) == number, timeout=WAIT, message=f"version {number} runs")


def tasks(bench: Bench) -> Sequence[str]:
    """What the worker says it can run."""
    (info,) = bench.producer.workers()
    return info.tasks


@pytest.fixture(params=["watchfiles", "looking"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def reloading(bench: Bench, how: str = "watchfiles", *arguments: str) -> Worker:
    """A worker that reloads."""
    if how == "watchfiles":
        worker = bench.worker("--reload", *arguments)
        words = "with watchfiles"
    else:
        worker = bench.program(WITHOUT_WATCHFILES)
        bench.wait_ready(worker)
        words = "by looking twice a second"
    wait_until(lambda: words in worker.log, message=f"the files are watched {words}")
    return worker


def test_the_next_job_runs_the_new_version(bench: Bench, how: str) -> None:
    jobs = bench.app(BODY)
    worker = reloading(bench, how)
    assert jobs.version.delay().get(timeout=WAIT) == 1
    for n in range(2, 6):  # of the same length, and often in the same second
        edited(bench, worker, f"VERSION = {n - 1}", f"VERSION = {n}")
        assert jobs.version.delay().get(timeout=WAIT) == n
    wait_until(lambda: len(worker.children()) == 1, message="the old ones have ended")
    assert "died" not in worker.log


def test_a_text_of_the_same_length_in_the_same_second(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python itself takes what it has compiled of the old text for that of the new one."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    jobs = bench.app(BODY)
    worker = reloading(bench)
    second = (time.time_ns() // 10**9 - 100) * 10**9
    for n in range(1, 4):
        edit(bench, f"VERSION = {n}", f"VERSION = {n + 1}")
        os.utime(bench.folder / "jobs.py", ns=(second, second + n))
        wait_version(jobs, n + 1)
    assert worker.alive


def test_what_runs_ends_undisturbed(bench: Bench) -> None:
    jobs = bench.app(BODY)
    worker = reloading(bench)
    (old,) = worker.children()
    long = [jobs.long.delay(), jobs.long_coroutine.delay()]
    bench.wait_for("long", 2)
    edited(bench, worker, "VERSION = 1", "VERSION = 2")
    assert jobs.version.delay().get(timeout=WAIT) == 2
    assert old in worker.children()
    (bench.folder / "go").touch()
    assert [handle.get(timeout=WAIT) for handle in long] == [1, 1]
    assert {(r.attempts, r.crashes, r.releases) for r in bench.wait_final(long)} == {(0, 0, 0)}
    assert len(bench.history("long")) == 2
    wait_until(lambda: old not in worker.children(), message="the old one has ended")


def test_jobs_flow_while_it_reloads(bench: Bench) -> None:
    jobs = bench.app(
        BODY.replace("VERSION = 1\n", 'VERSION = 1\nif "MOUSO_TEST_HISTORY" in os.environ: time.sleep(0.3)\n')
    )
    worker = reloading(bench, "watchfiles", "--max-jobs-per-child", "1000000")
    handles: list[Any] = []
    for n in range(1, 4):
        before = worker.log.count(RUNS)
        edit(bench, f"VERSION = {n}", f"VERSION = {n + 1}")
        while worker.log.count(RUNS) == before:
            more = jobs.version.map([()] * 20)
            bench.wait_final(more)
            handles += more
    records = bench.wait_final(handles)
    assert {(r.state, r.attempts, r.crashes) for r in records} == {("completed", 0, 0)}
    found = [handle.get() for handle in handles]
    assert found == sorted(found), "the versions follow each other"
    assert jobs.version.delay().get(timeout=WAIT) == 4


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("VERSION = = 2", "cannot import 'jobs': jobs.py, line "),
        ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
        ("raise RuntimeError('not yet')", "RuntimeError: not yet"),
        ("os._exit(5)", "exit code 5"),
        ("os.kill(os.getpid(), 11)", "signal 11, SIGSEGV"),
        ("del app", "has no attribute 'app'"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--preload",)])
def test_a_broken_version_is_one_line_and_the_old_one_goes_on(
    bench: Bench, broken: str, words: str, options: tuple[str, ...]
) -> None:
    jobs = bench.app(BODY + "\n# here\n")
    worker = reloading(bench, "watchfiles", *options)
    children = worker.children()
    before = len(worker.log.splitlines())
    guard = 'if "MOUSO_TEST_HISTORY" in os.environ: '
    broken = broken if broken.startswith("VERSION") else guard + broken
    edit(bench, "# here", broken)
    told = "the new version cannot start, the old one goes on: "
    wait_until(lambda: told in worker.log, timeout=WAIT, message="it is told")
    lines = [line for line in worker.log.splitlines()[before:] if "INFO" not in line]
    assert len(lines) == 1, lines
    assert words in lines[0]
    assert jobs.version.delay().get(timeout=WAIT) == 1
    assert worker.children() == children
    edited(bench, worker, broken, "VERSION = 2")
    assert jobs.version.delay().get(timeout=WAIT) == 2
    assert len([line for line in worker.log.splitlines()[before:] if "INFO" not in line]) == 1


def test_a_version_that_hangs_gives_way_to_the_next(bench: Bench) -> None:
    jobs = bench.app(BODY)
    worker = reloading(bench)
    edit(bench, "VERSION = 1", "VERSION = 2\nif 'MOUSO_TEST_HISTORY' in os.environ: note('hangs'); time.sleep(600)\n")
    bench.wait_for("hangs")
    assert jobs.version.delay().get(timeout=WAIT) == 1
    edit(bench, "time.sleep(600)", "pass")
    wait_version(jobs, 2)
    assert "cannot start" not in worker.log
    wait_until(lambda: len(worker.children()) == 1, message="the one that hung is gone")


def test_the_shutdown_while_a_version_hangs(bench: Bench) -> None:
    bench.app(BODY)
    worker = reloading(bench)
    edit(bench, "VERSION = 1", "VERSION = 2\nif 'MOUSO_TEST_HISTORY' in os.environ: note('hangs'); time.sleep(600)\n")
    bench.wait_for("hangs")
    at = time.monotonic()
    assert worker.stop(signal.SIGINT) == 0
    assert elapsed(at) < 10
    assert "cannot start" not in worker.log


def test_tasks_come_and_go(bench: Bench) -> None:
    jobs = bench.app(BODY)
    worker = reloading(bench)
    new = "\n@app.task\ndef fresh(n: int) -> int:\n    return n + VERSION\n"
    stand_in = jobs.app.task(name="jobs.fresh")(lambda n: n)
    parked = stand_in.delay(1)
    wait_until(lambda: parked.refresh().record.parked, timeout=WAIT, message="no worker knows it: it is parked")
    assert "jobs.fresh" not in tasks(bench)

    edited(bench, worker, "VERSION = 1\n", f"VERSION = 2\n{new}")
    wait_until(lambda: "jobs.fresh" in tasks(bench), timeout=WAIT, message="the store knows the new task")
    assert parked.get(timeout=WAIT) == 3
    assert stand_in.delay(5).get(timeout=WAIT) == 7

    edited(bench, worker, new, "")
    wait_until(lambda: "jobs.fresh" not in tasks(bench), timeout=WAIT, message="the store knows that it is gone")
    again = stand_in.delay(6)
    wait_until(lambda: again.refresh().record.parked, timeout=WAIT, message="it is parked again")
    said = "no worker knows the task 'jobs.fresh'"
    wait_until(lambda: worker.log.count(said) == 2, timeout=WAIT, message="it was told each time")
    assert jobs.version.delay().get(timeout=WAIT) == 2
    assert (again.record.attempts, again.record.crashes) == (0, 0)


def test_a_task_goes_while_its_jobs_are_on_their_way(bench: Bench) -> None:
    jobs = bench.app(BODY)
    worker = bench.worker("--reload", processes=2, concurrency=2)
    handles = jobs.version.map([()] * 10_000)
    bench.wait_state(handles[20], "completed")
    edited(bench, worker, "@app.task\ndef version", "def version")
    wait_until(lambda: "jobs.version" not in tasks(bench), timeout=WAIT, message="the store knows that it is gone")
    edited(bench, worker, "def version", "@app.task\ndef version")
    records = bench.wait_final(handles, timeout=60)
    assert {(r.state, r.attempts, r.crashes) for r in records} == {("completed", 0, 0)}


def test_a_task_goes_while_one_of_its_jobs_must_be_killed(bench: Bench) -> None:
    task = """
@app.task(isolated=True, timeout=4, attempts=3, backoff=constant(0))
def stubborn() -> int:
    note("start")
    time.sleep(600)
    return 0
"""
    jobs = bench.app(BODY + task)
    worker = reloading(bench)
    handle = jobs.stubborn.delay()
    bench.wait_for("start")
    edited(bench, worker, task, "")
    wait_until(lambda: handle.refresh().record.attempts == 1, timeout=WAIT, message="its timeout is over")
    wait_until(lambda: handle.refresh().record.parked, timeout=WAIT, message="it waits for its task")
    edited(
        bench,
        worker,
        "VERSION = 1",
        "VERSION = 2\n" + task.replace("    time.sleep(600)\n    return 0", "    return VERSION"),
    )
    assert handle.get(timeout=WAIT) == 2
    assert len(bench.history("start")) == 2


def test_handlers_come_and_go(bench: Bench) -> None:
    jobs = bench.app(BODY)
    worker = reloading(bench)
    assert jobs.version.delay().get(timeout=WAIT) == 1
    handler = """
@app.on("job.completed")
def heard(event):
    note("heard", event.job_id)
"""
    edited(bench, worker, "VERSION = 1\n", f"VERSION = 2\n{handler}")
    handle = jobs.version.delay()
    assert handle.get(timeout=WAIT) == 2
    wait_until(lambda: [line.text for line in bench.history("heard")] == [handle.id], message="the handler is told")
    edited(bench, worker, handler, "")
    assert jobs.version.delay().get(timeout=WAIT) == 2
    assert worker.stop() == 0
    assert len(bench.history("heard")) == 1


def test_another_broker_needs_another_worker(bench: Bench) -> None:
    jobs = bench.app(BODY)
    worker = reloading(bench)
    edited(bench, worker, "jobs.db", "other.db")
    edited(bench, worker, "VERSION = 1", "VERSION = 2")
    assert worker.log.count("the app names another broker now; the worker keeps the one it has") == 1
    assert jobs.version.delay().get(timeout=WAIT) == 2


def test_limits_of_isolated_tasks(bench: Bench) -> None:
    jobs = bench.app(BODY + ALONE)
    worker = reloading(bench)
    assert jobs.alone.delay().get(timeout=WAIT) == 1
    long, killed = jobs.long_alone.delay(), jobs.long_alone.delay()
    pids = {line.job: line.pid for line in bench.wait_for("long", 2)}
    (template,) = worker.templates()
    edited(bench, worker, "VERSION = 1", "VERSION = 2\nfrom mouso.isolation import Limits")
    assert jobs.alone.delay().get(timeout=WAIT) == 2
    os.kill(pids[killed.id], signal.SIGKILL)
    bench.wait_for("long", 3)
    assert "signal 9, SIGKILL" in killed.refresh().record.errors[0].message
    (bench.folder / "go").touch()
    assert killed.get(timeout=WAIT) == 2
    assert long.get(timeout=WAIT) == 1
    wait_until(
        lambda: len(worker.templates()) == 1 and template not in worker.templates(), message="one template is left"
    )

    edited(bench, worker, "@app.task(isolated=True)\ndef alone() -> int:\n    return VERSION",
           "@app.task(isolated=True, nice=9)\ndef alone() -> int:\n    return os.nice(0)")  # fmt: skip
    assert jobs.alone.delay().get(timeout=WAIT) == os.nice(0) + 9
    edited(bench, worker, "@app.task(isolated=True, nice=9)", "@app.task")
    assert jobs.alone.delay().get(timeout=WAIT) == os.nice(0)
    edited(bench, worker, "@app.task\ndef alone", "@app.task(isolated=True, nice=4)\ndef alone")
    assert jobs.alone.delay().get(timeout=WAIT) == os.nice(0) + 4
    assert worker.log.count("died") == 1


def test_isolated_jobs_go_on_with_the_old_version_of_a_broken_app(bench: Bench) -> None:
    jobs = bench.app(BODY + ALONE)
    worker = reloading(bench)
    assert jobs.alone.delay().get(timeout=WAIT) == 1
    edit(bench, "VERSION = 1", "VERSION = = 2")
    wait_until(lambda: "cannot start, the old one goes on" in worker.log, timeout=WAIT, message="it is told")
    assert [handle.get(timeout=WAIT) for handle in jobs.alone.map([()] * 3)] == [1, 1, 1]
    edit(bench, "VERSION = = 2", "VERSION = 3")
    wait_until(lambda: jobs.alone.delay().get(timeout=WAIT) == 3, timeout=WAIT, message="the next one runs")


def test_a_lifespan_that_fails_in_the_new_version(bench: Bench) -> None:
    jobs = bench.app(BODY + ALONE + "\n@app.lifespan\nasync def pool():\n    yield\n")
    worker = reloading(bench)
    assert jobs.alone.delay().get(timeout=WAIT) == 1
    edit(bench, "async def pool():", "async def pool():\n    raise RuntimeError('no pool')")
    wait_until(lambda: "the lifespan 'pool' failed at its start" in worker.log, timeout=WAIT, message="it is told")
    assert jobs.version.delay().get(timeout=WAIT) == 1
    assert jobs.alone.delay().get(timeout=WAIT) == 1
    edited(bench, worker, "\n    raise RuntimeError('no pool')", "")
    assert jobs.alone.delay().get(timeout=WAIT) == 1


def test_other_modules_and_other_files(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(bench.folder)
    (bench.folder / "parts").mkdir()
    (bench.folder / "parts" / "numbers.py").write_text("NUMBER = 1\n")
    jobs = bench.app(BODY + "\nfrom parts.numbers import NUMBER as VERSION\n")
    worker = reloading(bench)
    assert jobs.version.delay().get(timeout=WAIT) == 1
    for name in ("notes.txt", "parts/data.json", ".hidden.py"):
        (bench.folder / name).write_text("x")
    (bench.folder / ".git").mkdir()
    (bench.folder / ".git" / "hook.py").write_text("x")
    before = worker.log.count(RUNS)
    edit(bench, "NUMBER = 1", "NUMBER = 2", "parts/numbers.py")
    wait_until(lambda: worker.log.count(RUNS) > before, timeout=WAIT, message="it is reloaded")
    assert jobs.version.delay().get(timeout=WAIT) == 2
    assert worker.log.count("reload: numbers.py changed") == worker.log.count(" changed\n") == 1


def test_a_child_that_dies_meanwhile(bench: Bench) -> None:
    jobs = bench.app(BODY)
    worker = reloading(bench)
    edit(bench, "VERSION = 1", "VERSION = = 2")
    wait_until(lambda: "cannot start" in worker.log, timeout=WAIT, message="it is told")
    (child,) = worker.children()
    os.kill(child, signal.SIGKILL)  # nobody can work now
    wait_until(lambda: f"child {child} died" in worker.log, timeout=WAIT, message="the child's death is noticed")
    handle = jobs.version.delay()
    wait_until(lambda: "it is tried again and again" in worker.log, timeout=WAIT, message="its successor cannot start")
    edit(bench, "VERSION = = 2", "VERSION = 3")
    assert handle.get(timeout=WAIT) == 3
    wait_until(lambda: len(worker.children()) == 1, message="there is one child")
    assert Path(bench.folder / "jobs.db").exists()
