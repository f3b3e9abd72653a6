"""What the system tells about CPUs."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

_PRESSURE = Path("/proc/pressure/cpu")
_SOME = re.compile(r"^some avg10=(\d+(?:\.\d+)?)", re.MULTILINE)


def usable_cpus() -> int:
    """CPUs that this process may use, by affinity and by the cgroup's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    return count


def pressure() -> float:
    """How short the machine is of CPUs, 0..1: in which part of the last ten seconds something had to wait for one.

    Where the kernel does not count that, the load average tells which part of what could run had no CPU.
    """
    with contextlib.suppress(OSError):
        found = _SOME.search(_PRESSURE.read_text())
        if found:
            return min(float(found[1]) / 100, 1.0)
    load = os.getloadavg()[0]
    return max(0.0, 1 - usable_cpus() / load) if load > 0 else 0.0
