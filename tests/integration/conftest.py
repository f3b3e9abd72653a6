"""Fixtures of the tests that start real workers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A folder with an app, a store and workers; all of it ends with the test."""
    made = Bench(tmp_path)
    try:
        yield made
    finally:
        made.close()
