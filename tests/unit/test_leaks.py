"""The search for leaks finds each kind of leak, and nothing else."""

import os
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tests import leaks
from tests.support import wait_until

SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="processes and files need /proc")


def test_nothing_is_found_where_nothing_is_left() -> None:
    before = leaks.Snapshot.take()
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert leaks.left_behind(before) == []


def test_a_thread_is_found() -> None:
    before, stop = leaks.Snapshot.take(), threading.Event()
    thread = threading.Thread(target=stop.wait, name="forgotten", daemon=True)
    thread.start()
    assert leaks.left_behind(before, grace=0) == ["thread 'forgotten' (daemon)"]
    stop.set()
    thread.join()


def test_a_thread_may_end_within_the_grace() -> None:
    before, stop = leaks.Snapshot.take(), threading.Event()
    threading.Thread(target=stop.wait, args=(0.05,)).start()
    assert leaks.left_behind(before) == []


@needs_proc
def test_an_open_file_is_found_even_when_it_was_renamed(tmp_path: Path) -> None:
    with (tmp_path / "kept").open("w"):
        before = leaks.Snapshot.take()
        (tmp_path / "kept").rename(tmp_path / "renamed")
        with (tmp_path / "forgotten").open("w") as forgotten:
            found = leaks.left_behind(before, grace=0)
            assert found == [f"open file {forgotten.fileno()}: {tmp_path / 'forgotten'}"]


@needs_proc
def test_an_open_pipe_is_found() -> None:
    before = leaks.Snapshot.take()
    reader, writer = os.pipe()
    with closing(open(reader)), closing(open(writer, "w")):
        assert len(leaks.left_behind(before, grace=0)) == 2


@needs_proc
def test_a_process_is_found_and_killed() -> None:
    before = leaks.Snapshot.take()
    with subprocess.Popen(SLEEPER) as process:
        (found,) = leaks.left_behind(before, grace=0)
        assert found.startswith(f"process {process.pid}: {sys.executable}")
        assert process.wait(10) == -9


@needs_proc
def test_a_process_that_lost_its_parent_is_found() -> None:
    before = leaks.Snapshot.take()
    start = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=-3, stderr=-3).pid)"
    parent = subprocess.run([sys.executable, "-S", "-c", start, *SLEEPER], capture_output=True, text=True, check=True)
    (found,) = leaks.left_behind(before, grace=0)
    assert found.startswith(f"process {parent.stdout.strip()}: ")
    wait_until(lambda: not leaks._is_ours(int(parent.stdout)))


@needs_proc
def test_what_a_lasting_process_starts_belongs_to_it() -> None:
    start = "import subprocess, sys; input(); p = subprocess.Popen(sys.argv[1:]); print(p.pid); input(); p.kill()"
    with leaks.lasting():
        server = subprocess.Popen([sys.executable, "-S", "-u", "-c", start, *SLEEPER], stdin=-1, stdout=-1, text=True)
    before = leaks.Snapshot.take()
    with server:
        assert server.stdin is not None
        assert server.stdout is not None
        print(file=server.stdin, flush=True)
        pid = int(server.stdout.readline())
        wait_until(lambda: leaks._is_ours(pid))  # the kernel shows its environment a moment after it has started
        assert leaks.left_behind(before, grace=0) == []
        server.communicate("\n")


def test_what_is_lasting_is_not_found() -> None:
    before, stop = leaks.Snapshot.take(), threading.Event()
    with leaks.lasting():
        thread = threading.Thread(target=stop.wait)
        thread.start()
    assert leaks.left_behind(before, grace=0) == []
    stop.set()
    thread.join()
