"""Every example runs end to end, with a real worker, from a copy of its folder."""

import re
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.docs.markdown import ROOT
from tests.docs.scratch import Scratch

EXAMPLES = ROOT / "examples"
OUTPUT = {
    "quickstart.py": ["4 + 4 = 8"],
    "celery_tutorial": ["8", "True"],
    "async_pages.py": ["100 pages, 4950 bytes"],
    "progress_bar.py": ["[##############################] 50/50 to 800 px", "50 pictures"],
    "outbox.py": ["Order 1: one book is on its way.", "1 order", "1 mail"],
    "dead_letters.py": ["dead after 3 runs: FileNotFoundError", "retry: retried", "3 words"],
    "stop_jobs.py": [
        "timeout: the attempt took longer than its timeout of 0.3 s",
        "one that waits: cancelled",
        "one that runs: requested",
        "and it stopped",
    ],
    "hooks.py": [
        "42",
        "ZeroDivisionError",
        "run: hooks.divide attempt 1, True",
        "run: hooks.divide attempt 1, True",
        "dead: hooks.divide, attempts",
    ],
    "fan_out.py": ["3 jobs", "6 words"],
}
"""Lines that each must print, in this order, among others."""


class Example(NamedTuple):
    """A row of the README's table."""

    name: str
    worker: str
    program: str


def examples() -> Iterator[Example]:
    """The examples as the README names them."""
    row = re.compile(r"^\| \[(?P<name>[\w.]+)\]\(\1\) \|.*\| `(?P<worker>[^`]+)` \| `(?P<program>[^`]+)` \|$")
    for line in (EXAMPLES / "README.md").read_text(encoding="utf-8").splitlines():
        if found := row.match(line):
            yield Example(found["name"], found["worker"], found["program"])


def test_every_example_is_listed_and_expected() -> None:
    there = {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py" or (path / "tasks.py").exists()}
    listed = [example.name for example in examples()]
    assert sorted(listed) == sorted(there) == sorted(OUTPUT)


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name)
def test_example_runs(example: Example, scratch: Scratch) -> None:
    source = EXAMPLES / example.name
    for path in sorted(source.glob("*.py")) if source.is_dir() else [source]:
        shutil.copy(path, scratch.folder)
    scratch.worker(f"{example.worker} -p 1")
    code, output = scratch.shell(example.program)
    assert code == 0, output + scratch.logs()
    lines = iter(output.splitlines())
    for expected in OUTPUT[example.name]:
        assert expected in lines, output
