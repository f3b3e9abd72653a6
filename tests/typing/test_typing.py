"""Two type checkers accept what is right, and reject exactly the marked lines of what is wrong."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RIGHT = [HERE / "tasks.py", HERE / "right.py"]
WRONG = sorted(HERE.glob("wrong_*.py"))
# One checker, one test process: two mypys at once on one cache end with "INTERNAL ERROR" ("database is locked").
CHECKERS = [pytest.param(name, marks=pytest.mark.xdist_group(f"typing-{name}")) for name in ("mypy", "pyright")]

Rejected = dict[str, dict[int, str]]
"""``{file name: {line: message}}``."""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def rejected_by_mypy(cache: Path) -> Rejected:
    found: Rejected = defaultdict(dict)
    done = run("mypy", "--strict", "--no-error-summary", f"--cache-dir={cache}", *map(str, RIGHT + WRONG))
    if done.returncode not in (0, 1) or done.stderr:
        pytest.fail(f"mypy did not run: {done.stderr or done.stdout}", pytrace=False)
    for line in done.stdout.splitlines():
        if match := re.match(r"(.+?):(\d+): error: (.*)", line):
            found[Path(match[1]).name][int(match[2])] = match[3]
    return found


def rejected_by_pyright() -> Rejected:
    found: Rejected = defaultdict(dict)
    done = run("pyright", "--outputjson", "--pythonpath", sys.executable, *map(str, RIGHT + WRONG))
    try:
        diagnostics = json.loads(done.stdout)["generalDiagnostics"]
    except (ValueError, KeyError):
        pytest.fail(f"pyright did not run; it needs node: {done.stderr or done.stdout}", pytrace=False)
    for item in diagnostics:
        if item["severity"] == "error":
            found[Path(item["file"]).name][item["range"]["start"]["line"] + 1] = item["message"]
    return found


@pytest.fixture(scope="module", params=CHECKERS)
def rejected(request: pytest.FixtureRequest) -> Rejected:
    if request.param == "pyright":
        return rejected_by_pyright()
    return rejected_by_mypy(request.config.cache.mkdir("mypy_typing"))


def marked(path: Path) -> set[int]:
    return {number for number, line in enumerate(path.read_text().splitlines(), 1) if "  # wrong: " in line}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", RIGHT, ids=lambda path: path.stem)
def test_right_types_are_accepted(path: Path, rejected: Rejected) -> None:
    assert rejected.get(path.name, {}) == {}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_exactly_the_wrong_lines_are_rejected(path: Path, rejected: Rejected) -> None:
    errors = rejected.get(path.name, {})
    expected = marked(path)
    assert expected
    surprises = {line: errors[line] for line in errors.keys() - expected}
    assert (surprises, sorted(expected - errors.keys())) == ({}, []), "rejected without a mark, marked and accepted"
