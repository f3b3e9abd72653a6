"""Jobs that fork or start programs without end, where a cgroup bounds how many there can be."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import WAIT, Bench, Worker
from tests.integration.snippets import SOUND
from tests.support import wait_until

ROOM = 64
"""Processes and threads; a worker with two children has about 15."""

BOMBS = """
import subprocess

def bomb() -> None:
    first, end = os.getpid(), time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.fork()
        except OSError:
            if os.getpid() == first:
                note("full")
            time.sleep(0.02)
    os._exit(1)

@app.task(attempts=1, timeout="1s")
def forks() -> None:
    bomb()

@app.task(attempts=1, timeout="1s", isolated=True)
def forks_alone() -> None:
    bomb()

@app.task(attempts=1)
def programs() -> None:
    started = []
    try:
        while True:
            started.append(subprocess.Popen(["sleep", "30"]))
    finally:
        note("full")
        for program in started:
            program.kill()
            program.wait()
"""


class Cage:
    """A cgroup with room for few processes and threads."""

    def __init__(self) -> None:
        memberships = [line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines()]
        paths = {name: path.lstrip("/") for names, path in memberships for name in names.split(",")}
        parent = Path("pids", paths["pids"]) if "pids" in paths else Path(paths[""])  # of version 1, or 2
        self._folder = Path("/sys/fs/cgroup", parent, f"mouso-test-{os.getpid()}")
        self._folder.mkdir()

    def limit(self, count: int) -> None:
        (self._folder / "pids.max").write_text(str(count))

    def worker(self, bench: Bench) -> Worker:
        """A worker in it, that has joined."""
        command = [sys.executable, "-m", "mouso", "worker", "jobs:app", "-p", "2", "-c", "4"]
        enter = f"open({str(self._folder / 'cgroup.procs')!r}, 'w').write('0')"
        worker = bench.program(f"import os\n{enter}\nos.execv({sys.executable!r}, {command!r})")
        bench.wait_ready(worker, processes=2)
        return worker

    def pids(self) -> list[int]:
        return [int(pid) for pid in (self._folder / "cgroup.procs").read_text().split()]

    def close(self) -> None:
        """Ends whatever is left in it; nothing can be born meanwhile."""
        with contextlib.suppress(FileNotFoundError):  # there are no limits here
            self.limit(0)
        wait_until(self._emptied, timeout=WAIT, message="the cgroup is empty")
        self._folder.rmdir()

    def _emptied(self) -> bool:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not self.pids()


@pytest.fixture
def cage(bench: Bench) -> Iterator[Cage]:
    """Closed before the bench, which waits for its workers."""
    try:
        made = Cage()
    except (OSError, KeyError) as error:
        pytest.skip(f"this machine lets nobody make a cgroup of processes: {error}")
    with contextlib.closing(made):
        try:
            made.limit(ROOM)
        except OSError as error:
            pytest.skip(f"this machine lets nobody limit processes: {error}")
        yield made


@pytest.mark.parametrize(
    ("name", "reason"), [("forks", "timeout"), ("forks_alone", "timeout"), ("programs", "attempts")]
)
def test_a_fork_bomb_ends_and_harms_nobody(bench: Bench, cage: Cage, name: str, reason: str) -> None:
    jobs = bench.app(BOMBS + SOUND)
    worker = cage.worker(bench)
    handle = getattr(jobs, name).delay()
    bench.wait_for("full")
    others = [task.delay(n) for n in range(20) for task in (jobs.sound, jobs.sound_coroutine)]
    assert [other.get(timeout=60) for other in others] == [n for n in range(20) for _ in "12"]
    [bomb, *records] = bench.wait_final([handle, *others], timeout=60)
    assert (bomb.state, bomb.reason, bomb.attempts) == ("dead", reason, 1)
    assert {(record.attempts, record.crashes) for record in records} == {(0, 0)}
    assert worker.stop() == 0
    wait_until(lambda: cage.pids() == [], timeout=2, message="what was killed has gone")


def test_a_shutdown_for_which_no_thread_can_be_started(bench: Bench, cage: Cage) -> None:
    jobs = bench.app(SOUND)
    worker = cage.worker(bench)
    cage.limit(0)
    handles = [jobs.sound_coroutine.delay(n) for n in range(20)]
    assert [handle.get(timeout=WAIT) for handle in handles] == list(range(20))
    assert worker.stop() == 0
