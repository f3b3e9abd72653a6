"""A template that stands still: what it owes is not waited for, and another one takes its place."""

import os
import signal
import time

import pytest

from tests.integration.harness import WAIT, Bench, Worker
from tests.integration.snippets import PAUSES, SOUND, still_sound
from tests.stalls import elapsed
from tests.support import crowd, wait_until

ALONE = """
@app.task(isolated=True)
def pause(n: int, seconds: float) -> int:
    note("start", str(n))
    time.sleep(seconds)
    note("end", str(n))
    return n
"""
DIES = """
@app.task
def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
"""
BLOCKED = """
def block() -> None:
    while Path("block").exists():
        time.sleep(0.01)

os.register_at_fork(before=block)
"""
SOON = 4.0
"""Seconds within which a worker has got over a template that was stopped by a signal."""


def stop_template(worker: Worker) -> int:
    """Stops the worker's only template, and returns its pid."""
    [pid] = wait_until(worker.templates, timeout=WAIT, message="there is a template") or [0]
    os.kill(pid, signal.SIGSTOP)
    return pid


def told(worker: Worker, pid: int) -> None:
    """The log says it, once."""
    assert worker.log.count("the template process") - worker.log.count("the template process is gone") == 1
    assert worker.log.count(f"the template process {pid} is killed: it was stopped by a signal") == 1
    assert pid not in worker.templates()


def test_jobs_that_run_in_its_copies_end(bench: Bench) -> None:
    jobs = bench.app(ALONE)
    worker = bench.worker()
    slow = jobs.pause.options(timeout=1, attempts=1).delay(1, 600)
    good = jobs.pause.delay(2, 1)
    bench.wait_for("start", 2)
    pid = stop_template(worker)
    records = bench.wait_final([slow, good], timeout=2 + SOON * crowd())
    assert [(r.state, r.reason, r.crashes) for r in records] == [("dead", "timeout", 0), ("completed", "", 0)]
    assert worker.log.count("is killed because of 1 of its jobs") == 1
    assert jobs.pause.delay(3, 0).get(timeout=WAIT) == 3
    told(worker, pid)


def test_jobs_and_suspects_that_wait_for_a_copy_get_one(bench: Bench) -> None:
    jobs = bench.app(ALONE + DIES)
    worker = bench.worker()
    assert jobs.pause.delay(0, 0).get(timeout=WAIT) == 0
    pid = stop_template(worker)
    stopped = time.monotonic()
    alone, dies = jobs.pause.delay(1, 0), jobs.dies.delay()
    records = bench.wait_final([alone, dies], timeout=WAIT)
    assert elapsed(stopped) < SOON * crowd()
    assert [(r.state, r.reason, r.crashes) for r in records] == [("completed", "", 0), ("dead", "poison", 3)]
    told(worker, pid)


def test_preloaded_children_are_replaced(bench: Bench) -> None:
    jobs = bench.app(PAUSES + SOUND)
    worker = bench.worker("--preload", processes=2)
    handles = jobs.pause.map([(1, 2.0), (2, 2.0)])
    bench.wait_for("start", 2)
    children = worker.children()
    pid = stop_template(worker)
    killed = time.monotonic()
    for child in children:
        os.kill(child, signal.SIGKILL)
    still_sound(jobs)
    assert elapsed(killed) < SOON * crowd()
    records = bench.wait_final(handles)
    assert [(r.state, r.crashes) for r in records] == [("completed", 1)] * 2
    told(worker, pid)


@pytest.mark.parametrize("running", [True, False], ids=["running", "waiting"])
def test_the_end_comes_in_time(bench: Bench, running: bool) -> None:
    jobs = bench.app(ALONE)
    worker = bench.worker("--grace", "1")
    assert jobs.pause.delay(0, 0).get(timeout=WAIT) == 0
    if running:
        handle = jobs.pause.delay(1, 600)
        bench.wait_for("start", 2)
        stop_template(worker)
    else:
        stop_template(worker)
        handle = jobs.pause.delay(1, 600)
        wait_until(lambda: handle.refresh().state == "running", timeout=WAIT, message="it is claimed")
    at = worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert worker.stopped_at is not None
    assert elapsed(at, worker.stopped_at) < 1 + 3 + 0.5 * crowd()
    [record] = bench.records([handle.id])
    assert (record.state, record.attempts, record.crashes) == ("available", 0, 0)
    assert not worker.survivors()


def test_an_app_that_blocks_its_copying_for_a_while(bench: Bench) -> None:
    jobs = bench.app(ALONE + SOUND + BLOCKED)
    worker = bench.worker()
    assert jobs.pause.delay(0, 0).get(timeout=WAIT) == 0
    (bench.folder / "block").touch()
    handle = jobs.pause.delay(1, 0)
    wait_until(lambda: "it has not answered for 5 s" in worker.log, timeout=WAIT, message="the log says so")
    still_sound(jobs)
    (bench.folder / "block").unlink()
    [record] = bench.wait_final([handle])
    assert (record.state, record.attempts, record.crashes) == ("completed", 0, 0)
