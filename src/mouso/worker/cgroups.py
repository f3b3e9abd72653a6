"""Cgroups of the worker's own: one for each isolated job, so that the kernel limits and ends all of its processes.

Where a directory of cgroup v2 is the worker's to divide, it makes in it::

    mouso-<worker>/supervisor/   the supervisor and the children that jobs share
                   job-1/        an isolated job with every process that it starts

The worker holds a lock on its directory; one that nobody holds is a dead worker's, and the next worker removes it.
What is the worker's to divide says systemd (``Delegate=``) or ``$MOUSO_CGROUP``. Without either there is none of this.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from mouso.errors import ConfigError
from mouso.worker.memory import SUPERVISOR

VARIABLE = "MOUSO_CGROUP"
_CONTROLLERS = ("memory", "pids")
"""``pids`` limits nothing here; it shows ``systemd-cgtop`` how many tasks each job has."""
_MARKS = ("user.delegate", "trusted.delegate")
"""What systemd writes on what it delegates; the second can be read by root only, and is all that systemd < 251 has."""
_NAME = "mouso-"
_JOB = "job-"
_PROCS, _SUBTREE, _KILL = "cgroup.procs", "cgroup.subtree_control", "cgroup.kill"
_DYING = 0.3
"""Seconds that killed processes may need until they have left their cgroup."""

log = logging.getLogger("mouso.worker")


class Group:
    """The cgroup of one isolated job.

    Args:
        folder: Its directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def limit(self, max_memory: int) -> None:
        """Limits the memory of all processes in it together, in bytes; if they need more, all of them are killed.

        Without the memory controller this does nothing.

        Raises:
            OSError: The system does not let it.
        """
        for name, value in (("memory.max", max_memory), ("memory.swap.max", 0), ("memory.oom.group", 1)):
            if (self.folder / name).exists():
                _write(self.folder / name, value)

    def enter(self, pid: int = 0) -> None:
        """Puts a process into it, this one by default; if that fails, its job runs without.

        It must be this process's or its unreaped child's number, so that no other process has it.
        """
        try:
            _write(self.folder / _PROCS, pid)
        except OSError as error:
            log.warning("an isolated job runs outside of its cgroup %s: %s", self.folder, error.strerror)

    def kill(self) -> None:
        """Kills every process in it, also those that have left the job's session."""
        with contextlib.suppress(OSError):
            _write(self.folder / _KILL, 1)

    def exhausted(self) -> int:
        """The most bytes that its processes had, if the kernel killed them because their limit was reached; else 0."""
        events = dict(line.split() for line in _read(self.folder / "memory.events").splitlines())
        if events.get("oom", "0") == "0" or events.get("oom_kill", "0") == "0":
            return 0  # the second alone: a kill because the machine, or a cgroup above, had no memory left
        for name in ("memory.peak", "memory.max"):  # the first since Linux 5.19
            text = _read(self.folder / name).strip()
            if text.isdecimal():
                return int(text)
        return 1

    def remove(self) -> bool:
        """Removes the directory; returns False if processes are left in it."""
        return _remove(self.folder)


class Groups:
    """The part of the cgroup tree that this worker has for itself. This process moves into it.

    Args:
        delegated: The directory that the worker may divide.
        worker: The worker's id.
        home: Where this process was.

    Attributes:
        controllers: Those that limit each job.

    Raises:
        OSError: The directory cannot be used.
    """

    def __init__(self, delegated: Path, worker: str, home: Path | None) -> None:
        for name in (_PROCS, _SUBTREE):
            (delegated / name).stat()
        remove_dead(delegated)
        self.folder = delegated / (_NAME + worker)
        self._home = home
        self._count = 0
        self._lock = _claim(self.folder)
        try:
            if not (self.folder / _KILL).exists():
                raise OSError(errno.ENOTSUP, "the kernel has no cgroup.kill, which came with Linux 5.14")
            leaf = self.folder / SUPERVISOR  # a cgroup with controllers for others may have no processes itself
            leaf.mkdir()
            _write(leaf / _PROCS, 0)
        except OSError:
            self.close()
            raise
        offered = _read(delegated / "cgroup.controllers").split()
        self.controllers = [name for name in _CONTROLLERS if name in offered and self._enable(delegated, name)]
        log.info(
            "isolated jobs have cgroups of their own in %s; %s", self.folder,
            "the kernel limits their memory" if "memory" in self.controllers else "it has no memory controller",
        )  # fmt: skip

    def _enable(self, delegated: Path, name: str) -> bool:
        try:
            for folder in (delegated, self.folder):
                _write(folder / _SUBTREE, f"+{name}")
        except OSError as error:
            why = "it holds other processes" if error.errno == errno.EBUSY else error.strerror
            log.warning("the cgroup controller %s of %s cannot be used: %s", name, delegated, why)
            return False
        return True

    def make(self, max_memory: int | None) -> Group | None:
        """A cgroup for a job; None, and a line in the log, if the system does not let it."""
        self._count += 1
        group = Group(self.folder / f"{_JOB}{self._count}")
        try:
            group.folder.mkdir()
            if max_memory is not None:
                group.limit(max_memory)
        except OSError as error:
            log.warning("an isolated job gets no cgroup: %s: %s", group.folder, error.strerror)
            group.remove()
            return None
        return group

    def close(self) -> None:
        """Kills what jobs have left, moves this process back to where it was, and removes all.

        Going back fails if that is the delegated directory and gives controllers to others. Then the rest is left to
        systemd, or to the next worker.
        """
        _kill_jobs(self.folder)
        if self._home is not None:
            with contextlib.suppress(OSError):
                _write(self._home / _PROCS, 0)
        _patiently(lambda: _remove(self.folder))
        os.close(self._lock)


def open_groups(worker: str) -> Groups | None:
    """What a worker uses of cgroups; None if nothing is delegated to it.

    Raises:
        ConfigError: ``$MOUSO_CGROUP`` names what cannot be used.
    """
    named = os.environ.get(VARIABLE)
    own = own_folder(_read(Path("/proc/self/cgroup")), _read(Path("/proc/self/mountinfo")))
    folder = Path(named) if named else own
    if folder is None or not (named or is_delegated(folder)):
        return None
    try:
        return Groups(folder, worker, own)
    except OSError as error:
        why = f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
        if named:
            raise ConfigError(
                f"{VARIABLE}={named} cannot be used ({why}); name a directory of cgroup v2 that this user may divide"
            ) from error
        log.warning("the cgroup %s is delegated, but cannot be used (%s)", folder, why)
        return None


def own_folder(memberships: str, mounts: str) -> Path | None:
    """The directory of a process's cgroup of version 2; None if there is none to be seen.

    Args:
        memberships: Its /proc/PID/cgroup.
        mounts: Its /proc/PID/mountinfo.
    """
    paths = [line[3:] for line in memberships.splitlines() if line.startswith("0::/")]
    if not paths or paths[0].startswith("/.."):  # outside of this cgroup namespace
        return None
    for line in mounts.splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.split(" ")[0] != "cgroup2":
            continue
        root, point = (_unescaped(field) for field in fields.split(" ")[3:5])
        if root == "/" or paths[0] == root or paths[0].startswith(root + "/"):
            return Path(point, paths[0].removeprefix(root).lstrip("/"))
    return None


def is_delegated(folder: Path) -> bool:
    """Whether systemd has left a directory to those who run in it, and this process may write to it."""
    writable = all(os.access(folder / name, os.W_OK) for name in ("", _PROCS, _SUBTREE))
    return writable and any(_attribute(folder, mark) == b"1" for mark in _MARKS)


def remove_dead(delegated: Path) -> None:
    """Removes what dead workers left, and kills the processes of their isolated jobs."""
    for folder in delegated.glob(_NAME + "*"):
        with contextlib.suppress(OSError):  # it lives, somebody else was faster, or it is not ours
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _kill_jobs(folder)
                _patiently(lambda folder=folder: _remove(folder))  # type: ignore[misc]  # why: binds the loop variable
            finally:
                os.close(lock)


def _claim(folder: Path) -> int:
    """Makes a directory and locks it, again if another worker took it for a dead one's before it was locked."""
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if folder.stat().st_ino == os.fstat(lock).st_ino:
                return lock
        os.close(lock)


def _kill_jobs(folder: Path) -> None:
    for job in folder.glob(_JOB + "*"):
        Group(job).kill()


def _remove(folder: Path) -> bool:
    """Removes a directory with those in it, the lowest first; returns False if something is left."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)
    return not folder.exists()


def _patiently(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DYING
    while not done() and time.monotonic() < deadline:
        time.sleep(0.005)


def _attribute(folder: Path, name: str) -> bytes:
    try:
        return os.getxattr(folder, name)
    except (OSError, AttributeError):  # it has none, or this is no Linux
        return b""


def _unescaped(field: str) -> str:
    r"""A path as /proc/PID/mountinfo writes it: ``\040`` for a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _write(path: Path, value: object) -> None:
    """Writes to a file that exists; in this file system each write is a command."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, str(value).encode())
    finally:
        os.close(descriptor)
