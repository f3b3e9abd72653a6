"""The files of a code base: finding them, and reading one without being fooled by it."""

from __future__ import annotations

import errno
import os
import stat
import sysconfig
from pathlib import Path

_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})
_FOR_GOOD = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,
        errno.ENODEV,
    }
)


class Unreadable(Exception):
    """There is nothing to analyse at this path, and trying again will not change that."""


class WrongFolder(Exception):
    """The folder is no code base that can be analysed; the text says why."""


def standard_library() -> Path:
    """The folder of the standard library of the Python that runs here."""
    return Path(sysconfig.get_path("stdlib"))


def find_files(root: Path) -> list[str]:
    """Absolute paths of all Python files below a folder, sorted.

    Links to folders are not followed; hidden folders, caches and installed packages are left out. What only looks like
    a file (a dead link, a pipe) is listed: its job will say what is wrong with it.

    Raises:
        WrongFolder: It is missing, no folder, cannot be read, or holds no Python file.
    """

    def refuse(error: OSError) -> None:
        if error.filename == str(top):  # a forbidden folder further down is just left out
            raise WrongFolder(f"{root} cannot be read: {error.strerror}")

    try:
        top = root.resolve(strict=True)
        if not top.is_dir():
            raise WrongFolder(f"{root} is a file; name the folder that it lies in")
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, until Python 3.12
        reason = error.strerror if isinstance(error, OSError) else "a loop of links"
        raise WrongFolder(f"{root} cannot be analysed: {reason}") from None
    found = []
    for folder, folders, names in os.walk(top, onerror=refuse):
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
        found += [os.path.join(folder, name) for name in names if name.endswith(".py")]
    if not found:
        raise WrongFolder(f"{root} holds no Python files (*.py); name a folder that does")
    return sorted(found)


def read_file(path: str, limit: int) -> bytes:
    """Reads at most ``limit`` bytes of a regular file; nothing else is waited for.

    Raises:
        Unreadable: It is gone, forbidden, or no regular file.
        OSError: It may work the next time.
    """
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _FOR_GOOD:
            raise Unreadable(error.strerror) from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unreadable("not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(descriptor)
