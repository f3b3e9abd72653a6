"""The machine and the versions that the numbers belong to."""

import os
import platform
import sqlite3
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path


def facts(folder: Path, peers: Mapping[str, str]) -> dict[str, str]:
    """What goes into the table's head, by name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    names = ("mouso", "msgspec")
    return {
        "CPU": f"{len(os.sched_getaffinity(0))} × {_processor()}",
        "memory": f"{memory:.0f} GiB",
        "disk": f"{file_system(folder)} (not memory)",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "SQLite": sqlite3.sqlite_version,
        "versions": ", ".join(f"{name} {version(name)}" for name in names)
        + "".join(f", {name} {number}" for name, number in peers.items()),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def file_system(folder: Path) -> str:
    """The type of file system that a folder lies on."""
    best, kind = "", "unknown"
    real = str(folder.resolve())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        point = fields.split()[4]
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, rest.split()[0]
    return kind


def check() -> None:
    """Ends the program where the measurements cannot be made."""
    if sys.platform != "linux":
        sys.exit("benchmarks: error: CPU and memory are read from /proc, so this runs on Linux only")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
