"""Isolated jobs: each runs in a process of its own, a copy of the template, that ends with it."""

import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from mouso.job import JobState
from tests.integration.harness import WAIT, Bench, Worker
from tests.integration.history import Line
from tests.integration.snippets import SOUND, still_sound
from tests.stalls import elapsed
from tests.support import wait_until

LATE = 2.0
"""Seconds after its limit within which any isolated job has ended, and its slot runs the next."""
SLACK = 1.0
"""Seconds that a busy machine may add."""

WHERE = """
IMPORTED = os.getpid()

@app.task(isolated=True)
def where() -> tuple[int, int, int]:
    return os.getpid(), os.getppid(), IMPORTED

@app.task(isolated=True)
async def where_coroutine() -> tuple[int, int, int]:
    return os.getpid(), os.getppid(), IMPORTED

@app.task(isolated=True)
def pause(seconds: float) -> int:
    note("start")
    time.sleep(seconds)
    note("end")
    return os.getpid()
"""


def template(worker: Worker) -> int:
    """The pid of the worker's template."""
    return wait_until(worker.templates, timeout=WAIT, message="there is a template")[0]


def overlap(lines: Sequence[Line]) -> int:
    """How many jobs ran at once at most, by their starts and ends."""
    running = most = 0
    for line in sorted(lines, key=lambda line: line.at):
        running += {"start": 1, "end": -1}.get(line.event, 0)
        most = max(most, running)
    return most


# -- where they run


@pytest.mark.parametrize("name", ["where", "where_coroutine"])
def test_each_run_is_a_fresh_copy_of_the_template(bench: Bench, name: str) -> None:
    jobs = bench.app(WHERE)
    worker = bench.worker(processes=1)
    (child,) = worker.children()
    found = [getattr(jobs, name).delay().get(timeout=WAIT) for _ in range(5)]
    assert {parent for _, parent, _ in found} == {template(worker)}
    assert {imported for *_, imported in found} == {template(worker)}, "a copy does not import the app again"
    pids = {pid for pid, *_ in found}
    assert len(pids) == 5
    assert child not in pids
    wait_until(lambda: worker.children() == [child], message="each copy ends after its job")


def test_a_worker_without_isolated_tasks_has_no_template(bench: Bench) -> None:
    jobs = bench.app(SOUND)
    worker = bench.worker()
    assert jobs.sound.delay(1).get(timeout=WAIT) == 1
    assert worker.templates() == []


def test_they_count_against_the_slots(bench: Bench) -> None:
    jobs = bench.app(WHERE + SOUND)
    bench.worker(processes=1, concurrency=2)
    handles = jobs.pause.map([(0.2,)] * 12)
    records = bench.wait_final(handles)
    assert {(r.state, r.attempts, r.crashes) for r in records} == {("completed", 0, 0)}
    assert len({line.job for line in bench.history("start")}) == len(bench.history("start")) == 12
    assert overlap(bench.history()) == 2
    still_sound(jobs)


def test_many_leave_nothing_behind(bench: Bench) -> None:
    jobs = bench.app(WHERE)
    worker = bench.worker(processes=1, concurrency=8)
    (child,) = worker.children()
    jobs.where.delay().get(timeout=WAIT)

    def files() -> int:
        return len(os.listdir(f"/proc/{worker.pid}/fd"))

    wait_until(lambda: worker.children() == [child], message="the first has ended")
    before = files()
    pids = [handle.get(timeout=60)[0] for handle in jobs.where.map([()] * 200)]
    assert len(set(pids)) == 200
    wait_until(lambda: worker.children() == [child], message="all have ended")
    wait_until(lambda: files() <= before, message="their descriptors are closed")
    assert len(os.listdir(f"/proc/{template(worker)}/fd")) < 20


# -- their end


STUBBORN = """
import ctypes, re

@app.task(isolated=True, timeout=0.5, attempts=1)
def sleeps() -> None:
    note("start")
    time.sleep(600)

@app.task(isolated=True, timeout=0.5, attempts=1)
def spins() -> None:
    note("start")
    while True:
        pass

@app.task(isolated=True, timeout=0.5, attempts=1)
def holds_the_interpreter() -> None:
    note("start")
    ctypes.PyDLL(None).sleep(600)

@app.task(isolated=True, timeout=0.5, attempts=1)
def receives() -> None:
    import socket
    ours, theirs = socket.socketpair()
    note("start")
    ours.recv(1)

@app.task(isolated=True, timeout=0.5, attempts=1)
def searches() -> None:
    note("start")
    re.match("(a|aa)+$", "a" * 100 + "b")

@app.task(isolated=True, timeout=0.5, attempts=1)
async def swallows() -> None:
    note("start")
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

@app.task(isolated=True, timeout=0.5, attempts=1)
async def blocks_the_loop() -> None:
    note("start")
    time.sleep(600)

@app.task(isolated=True)
def following() -> None:
    note("following")
"""


@pytest.mark.parametrize(
    "name", ["sleeps", "spins", "holds_the_interpreter", "receives", "searches", "swallows", "blocks_the_loop"]
)
def test_whatever_it_does_it_ends_and_the_slot_is_free(bench: Bench, name: str) -> None:
    jobs = bench.app(STUBBORN)
    bench.worker(processes=1, concurrency=1)
    handle = getattr(jobs, name).delay()
    limit = bench.wait_for("start")[0].at + 0.5
    following = jobs.following.delay()
    record = bench.wait_final([handle])[0]
    assert elapsed(limit) < LATE + SLACK
    assert (record.state, record.reason, record.attempts) == ("dead", "timeout", 1)
    assert "its timeout of 0.5 s and its process was killed" in record.errors[0].message
    bench.wait_final([following])
    assert limit < bench.history("following")[0].at < limit + LATE + SLACK


def test_one_that_looks_ends_by_itself_at_its_timeout(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task(isolated=True, timeout=0.3, attempts=1)
        def looks(ctx: Context) -> None:
            try:
                while True:
                    ctx.check()
                    time.sleep(0.01)
            finally:
                note("cleaned", "function")

        @app.task(isolated=True, timeout=0.3, attempts=1)
        async def awaits() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                note("cleaned", "coroutine")
        """
    )
    bench.worker()
    records = bench.wait_final([jobs.looks.delay(), jobs.awaits.delay()])
    assert {(r.state, r.reason) for r in records} == {("dead", "timeout")}
    assert {line.text for line in bench.history("cleaned")} == {"function", "coroutine"}
    assert not any("killed" in r.errors[0].message for r in records)


def test_a_timeout_is_an_attempt_like_any_other(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task(isolated=True, timeout=0.2, attempts=2, backoff=constant(0))
        def sleeps() -> None:
            note("start")
            time.sleep(600)
        """
    )
    bench.worker()
    record = bench.wait_final([jobs.sleeps.delay()])[0]
    assert (record.state, record.reason, record.attempts, record.crashes) == ("dead", "timeout", 2, 0)
    assert len({line.pid for line in bench.history("start")}) == 2


@pytest.mark.parametrize("name", ["sleeps", "holds_the_interpreter", "swallows"])
def test_a_cancelled_one_ends_whatever_it_does(bench: Bench, name: str) -> None:
    jobs = bench.app(STUBBORN.replace("timeout=0.5", "timeout=None"))
    bench.worker(processes=1, concurrency=1)
    running, waiting = getattr(jobs, name).delay(), jobs.following.delay()
    bench.wait_for("start")
    assert waiting.cancel() == "cancelled"
    following = jobs.following.delay()
    assert running.cancel() == "requested"
    assert [r.state for r in bench.wait_final([running, waiting])] == ["cancelled", "cancelled"]
    bench.wait_final([following])
    assert len(bench.history("following")) == 1


# -- limits


LIMITED = (
    WHERE
    + SOUND
    + """
@app.task(isolated=True, max_memory="150MiB", attempts=1)
def takes(mib: int) -> int:
    kept = b"x" * (mib << 20)
    note("has")
    for _ in range(40 if mib < 100 else 6000):
        time.sleep(0.01)
    return len(kept)

@app.task(isolated=True, max_memory="150MiB", attempts=2, backoff=constant(0))
def takes_once() -> str:
    if not Path("tried").exists():
        Path("tried").touch()
        kept = b"x" * (400 << 20)
        time.sleep(60)
    return "done"

@app.task(isolated=True, max_memory="150MiB", attempts=1)
def starts_programs(mib: int) -> int:
    grandchild = "import sys, time; kept = b'x' * (int(sys.argv[1]) << 20); open('program', 'a'); time.sleep(60)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}, '{mib}'])"
    command = [sys.executable, "-c", child]
    with subprocess.Popen(command) as process:
        while not Path("program").exists():
            time.sleep(0.01)
        time.sleep(1.0 if mib < 100 else 600)
        process.kill()
    return mib

@app.task(isolated=True, max_cpu=1, attempts=1)
def computes() -> None:
    note("start")
    threads = [threading.Thread(target=spin, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(600)

def spin() -> None:
    while True:
        pass

@app.task(isolated=True, max_cpu=1)
def waits() -> str:
    time.sleep(1.5)
    return "done"

@app.task(isolated=True, nice=7, io_priority="low")
def yields() -> dict[str, int]:
    return surroundings()

@app.task(isolated=True, io_priority="idle")
async def yields_coroutine() -> dict[str, int]:
    return surroundings()

@app.task(isolated=True)
def plain() -> dict[str, int]:
    return surroundings()

@app.task
def shared() -> dict[str, int]:
    return surroundings()

def surroundings() -> dict[str, int]:
    import ctypes, platform
    number = {"x86_64": 252, "aarch64": 31}[platform.machine()]
    return {
        "nice": os.nice(0),
        "io": ctypes.CDLL(None).syscall(number, 1, 0),
        "oom": int(Path("/proc/self/oom_score_adj").read_text()),
    }
"""
)


def test_memory(bench: Bench) -> None:
    jobs = bench.app(LIMITED)
    bench.worker(processes=1)
    much, little, once = jobs.takes.delay(400), jobs.takes.delay(10), jobs.takes_once.delay()
    records = bench.wait_final([much, little, once])
    assert [(r.state, r.reason) for r in records] == [("dead", "max_memory"), ("completed", ""), ("completed", "")]
    assert records[0].errors[0].type == "MemoryError"
    assert "its max_memory is 150 MiB" in records[0].errors[0].message
    assert (records[2].attempts, records[2].crashes) == (1, 0)
    still_sound(jobs)


def test_memory_of_programs(bench: Bench) -> None:
    """What a job has started counts, and what that has started; all of it ends with the job."""
    jobs = bench.app("import subprocess\n" + LIMITED)
    bench.worker(processes=1)
    [record] = bench.wait_final([jobs.starts_programs.delay(10)])
    assert (record.state, record.reason) == ("completed", "")
    (bench.folder / "program").unlink()
    [record] = bench.wait_final([jobs.starts_programs.delay(400)])
    assert (record.state, record.reason) == ("dead", "max_memory")
    assert re.match(r"the attempt and its programs had \d+ MiB resident", record.errors[0].message)
    still_sound(jobs)


def test_cpu(bench: Bench) -> None:
    jobs = bench.app(LIMITED)
    bench.worker(processes=1)
    computes, waits = jobs.computes.delay(), jobs.waits.delay()
    records = bench.wait_final([computes, waits])
    assert [(r.state, r.reason) for r in records] == [("dead", "max_cpu"), ("completed", "")]
    assert records[0].errors[0].type == "TimeoutError"
    assert "used more CPU than its max_cpu of 1 s" in records[0].errors[0].message
    assert 0.9 < (records[0].cpu_seconds or 0) < 3.0
    still_sound(jobs)


def test_priorities(bench: Bench) -> None:
    jobs = bench.app(LIMITED)
    worker = bench.worker(processes=1)
    shared = jobs.shared.delay().get(timeout=WAIT)
    own = int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text())
    assert shared["oom"] == max(own, 250), "the supervisor is the last to be killed"
    best_effort, idle = 2 << 13, 3 << 13
    assert jobs.yields.delay().get(timeout=WAIT) == {"nice": shared["nice"] + 7, "io": best_effort | 7, "oom": 500}
    assert jobs.yields_coroutine.delay().get(timeout=WAIT) == {"nice": shared["nice"], "io": idle, "oom": 500}
    assert jobs.plain.delay().get(timeout=WAIT) == {**shared, "oom": 500}
    assert jobs.shared.delay().get(timeout=WAIT) == shared


# -- deaths


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("os._exit(7)", "exit code 7"),
        ("os.kill(os.getpid(), 9)", "signal 9, SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", "signal 11, SIGSEGV"),
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_one_under_which_its_process_dies_is_poison_the_third_time(
    bench: Bench, how: str, words: str, kind: str
) -> None:
    jobs = bench.app(f"{WHERE}\n@app.task(isolated=True)\n{kind} dies():\n    note('dies')\n    {how}\n")
    worker = bench.worker(processes=1)
    worker.quiet = False
    (child,) = worker.children()
    beside = jobs.pause.delay(1.0)
    bench.wait_for("start")
    record = bench.wait_final([jobs.dies.delay()])[0]
    assert (record.state, record.reason, record.attempts, record.crashes) == ("dead", "poison", 0, 3)
    assert all(words in error.message for error in record.errors)
    assert len({line.pid for line in bench.history("dies")}) == len(bench.history("dies")) == 3
    record = bench.wait_final([beside])[0]
    assert (record.state, record.attempts, record.crashes, record.releases) == ("completed", 0, 0, 0)
    wait_until(lambda: worker.children() == [child], message="the copies have ended, and nobody else")


def test_the_template_is_killed_while_jobs_run(bench: Bench) -> None:
    jobs = bench.app(WHERE)
    worker = bench.worker(processes=1, concurrency=4)
    handles = jobs.pause.map([(0.7,)] * 3)
    bench.wait_for("start", 3)
    first = template(worker)
    os.kill(first, signal.SIGKILL)
    records = bench.wait_final(handles)
    assert {(r.state, r.attempts, r.crashes, r.releases) for r in records} == {("completed", 0, 0, 0)}
    assert len(bench.history("start")) == 3, "they went on"
    _, parent, imported = jobs.where.delay().get(timeout=WAIT)
    assert parent == imported == template(worker) != first
    assert "died" not in worker.log


def test_the_template_is_killed_again_and_again(bench: Bench) -> None:
    jobs = bench.app(WHERE)
    worker = bench.worker(processes=1, concurrency=4)
    handles = jobs.pause.map([(0.02,)] * 60)
    for count in (10, 20, 30, 40):
        bench.wait_for("end", count)
        for pid in worker.templates():
            os.kill(pid, signal.SIGKILL)
    records = bench.wait_final(handles)
    assert {(r.state, r.attempts, r.crashes) for r in records} == {("completed", 0, 0)}


def test_an_app_that_starts_a_thread_when_it_is_imported(bench: Bench) -> None:
    jobs = bench.app(LIMITED + "threading.Thread(target=time.sleep, args=(2 if __name__ == 'x' else 3,)).start()\n")
    worker = bench.worker(processes=1)
    pids = [jobs.where.delay().get(timeout=WAIT) for _ in range(3)]
    assert all(parent == worker.pid and imported == pid for pid, parent, imported in pids)
    assert len({pid for pid, *_ in pids}) == 3
    assert jobs.yields.delay().get(timeout=WAIT)["oom"] == 500
    record = bench.wait_final([jobs.computes.delay()])[0]
    assert (record.state, record.reason) == ("dead", "max_cpu")
    assert worker.log.count("which a copy would not have") == 1
    assert worker.templates() == []
    still_sound(jobs)


def test_a_killed_worker(bench: Bench) -> None:
    jobs = bench.app(WHERE)
    first = bench.worker(processes=1)
    handle = jobs.pause.delay(3.0)
    pid = bench.wait_for("start")[0].pid
    first.send(signal.SIGKILL)
    first.wait()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), timeout=5, message="the copy ends with its supervisor")
    wait_until(lambda: not first.survivors(), timeout=5, message="and so do the others")
    bench.worker(processes=1)
    bench.wait_for("start", 2)
    record = bench.wait_final([handle])[0]
    assert (record.state, record.attempts, record.crashes, record.releases) == ("completed", 0, 0, 1)


# -- the shutdown


@pytest.mark.parametrize("name", ["sleeps", "spins", "holds_the_interpreter", "swallows", "blocks_the_loop"])
def test_running_jobs_at_the_shutdown(bench: Bench, name: str) -> None:
    jobs = bench.app(STUBBORN.replace("timeout=0.5", "timeout=None"))
    worker = bench.worker("--grace", "0.5", processes=1, concurrency=2)
    handles = getattr(jobs, name).map([()] * 3)
    bench.wait_for("start", 2)
    at = time.monotonic()
    assert worker.stop() == 0
    assert elapsed(at) < 0.5 + 3.0 + SLACK
    records = bench.records([handle.id for handle in handles])
    assert {(r.state, r.attempts, r.crashes) for r in records} == {(JobState.AVAILABLE, 0, 0)}
    assert len(bench.history("start")) == 2, "nothing was started any more"
    assert not worker.survivors()


def test_one_that_ends_within_the_grace(bench: Bench) -> None:
    jobs = bench.app(WHERE)
    worker = bench.worker(processes=1)
    handle = jobs.pause.delay(0.7)
    bench.wait_for("start")
    assert worker.stop() == 0
    assert handle.state == "completed"


# -- what a job does there


AROUND = """
@app.lifespan
async def pool():
    if Path("closed").exists():
        note("refused")
        raise RuntimeError("there is no pool")
    note("entered")
    yield
    note("left")

@app.task(isolated=True)
def works(ctx: Context) -> dict[str, str]:
    note("works")
    ctx.progress(1, 2, "half")
    ctx.log.info("a line")
    return {"child": follows.delay(3).id, "text": "x" * 500_000}

@app.task
def follows(n: int) -> int:
    return n

@app.task(isolated=True)
def fails() -> None:
    raise Discard("no")

app.queues()  # a connection that the template has open
"""


def test_results_progress_logs_failures_and_jobs_of_its_own(bench: Bench) -> None:
    jobs = bench.app(AROUND)
    bench.worker(processes=1)
    handles = jobs.works.map([()] * 3)
    found = [handle.get(timeout=WAIT) for handle in handles]
    assert all(len(each["text"]) == 500_000 for each in found)
    assert [jobs.app.job(each["child"]).get(timeout=WAIT) for each in found] == [3, 3, 3]
    progress = handles[0].progress
    assert progress is not None
    assert (progress.done, progress.total, progress.message) == (1, 2, "half")
    record = bench.wait_final([jobs.fails.delay()])[0]
    assert (record.state, record.reason) == ("dead", "discarded")


def test_lifespans_are_around_the_job(bench: Bench) -> None:
    jobs = bench.app(AROUND)
    bench.worker(processes=1)
    bench.wait_final([jobs.works.delay()])
    work = bench.wait_for("works")[0]
    wait_until(lambda: any(line.pid == work.pid for line in bench.history("left")), message="the lifespan is left")
    assert [line.event for line in bench.history() if line.pid == work.pid] == ["entered", "works", "left"]


def test_copies_that_cannot_start_are_slowed_down(bench: Bench) -> None:
    jobs = bench.app(AROUND)
    worker = bench.worker(processes=1)
    worker.quiet = False
    (bench.folder / "closed").touch()
    handle = jobs.works.delay()
    bench.wait_for("refused", 5)
    began = bench.history("refused")[-1].at
    wait_until(lambda: time.monotonic() - began > 1.0, message="a second has passed")
    tries = [line.at - began for line in bench.history("refused")]
    assert sum(0 < at < 1.0 for at in tries) <= 3, f"they are started again without a pause: {tries}"
    assert "the lifespan 'pool' failed at its start" in worker.log
    (bench.folder / "closed").unlink()
    record = bench.wait_final([handle])[0]
    assert (record.state, record.attempts, record.crashes) == ("completed", 0, 0)
