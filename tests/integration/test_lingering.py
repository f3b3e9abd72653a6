"""Processes that do not end, or do not come to work: they hold a slot for a while, and no longer."""

import pytest

from tests.integration.harness import WAIT, Bench
from tests.support import wait_until

HASTY = """
import sys
if "mouso" in sys.orig_argv:
    import mouso.worker.fleet as fleet
    fleet._LINGER = 0.5
    fleet._SLOW_START = 0.5
    fleet._UNBORN, fleet._SLOWER = 1.5, 0
"""
LINGERS = """
import atexit
import contextlib
import ctypes

@app.lifespan
async def pool():
    if Path("unreachable").exists():
        await asyncio.sleep(600)
    yield
    if Path("lifespan").exists():
        await asyncio.sleep(600)
    if Path("blocked").exists():
        time.sleep(600)
    if Path("interpreter").exists():
        ctypes.PyDLL(None).sleep(600)
    if Path("exit handler").exists():
        atexit.register(time.sleep, 600)

@app.task(isolated=True)
def alone(n: int) -> int:
    return n

@app.task
def beside(n: int) -> int:
    return n
"""


@pytest.mark.parametrize("held", ["lifespan", "blocked", "interpreter", "exit handler"])
def test_a_process_that_does_not_end_after_its_job(bench: Bench, held: str) -> None:
    jobs = bench.app(LINGERS)
    (bench.folder / "sitecustomize.py").write_text(HASTY)
    worker = bench.worker(processes=1, concurrency=1)
    (bench.folder / held).touch()
    for n in range(3):
        assert jobs.alone.delay(n).get(timeout=WAIT) == n
    assert jobs.beside.delay(3).get(timeout=WAIT) == 3
    assert worker.log.count("has not ended within 0.5 s") >= 2
    (bench.folder / held).unlink()


def test_children_that_were_replaced_and_do_not_end(bench: Bench) -> None:
    jobs = bench.app(LINGERS)
    (bench.folder / "sitecustomize.py").write_text(HASTY)
    worker = bench.worker("--max-jobs-per-child", "1", processes=1, concurrency=1)
    (bench.folder / "lifespan").touch()
    for n in range(4):
        assert jobs.beside.delay(n).get(timeout=WAIT) == n
    wait_until(lambda: len(worker.children()) == 1, timeout=WAIT, message="they do not pile up")
    (bench.folder / "lifespan").unlink()


def test_a_process_that_does_not_come_to_its_job(bench: Bench) -> None:
    """It is killed, and its job goes back; cancelled meanwhile, the job ends."""
    jobs = bench.app(LINGERS)
    (bench.folder / "sitecustomize.py").write_text(HASTY)
    worker = bench.worker(processes=1, concurrency=2)
    assert jobs.alone.delay(0).get(timeout=WAIT) == 0
    (bench.folder / "unreachable").touch()
    later = jobs.alone.delay(1)
    wait_until(lambda: "what waits for it goes elsewhere" in worker.log, timeout=WAIT)
    cancelled = jobs.alone.delay(2)
    bench.wait_state(cancelled, "running")
    assert cancelled.cancel() in {"requested", "cancelled"}
    bench.wait_state(cancelled, "cancelled")
    (bench.folder / "unreachable").unlink()
    assert later.get(timeout=WAIT) == 1
    assert later.record.crashes == 0


def test_a_successor_that_does_not_come_to_work(bench: Bench) -> None:
    """It is killed, and the next one takes the place: one standstill does not end the replacing of children."""
    jobs = bench.app(LINGERS)
    (bench.folder / "sitecustomize.py").write_text(HASTY)
    worker = bench.worker("--max-jobs-per-child", "1", processes=1, concurrency=1)
    (bench.folder / "unreachable").touch()
    assert jobs.beside.delay(0).get(timeout=WAIT) == 0
    wait_until(lambda: "the child that it was to replace stays" in worker.log, timeout=WAIT)
    (bench.folder / "unreachable").unlink()
    old = worker.children()[0]  # beside it there may be the next one that does not come
    wait_until(lambda: jobs.beside.delay(1).get(timeout=WAIT) == 1 and old not in worker.children(), timeout=WAIT)
