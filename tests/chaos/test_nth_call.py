"""The Nth call of a broker fails, before or after it was done, or kills the process: N = 1, 2, … until none is left."""

import itertools
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from mouso import Mouso
from mouso.brokers import connect
from mouso.brokers.base import WorkerInfo
from mouso.handle import JobHandle
from mouso.testing.clock import FakeClock
from mouso.testing.faults import Fault, fail_nth
from tests.chaos import injection
from tests.chaos.arena import RESTART, Arena
from tests.chaos.scenario import go_on, play
from tests.integration.harness import ROOT
from tests.support import wait_until

CALLS = 18
"""How many the scenario makes at least; one that makes fewer has lost its point."""
EXCHANGES = 5
"""How many exchanges a worker makes at least for a few jobs at once, and some one by one."""
VERBS = {
    "reading": ("workers", "wait"),
    "upkeep": ("promote", "reap"),
    "lease": ("heartbeat", "retire"),
    "progress": ("report",),
}
IN_A_ROW = 5 * RESTART
"""Seconds within which a job starts again whose worker was killed: those that come after it meet with faults, too."""
NOTICED = 0.3
"""Seconds that it may take to see that a process has ended."""
WITH_PROGRESS = """
@app.task
def reporting(ctx: Context) -> int:
    with run() as token:
        ctx.progress(1, 2)
        time.sleep(0.03)
        return token
"""
RAISED, KILLED = (Fault.BEFORE, Fault.AFTER), (Fault.KILL_BEFORE, Fault.KILL_AFTER)


@pytest.mark.parametrize("fault", RAISED)
@pytest.mark.parametrize("scheme", ["sqlite", "memory"])
def test_a_scenario_whose_nth_call_fails(tmp_path: Path, scheme: str, fault: Fault) -> None:
    for nth in itertools.count(1):
        url = f"sqlite:///{tmp_path}/{nth}.db" if scheme == "sqlite" else f"memory://{tmp_path.name}-{nth}"
        with Mouso("scenario", broker=url) as app:
            faulty = fail_nth(app, nth, fault)
            play(app.broker, "first")
            go_on(faulty.broker, dead=["first"])
        if not faulty.struck:
            break
    assert nth > CALLS


@pytest.mark.parametrize("fault", KILLED)
def test_a_scenario_that_is_killed_at_its_nth_call(tmp_path: Path, fault: Fault) -> None:
    command = [sys.executable, "-m", "tests.chaos.scenario", fault, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= CALLS


@pytest.mark.parametrize("fault", [*RAISED, *KILLED])
def test_a_worker_whose_nth_exchange_fails(arena: Arena, fault: Fault) -> None:
    """A real worker claims and settles; it, or the one that is started in its place, brings all to their end."""
    prepare(arena)
    for nth in itertools.count(1):
        if not serve(arena, "exchange", nth, fault):
            break
    assert nth > EXCHANGES
    finish(arena)


@pytest.mark.parametrize("kind", VERBS)
def test_a_worker_of_which_a_verb_fails(arena: Arena, kind: str) -> None:
    prepare(arena)
    for verb in VERBS[kind]:
        for number, fault in enumerate(RAISED + KILLED if kind != "reading" else (Fault.BEFORE, Fault.KILL_AFTER)):
            if verb == "reap":
                leave_a_lost_worker(arena, number)
            assert serve(arena, verb, 1, fault, certain=verb != "retire"), f"no {verb} was called"
    finish(arena)


class LongAgo(FakeClock):
    def steady(self) -> int:
        return 0


def leave_a_lost_worker(arena: Arena, number: int) -> None:
    """A worker whose lease has ended: it was begun when the machine was."""
    with closing(connect(arena.producer.broker_url, clock=LongAgo())) as broker:
        broker.heartbeat(WorkerInfo(id=f"{number:016}", name="lost", host="elsewhere", pid=1))


def test_a_storm(arena: Arena) -> None:
    """Every tenth call fails, before or after it was done: nothing is lost, nothing runs twice, nothing is charged."""
    arena.write(injection.SITE, "sitecustomize", header=False)
    (arena.folder / injection.PLAN).write_text(f"storm {arena.seed} 10")
    arena.begin(mean=0.02)
    verdict = arena.finish()
    struck = [worker.log.count("injected") for worker in arena.pair]
    assert min(struck) > 0
    assert sum(struck) > 5
    for worker in arena.pair:
        assert worker.stop() in (0, 75), "its last calls may fail as well"
    assert verdict.again == arena.load.retries, "nothing but retries ran again"


def prepare(arena: Arena) -> None:
    """Some work, and no worker yet."""
    arena.write(injection.SITE, "sitecustomize", header=False)
    arena.begin(WITH_PROGRESS, size=100, mean=0.01, workers=0)


def serve(arena: Arena, verb: str, nth: int, fault: Fault, *, certain: bool = False) -> bool:
    """Lets a worker meet a fault while it runs some jobs. One that is killed leaves them to the next.

    Args:
        certain: The call comes before the shutdown, sooner or later: it is waited for.

    Returns:
        Whether it came to the Nth call.
    """
    mark = arena.folder / injection.STRUCK
    mark.unlink(missing_ok=True)
    (arena.folder / injection.PLAN).write_text(f"{verb} {nth} {fault}")
    more: list[JobHandle[int]] = []

    def enqueue(count: int) -> None:
        handles = [arena.jobs.reporting.delay() for _ in range(count)]
        arena.load.accept(handles)
        more.extend(handles)

    enqueue(6)
    single = iter(range(EXCHANGES // 2))  # each is claimed and settled; the six may be so together
    worker = arena.start(*arena.options)

    def over() -> bool:
        if not worker.alive:
            return True
        if not all(job.state.final for job in arena.records(handle.id for handle in more)):
            return False
        if verb == "exchange" and not mark.exists() and next(single, None) is not None:
            enqueue(1)
            return False
        return mark.exists() or not certain

    # A lease may have to end before.
    wait_until(over, timeout=40, interval=0.05, message=f"{verb} {nth} {fault}: its jobs are done")
    if worker.alive:
        worker.send(signal.SIGTERM)
    code = worker.wait(20)
    if fault in KILLED and code == -signal.SIGKILL:
        at = time.monotonic() - NOTICED
        arena.fault(
            f"a kill at {verb}", at=at, until=at + 2, supervisors=frozenset({worker.pid}), unsettled=1.0, limit=IN_A_ROW
        )
        assert mark.exists(), "nobody else kills it"
        return True
    # One whose store does not answer at the very start leaves with 75, to be started again.
    assert code == 0 or (code == 75 and "injected" in worker.log), worker.log
    return mark.exists()


def finish(arena: Arena) -> None:
    """A worker without faults does the rest."""
    (arena.folder / injection.PLAN).unlink()
    arena.pair = [arena.start(*arena.options)]
    arena.load.accept([arena.jobs.plain.delay(0.001)])  # whoever rings finds the sockets of those that were killed
    arena.finish()
