"""The folder in which snippets and examples run."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.docs.scratch import Scratch


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    """A folder with workers; all of it ends with the test."""
    with closing(Scratch(tmp_path)) as made:
        yield made
