"""Processes are stopped and go on later: a worker beyond its lease, its supervisor alone, a child."""

import os
import signal
import time
from contextlib import ExitStack
from functools import partial

from mouso.handle import JobHandle
from tests.chaos.arena import LEASE, LOST, Arena, pass_time
from tests.integration.harness import Worker
from tests.stalls import elapsed
from tests.support import crowd, wait_until

PATIENT = """
@app.task
def patient(ctx: Context) -> int:
    '''Runs until it is told to stop, in the workers that the file names.'''
    with run() as token:
        patience = str(os.getppid()) in Path("jobs.db-patient").read_text().split()
        while patience:
            ctx.check()
            time.sleep(0.01)
        return token

@app.task
def late(ctx: Context) -> int:
    '''Ends while its supervisor is stopped; when it runs again elsewhere, it runs until that one is awake.'''
    with run() as token:
        seen = Path(f"jobs.db-{ctx.job_id}")
        again = seen.exists()
        seen.touch()
        if str(os.getppid()) == Path("jobs.db-patient").read_text().split()[1]:
            time.sleep(3.0)
        while again and not Path("jobs.db-flag").exists():
            time.sleep(0.01)
        return token
"""


def test_beyond_the_lease(arena: Arena) -> None:
    """One worker is stopped whole, of another the supervisor alone, of the third a child that never goes on.

    The third takes over the jobs of all, but not before those that the second's children run have been stopped by
    themselves. When the others wake, what they have to say comes too late: they learn it, stop what they still run, and
    work on.
    """
    arena.begin(PATIENT, mean=0.03)
    whole, healthy = arena.pair
    headless = arena.start("-p", "2", "-c", "4", "--grace", "5")
    arena.wait_ready(headless, 2)
    arena.going(300)
    (arena.folder / "jobs.db-patient").write_text(f"{whole.pid} {headless.pid}")
    both = {whole.pid, headless.pid}
    patients: list[JobHandle[int]] = []
    while not {line.supervisor for line in arena.starts(patients)} >= both:
        assert len(patients) < 100, "patients run in both"
        patients.append(arena.jobs.patient.options(priority=50).delay())
        arena.load.accept(patients[-1:])
        wait_until(lambda: len(arena.starts(patients)) == len(patients), timeout=20, message="every patient runs")

    belated: list[JobHandle[int]] = []
    while headless.pid not in {line.supervisor for line in arena.starts(belated)}:
        assert len(belated) < 100, "one of them runs there"
        belated.append(arena.jobs.late.options(priority=60).delay())
        arena.load.accept(belated[-1:])
        wait_until(lambda: len(arena.starts(belated)) == len(belated), timeout=20, message="it has started")

    with ExitStack() as frozen:
        frozen.enter_context(arena.frozen(whole, lease=True, overlaps=True, limit=LOST))
        frozen.enter_context(arena.frozen(headless, whole=False, lease=True, limit=LOST))
        stuck = arena.freeze_child(healthy, limit=LOST)
        pass_time(LEASE + 4)
        stopped = {line.supervisor for line in arena.lines("stop")}
        assert stopped == {headless.pid}, "its children know when its lease ends"
    thawed = time.monotonic()
    wait_until(lambda: {line.supervisor for line in arena.lines("stop")} == both, message="patients are told to stop")
    assert elapsed(thawed) < 3.0 * crowd()
    for worker in (whole, headless):
        wait_until(partial(_knows, worker), timeout=20, message="it knows that what it has to say came too late")
    assert len(arena.starts(belated)) > len(belated)
    (arena.folder / "jobs.db-flag").touch()  # until now the second run went on, and the first one's word came too late

    more = arena.jobs.plain.map([(0.05,) for _ in range(400)])
    arena.load.accept(more)
    arena.finish()
    ids = {handle.id for handle in more}
    ran = {line.supervisor for line in arena.lines("end") if line.job in ids}
    assert ran == {whole.pid, headless.pid, healthy.pid}, "all three work on"
    # If it held nothing when it was stopped, that was noticed with the first of these jobs.
    wait_until(lambda: stuck not in healthy.children(), timeout=20, message="the child that never goes on is replaced")


def test_shorter_than_the_lease(arena: Arena) -> None:
    """Nothing is taken over, nothing is charged, and nothing starts a second time."""
    arena.begin(mean=0.08)
    arena.going(200)
    for worker in arena.pair:
        arena.pause(worker.pid, *worker.children(), seconds=1.2)
        arena.going(arena.ended + 50)
        arena.pause(worker.pid, seconds=1.2)
        arena.going(arena.ended + 50)
        arena.pause(worker.children()[0], seconds=2.5)
        arena.going(arena.ended + 50)
    arena.finish()


def test_a_child_that_goes_on_just_as_it_is_given_up(arena: Arena) -> None:
    """What it holds is taken back by its supervisor at that moment, and it is given more: all runs once."""
    arena.begin(mean=0.002)
    worker = arena.pair[0]
    for times in range(1, 7):
        child = _stopped_at_work(arena, worker)
        wait_until(partial(_given_up, worker, times), timeout=20, interval=0.005, message="it is given up")
        pass_time(arena.random.uniform(0, 0.08))
        os.kill(child, signal.SIGCONT)
    arena.finish()


def _stopped_at_work(arena: Arena, worker: Worker) -> int:
    """A child that was stopped while it ran jobs."""
    for tries in range(1000):
        if tries % 20 == 0:
            arena.load.accept(arena.jobs.plain.map([(arena.random.uniform(0, 0.004),) for _ in range(2000)]))
        child = arena.random.choice(worker.children())
        arena.stop_outside_a_transaction([child])
        began, *over = (sum(line.pid == child for line in arena.lines(event)) for event in ("start", "end", "fail"))
        if began > sum(over):
            return child
        os.kill(child, signal.SIGCONT)
        pass_time(0.001)
    raise AssertionError("no child was ever stopped at work")


def _knows(worker: Worker) -> bool:
    return "its jobs were taken over" in worker.log


def _given_up(worker: Worker, times: int) -> bool:
    return worker.log.count("it was stopped by a signal") == times
