"""Starting processes and learning how they ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol

_MAXRSS_UNIT = 1024


class Exit(NamedTuple):
    """How a process ended.

    Attributes:
        code: Its exit code, negative for a signal; None if nobody can tell.
        max_rss: The most memory that it had resident, bytes; 0 if nobody can tell.
    """

    code: int | None
    max_rss: int = 0


class Process(Protocol):
    """A process that this one started, or had started."""

    @property
    def pid(self) -> int: ...

    async def wait(self) -> Exit:
        """Waits for its end; may be called again and again."""

    def signal(self, number: int) -> None:
        """Sends it a signal; does nothing when it has ended."""


class Spawned:
    """A child of this process.

    The standard library's own way does not tell how much memory it had.

    Args:
        command: The program and its arguments.
        descriptors: What it inherits.
    """

    def __init__(self, command: Sequence[str], descriptors: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=tuple(descriptors), start_new_session=True
        )
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[Exit] = self._loop.create_future()
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # no Linux, an old one, or one that forbids it
            threading.Thread(target=self._wait_in_thread, name=f"mouso-wait-{self.pid}", daemon=True).start()
        else:
            self._loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> Exit:
        """Waits for its end."""
        return await asyncio.shield(self._exit)

    def signal(self, number: int) -> None:
        """Sends it a signal; does nothing when it has ended."""
        if not self._exit.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended(_wait(self.pid))

    def _wait_in_thread(self) -> None:
        found = _wait(self.pid)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._ended, found)

    def _ended(self, found: Exit) -> None:
        self._process.returncode = -1 if found.code is None else found.code  # or it would wait as well
        if not self._exit.done():
            self._exit.set_result(found)


def _wait(pid: int) -> Exit:
    try:
        _, status, usage = os.wait4(pid, 0)
    except ChildProcessError:  # somebody else was faster
        return Exit(None)
    return Exit(os.waitstatus_to_exitcode(status), usage.ru_maxrss * _MAXRSS_UNIT)


def describe(found: Exit) -> str:
    """``exit code 1`` or ``signal 9, SIGKILL``."""
    if found.code is None:
        return "exit code unknown"
    if found.code >= 0:
        return f"exit code {found.code}"
    try:
        return f"signal {-found.code}, {signal.Signals(-found.code).name}"
    except ValueError:
        return f"signal {-found.code}"
