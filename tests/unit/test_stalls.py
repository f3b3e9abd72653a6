"""A process that was stopped knows for how long, and that it was not the program under test that was slow."""

import signal
import subprocess
import sys
import time

import pytest

from tests import stalls
from tests.stalls import Stalls
from tests.support import wait_until

PROGRAM = """
import sys, time
from tests import stalls
stalls.watch()
began = time.monotonic()
print("began", flush=True)
sys.stdin.readline()
print(time.monotonic() - began, stalls.elapsed(began), stalls.elapsed(began), flush=True)
end = time.monotonic()
sys.stdin.readline()
print(end - began, stalls.elapsed(began, end), stalls.stalled(end, time.monotonic()))
"""


def test_the_time_of_a_stop_is_left_out() -> None:
    """At once, and later, when the thread has found it."""
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], **pipe) as process:  # type: ignore[call-overload]  # why: a mixed dict
        assert process.stdout.readline() == "began\n"
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1)
        process.stdin.write("go\n")
        process.stdin.flush()
        process.send_signal(signal.SIGCONT)
        whole, first, second = map(float, process.stdout.readline().split())
        assert whole > 1
        assert first < whole - 0.8
        assert second < whole - 0.8
        out, _ = process.communicate("go\n")
        whole, later, _ = map(float, out.split())
        assert later < whole - 0.8


def test_only_what_overlaps_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stalls()
    watch._found = [(1.0, 2.0), (5.0, 8.0)]
    monkeypatch.setattr(stalls, "_stalls", watch)
    assert stalls.elapsed(0.0, 4.0) == 3.0
    assert stalls.elapsed(1.5, 6.0) == 3.0
    assert stalls.elapsed(6.0, 7.0) == 0.0
    assert stalls.stalled(2.0, 5.0) == 0.0
    watch.close()
