"""Only a test that failed while the machine stood still is run again, and that is told."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.harness import ROOT

CONFTEST = """
import pytest
from tests import again, stalls
stalls.stalled = lambda since, until: LOST

def pytest_configure(config):
    config.pluginmanager.register(again)
"""
TESTS = """
import pytest
from pathlib import Path

@pytest.fixture
def count(tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "count"
    file.write_text(file.read_text() + "x" if file.exists() else "x")
    yield len(file.read_text())

def test_it(count, tmp_path):
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "made").touch()
    assert count == 2

def test_another():
    pass
"""


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("3.21", ["run again, as the machine stood still for 3.2 s: test_it.py::test_it: assert 1 == 2", "2 passed"]),
        ("0.0", ["1 failed, 1 passed"]),
    ],
)
def test_a_failure_while_the_machine_stood_still_does_not_count(tmp_path: Path, lost: str, said: list[str]) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST.replace("LOST", lost))
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(
        [*command, "--basetemp", str(tmp_path / "temp")],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert [words for words in said if words not in done.stdout] == [], done.stdout + done.stderr
    assert ("run again" in done.stdout) is (lost != "0.0")
