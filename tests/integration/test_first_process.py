"""A worker that is the first process of its pid namespace, as in a container without an init."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.harness import WAIT, Bench
from tests.support import wait_until

LEAVES = """
@app.task
def leave() -> int:
    \"\"\"Leaves a grandchild behind, which soon dies.\"\"\"
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.2)
        os._exit(0)
    return os.getpid()
"""


@contextmanager
def first_process(bench: Bench) -> Iterator[int]:
    """A worker that is process 1 of a namespace of its own; its pid as it is seen from here."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command += [sys.executable, "-m", "mouso", "worker", "jobs:app", "-p", "1", "-c", "4"]
    with (bench.folder / "log").open("w+b") as log:
        outer = subprocess.Popen(command, cwd=bench.folder, env=bench.environment(), stdin=log, stdout=log, stderr=log)
    try:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        yield int(wait_until(lambda: children.read_text().split(), timeout=WAIT)[0])
    finally:
        outer.kill()
        outer.wait()


def dead_children(pid: int) -> list[int]:
    pids = (
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    )
    return [pid for pid in pids if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root can make a pid namespace")
def test_what_jobs_leave_behind_is_buried(bench: Bench) -> None:
    jobs = bench.app(LEAVES)
    with first_process(bench) as pid:
        handles = [jobs.leave.delay() for _ in range(5)]
        assert len({handle.get(timeout=WAIT) for handle in handles}) == 1, (bench.folder / "log").read_text()
        wait_until(lambda: dead_children(pid), timeout=WAIT, message="it gets what nobody else waits for")
        wait_until(lambda: not dead_children(pid), timeout=WAIT, message="it buries them")
        assert jobs.leave.delay().get(timeout=WAIT)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: "stopped\n" in (bench.folder / "log").read_text(), timeout=WAIT)
