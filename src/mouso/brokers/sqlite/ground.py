"""What a store stands on: the engine, and a place where SQLite can keep a file."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path

from mouso.brokers.sqlite import faults, locks
from mouso.errors import BrokerUnavailable, ConfigError

OLDEST_ENGINE = (3, 37, 0)
_VERSIONS = 18
"""Where the versions of the format stand that who writes and who reads must know; 2 is that of files with a log."""
_NETWORK = re.compile(
    "nfs4?|cifs|smb3|smbfs|ncpfs|afs|coda|ceph(-fuse)?|lustre|beegfs|gpfs|orangefs|pvfs2|moosefs|davfs|gcsfuse"
)
_OF_THE_KERNEL = ("proc", "sysfs", "cgroup", "cgroup2", "devpts", "debugfs", "tracefs", "securityfs", "configfs", "bpf")
_LOCAL_FUSE = re.compile(
    r"fuse\.(bindfs|cryfs|encfs|exfat|exfat-fuse|ext[234]|fuse-overlayfs|fuse2fs|gocryptfs|lxcfs|mergerfs|mhddfs|ntfs|ntfs-3g"
    r"|securefs|shfs|unionfs|unionfs-fuse|zfs|grpcfuse|osxfs|vmhgfs-fuse)"
)
"""The last three are shared with the host of a virtual machine; ``place`` warns of those."""


def check(store: str, *, create: bool) -> None:
    """Sees that SQLite can work there.

    Args:
        store: The file.
        create: Whether it may be missing.

    Raises:
        ConfigError: It cannot.
        BrokerUnavailable: It can when others have let go of a file that was there before.
    """
    try:
        _check(Path(store), create=create)
    except OSError as error:
        raise ConfigError(
            f"{store} cannot be reached: {error.strerror}; check its name and the permissions of every folder above it,"
            " or choose another file for the jobs"
        ) from error


def _check(path: Path, *, create: bool) -> None:
    folder = path.parent
    if sqlite3.sqlite_version_info < OLDEST_ENGINE:
        raise ConfigError(f"SQLite {sqlite3.sqlite_version} is too old; Mouso needs 3.37 or newer")
    if not create and not path.exists():
        raise ConfigError(
            f"{path} is not there: it was deleted or moved, and a worker's process makes no new one; put it back"
        )
    if not folder.is_dir():
        raise ConfigError(f"the folder {folder} does not exist; create it or choose another file for the jobs")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file for the jobs")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is no regular file; name a file for the jobs")
    if stray := stray_log(str(path)):
        if locks.holders(f"{path}-shm", locks.WHOLE):
            raise BrokerUnavailable(
                f"{path} is missing or empty, and its log (-wal) is in use: it was replaced or emptied; stop the"
                " programs that use it, and try again"
            )
        raise ConfigError(stray)
    kind = file_system(folder)
    if kind in _OF_THE_KERNEL:
        raise ConfigError(f"no files can be made in {folder} ({kind}), which is the system's; choose another folder")
    if is_network(kind):
        raise ConfigError(
            f"{path} lies on a network file system ({kind}), where SQLite loses data; choose a local disk"
        )
    if faults.is_mounted_read_only(str(path)):
        raise ConfigError(faults.read_only(str(path)))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"no permission to write into {folder}, which SQLite needs beside {path.name}")
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        raise ConfigError(f"no permission to write {path}")


def stray_log(store: str) -> str:
    """What is wrong where a log lies beside a file that is empty or missing: SQLite would delete it. Else nothing."""
    log = store + "-wal"
    if not os.path.exists(log) or not os.path.getsize(log) or (os.path.exists(store) and os.path.getsize(store)):
        return ""
    return (
        f"{log} holds jobs of a file that is not there: {store} is missing or empty; put the file back, or remove the"
        " log if its jobs are not wanted"
    )


def has_log(descriptor: int) -> bool:
    """Whether an open file is one of those that have a log (sqlite.org/fileformat2.html, 1.3.3)."""
    try:
        return os.pread(descriptor, 2, _VERSIONS) == b"\x02\x02"
    except OSError:
        return False


def file_system(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of file system that ``folder`` lies on, or ``""`` where it cannot be told."""
    best, kind = "", ""
    try:
        real = str(folder.resolve())
        for line in mounts.read_text(errors="replace").splitlines():
            fields, _, rest = line.partition(" - ")
            point = fields.split()[4].replace("\\040", " ")
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, _kind(*rest.split()[:2])
    except (OSError, IndexError):
        return ""
    return kind


def _kind(kind: str, source: str) -> str:
    """A type as it is shown. One in user space may be called nothing else; then its source may name a server."""
    server = re.match(r"(?:([a-z]\w*)://|[^/]+:/)", source)
    return f"fuse.{server[1] or 'remote'}" if kind == "fuse" and server else kind


def is_network(kind: str) -> bool:
    """Whether a type of file system is one of a network, as most in user space are."""
    return bool(_NETWORK.fullmatch(kind) or (kind.startswith("fuse.") and not _LOCAL_FUSE.fullmatch(kind)))


def engine_notice() -> str:
    """A sentence about this SQLite engine if it has the WAL-reset bug, else an empty text."""
    version = sqlite3.sqlite_version_info
    if version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45):
        return ""
    return (
        f"SQLite {sqlite3.sqlite_version} has the WAL-reset bug (sqlite.org/wal.html, 11.1); Mouso's guarded "
        "checkpoints contain it, an engine of 3.51.3 or newer removes it"
    )
