"""Children are killed under load: nothing is lost, nothing completes twice, and no bystander is charged."""

import os
import random
import signal
import time
from collections import defaultdict

import pytest

from mouso.job import JobState
from tests.integration.harness import WAIT, Bench, kill_one
from tests.integration.history import Line
from tests.integration.snippets import PAUSES
from tests.stalls import elapsed
from tests.support import crowd, wait_until

pytestmark = pytest.mark.every_broker

JOBS = 2000
RECOVERY = 1.0
SLACK = 1.0
"""Seconds that a busy machine may add to what the design promises."""
HOLD = """
@app.task
def hold(n: int) -> int:
    note("start", str(n))
    while not Path("go").exists():
        time.sleep(0.01)
    return n
"""


def test_random_children_killed_under_load(bench: Bench) -> None:
    jobs = bench.app(PAUSES)
    calls = [(n, 0.001 * (n % 20)) for n in range(JOBS // 2)]
    handles = jobs.pause.map(calls) + jobs.pause_coroutine.map(calls)
    worker = bench.worker(processes=3, concurrency=4)
    kills: dict[int, float] = {}
    for round_ in range(1, 7):
        bench.wait_for("end", count=250 * round_)
        victim, at = kill_one(worker.children, random.choice)
        kills[victim] = at
    records = bench.wait_final(handles, timeout=60)

    lines = bench.history()
    starts, ends = by_job(lines, "start"), by_job(lines, "end")
    assert [r.state for r in records if r.state is not JobState.COMPLETED] == []  # lost: none
    assert bench.states() == {"completed": JOBS}
    for record in records:
        runs = starts[record.id]
        assert runs, f"{record.id} is completed and never started"
        assert ends[record.id], f"{record.id} is completed and never ended"
        # A second start needs an explanation: whatever ran before was in a child that was killed.
        for run in runs[:-1]:
            assert run.pid in kills, f"{record.id} was started twice without a reason: {runs}"
            again = starts[record.id][runs.index(run) + 1].at
            assert again >= kills[run.pid]
            assert elapsed(kills[run.pid], again) < RECOVERY + SLACK * crowd()
        assert record.attempts == 0
        # Twelve jobs ran in all; whoever was killed beside others was not charged.
        assert record.crashes <= 1
    assert sum(record.crashes for record in records) <= len(kills)


def test_bystanders_are_not_charged(bench: Bench) -> None:
    jobs = bench.app(HOLD)
    handles = jobs.hold.map([(n,) for n in range(4)])
    worker = bench.worker(processes=1, concurrency=4)
    bench.wait_for("start", count=4)
    kill(worker.children()[0])
    bench.wait_for("start", count=8)
    (bench.folder / "go").touch()
    records = bench.wait_final(handles)
    assert [(r.state, r.attempts, r.crashes) for r in records] == [("completed", 0, 0)] * 4
    assert all(len(runs) == 2 for runs in by_job(bench.history(), "start").values())


def test_one_that_ran_alone_is_charged_a_crash(bench: Bench) -> None:
    jobs = bench.app(HOLD)
    worker = bench.worker(processes=1, concurrency=4)
    handle = jobs.hold.delay(1)
    bench.wait_for("start")
    kill(worker.children()[0])
    (bench.folder / "go").touch()
    record = bench.wait_final([handle])[0]
    assert (record.state, record.attempts, record.crashes, record.releases) == ("completed", 0, 1, 0)
    assert "signal 9, SIGKILL" in record.errors[0].message
    assert record.errors[0].reason == "crash"


def test_next_start_within_a_second(bench: Bench) -> None:
    jobs = bench.app(HOLD)
    worker = bench.worker(processes=2, concurrency=1)
    for _ in range(3):
        before = len(bench.history("start"))
        handle = jobs.hold.delay(1)
        bench.wait_for("start", count=before + 1)
        victim = bench.history("start")[-1].pid
        at = kill(victim)
        again = bench.wait_for("start", count=before + 2)[-1]
        assert again.job == handle.id
        assert elapsed(at, again.at) < RECOVERY + SLACK * crowd()
        (bench.folder / "go").touch()
        bench.wait_final([handle])
        (bench.folder / "go").unlink()
        wait_until(lambda: len(worker.children()) == 2, message="the child is replaced")
        bench.wait_ready(worker, 2)


@pytest.mark.parametrize(("task", "jobs", "seconds"), [("pause", 3, 4.0), ("pause_coroutine", 40, 6.0)])
def test_every_suspect_starts_again_within_a_second(bench: Bench, task: str, jobs: int, seconds: float) -> None:
    """Jobs that ran side by side do not wait for each other: each gets a child of its own.

    Such a child is a copy of one that has imported the app, so dozens can start at once.
    """
    handles = getattr(bench.app(PAUSES), task).map([(n, seconds) for n in range(jobs)])
    worker = bench.worker(processes=1, concurrency=40)
    bench.wait_for("start", count=jobs)
    at = kill(worker.children()[0])
    again = bench.wait_for("start", count=2 * jobs)[jobs:]
    assert {line.job for line in again} == {handle.id for handle in handles}
    assert len({line.pid for line in again}) == jobs, "suspects run alone"
    assert elapsed(at, max(line.at for line in again)) < RECOVERY + 2 * SLACK * crowd()
    records = bench.wait_final(handles, timeout=60)
    assert [(r.state, r.crashes) for r in records] == [("completed", 0)] * jobs
    wait_until(lambda: len(worker.children()) == 1, message="the copies have ended")


ASIDE = """
@app.task
def plain(n: int) -> int:
    note("begin")
    time.sleep(0.1)
    note("end")
    return n

@app.task
async def coroutine(n: int) -> int:
    return n

@app.task(isolated=True)
def isolated(n: int) -> int:
    return n
"""


def test_others_run_while_a_suspect_does(bench: Bench) -> None:
    """A job that runs again after a crash takes one slot, not all of the only child; and it does take one."""
    jobs = bench.app(HOLD + ASIDE)
    worker = bench.worker(processes=1, concurrency=3)
    suspect = jobs.hold.delay(1)
    [first] = bench.wait_for("start")
    kill(first.pid)
    again = bench.wait_for("start", count=2)[-1]
    others = [*jobs.plain.map([(n,) for n in range(20)]), jobs.coroutine.delay(1), jobs.isolated.delay(2)]
    bench.wait_final(others)
    assert f"while job {suspect.id} (jobs.hold) ran" in worker.log
    assert again.pid not in {line.pid for line in bench.history("begin")}, "the suspect runs alone"
    assert suspect.state == "running"
    most = running = 0
    for line in bench.history():
        running += {"begin": 1, "end": -1}.get(line.event, 0)
        most = max(most, running)
    assert most <= 2, "of three slots, the suspect has one"
    (bench.folder / "go").touch()
    [record] = bench.wait_final([suspect])
    assert (record.state, record.crashes) == ("completed", 1)
    wait_until(lambda: len(worker.children()) == 1, message="the spare child has ended")


def test_idle_child_is_replaced(bench: Bench) -> None:
    jobs = bench.app(PAUSES)
    worker = bench.worker(processes=2, concurrency=2)
    killed = worker.children()
    for pid in killed:
        kill(pid)
    assert jobs.pause.delay(1, 0.001).get(timeout=WAIT) == 1
    wait_until(lambda: len(worker.children()) == 2, message="both children are replaced")
    assert not set(worker.children()) & set(killed)


def kill(pid: int) -> float:
    at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return at


def by_job(lines: list[Line], event: str) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.event == event:
            found[line.job].append(line)
    return found
