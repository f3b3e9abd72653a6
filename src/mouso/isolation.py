"""What a job in a process of its own may use: how it is written, and how a process imposes it on itself."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from mouso.clock import seconds
from mouso.errors import shown

OPTIONS = ("isolated", "max_memory", "max_cpu", "nice", "io_priority")
_DEFAULTS = {"nice": 0, "io_priority": "normal"}
IO_PRIORITIES = ("normal", "low", "idle")
LEAST_MEMORY = 16 << 20
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|B|[KMGT]i?B?)", re.ASCII | re.IGNORECASE)
_POWERS = "BKMGT"
_TOO_MUCH = 1 << 62
"""Bytes: it and a bit more fit a signed number of 64 bits, which is what the system and a frame take."""
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IO_CLASS = {"normal": 2 << 13 | 4, "low": 2 << 13 | 7, "idle": 3 << 13}
"""Class and level for ioprio_set(2): best effort 4, best effort 7, idle."""
OOM_TEMPLATE, OOM_CHILD, OOM_ISOLATED = 100, 250, 500
"""Who goes first when memory runs out: thousandths of the memory there is, by which a process counts as larger."""
_FORK = 0.1
"""Seconds of CPU that a copy may have used until its job starts, and that shall not cost a whole second more."""


class Limits(msgspec.Struct, frozen=True, array_like=True):
    """The limits of a task that runs in a process of its own.

    Attributes:
        max_memory: Bytes that the process may have resident; None for no limit.
        max_cpu: Seconds of CPU; None for no limit.
        nice: Added to the process's niceness, 0..19.
        io_priority: One of ``IO_PRIORITIES``.
    """

    max_memory: int | None = None
    max_cpu: float | None = None
    nice: int = 0
    io_priority: str = "normal"


def limits(given: Mapping[str, Any]) -> Limits | None:
    """Checks a task's options ``isolated``, ``max_memory``, ``max_cpu``, ``nice`` and ``io_priority``.

    Returns:
        None for a task that shares its process.

    Raises:
        ValueError: Names the option, its value and what it may be.
    """
    isolated = given.get("isolated", False)
    if not isinstance(isolated, bool):
        raise ValueError(f"isolated={shown(isolated)} is neither True nor False")
    others = [name for name in OPTIONS[1:] if given.get(name) is not None]
    if not isolated:
        if others:
            raise ValueError(f"{others[0]}= limits a process; it needs isolated=True")
        return None
    max_memory, max_cpu = given.get("max_memory"), given.get("max_cpu")
    nice, io_priority = (given[name] if name in others else default for name, default in _DEFAULTS.items())
    memory = None if max_memory is None else size(max_memory, "max_memory")
    if memory is not None and memory < LEAST_MEMORY:
        raise ValueError(f"max_memory={shown(max_memory)} is less than a Python process needs; use 16MiB or more")
    cpu = None if max_cpu is None else seconds(max_cpu, "max_cpu")
    if cpu == 0:
        raise ValueError(f"max_cpu={shown(max_cpu)} leaves no time to run; use a positive duration or None")
    if isinstance(nice, bool) or not isinstance(nice, int) or not 0 <= nice <= 19:
        raise ValueError(f"nice={shown(nice)} is out of range; use a whole number from 0 to 19")
    if io_priority not in IO_PRIORITIES:
        raise ValueError(f"io_priority={shown(io_priority)} is none of {', '.join(IO_PRIORITIES)}")
    return Limits(memory, cpu, nice, io_priority)


def size(value: object, name: str) -> int:
    """Bytes from a number or a text such as ``"200MB"`` or ``"1.5GiB"``; K, M, G and T are powers of 1024.

    Raises:
        ValueError: It is neither, or 2**62 and more.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return _possible(value, value, name)
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or len(match[1]) > 20:
        raise ValueError(f"{name}={shown(value)} is no size; use a number of bytes, or a text such as 500MB or 2GiB")
    return _possible(int(float(match[1]) * 1024 ** _POWERS.index((match[2] or "B")[0].upper())), value, name)


def _possible(count: int, value: object, name: str) -> int:
    if count >= _TOO_MUCH:
        raise ValueError(f"{name}={shown(value)} is more than any machine has; use less than 4,194,304T")
    return count


def impose(limits: Limits) -> None:
    """Gives this process, and the threads that it starts from now on, its priorities."""
    if limits.nice:
        os.nice(limits.nice)
    if limits.io_priority != "normal":
        _set_io_priority(_IO_CLASS[limits.io_priority])


def offer_to_kernel(score: int) -> None:
    """Lets the kernel kill this process, and what it starts, before the supervisor when memory runs out.

    Args:
        score: One of the scores of this module. A process that has a higher one keeps it.
    """
    file = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        if int(file.read_text()) < score:
            file.write_text(str(score))


def limit_cpu(most: float) -> None:
    """Lets the kernel end this process when it has used so many more seconds of CPU, in whole seconds."""
    import resource

    soft = max(math.ceil(time.process_time() + most - _FORK), 1)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _set_io_priority(value: int) -> None:
    number = _IOPRIO_SET.get(platform.machine())
    if number is None:
        return
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None, use_errno=True).syscall(number, 1, 0, value)
