"""The locks that SQLite takes on the bytes of its files, and who holds them.

Where they lie is said in https://www.sqlite.org/walformat.html (2.3.1), and for the database file in SQLite's ``os.h``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

WRITER, READERS = (120, 120), (123, 127)
"""Bytes of the index: of the one writer, and of readers of the log."""
USERS = (0x40000002, 0x40000002 + 509)
"""Bytes of the database file, of which each process that has it open holds a lock."""
WHOLE = (0, 1 << 63)
_FIRST_NAMESPACE = 0xEFFFFFFC
"""``PROC_PID_INIT_INO`` in Linux's ``proc_ns.h``."""


def holders(path: str, span: tuple[int, int]) -> set[int]:
    """Ids of the processes that hold a lock on these bytes of a file, as far as the kernel tells.

    The file is not opened: closing it again would drop the locks that SQLite holds in this process.
    """
    file = _name(path)
    return {pid for pid, locked in _held(span) if locked == file} - {os.getpid()}


def only_user_of(store: str, pid: int) -> bool:
    """Whether a process has this SQLite file open, and no other one."""
    return {locked for holder, locked in _held(USERS) if holder == pid} == {_name(store)}


def sees_all() -> bool:
    """Whether the kernel tells of all holders: it hides those in other pid namespaces from all but the first one."""
    try:
        return os.readlink("/proc/self/ns/pid") == f"pid:[{_FIRST_NAMESPACE}]"
    except OSError:
        return False


def _name(path: str) -> str:
    """A file as the kernel names it in its list of locks."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"


def _held(span: tuple[int, int]) -> Iterator[tuple[int, str]]:
    """Who holds a lock on these bytes of which file."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split()
        if len(fields) == 8 and fields[1] == "POSIX":  # SQLite's, not the gate
            last = 1 << 63 if fields[7] == "EOF" else int(fields[7])
            if int(fields[6]) <= span[1] and last >= span[0]:
                yield int(fields[4]), fields[5]
