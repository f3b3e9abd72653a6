"""A worker whose lease cannot be renewed stops its jobs before others may run them."""

import signal
import sqlite3
import time

from mouso.worker.proof import process_state
from tests.integration.harness import Bench
from tests.stalls import elapsed
from tests.support import wait_until

LEASE = 15.0

APP = """
@app.task
def obedient(ctx: Context) -> str:
    note("start")
    try:
        while not Path("enough").exists():
            ctx.check()
            time.sleep(0.02)
    except BaseException:
        note("stopped")
        raise
    return "done"

@app.task
async def obedient_too() -> str:
    note("start")
    try:
        while not Path("enough").exists():
            await asyncio.sleep(0.02)
    except BaseException:
        note("stopped")
        raise
    return "done"

@app.task
def deaf() -> str:
    note("start")
    while not Path("enough").exists():
        note("beat")
        time.sleep(0.1)
    return "done"
"""


def test_jobs_are_stopped_before_the_lease_ends(bench: Bench) -> None:
    jobs = bench.app(APP)
    worker = bench.worker(processes=1)
    worker.quiet = False
    handles = [jobs.obedient.delay(), jobs.obedient_too.delay(), jobs.deaf.delay()]
    bench.wait_for("start", 3)
    other = sqlite3.connect(bench.store, isolation_level=None, timeout=10)
    other.execute("BEGIN EXCLUSIVE")
    locked = time.monotonic()
    wait_until(lambda: len(bench.history("stopped")) == 2, timeout=LEASE)
    wait_until(lambda: "is killed" in worker.log, timeout=LEASE)
    beats = len(bench.history("beat"))
    killed_after = time.monotonic() - locked
    wait_until(lambda: time.monotonic() - locked > LEASE + 1, timeout=LEASE)
    assert len(bench.history("beat")) == beats
    assert killed_after < LEASE
    assert "was not renewed for" in worker.log
    (bench.folder / "enough").touch()
    other.execute("ROLLBACK")
    other.close()
    records = bench.wait_final(handles, timeout=20)
    assert [(r.state, r.attempts, r.crashes, r.releases) for r in records] == [("completed", 0, 0, 1)] * 3
    assert worker.stop() == 0
    assert worker.log.count("the broker does not answer") == 1
    assert worker.log.count("the broker answers again") == 1


def test_children_of_a_supervisor_that_was_stopped_stop_their_jobs_too(bench: Bench) -> None:
    """It can tell them nothing: they know when the lease ends, and what does not stop ends with its process."""
    jobs = bench.app(APP)
    worker = bench.worker(processes=1)
    handles = [jobs.obedient.delay(), jobs.obedient_too.delay(), jobs.deaf.delay()]
    bench.wait_for("start", 3)
    (child,) = worker.children()
    worker.send(signal.SIGSTOP)
    frozen = time.monotonic()
    wait_until(lambda: len(bench.history("stopped")) == 2, timeout=LEASE)
    wait_until(lambda: process_state(child) in ("", "Z"), timeout=LEASE, message="the deaf one has ended")
    assert elapsed(frozen) < LEASE
    (bench.folder / "enough").touch()
    worker.send(signal.SIGCONT)
    records = bench.wait_final(handles, timeout=20)
    assert [(r.state, r.attempts, r.crashes, r.releases) for r in records] == [("completed", 0, 0, 1)] * 3
    assert "the lease of this worker was not renewed: child" in worker.log
