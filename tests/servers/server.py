"""What the servers of the tests have in common: a process, a port, a folder, and signals."""

import os
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

from tests.support import free_port, wait_until
from tools import servers

READY = 60.0
"""Seconds that a server may take until it answers."""


class Server(ABC):
    """One server. Its data outlive a ``kill`` and the ``start`` that follows.

    Args:
        folder: Where all of its files are; it must exist, and be empty the first time.
    """

    user: str | None = None
    """As whom it runs, if not as the user of the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The broker URL of this server."""

    @contextmanager
    def store(self, name: str) -> Iterator[str]:
        """A part of the server for one test, or all of it: its URL; what is in the part is deleted at the end."""
        yield self.url

    @abstractmethod
    def command(self) -> Sequence[str]:
        """What starts it in the foreground."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it serves by now."""

    @property
    def log(self) -> str:
        """All that it has written so far."""
        return (self.folder / "server.log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server does not run"
        return self._process.pid

    def start(self, *, wait: bool = True) -> None:
        """Starts it, by default until it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self.user,
                group=self.user,
                extra_groups=None if self.user is None else [],
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Waits until it answers."""
        process = self._process
        assert process is not None

        def ready() -> bool:
            assert process.poll() is None, f"the server ended: {self.log[-4000:]}"
            return self.answers()

        wait_until(ready, timeout=READY, interval=0.02, message=f"{type(self).__name__} answers")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Ends it at once, with all processes that it has started."""
        if self._process is None:
            return
        if number == signal.SIGKILL:  # or it would start one more
            self._signal([self.pid], signal.SIGSTOP)
            wait_until(lambda: _stands_still(self.pid), timeout=READY, message="the server is held")
        processes = self.processes()
        self._signal(processes, number)
        self._process.wait(READY)
        self._process = None
        wait_until(lambda: not any(map(_runs, processes)), timeout=READY, message="no process of the server is left")

    def processes(self) -> list[int]:
        """Its process and those that it has started, which may have process groups of their own."""
        found = [self.pid]
        for pid in found:
            with suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def _signal(self, processes: Iterable[int], number: int) -> None:
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """Asks it to end, and waits."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(READY)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def freeze(self) -> None:
        """Holds all of its processes; returns when every thread of theirs stands still."""
        processes = self.processes()
        self._signal(processes, signal.SIGSTOP)
        wait_until(lambda: all(map(_stands_still, processes)), message="the server is frozen")

    def thaw(self) -> None:
        """Lets them go on."""
        self._signal(self.processes(), signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def end(self) -> None:
        """Ends it for good."""
        with suppress(ProcessLookupError, AssertionError):
            self.thaw()
        self.kill()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def program(name: str) -> str:
    """The path of a server's program.

    Skips the test if there is none, and fails it in CI: ``make test`` installs what is missing where it may.
    """
    found = servers.find(name)
    if found is None:
        said = f"{name} is not installed; install it with: apt-get install {servers.PACKAGES[name]}"
        if os.environ.get("CI"):
            pytest.fail(said, pytrace=False)
        pytest.skip(said)  # says what to install; CI fails instead
    return found


def listens(port: int) -> bool:
    """Whether something accepts connections on a port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def self_signed(folder: Path) -> Path:
    """Makes ``server.key`` and a certificate for ``localhost``, which is returned."""
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    files = ["-keyout", "server.key", "-out", "server.crt"]
    subprocess.run([*command.split(), *files], cwd=folder, check=True, capture_output=True)
    return folder / "server.crt"


def _stands_still(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        states = [stat.read_text().rpartition(") ")[2][0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
        return all(state in "TtZX" for state in states)
    return True
