"""The locks that SQLite takes on the bytes of its files: who holds them, and holding one in its place.

Where they lie is said in https://www.sqlite.org/walformat.html (2.3.1), and for the database file in SQLite's ``os.h``.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # no POSIX system
    _HERE = False
else:
    _HERE = hasattr(fcntl, "F_OFD_SETLK")

WRITER, READERS = (120, 120), (123, 127)
"""Bytes of the index: of the one writer, and of readers of the log."""
USERS = (0x40000002, 0x40000002 + 509)
"""Bytes of the database file, of which each process that has it open holds a lock."""
WHOLE = (0, 1 << 63)
_GATE = USERS[1] + 1024
"""A byte of the database file that SQLite neither uses nor locks."""


def _lock(kind: int, first: int, last: int) -> bytes:
    """A ``struct flock``."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, first, last - first + 1, 0)


def _open_gate(descriptor: int, command: int, lock: bytes, /) -> object:
    """Where there are no such locks."""
    return None


pass_gate: Callable[[int, int, bytes], object] = fcntl.fcntl if _HERE else _open_gate
if _HERE:
    SET, ENTER, LEAVE = fcntl.F_OFD_SETLK, _lock(fcntl.F_WRLCK, _GATE, _GATE), _lock(fcntl.F_UNLCK, _GATE, _GATE)
    _USE, _USE_NO_MORE = _lock(fcntl.F_RDLCK, *USERS), _lock(fcntl.F_UNLCK, *USERS)
else:
    SET, ENTER, LEAVE, _USE, _USE_NO_MORE = 0, b"", b"", b"", b""
"""For ``pass_gate(descriptor, SET, ENTER)``, which raises BlockingIOError if another one has entered, and LEAVE.

Mouso's writers pass this gate one at a time. SQLite's own lock is dropped when a process closes *any* descriptor of the
file that it lies on, as a job does that copies the store's files while another one writes; this one belongs to the
descriptor that it was taken with.
"""


def holders(path: str, span: tuple[int, int]) -> set[int]:
    """Ids of the processes that hold a lock on these bytes of a file, as far as the kernel tells.

    The file is not opened: closing it again would drop the locks that SQLite holds in this process.
    """
    try:
        found = os.stat(path)
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return set()
    inode = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    pids = set()
    for line in lines:
        fields = line.split()
        if len(fields) == 8 and fields[1] == "POSIX" and fields[5] == inode:  # SQLite's, not the gate
            last = 1 << 63 if fields[7] == "EOF" else int(fields[7])
            if int(fields[6]) <= span[1] and last >= span[0]:
                pids.add(int(fields[4]))
    return pids - {os.getpid()}


@contextmanager
def occupied(descriptor: int) -> Iterator[None]:
    """For the length of the block the database file is in use, as if by another process.

    Who closes a file that nobody else uses moves its log into it by the index that it knows, and deletes the log.
    """
    with suppress(OSError, ValueError):
        pass_gate(descriptor, SET, _USE)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            pass_gate(descriptor, SET, _USE_NO_MORE)
