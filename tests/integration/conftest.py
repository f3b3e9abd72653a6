"""Fixtures of the tests that start real workers."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.harness import Bench


@pytest.fixture
def bench(tmp_path: Path, broker_url: str) -> Iterator[Bench]:
    """A folder with an app, a store and workers; all of it ends with the test."""
    with closing(Bench(tmp_path, broker_url)) as made:
        yield made
