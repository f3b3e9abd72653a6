"""Starting processes and learning how they ended."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource  # noqa: F401  # why: wait4() imports it, which takes a descriptor, and there may be none by then
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from mouso.config import one_line
from mouso.worker.cgroups import Group
from mouso.worker.proof import process_state

_MAXRSS_UNIT = 1024
_PROCESS_GROUP = 4
"""``PIDFD_SIGNAL_PROCESS_GROUP``, since Linux 6.9."""
_LATER = 0.1
"""Seconds until it is tried again to remove a cgroup whose processes are dying."""
_REMEDIES = {
    errno.EMFILE: "raise the limit (ulimit -n, LimitNOFILE=)",
    errno.ENFILE: "raise the system's limit (sysctl fs.file-max)",
    errno.EAGAIN: "raise the limit of processes and threads (ulimit -u, TasksMax=)",
}


_started: set[int] = set()
"""Children of this process that it waits for itself."""


class Exit(NamedTuple):
    """How a process ended.

    Attributes:
        code: Its exit code, negative for a signal; None if nobody can tell.
        max_rss: The most memory that it had resident, bytes; 0 if nobody can tell.
        cpu: Seconds of CPU that it and the processes that it has waited for have used; 0 if nobody can tell.
        exhausted: The most memory of its cgroup, bytes, if the kernel killed it because it needed more; else 0.
    """

    code: int | None
    max_rss: int = 0
    cpu: float = 0.0
    exhausted: int = 0


class Process(Protocol):
    """A process that this one started, or had started."""

    @property
    def pid(self) -> int: ...

    async def wait(self) -> Exit:
        """Waits for its end; may be called again and again."""

    def signal(self, number: int, thread: int | None = None) -> None:
        """Sends it, or one of its threads, a signal; does nothing when it has ended."""

    def kill(self) -> None:
        """Ends it and the processes that it started; does nothing when it has ended."""


class Spawned:
    """A child of this process.

    The standard library's own way does not tell how much memory it had.

    Args:
        command: The program and its arguments.
        descriptors: What it inherits.
        alone: It runs an isolated job, and nothing that it started outlives it.
        group: The cgroup that it is put into.
    """

    def __init__(
        self, command: Sequence[str], descriptors: Sequence[int], *, alone: bool = False, group: Group | None = None
    ) -> None:
        self._alone = alone
        self._group = group
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=tuple(descriptors), start_new_session=True
        )
        _started.add(self.pid)
        if group is not None:  # it has yet to start its interpreter
            group.enter(self.pid)
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

    def signal(self, number: int, thread: int | None = None) -> None:
        """Sends it, or one of its threads, a signal; does nothing when it has ended."""
        if not self._exit.done() and not signal_thread(self.pid, thread, number):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it and the processes that it started; does nothing when it has ended."""
        if not self._exit.done():
            if self._group is not None:
                self._group.kill()
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended(_wait(self.pid, alone=self._alone))

    def _wait_in_thread(self) -> None:
        found = _wait(self.pid, alone=self._alone)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._ended, found)

    def _ended(self, found: Exit) -> None:
        self._process.returncode = -1 if found.code is None else found.code  # or it would wait as well
        _started.discard(self.pid)
        if not self._exit.done():
            self._exit.set_result(clear(found, self._group))


def reap_adopted(dead: frozenset[int]) -> frozenset[int]:
    """Reaps what has died of programs that jobs left behind: the first process of a container gets them all.

    Args:
        dead: What the last look returned: a process that was only just started is not known yet, and not reaped.
    """
    found = frozenset(pid for pid in _children() if pid not in _started and process_state(pid) == "Z")
    for pid in found & dead:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return found - dead


def _children() -> list[int]:
    pids: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", "rb") as file:
                pids += map(int, file.read().split())
    return pids


def end_programs(pid: int, *, alone: bool) -> None:
    """Waits for the end of a child of this process and kills what it has started and left in its process group.

    Where jobs share the child, what they started is left alone if it ended well. It is not reaped before, so its number
    is still its own.
    """
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except (AttributeError, ChildProcessError):  # macOS, or somebody else was faster
        return
    if found is not None and (alone or (found.si_code, found.si_status) != (os.CLD_EXITED, 0)):
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def signal_thread(pid: int, thread: int | None, number: int) -> bool:
    """Sends a thread of a living process a signal; False if that is not asked for, or this system cannot do it."""
    if thread is None:
        return False
    with contextlib.suppress(ImportError, OSError, AttributeError):  # glibc has it since 2.30
        import ctypes

        return bool(ctypes.CDLL(None).tgkill(pid, thread, number) == 0)
    return False


def kill_group(pidfd: int, pid: int | None) -> None:
    """Kills a process's group, and no other one that got its number.

    Args:
        pid: Its number; None if it may have been reaped: then nothing is done where the kernel cannot do it safely.
    """
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL, None, _PROCESS_GROUP)
    except ProcessLookupError:  # the group is empty
        pass
    except OSError:  # an older kernel: the signal 0 proves that the number is still this process's
        with contextlib.suppress(OSError):
            if pid is not None:
                signal.pidfd_send_signal(pidfd, 0)
                os.killpg(pid, signal.SIGKILL)


def clear(found: Exit, group: Group | None) -> Exit:
    """Ends and removes the cgroup of a process that has ended; returns its exit with what the cgroup tells."""
    if group is None:
        return found
    found = found._replace(exhausted=group.exhausted())
    group.kill()
    _remove(group, 10)
    return found


def _remove(group: Group, tries: int) -> None:
    if not group.remove() and tries > 1:
        asyncio.get_running_loop().call_later(_LATER, _remove, group, tries - 1)


def _wait(pid: int, *, alone: bool) -> Exit:
    end_programs(pid, alone=alone)
    try:
        _, status, usage = os.wait4(pid, 0)
    except ChildProcessError:  # somebody else was faster
        return Exit(None)
    return Exit(os.waitstatus_to_exitcode(status), usage.ru_maxrss * _MAXRSS_UNIT, usage.ru_utime + usage.ru_stime)


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


def refusal(error: BaseException) -> str:
    """Why the system lets no process start, or go on, in one line, and what to do about it."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return f"{error.strerror}; {_REMEDIES[error.errno]}"
    return one_line(error)
