"""Names of workers: how those that want the same one come to be told apart, in whatever order they start."""

import random
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from mouso.brokers.base import WorkerInfo
from mouso.worker.names import name_apart


def worker(id: str, name: str = "twin", started_at: int = 1) -> WorkerInfo:
    return WorkerInfo(id=id, name=name, host="h", pid=1, started_at=started_at)


@pytest.mark.parametrize(
    ("others", "registered", "name"),
    [
        ([], False, "twin"),
        ([worker("a")], False, "twin-2"),
        ([worker("z", started_at=9)], False, "twin-2"),  # it has the name already
        ([worker("a"), worker("b", "twin-2"), worker("c", "twin-4")], False, "twin-3"),
        ([worker("a", "other")], False, "twin"),
        ([worker("a")], True, "twin-2"),
        ([worker("z")], True, "twin"),
        ([worker("a", started_at=2)], True, "twin"),
        ([worker("z", started_at=0)], True, "twin-2"),
        ([worker("a"), worker("b")], True, "twin-2"),  # b, who takes it as well, comes before, and so it gives it up
        ([worker("a"), worker("z")], True, "twin-2"),
    ],
)
def test_who_comes_later_takes_a_number(others: list[WorkerInfo], registered: bool, name: str) -> None:
    assert name_apart(worker("m"), "twin", others, registered=registered) == name


def test_a_number_that_another_one_has_is_given_up_for_the_next() -> None:
    own = worker("m", "twin-2")
    assert name_apart(own, "twin", [worker("a"), worker("b", "twin-2")], registered=True) == "twin-3"


def started(order: random.Random, count: int) -> list[str]:
    """The names of workers that start at about the same moment, in some order of their steps.

    Each looks, registers, and looks again until it has no namesake before it; then all look now and then.
    """
    store: dict[str, WorkerInfo] = {}

    def look(own: WorkerInfo) -> WorkerInfo:
        others = [other for id, other in store.items() if id != own.id]
        return replace(own, name=name_apart(own, "twin", others, registered=own.id in store))

    def life(own: WorkerInfo) -> Iterator[None]:
        own = look(own)
        yield
        while store.get(own.id) != own:
            store[own.id] = own
            yield
            own = look(own)
            yield

    lives = [life(worker(str(n), started_at=order.randint(1, 3))) for n in range(count)]
    while lives:
        chosen = order.choice(lives)
        if next(chosen, lives) is lives:  # it has ended
            lives.remove(chosen)
    for _ in range(count):
        for id in order.sample(sorted(store), count):
            store[id] = look(store[id])
    return sorted(info.name for info in store.values())


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_in_whatever_order_several_start_each_ends_with_a_name_of_its_own(count: int) -> None:
    for seed in range(500):
        assert started(random.Random(seed), count) == ["twin", *(f"twin-{n}" for n in range(2, count + 1))], seed
