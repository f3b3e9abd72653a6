"""Workers are replaced under load, again and again: nothing is charged, nothing runs twice, and they end in time."""

import os
import signal
import time
from contextlib import suppress

from tests.chaos.arena import GRACE, Arena
from tests.integration.harness import WAIT, Worker
from tests.stalls import elapsed
from tests.support import wait_until

LONG = """
from contextlib import suppress

def turns() -> bool:
    '''Whether a long job may end by now.'''
    return Path("jobs.db-flag").exists()

@app.task
def polite(ctx: Context) -> int:
    with run() as token:
        while not turns():
            ctx.check()
            time.sleep(0.01)
        return token

@app.task
async def cancellable() -> int:
    with run() as token:
        while not turns():
            await asyncio.sleep(0.01)
        return token

@app.task
def deaf() -> int:
    with run() as token:
        while not turns():
            time.sleep(0.01)
        return token

@app.task
async def stubborn() -> int:
    '''Swallows its cancellation.'''
    with run() as token:
        while not turns():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return token
"""


def test_rolling_restarts(arena: Arena) -> None:
    """With jobs that end within the grace not one runs a second time."""
    arena.begin(mean=0.03)
    for round_ in range(8):
        arena.going(180 * (round_ + 1))
        old = arena.pair[round_ % 2]
        at = stop(old, round_)
        assert ended_well(arena, old, at, GRACE)
        arena.restart(round_ % 2, wait=round_ % 3 == 0)
    verdict = arena.finish()
    assert verdict.again == arena.load.retries, "nothing but retries ran again"


def test_jobs_that_outlast_the_grace(arena: Arena) -> None:
    """They are interrupted or killed, given back, and run again; no neighbour is the worse for it."""
    grace = 0.7
    arena.begin(source="from contextlib import suppress\n" + LONG, options=("--grace", f"{grace:g}"), mean=0.04)
    names = ("polite", "cancellable", "deaf", "stubborn", "polite")
    arena.load.accept([getattr(arena.jobs, name).options(priority=50).delay() for name in names])
    for round_ in range(4):
        arena.going(200 * (round_ + 1))
        old = arena.pair[round_ % 2]
        at = stop(old, round_)
        assert ended_well(arena, old, at, grace)
        arena.fault("a deploy", at=at, until=time.monotonic(), supervisors=frozenset({old.pid}))
        arena.restart(round_ % 2)
    (arena.folder / "jobs.db-flag").touch()
    arena.finish()


def stop(worker: Worker, round_: int) -> float:
    """Asks it to end in one of the ways of the world; returns when, on the monotonic clock."""
    wait_until(lambda: " serves " in worker.log, timeout=WAIT, message="it has something to stop")
    if round_ % 3 == 0:  # systemd, Kubernetes
        return worker.send(signal.SIGTERM)
    children = worker.children()
    at = worker.send_group(signal.SIGTERM if round_ % 2 else signal.SIGINT)
    wait_until(lambda: "stopping: " in worker.log, timeout=WAIT, message="the first signal has arrived")
    worker.send_group(signal.SIGTERM)
    if round_ % 3 == 2:  # a container's init that signals every process
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    return at


def ended_well(arena: Arena, worker: Worker, at: float, grace: float) -> bool:
    """Waits for its end: exit code 0, within the grace and three seconds, without its children."""
    code = worker.wait(grace + 20)
    took = elapsed(at)
    assert code == 0, worker.log
    assert took < grace + 3 + arena.slack, f"{took:.1f} s"
    assert not worker.survivors(), "children outlived their worker"
    return True
