"""The locks that SQLite takes on the bytes of its files, and who holds them.

Where they lie is said in https://www.sqlite.org/walformat.html (2.3.1), and for the database file in SQLite's ``os.h``.
"""

from __future__ import annotations

import os
from pathlib import Path

WRITER, READERS = (120, 120), (123, 127)
"""Bytes of the index: of the one writer, and of readers of the log."""
USERS = (0x40000002, 0x40000002 + 509)
"""Bytes of the database file, of which each process that has it open holds a lock."""
WHOLE = (0, 1 << 63)


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
