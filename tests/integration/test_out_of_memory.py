"""A job under which the kernel runs out of memory: its worker lives, and says what it was."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mouso.worker import memory
from tests.integration.harness import Bench
from tests.integration.snippets import SOUND, still_sound
from tests.support import wait_until

LIMIT = 300 << 20

HOG = """
@app.task
def hog() -> None:
    note("start")
    kept = []
    while True:
        kept.append(bytearray(b"x" * (8 << 20)))
        time.sleep(0.01)
"""


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup of 300 MiB, where this machine lets us make one."""
    parent, two = memory._cgroup()
    folder = parent / f"mouso-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.max" if two else "memory.limit_in_bytes")).write_text(str(LIMIT))
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"this machine lets nobody make a memory cgroup: {error}")
    yield folder
    wait_until(lambda: not (folder / "cgroup.procs").read_text(), timeout=10)
    folder.rmdir()


def test_a_job_that_eats_all_memory_is_poison_and_says_why(bench: Bench, small_cgroup: Path) -> None:
    jobs = bench.app(HOG + SOUND)
    worker = bench.worker(processes=2)
    worker.quiet = False
    for pid in (worker.pid, *worker.children()):
        (small_cgroup / "cgroup.procs").write_text(str(pid))
    handle = jobs.hog.delay()
    [record] = bench.wait_final([handle], timeout=60)
    assert (record.state, record.reason, record.crashes, record.attempts) == ("dead", "poison", 3, 0)
    for error in record.errors:
        assert "signal 9, SIGKILL" in error.message
        assert "want of memory" in error.message
        assert "MiB resident" in error.message
    assert "want of memory" in worker.log
    still_sound(jobs)
    assert worker.stop() == 0


def test_a_thousand_others_are_not_charged_for_it(bench: Bench, small_cgroup: Path) -> None:
    jobs = bench.app(HOG + SOUND)
    worker = bench.worker(processes=2)
    worker.quiet = False
    for pid in (worker.pid, *worker.children()):
        (small_cgroup / "cgroup.procs").write_text(str(pid))
    before = jobs.sound.map([(n,) for n in range(500)])
    hog = jobs.hog.delay()
    after = jobs.sound.map([(n,) for n in range(500)])
    records = bench.wait_final([hog, *before, *after], timeout=60)
    assert (records[0].state, records[0].reason, records[0].crashes) == ("dead", "poison", 3)
    assert {(r.state, r.attempts, r.crashes) for r in records[1:]} == {("completed", 0, 0)}
    assert worker.stop() == 0


def test_what_is_available_is_that_of_the_cgroup() -> None:
    free, total = memory.available()
    assert 0 < free <= total


def test_a_process_that_is_gone_has_nothing() -> None:
    assert memory.resident(2**22 + 1) == 0
    assert memory.resident(os.getpid()) > 1 << 20
