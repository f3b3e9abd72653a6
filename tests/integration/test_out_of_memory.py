"""A job under which the kernel runs out of memory: its worker lives, and says what it was."""

import contextlib
import os
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mouso.worker import memory
from tests.integration.harness import WAIT, Bench
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
        told_by = re.search(r"\(see (memory\.\w+) of its cgroup\)", error.message)
        assert told_by is not None, error.message
        assert (small_cgroup / told_by[1]).exists()
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


NOOP = """
@app.task
def noop(text: str) -> int:
    note("ran")
    return len(text)
"""


@pytest.mark.parametrize("kib", [600, 1024, 3000, 6000])
def test_a_supervisor_without_memory_goes_on_when_there_is_some_again(bench: Bench, kib: int) -> None:
    jobs = bench.app(NOOP + SOUND)
    worker = bench.worker(processes=2)
    limit_memory(worker.pid, kib << 10)
    handles = jobs.noop.map([("x" * 100,)] * 3000 + [("x" * 200_000,)] * 100)
    told = ("no memory", "does not answer")
    wait_until(lambda: any(part in worker.log for part in told) or not bench.states()["available"], timeout=WAIT)
    time.sleep(0.5)  # in which it tries again
    assert worker.alive, worker.log
    limit_memory(worker.pid, None)
    records = bench.wait_final(handles, timeout=30)
    assert {(r.state, r.attempts, r.crashes) for r in records} == {("completed", 0, 0)}
    still_sound(jobs)
    wait_until(lambda: worker.log.count("does not answer") == worker.log.count("answers again"), timeout=WAIT)
    assert worker.stop() == 0
    assert "failed" not in worker.log
    assert worker.log.count("supervisor has no memory") <= 1, "one line, not one for each try"


def test_a_child_without_memory_says_so_in_one_line_and_charges_nobody(bench: Bench) -> None:
    jobs = bench.app(
        NOOP
        + SOUND
        + """
app.payload_limit = 64 << 20

@app.task
def waits() -> None:
    note("waits")
    while not Path("enough").exists():
        time.sleep(0.01)
"""
    )
    worker = bench.worker()
    innocent = jobs.waits.delay()
    bench.wait_for("waits")
    (child,) = worker.children()
    limit_memory(child, 256 << 10)
    large = jobs.noop.delay("x" * (40 << 20))
    wait_until(lambda: f"child {child} has no memory left and ends" in worker.log, timeout=WAIT)

    bench.wait_for("waits", 2)
    (bench.folder / "enough").touch()
    records = bench.wait_final([innocent, large])
    assert {(r.state, r.attempts, r.crashes) for r in records} == {("completed", 0, 0)}
    assert f"child {child} died (exit code 71, " in worker.log
    still_sound(jobs)
    assert worker.stop() == 0
    assert "Traceback" not in worker.log


def limit_memory(pid: int, more: int | None) -> None:
    """Lets a process have so many bytes more than it has; None for all."""
    size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = resource.RLIM_INFINITY if more is None else size + more
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def test_what_is_available_is_that_of_the_cgroup() -> None:
    free, total = memory.available()
    assert 0 < free <= total


def test_a_process_that_is_gone_has_nothing() -> None:
    assert memory.resident(2**22 + 1) == 0
    assert memory.resident(os.getpid()) > 1 << 20
