"""Jobs that run for longer than a lease, and jobs that are due after one: neither is started twice."""

import time

import pytest

from tests.integration.harness import Bench
from tests.support import wait_until

LEASE = 15.0
LONGER = 1.2 * LEASE

APP = f"""
@app.task
def sleeps() -> str:
    note("start", "sleeps")
    time.sleep({LONGER})
    return "done"

@app.task
async def waits() -> str:
    note("start", "waits")
    await asyncio.sleep({LONGER})
    return "done"

@app.task(isolated=True)
def alone() -> str:
    note("start", "alone")
    time.sleep({LONGER})
    return "done"

@app.task
def holds_the_interpreter() -> str:
    import ctypes
    note("start", "holds")
    ctypes.PyDLL(None).usleep({int(LONGER * 1e6)})
    return "done"

@app.task
def later() -> str:
    note("start", "later")
    return "done"
"""


@pytest.mark.parametrize("names", [("sleeps", "waits", "alone"), ("holds_the_interpreter",)])
def test_longer_than_a_lease(bench: Bench, names: tuple[str, ...]) -> None:
    """Two idle workers look on, one of them a new one; a delayed job waits for its time in the store."""
    jobs = bench.app(APP)
    bench.worker(processes=1)
    handles = [getattr(jobs, name).delay() for name in names]
    (*_, last) = bench.wait_for("start", len(handles))
    delayed = jobs.later.options(delay=LONGER).delay()
    due = time.monotonic() + LONGER
    idle = bench.worker(processes=1)
    wait_until(lambda: time.monotonic() > last.at + LEASE / 2, timeout=LEASE, message="half a lease has passed")
    assert delayed.state == "scheduled"
    assert idle.stop() == 0
    bench.worker(processes=1)
    records = bench.wait_final([*handles, delayed], timeout=2 * LONGER)
    counts = {(r.state, r.claims, r.attempts, r.crashes, r.releases) for r in records}
    assert counts == {("completed", 1, 0, 0, 0)}
    assert all((r.run_seconds or 0) > LEASE for r in records[:-1])
    starts = bench.history("start")
    assert len(starts) == len(records)
    (at,) = (line.at for line in starts if line.text == "later")
    assert -0.1 < at - due < 2.0
