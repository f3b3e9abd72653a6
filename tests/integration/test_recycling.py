"""Children are replaced between jobs: nothing is lost, charged or run twice, and somebody serves all the while."""

import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import WAIT, Bench, Worker
from tests.integration.snippets import SOUND
from tests.support import wait_until

SHORT = """
if "MOUSO_TEST_HISTORY" in os.environ:
    time.sleep(IMPORT)  # an app that takes its time
    note("imported")

@app.task
def short(n: int) -> int:
    note("start", str(n))
    time.sleep(0.005)
    return n

@app.task
async def short_coroutine(n: int) -> int:
    note("start", str(n))
    await asyncio.sleep(0.005)
    return n

@app.task
def long() -> int:
    note("long")
    while not Path("go").exists():
        time.sleep(0.01)
    return os.getpid()

@app.task
def leaks(n: int) -> int:
    note("start", str(n))
    if len(kept) < 40:
        kept.append(b"x" * (10 << 20))
    return n

kept = []
"""


def app(bench: Bench, seconds: float = 0.0, more: str = "") -> Any:
    """The app; its import takes so long in the worker."""
    return bench.app(SHORT.replace("IMPORT", str(seconds)) + more)


def all_ran_once(bench: Bench, handles: list[Any]) -> None:
    """Every job is completed, was started once, and was charged nothing."""
    records = bench.wait_final(handles, timeout=60)
    assert Counter((r.state, r.attempts, r.crashes) for r in records) == {("completed", 0, 0): len(handles)}
    starts = Counter(line.job for line in bench.history("start"))
    assert starts == Counter({handle.id: 1 for handle in handles})


def runs_by_child(bench: Bench) -> Counter[int]:
    return Counter(line.pid for line in bench.history("start"))


def replaced(worker: Worker) -> int:
    return len(re.findall(r"child \d+ is replaced", worker.log))


def feed(bench: Bench, jobs: Any, enough: Callable[[], object], *, batch: int = 40) -> list[Any]:
    """Gives a worker short jobs of both kinds, without a pause, until it is enough; returns all of them."""
    handles: list[Any] = []
    waiting: list[Any] = []
    while not enough():
        more = jobs.short.map([(n,) for n in range(batch)]) + jobs.short_coroutine.map([(n,) for n in range(batch)])
        handles += more
        assert len(handles) < 50_000, "it is never enough"
        bench.wait_final(waiting)
        waiting = more
    return handles


@pytest.mark.parametrize("preload", [(), ("--preload",)])
def test_after_so_many_jobs(bench: Bench, preload: tuple[str, ...]) -> None:
    jobs = app(bench, more=SOUND)
    worker = bench.worker("--max-jobs-per-child", "20", *preload, processes=2, concurrency=2)
    handles = feed(bench, jobs, lambda: replaced(worker) >= 5)
    all_ran_once(bench, handles)
    runs = runs_by_child(bench)
    assert len(runs) > 4
    wait_until(lambda: len(worker.children()) == 2, message="the old ones have ended")
    assert set(runs) - set(worker.children()), "children are not only added"
    for pid in set(runs) - set(worker.children()):
        assert runs[pid] >= 20, "no child is replaced too soon"
    assert "died" not in worker.log
    assert jobs.sound.delay(1).get(timeout=WAIT) == 1


def test_somebody_serves_while_the_successor_starts(bench: Bench) -> None:
    jobs = app(bench, seconds=0.5)
    worker = bench.worker("--max-jobs-per-child", "30", processes=1, concurrency=2)
    handles = feed(bench, jobs, lambda: replaced(worker) >= 4)
    all_ran_once(bench, handles)
    starts = bench.history("start")
    born = {line.pid: line.at for line in bench.history("imported")}
    first = {line.pid: line.at for line in reversed(starts)}
    successors = [pid for pid in first if pid != starts[0].pid]
    assert len(successors) >= 2
    for pid in successors:
        meanwhile = [line for line in starts if born[pid] - 0.5 < line.at < born[pid]]
        assert meanwhile, f"nothing was started while {pid} was imported"


def test_a_long_job_ends_in_the_old_child(bench: Bench) -> None:
    jobs = app(bench)
    worker = bench.worker("--max-jobs-per-child", "3", processes=1, concurrency=2)
    long = jobs.long.delay()
    old = bench.wait_for("long")[0].pid
    handles = feed(bench, jobs, lambda: replaced(worker) >= 3)
    all_ran_once(bench, handles)
    assert len(set(runs_by_child(bench)) - {old}) >= 2
    assert old in worker.children()
    (bench.folder / "go").touch()
    assert long.get(timeout=WAIT) == old
    assert len(bench.history("long")) == 1
    record = long.record
    assert (record.attempts, record.crashes, record.releases) == (0, 0, 0)
    wait_until(lambda: old not in worker.children(), message="the old child has ended")
    assert "died" not in worker.log


def test_at_so_much_memory(bench: Bench) -> None:
    jobs = app(bench)
    worker = bench.worker("--max-memory-per-child", "150MB", processes=1, concurrency=1)
    handles: list[Any] = []

    def grown_twice() -> bool:  # one job at each look: the memory is watched, and a successor takes its time
        handles.append(jobs.leaks.delay(len(handles)))
        handles[-1].get(timeout=WAIT)
        return replaced(worker) >= 2

    wait_until(grown_twice, timeout=WAIT, interval=0.05, message="no child grew for long")
    all_ran_once(bench, handles)
    assert "it has more than 150 MiB resident" in worker.log
    wait_until(lambda: len(worker.children()) == 1, message="the old ones have ended")


def test_a_threshold_below_what_a_fresh_child_has_does_not_spin(bench: Bench) -> None:
    jobs = app(bench)
    worker = bench.worker("--max-memory-per-child", "16MB", processes=1, concurrency=1)
    handles = []
    for n in range(3):
        handles.append(jobs.short.delay(n))
        handles[-1].get(timeout=WAIT)
        wait_until(lambda n=n: replaced(worker) > n, timeout=WAIT, message="a child that has run a job is replaced")  # type: ignore[misc]  # why: binds the loop variable
        wait_until(lambda n=n: len(bench.history("imported")) == n + 2, timeout=WAIT, message="its successor is there")  # type: ignore[misc]  # why: binds the loop variable
        wait_until(lambda: len(worker.children()) == 1, timeout=WAIT, message="it has ended")
    all_ran_once(bench, handles)
    assert len(bench.history("imported")) == replaced(worker) + 1 == 4


def test_copies_of_a_preloaded_app_share_its_memory(bench: Bench) -> None:
    app(bench, more="table = {str(n): [n, str(-n)] for n in range(300_000)}\n")

    def unshared(*arguments: str) -> int:
        worker = bench.worker(*arguments, processes=3)
        total = sum(proportional(pid) for pid in worker.children())
        assert worker.stop() == 0
        return total

    assert unshared("--preload") < 0.6 * unshared()


def proportional(pid: int) -> int:
    """KiB that a process has resident, what it shares divided among those that share it."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def test_a_hundred_times_while_jobs_run(bench: Bench) -> None:
    jobs = app(bench)
    worker = bench.worker("--max-jobs-per-child", "1", "--preload", processes=2, concurrency=4)
    files = len(os.listdir(f"/proc/{worker.pid}/fd"))
    handles = feed(bench, jobs, lambda: replaced(worker) >= 100)
    all_ran_once(bench, handles)
    wait_until(lambda: len(worker.children()) == 2, message="the old ones have ended")
    wait_until(lambda: len(os.listdir(f"/proc/{worker.pid}/fd")) <= files + 2, message="nothing of them is left")
    assert "died" not in worker.log


def test_a_shutdown_amid_it(bench: Bench) -> None:
    jobs = app(bench, seconds=0.3)
    worker = bench.worker("--max-jobs-per-child", "1", processes=2, concurrency=2)
    handles = jobs.short.map([(n,) for n in range(3000)])
    bench.wait_for("start", 50)
    wait_until(lambda: replaced(worker) >= 1, timeout=WAIT, message="a child is being replaced")
    assert worker.stop(signal.SIGTERM) == 0
    counts = Counter((r.state, r.attempts, r.crashes) for r in bench.records([h.id for h in handles]))
    assert set(counts) <= {("completed", 0, 0), ("available", 0, 0)}
    assert "ERROR" not in worker.log


@pytest.mark.parametrize("seconds", [0.5, 60])
def test_a_shutdown_while_a_successor_starts_is_no_failure_of_it(bench: Bench, seconds: float) -> None:
    """It ends as soon as it has imported the app, or is killed while it does."""
    jobs = app(
        bench,
        more=f"""
if Path("successors").exists():
    note("imports")
    time.sleep({seconds})
""",
    )
    worker = bench.worker("--max-jobs-per-child", "1", processes=1)
    (bench.folder / "successors").touch()
    assert jobs.short.delay(1).get(timeout=WAIT) == 1
    bench.wait_for("imports")
    assert worker.stop() == 0
    assert "ERROR" not in worker.log


def test_a_successor_that_cannot_start_replaces_nobody(bench: Bench) -> None:
    jobs = app(bench)
    worker = bench.worker("--max-jobs-per-child", "5", processes=1, concurrency=1)
    (old,) = worker.children()
    good = (bench.folder / "jobs.py").read_text()
    bench.write("import nothing_of_this_name", header=False)
    handles = []
    for n in range(20):
        handles.append(jobs.short.delay(n))
        assert handles[-1].get(timeout=WAIT) == n
    wait_until(lambda: "its successor cannot start: cannot import" in worker.log, timeout=WAIT, message="it is told")
    assert set(runs_by_child(bench)) == {old}
    (bench.folder / "jobs.py").write_text(good)

    def other() -> bool:
        handles.append(jobs.short.delay(0))
        handles[-1].get(timeout=WAIT)
        return worker.children() != [old] and old not in worker.children()

    wait_until(other, timeout=WAIT, message="it is replaced as soon as that is possible")
    all_ran_once(bench, handles)


@pytest.mark.parametrize("preload", [(), ("--preload",)])
def test_a_worker_that_still_imports_its_app_ends_when_it_is_told_to(bench: Bench, preload: tuple[str, ...]) -> None:
    app(bench, more='if "MOUSO_TEST_HISTORY" in os.environ:\n    time.sleep(600)\n')
    worker = bench.start(*preload)
    bench.wait_for("imported")
    assert worker.stop() == 0
    assert not worker.survivors()
