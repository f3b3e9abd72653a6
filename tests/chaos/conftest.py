"""Fixtures of the tests that kill, freeze, cut and fill."""

import os
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.chaos.arena import Arena

SEED = "MOUSO_TEST_SEED"


@pytest.fixture
def seed() -> int:
    """What decides all that is random in a test; from the environment, to repeat a failure."""
    chosen = int(os.environ.get(SEED) or random.SystemRandom().randrange(1_000_000))
    print(f"to repeat it: {SEED}={chosen}")
    return chosen


@pytest.fixture
def arena(tmp_path: Path, seed: int) -> Iterator[Arena]:
    """A folder with a load and two workers; all of it ends with the test."""
    with closing(Arena(tmp_path, seed)) as made:
        yield made
