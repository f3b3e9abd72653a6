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
    return Identity(_read("/proc/sys/kernel/random/boot_id"), _namespace(), _start_time(os.getpid()))


def proven_dead(worker: WorkerInfo, here: Identity) -> bool:
    """Whether the worker's process cannot be alive; False when that cannot be told from here."""
    if not (here.boot and here.namespace and worker.started):
        return False
    if (worker.boot, worker.namespace) != (here.boot, here.namespace):
        return False
    return _start_time(worker.pid) != worker.started


def _start_time(pid: int) -> int:
    """Clock ticks from boot to the start of a process; 0 if there is none, or only its remains."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] not in ("Z", "X") else 0


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
