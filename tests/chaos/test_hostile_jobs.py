"""Jobs that ruin their process, in the middle of others that do not deserve it."""

import itertools

import pytest

from tests.chaos import hostile
from tests.chaos.arena import CHILD, LOST, Arena
from tests.chaos.judge import Expected

SOUND, SUSPECT = Expected(), Expected(innocent=False)
POISON = Expected(frozenset({"dead"}), innocent=False)
JOBS = 12
NOTICED = 2.0
"""Seconds until a child that is of no use any more is found out and killed."""


def enqueue(arena: Arena, way: str, number: int, *, once: bool = True, expected: Expected = SUSPECT) -> str:
    """A hostile job, by turns a function and a coroutine; returns its id."""
    task = (arena.jobs.evil, arena.jobs.evil_coroutine)[number % 2]
    handle = task.options(priority=10 * (number % 3)).delay(way, once)
    arena.load.accept([handle], expected)
    return str(handle.id)


@pytest.mark.parametrize("kind", hostile.RUINOUS)
def test_jobs_that_ruin_their_process(arena: Arena, kind: str) -> None:
    """The third time one is dead; one that thinks better of it completes; nobody else loses anything."""
    arena.begin(hostile.SOURCE)
    for worker in arena.pair:
        worker.quiet = False  # a child's last words may be a traceback
    arena.evil_limit = CHILD + (NOTICED if kind == "messages" else 0)
    ways = itertools.cycle(hostile.RUINOUS[kind])
    poison = []
    for number in range(JOBS):
        arena.going(80 * (number + 1))
        enqueue(arena, next(ways), number)
        if number in (1, 6):
            poison.append(enqueue(arena, next(ways), number, once=False, expected=POISON))
    arena.finish()
    assert [(r.reason, r.crashes) for r in arena.records(poison)] == [("poison", 3)] * len(poison)
    assert all(record.crashes <= 1 for record in arena.records(arena.load.accepted.keys() - arena.load.extra))
    assert "the supervisor failed" not in "".join(worker.log for worker in arena.pair)


def test_frames_without_an_end(arena: Arena) -> None:
    """The child is alive, and nothing that it says can be understood any more: it is found out and replaced."""
    arena.begin(hostile.SOURCE)
    arena.evil_limit = LOST
    for number, way in enumerate(hostile.MUTE):
        arena.going(200 * (number + 1))
        enqueue(arena, way, number)
    arena.finish()


def test_outcomes_that_are_not_its_own(arena: Arena) -> None:
    arena.begin(hostile.SOURCE)
    ways = itertools.cycle(hostile.VAIN)
    for number in range(JOBS):
        arena.going(80 * (number + 1))
        enqueue(arena, next(ways), number, once=False, expected=SOUND)
    arena.finish()


def test_a_fork_that_returns(arena: Arena) -> None:
    """A copy of the child, jobs that wait in it included, must not go on as if it were one."""
    arena.begin(hostile.SOURCE, mean=0.002)
    for number in range(JOBS):
        arena.going(150 * (number + 1))
        arena.load.accept([arena.jobs.returns_twice.options(priority=5).delay()])
    verdict = arena.finish()
    assert verdict.again == arena.load.retries, "nothing but retries ran again"
