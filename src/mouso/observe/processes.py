"""What processes of this machine use, from /proc; nothing where there is none."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = 1 / os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """What one or more processes use; None where the system does not tell.

    Attributes:
        cpu: Seconds since their start.
        memory: Resident bytes; what they share counts for each.
        files: Open descriptors.
    """

    cpu: float | None = None
    memory: int | None = None
    files: int | None = None


def own_usage() -> Usage:
    """This process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    try:
        files = len(os.listdir("/proc/self/fd")) - 1  # the listing has one open itself
    except OSError:
        files = None
    return Usage(used.ru_utime + used.ru_stime, resident(os.getpid()), files)


def family_usage(pids: Iterable[int]) -> tuple[Usage, int | None]:
    """Child processes together, and the resident bytes of the largest.

    Args:
        pids: The living ones; the CPU time of those that have ended is in the sum too.
    """
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    sizes = []
    for pid in pids:
        cpu += cpu_seconds(pid) or 0.0
        if (size := resident(pid)) is not None:
            sizes.append(size)
    known = bool(sizes) or os.path.isdir("/proc/self")
    return Usage(cpu, sum(sizes) if known else None), max(sizes, default=0) if known else None


def resident(pid: int) -> int | None:
    """Resident bytes of a process; None if that cannot be told."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return None


def cpu_seconds(pid: int) -> float | None:
    """CPU time of a process and of those that it has waited for; None if that cannot be told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return sum(map(int, fields[11:15])) * _TICK
    except (OSError, ValueError):
        return None
