"""What the system tells about memory; all of it empty where it tells nothing."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

from mouso.clock import SYSTEM

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_ROOT = Path("/sys/fs/cgroup")
_MACHINE = Path("/proc/vmstat")

_LATELY = 5.0
"""Seconds within which those that the kernel killed at about the same time are seen to be dead."""
SUPERVISOR = "supervisor"
"""The cgroup, within the worker's own, in which the supervisor and the children that jobs share are."""


def resident(pid: int) -> int:
    """Bytes that a process has resident now; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def of_programs(pid: int) -> int:
    """Bytes that the programs have resident which a process has started, and theirs; of what they share, their part."""
    used, left = 0, _programs(pid)
    while left:
        program = left.pop()
        left += _programs(program)
        for line in _read(Path(f"/proc/{program}/smaps_rollup")).splitlines():
            if line.startswith("Pss:"):
                used += int(line.split()[1]) * 1024
    return used


def _programs(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it is gone
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, _read(Path(f"/proc/{pid}/task/{thread}/children")).split())
    return found


def available() -> tuple[int, int]:
    """Bytes of memory that programs could still get, and bytes in all; of this process's cgroup if that is less."""
    fields = dict(line.split(":") for line in _read(Path("/proc/meminfo")).splitlines() if ":" in line)
    try:
        total, free = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (KeyError, ValueError, IndexError):
        return 0, 0
    folder, two = _cgroup()
    limit, used = ("memory.max", "memory.current") if two else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    while folder.is_relative_to(_ROOT):  # a worker with cgroups for its jobs is in one below that with the limit
        with contextlib.suppress(ValueError):  # "max", or no cgroup
            allowed, taken = int(_read(folder / limit)), int(_read(folder / used))
            free, total = min(free, max(allowed - taken, 0)) if allowed < total else free, min(allowed, total)
        folder = folder.parent
    return free, total


def oom_kills() -> tuple[int, str]:
    """How many processes of this worker's cgroup the kernel has killed for want of memory, or else of the machine.

    Returns:
        The number, and where it stands, in words; 0 and nothing where the system does not tell.
    """
    folder, two = _cgroup()
    if two and folder.name == SUPERVISOR:
        folder = folder.parent  # its jobs have cgroups beside that of the supervisor
    own = "memory.events" if two else "memory.oom_control"
    for path, where in ((folder / own, f"{own} of its cgroup"), (_MACHINE, str(_MACHINE))):
        for line in _read(path).splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill" and count.isdigit():
                return int(count), where
    return 0, ""


class OomKills:
    """Tells which of the processes that died the kernel may have killed for want of memory: several at once, too."""

    def __init__(self) -> None:
        self._count, _ = oom_kills()
        self._left = 0
        self._rose = -math.inf

    def explain(self, *, killed: bool) -> str:
        """Where the kernel tells that it killed for want of memory; to be asked once for each process that died.

        Args:
            killed: Whether it died by SIGKILL.

        Returns:
            In words; empty if it was not killed, or others that died lately account for all that the kernel has killed.
        """
        before, now = self._count, SYSTEM.monotonic()
        self._count, where = oom_kills()
        if now - self._rose > _LATELY:
            self._left = 0  # what it killed was none of those that are asked for
        if self._count > before:
            self._left, self._rose = self._left + self._count - before, now
        if not (killed and self._left):
            return ""
        self._left -= 1
        return where


def _cgroup() -> tuple[Path, bool]:
    """The folder of this process's memory cgroup, and whether it is of version 2."""
    two = _ROOT
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _ROOT / "memory" / path.lstrip("/"), False
        if not controllers:
            two = _ROOT / path.lstrip("/")
    return two, True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
