"""Jobs that enqueue themselves, or many others: the worker stays small, serves other queues, and ends as it should."""

from typing import Any

import pytest

from mouso.worker.memory import resident
from tests.integration.harness import WAIT, Bench, Worker
from tests.support import wait_until

CHILDREN = 20_000
GROWTH = 24 << 20
"""Bytes that each process may grow by; the payloads of 20,000 jobs alone would be more with what Python adds."""

SOURCE = f"""
@app.task
def again(n: int) -> None:
    again.delay(n + 1)

@app.task
async def again_coroutine(n: int) -> None:
    await again_coroutine.adelay(n + 1)

@app.task(queue="many")
def child(n: int) -> None: ...

@app.task
def parent() -> int:
    return len(child.map([(n,) for n in range({CHILDREN})]))

@app.task(queue="other")
def other(n: int) -> int:
    return n
"""


def others_run(jobs: Any) -> None:
    handles = [jobs.other.delay(n) for n in range(20)]
    assert [handle.get(timeout=WAIT) for handle in handles] == list(range(20))


def completed(jobs: Any, queue: str) -> int:
    [found] = [each for each in jobs.app.queues() if each.name == queue]
    return int(found.counts.get("completed", 0))


def memory(worker: Worker) -> list[int]:
    return [resident(pid) for pid in (worker.pid, *worker.children())]


@pytest.mark.parametrize("name", ["again", "again_coroutine"])
def test_a_job_that_enqueues_itself_without_end(bench: Bench, name: str) -> None:
    jobs = bench.app(SOURCE)
    worker = bench.worker()
    getattr(jobs, name).delay(0)
    wait_until(lambda: completed(jobs, "default") > 100, timeout=60, message="a hundred of them")
    before = memory(worker)
    others_run(jobs)
    wait_until(lambda: completed(jobs, "default") > 600, timeout=60, message="five hundred more")
    others_run(jobs)
    assert all(now - then < GROWTH for then, now in zip(before, memory(worker), strict=True))
    assert worker.stop() == 0
    assert bench.states()["available"] == 1, "the next one waits"
    assert set(+bench.states()) == {"available", "completed"}


def test_a_job_with_very_many_children(bench: Bench) -> None:
    jobs = bench.app(SOURCE)
    worker = bench.worker(processes=2)
    others_run(jobs)
    before = memory(worker)
    handle = jobs.parent.delay()
    others_run(jobs)
    assert handle.get(timeout=60) == CHILDREN
    others_run(jobs)
    wait_until(lambda: completed(jobs, "many") > 500, timeout=60, message="five hundred of them")
    others_run(jobs)
    grown = [now - then for then, now in zip(before, memory(worker), strict=True)]
    assert sorted(grown)[1] < GROWTH, f"all but the one that made them: {grown}"
    assert worker.stop() == 0
    states = bench.states()
    assert states["available"] + states["completed"] == CHILDREN + 81
