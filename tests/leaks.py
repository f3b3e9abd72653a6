"""Finds what a test leaves behind: threads, processes, and open sockets, pipes and files.

1. A `Snapshot` is taken before the test's own fixtures are set up.
2. After they are torn down, `left_behind` compares; it gives a grace, and collects garbage once.
3. What a wider fixture (session, module, class) makes is added to `expected` by conftest, so a server
   shared by many tests is nobody's leak. `lasting()` does the same for code inside a test, such as the
   restart of that server. Processes that such a server starts later belong to it.

Processes are found by descent and by a mark in their environment, so a child that has lost its
parent is found too. Without /proc only threads are compared.
"""

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support import wait_until

MARK = "MOUSO_TEST_RUN"
GRACE = 3.0
_PROC = Path("/proc")

Descriptor = tuple[int, int, int]  # number, device, inode: a renamed file is still the same


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is alive at one moment."""

    threads: frozenset[threading.Thread]
    processes: frozenset[int]  # every process of the machine
    descriptors: frozenset[Descriptor]

    @classmethod
    def take(cls) -> "Snapshot":
        return cls(frozenset(threading.enumerate()), frozenset(_process_ids()), frozenset(_descriptors()))


@dataclass(slots=True)
class Expected:
    """What outlives a test on purpose."""

    threads: set[threading.Thread]
    processes: set[int]
    descriptors: set[Descriptor]

    def add_since(self, before: Snapshot) -> None:
        """Adds everything that is alive now and was not before."""
        now = Snapshot.take()
        self.threads |= now.threads - before.threads
        self.processes |= {pid for pid in now.processes - before.processes if _is_ours(pid)}
        self.descriptors |= now.descriptors - before.descriptors


expected = Expected(set(), set(), set())


@contextmanager
def lasting() -> Iterator[None]:
    """What is made inside the block may outlive the test: `with lasting(): server.restart()`."""
    before = Snapshot.take()
    try:
        yield
    finally:
        expected.add_since(before)


def mark_environment() -> None:
    """Gives this process's environment a mark that its descendants inherit."""
    os.environ[MARK] = f"{os.getpid()}-{os.urandom(4).hex()}"


def left_behind(before: Snapshot, grace: float = GRACE) -> list[str]:
    """Returns one line for each thing that is alive now, was not before, and is not expected.

    Processes among them are killed, so that one leak is reported once.

    Args:
        before: Taken when the test began.
        grace: Seconds in which threads and processes may still end.
    """
    if not _found(before):
        return []
    gc.collect()
    with suppress(AssertionError):
        wait_until(lambda: not _found(before), timeout=grace, interval=0.02)
    found = _found(before)
    for pid in (thing for thing in found if isinstance(thing, int)):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return list(found.values())


def _found(before: Snapshot) -> dict[threading.Thread | int | Descriptor, str]:
    """Returns the leaks of this moment, each with its description."""
    found: dict[threading.Thread | int | Descriptor, str] = {}
    for thread in threading.enumerate():
        if thread in before.threads or thread in expected.threads:
            continue
        if isinstance(thread, threading._DummyThread):  # started by a C library: it has no end to wait for
            continue
        found[thread] = f"thread {thread.name!r}{' (daemon)' if thread.daemon else ''}"
    helper_pid, helper_descriptor = _resource_tracker()
    for pid in set(_process_ids()) - before.processes - expected.processes - {helper_pid}:
        if _is_ours(pid) and not _belongs_to_lasting(pid, before):
            found[pid] = f"process {pid}: {_command(pid)}"
    for key, target in _descriptors().items():
        if key in before.descriptors or key in expected.descriptors or key[0] == helper_descriptor:
            continue
        found[key] = f"open file {key[0]}: {target}"
    return found


def _resource_tracker() -> tuple[int, int]:
    """Returns process and descriptor of multiprocessing's helper, which lasts until exit; -1 if none."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    tracker = getattr(module, "_resource_tracker", None)
    pid, descriptor = getattr(tracker, "_pid", None), getattr(tracker, "_fd", None)
    return (-1 if pid is None else pid, -1 if descriptor is None else descriptor)


def _process_ids() -> list[int]:
    if not _PROC.is_dir():
        return []
    return [int(name) for name in os.listdir(_PROC) if name.isdecimal()]


def _parent(pid: int) -> int:
    """Returns the parent's id, 0 if the process has ended."""
    try:
        # After the command's name, which may hold anything, come the state and the parent.
        return int((_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _belongs_to_lasting(pid: int, before: Snapshot) -> bool:
    """Tells whether it descends from a process of ours that may outlive the test."""
    while (pid := _parent(pid)) > 1 and pid != os.getpid():
        if pid in expected.processes or (pid in before.processes and _is_ours(pid)):
            return True
    return False


def _is_ours(pid: int) -> bool:
    """Tells whether the process is a child of this one, or carries its mark."""
    try:
        if _parent(pid) == os.getpid():
            return True
        mark = f"{MARK}={os.environ.get(MARK)}\0".encode()
        return mark in (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False  # it ended just now, or belongs to somebody else


def _command(pid: int) -> str:
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "ended"
    return words.strip()[:200] or "ended, but nobody has waited for it"


def _descriptors() -> dict[Descriptor, str]:
    """Returns this process's open sockets, pipes, pollers and files, each with what it points to."""
    folder = _PROC / "self" / "fd"
    if not folder.is_dir():
        return {}
    found: dict[Descriptor, str] = {}
    for name in os.listdir(folder):
        try:
            target = os.readlink(folder / name)
            status = os.fstat(int(name))
        except OSError:
            continue  # the descriptor of this very listing
        if not target.startswith(("/dev/", "/proc/")):
            found[(int(name), status.st_dev, status.st_ino)] = target
    return found
