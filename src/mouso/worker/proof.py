"""Proof that a process of this host is dead: its boot, its pid namespace, its pid and its start time tell it apart.

A pid alone proves nothing: it may be another container's, or have been given to another process since.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from mouso.brokers.base import WorkerInfo


class Identity(NamedTuple):
    """What makes a process of this host unique; empty or 0 where the system does not tell."""

    boot: str
    namespace: str
    started: int


def identity() -> Identity:
    """This process."""
    return Identity(_read("/proc/sys/kernel/random/boot_id"), _namespace(), _started(_stat(os.getpid())))


def proven_dead(worker: WorkerInfo, here: Identity) -> bool:
    """Whether the worker's process cannot be alive; False when that cannot be told from here."""
    if not (here.boot and here.namespace and worker.started):
        return False
    if (worker.boot, worker.namespace) != (here.boot, here.namespace):
        return False
    fields = _stat(worker.pid)
    if not fields:  # /proc hides it (hidepid), or this process has no descriptor left: the kernel's own word counts
        return not _exists(worker.pid)
    return _started(fields) != worker.started


def process_state(pid: int) -> str:
    """``R``, ``S``, ``D``, ``T`` … as in proc(5); empty if there is no such process."""
    return (_stat(pid) or [""])[0]


def orphans(worker: str) -> list[int]:
    """The pids of living processes of the worker with this id, which stands in their command line."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            words = _read(f"/proc/{entry.name}/cmdline").split("\0")
            ours = worker in words and {"mouso.worker.child", "mouso.worker.template"}.intersection(words)
            if ours and process_state(int(entry.name)) not in ("", "Z", "X"):
                found.append(int(entry.name))
    return found


def _exists(pid: int) -> bool:
    """Whether there is such a process, or its remains, hidden or not."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # it is another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _started(fields: list[str]) -> int:
    """Clock ticks from boot to the start of a process; 0 if there is none, or only its remains."""
    return int(fields[19]) if len(fields) > 19 and fields[0] not in ("Z", "X") else 0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty if there is no such process."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
