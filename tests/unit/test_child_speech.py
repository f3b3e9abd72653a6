"""What a child says arrives whole, or it ends: half a frame would take the next one for its other half."""

import errno
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

import pytest

from mouso.brokers.base import Update
from mouso.worker import child as module
from mouso.worker import frames
from mouso.worker.board import Board
from mouso.worker.child import Child
from mouso.worker.frames import EXIT_STARVED, Pong, Reports, Splitter, to_supervisor

LARGE = "x" * (4 << 20)

LITTLE_MEMORY = """
import os, resource
from pathlib import Path
from mouso.worker.frames import Splitter

frame = (1 << 20).to_bytes(4, "big") + bytes(1 << 20)
for more in range(0, 6 << 20, 100 << 10):
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + more, resource.RLIM_INFINITY))
    try:
        Splitter().feed(frame)
        print("fed")
    except MemoryError:
        print("starved")
"""


class Ended(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        yield ours, theirs


@pytest.fixture
def child(sockets: tuple[socket.socket, socket.socket]) -> Iterator[Child]:
    board = Board.create(2)
    made = Child("worker", sockets[1], board, 1, 1.0)
    yield made
    os.close(made._wake_in)
    os.close(made._wake_out)
    board.close()


def report() -> Reports:
    return Reports([Update(1, 1, stack=LARGE)])


def test_an_answer_does_not_get_into_the_middle_of_a_large_frame(
    child: Child, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """A supervisor that is slow to read asks its child whether it lives, while another thread of it sends a result."""
    ours, _ = sockets
    large = threading.Thread(target=lambda: child._send(report()))
    large.start()
    read = bytearray(ours.recv(100))  # it has begun, and does not end before somebody reads
    answers = [threading.Thread(target=lambda: child._send(Pong())) for _ in range(3)]
    for answer in answers:
        answer.start()
    while len(read) < len(LARGE):
        read += ours.recv(4096)
    for thread in (large, *answers):
        thread.join()
    ours.setblocking(False)
    while True:
        try:
            read += ours.recv(4096)
        except BlockingIOError:
            break
    heard = [to_supervisor.decode(body) for body in Splitter().feed(bytes(read))]
    assert heard == [report(), Pong(), Pong(), Pong()]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), EXIT_STARVED),
        (OSError(errno.ENOBUFS, "No buffer space available"), EXIT_STARVED),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), EXIT_STARVED),
        (KeyError("a signal's handler, in the middle of a frame"), module._BROKEN),
    ],
    ids=["memory", "buffers", "kernel", "other"],
)
def test_a_frame_that_cannot_be_sent_whole_is_the_last(
    child: Child,
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> NoReturn:
        raise error

    def end(code: int) -> NoReturn:
        raise Ended(code)

    monkeypatch.setattr(frames, "send", fail)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    with pytest.raises(Ended) as ended:
        child._send(Pong())
    assert ended.value.args == (code,)
    [record] = caplog.records
    if code == EXIT_STARVED:
        assert "has no memory left and ends" in record.message
        assert record.exc_info is None, "no traceback"


def test_a_supervisor_that_is_gone_ends_nothing_at_once(
    child: Child, sockets: tuple[socket.socket, socket.socket]
) -> None:
    sockets[0].close()
    child._send(Pong())


def test_python_does_not_complain_of_frames_that_there_is_no_memory_for() -> None:
    """Of a copy of a part of a bytearray that it has no memory for it says that it has exported buffers."""
    command = [sys.executable, "-c", LITTLE_MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == {"starved", "fed"}
