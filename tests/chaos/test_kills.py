"""Processes are killed under load: children, supervisors, whole workers."""

from mouso.handle import JobHandle
from tests.chaos.arena import Arena
from tests.integration.harness import Worker
from tests.support import wait_until


def test_random_children(arena: Arena) -> None:
    arena.begin(mean=0.03)
    for round_ in range(1, 13):
        arena.going(120 * round_)
        arena.kill_child(arena.random.choice(arena.pair))
    verdict = arena.finish()
    assert verdict.again


def test_supervisors(arena: Arena) -> None:
    """Orphans end, and nothing that they still run runs beside what starts anew."""
    arena.begin(mean=0.03)
    for round_ in range(1, 6):
        arena.going(250 * round_)
        victim = arena.pair[round_ % 2]
        arena.load.accept(deaf := arena.jobs.plain.options(priority=50).map([(1.0,) for _ in range(12)]))
        run(arena, deaf)
        arena.kill_supervisor(victim)
        arena.restart(round_ % 2)
        orphans_end(victim)
    arena.finish()


def test_whole_workers(arena: Arena) -> None:
    arena.begin(mean=0.03)
    for round_ in range(1, 6):
        arena.going(250 * round_)
        arena.kill_worker(arena.pair[round_ % 2])
        arena.restart(round_ % 2)
    arena.finish()


def test_both_workers_at_once(arena: Arena) -> None:
    arena.begin(mean=0.03)
    for round_ in range(1, 4):
        arena.going(400 * round_)
        for worker in arena.pair:
            arena.kill_worker(worker)
        for number in range(2):
            arena.restart(number, wait=False)
        for worker in arena.pair:
            arena.wait_ready(worker, 2)
    arena.finish()


def test_names_that_are_used_again(arena: Arena) -> None:
    """Workers under one name, as those of a pod that is restarted: who is who is told by nothing that can recur."""
    arena.begin(mean=0.03, options=("--name", "pod-0"))
    for round_ in range(1, 4):
        arena.going(400 * round_)
        assert sum(info.name.startswith("pod-0") for info in arena.producer.workers()) >= 2
        for worker in arena.pair:
            arena.kill_worker(worker)
        for number in range(2):
            arena.restart(number)
    arena.finish()


def test_a_worker_that_does_not_come_back(arena: Arena) -> None:
    """The other one can prove its death and goes on with its jobs."""
    arena.begin(mean=0.03)
    arena.going(500)
    arena.kill_worker(arena.pair[0])
    arena.finish()


def run(arena: Arena, handles: list[JobHandle[int]]) -> None:
    """Waits until jobs run that do not listen; they take more slots than one worker has."""
    wait_until(lambda: len(arena.starts(handles)) >= len(handles), message="jobs that do not listen run")


def orphans_end(worker: Worker) -> None:
    """Waits until the children of a supervisor that died have ended by themselves."""
    wait_until(lambda: not worker.survivors(), timeout=2, message="orphans have ended")
