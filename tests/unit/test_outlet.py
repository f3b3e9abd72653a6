"""Writing to what others read: it does not wait for them, and tears no line."""

import os
import pty
import socket
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from mouso.observe.outlet import Outlet
from tests.stalls import elapsed

LINE = b"x" * 99 + b"\n"
LONG = 0.05 * 20
"""Seconds; a writer that waited for its reader would wait for ever."""


class Place:
    """Something to write to, and its other end."""

    def __init__(self, kind: str) -> None:
        self._sockets = socket.socketpair() if kind == "socket" else ()
        if kind == "pipe":
            self.reading, self.writing = os.pipe()
        elif kind == "terminal":
            self.reading, self.writing = pty.openpty()
            tty.setraw(self.writing)
        else:
            self.reading, self.writing = (end.fileno() for end in self._sockets)

    def read(self) -> bytes:
        """What there is by now."""
        os.set_blocking(self.reading, False)
        parts = []
        with suppress(BlockingIOError, OSError):
            while part := os.read(self.reading, 1 << 20):
                parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        for one in self._sockets:
            one.detach()
        for end in (self.reading, self.writing):
            with suppress(OSError):
                os.close(end)


@pytest.fixture(params=["pipe", "terminal", "socket"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    made = Place(request.param)
    yield made
    made.close()


def fill(outlet: Outlet) -> int:
    """How many lines go until none does any more."""
    for count in range(100_000):
        if not outlet.put(LINE):
            return count
    raise AssertionError("it never fills")


def test_lines_arrive(place: Place) -> None:
    outlet = Outlet(place.writing)
    assert outlet.put(b"one\n")
    assert outlet.put(b"two\n")
    assert place.read() == b"one\ntwo\n"
    assert os.get_blocking(place.writing), "not to wait is this process's affair alone"


def test_nobody_reads(place: Place) -> None:
    outlet = Outlet(place.writing)
    whole = fill(outlet)
    began = time.monotonic()
    assert not any(outlet.put(LINE) for _ in range(2000))
    assert elapsed(began) < LONG
    got = place.read()
    assert outlet.put(b"again\n")
    lines = (got + place.read()).splitlines(keepends=True)
    assert lines.pop() == b"again\n"
    torn = lines[whole:]
    assert lines[:whole] == [LINE] * whole
    assert len(torn) <= 1
    assert all(set(line) <= set(LINE) for line in torn)


def test_a_terminal_that_is_stopped() -> None:
    """Ctrl-S."""
    place = Place("terminal")
    termios.tcflow(place.writing, termios.TCOOFF)
    outlet = Outlet(place.writing)
    began = time.monotonic()
    fill(outlet)
    assert elapsed(began) < LONG
    termios.tcflow(place.writing, termios.TCOON)
    place.read()
    assert outlet.put(LINE)
    place.close()


def test_two_processes_that_share_a_pipe() -> None:
    """Each sees that there is room for a line; only one of them is right."""
    place = Place("pipe")
    program = f"from mouso.observe.outlet import Outlet\nout = Outlet({place.writing})\nwhile out.put({LINE!r}): pass"
    writers = [subprocess.Popen([sys.executable, "-c", program], pass_fds=[place.writing]) for _ in range(3)]
    try:
        assert [writer.wait(30) for writer in writers] == [0, 0, 0]
    finally:
        for writer in writers:
            writer.kill()
    place.close()


def test_a_reader_that_is_gone(place: Place) -> None:
    outlet = Outlet(place.writing)
    outlet.put(LINE)
    if not place._sockets:
        os.close(place.reading)
    else:
        place._sockets[0].shutdown(socket.SHUT_RDWR)
    assert not outlet.put(LINE)


def test_a_descriptor_that_is_closed(place: Place) -> None:
    outlet = Outlet(place.writing)
    outlet.put(LINE)
    os.close(place.writing)
    assert not outlet.put(LINE)


def test_a_descriptor_that_leads_elsewhere_now(place: Place, tmp_path: Path) -> None:
    outlet = Outlet(place.writing)
    outlet.put(b"here\n")
    with (tmp_path / "file").open("wb") as file:
        os.dup2(file.fileno(), place.writing)
    assert outlet.put(b"there\n")
    assert place.read() == b"here\n"
    assert (tmp_path / "file").read_bytes() == b"there\n"


def test_an_app_that_closes_what_is_not_its_own(place: Place, tmp_path: Path) -> None:
    """What it opens then may have the number that was ours: not a byte goes there, and it stays open."""
    outlet = Outlet(place.writing)
    outlet.put(b"one\n")
    assert outlet._own is not None
    with (tmp_path / "data").open("wb") as file:
        os.dup2(file.fileno(), outlet._own)
        number = outlet._own
        assert outlet.put(b"two\n")
        os.write(number, b"mine")
        os.close(number)
    assert (tmp_path / "data").read_bytes() == b"mine"
    assert place.read() == b"one\ntwo\n"


def test_what_cannot_be_opened_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of another user's, or a system without /proc."""

    def refused(*args: object) -> int:
        raise PermissionError

    place = Place("pipe")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        outlet = Outlet(place.writing)
        assert outlet.put(b"a" * 10_000 + b"\n")
        assert outlet._own is None
        assert place.read() == b"a" * 10_000 + b"\n"
        fill(outlet)
    place.close()


def test_a_file(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as file:
        outlet = Outlet(file.fileno())
        assert outlet.put(LINE * 1000)
        assert outlet._own is None
        outlet.put_stacks()
    lines, stacks = (tmp_path / "log").read_bytes().split(b"\n", 1000)[-2:]
    assert lines + b"\n" == LINE
    assert b"in test_a_file" in stacks


def test_stacks_wait_for_nobody(place: Place) -> None:
    outlet = Outlet(place.writing)
    outlet.put_stacks()
    assert b"test_stacks_wait_for_nobody" in place.read()
    fill(outlet)
    outlet.put_stacks()


def test_a_slow_reader_holds_nobody_up() -> None:
    """It is waited for a little once a second, not at each line."""
    with ExitStack() as stack:
        place = Place("pipe")
        stack.callback(place.close)
        outlet = Outlet(place.writing)
        fill(outlet)
        began = time.monotonic()
        for _ in range(50):
            os.read(place.reading, 4096)
            while outlet.put(LINE):
                pass
        assert elapsed(began) < LONG
