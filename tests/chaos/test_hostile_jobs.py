"""Jobs that ruin their process, in the middle of others that do not deserve it."""

import pytest

from mouso.job import JobState
from tests.chaos import hostile
from tests.chaos.arena import LOST, Arena
from tests.chaos.judge import Expected

ONCE, ALWAYS = 8, 2
SUSPECT, SOUND = Expected(innocent=False), Expected()
POISON = Expected(frozenset({"dead"}), innocent=False)


def enqueue(arena: Arena, way: str, count: int, *, once: bool, expected: Expected = SUSPECT) -> list[str]:
    """Hostile jobs of both kinds, between the others; returns their ids."""
    tasks = (arena.jobs.evil, arena.jobs.evil_coroutine)
    handles = [tasks[n % 2].options(priority=n % 2).delay(way, once) for n in range(count)]
    arena.load.accept(handles, expected)
    return [handle.id for handle in handles]


@pytest.mark.parametrize("way", hostile.FATAL + hostile.BREAKING)
def test_a_job_that_ruins_its_process(arena: Arena, way: str) -> None:
    """The third time it is dead; one that thinks better of it completes; nobody else loses anything."""
    arena.begin(source=hostile.SOURCE)
    for worker in arena.pair:
        worker.quiet = False  # the child's own last words are a traceback
    arena.evil_limit = 1.0 if way in hostile.FATAL else 3.0
    poison = enqueue(arena, way, ALWAYS, once=False, expected=POISON)
    for number in range(1, 5):
        arena.going(150 * number)
        enqueue(arena, way, ONCE // 4, once=True)
    arena.finish()
    records = arena.records(poison)
    assert [(r.reason, r.crashes) for r in records] == [("poison", 3)] * ALWAYS
    others = [r for r in arena.records(arena.load.accepted) if r.id not in arena.load.extra]
    assert sum(r.crashes for r in others) <= ONCE + 4 * ALWAYS
    assert all(r.state is JobState.COMPLETED for r in others)
    assert "the supervisor failed" not in "".join(worker.log for worker in arena.pair)


@pytest.mark.parametrize("way", hostile.MUTE)
def test_a_frame_without_an_end(arena: Arena, way: str) -> None:
    """The child is alive, and nothing that it says can be understood any more: it is found out and replaced."""
    arena.begin(source=hostile.SOURCE)
    arena.evil_limit = LOST
    arena.going(200)
    enqueue(arena, way, 2, once=True)
    arena.finish()


@pytest.mark.parametrize("way", hostile.VAIN)
def test_outcomes_that_are_not_its_own(arena: Arena, way: str) -> None:
    arena.begin(source=hostile.SOURCE)
    for number in range(1, 5):
        arena.going(150 * number)
        enqueue(arena, way, 2, once=False, expected=SOUND)
    arena.finish()


def test_a_fork_that_returns(arena: Arena) -> None:
    """A copy of the child, jobs that wait in it included, must not go on as if it were one."""
    arena.begin(source=hostile.SOURCE, mean=0.002)
    for number in range(1, 8):
        arena.going(150 * number)
        arena.load.accept([arena.jobs.returns_twice.options(priority=5).delay()])
    verdict = arena.finish()
    retries = sum(expected.failures or 0 for expected in arena.load.accepted.values())
    assert verdict.again == retries, "nothing but retries ran again"
