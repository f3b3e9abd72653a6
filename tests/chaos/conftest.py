"""Fixtures of the tests that kill, freeze, cut and fill."""

import os
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.chaos.arena import Arena

SEED = "MOUSO_TEST_SEED"
WAITING = ("replaced_by", "longer_than", "beyond_the_lease", "without_an_end", "another_program", "shorter_than")
"""Words in the names of tests that wait for many seconds: if these begin first, the others fill the waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts those that wait before the others of this suite."""
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.parent == here and not any(word in item.name for word in WAITING))


@pytest.fixture
def seed() -> int:
    """What decides all that is random in a test; from the environment, to repeat a failure."""
    chosen = int(os.environ.get(SEED) or random.SystemRandom().randrange(1_000_000))
    print(f"to repeat it: {SEED}={chosen}")
    return chosen


@pytest.fixture
def arena(tmp_path: Path, seed: int, broker_url: str) -> Iterator[Arena]:
    """A folder with a load and two workers; all of it ends with the test."""
    with closing(Arena(tmp_path, seed, broker_url)) as made:
        yield made
