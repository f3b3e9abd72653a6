"""Where a SQLite file lies, as ``diagnosis`` judges it: the file, its file system, the disk, permissions, limits."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from mouso.brokers.base import Finding, Level
from mouso.brokers.sqlite import faults, ground

_IN_MEMORY = {"tmpfs", "ramfs"}
_LAYERS = {"overlay", "aufs", "fuse.fuse-overlayfs"}
_SHARED = {
    "9p",
    "virtiofs",
    "vboxsf",
    "drvfs",
    "fakeowner",
    "prl_fs",
    "vmhgfs",
    "fuse.vmhgfs-fuse",
    "fuse.grpcfuse",
    "fuse.osxfs",
}
_NO_ROOM, _LITTLE_ROOM, _LITTLE_SHARE = 32 << 20, 256 << 20, 0.05
_AMPLE = 5 << 30
_FEW_INODES = 1000
_FEW_DESCRIPTORS = 64
_NAMES = ("", "-wal", "-shm")


def examine_place(path: str) -> Iterator[Finding]:
    """Findings about the file and what surrounds it; nothing is opened."""
    yield from _file(path)
    if stray := ground.stray_log(os.path.realpath(path)):
        what, _, remedy = stray.partition("; ")
        yield Finding(Level.ERROR, "file", what, remedy)
    bells = path + "-bells"
    path = os.path.realpath(path)  # SQLite keeps log and index beside the file that a link leads to
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        return
    yield _file_system(path)
    yield from _disk(path)
    denied = [*_permissions(path), *_bells(bells, os.geteuid())]
    yield from denied or [Finding(Level.OK, "permissions", f"this user may write into {folder} and what lies there")]
    yield from _limits(path)


def size(count: float) -> str:
    """A number of bytes for reading, such as ``3.1 MiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _file(path: str) -> Iterator[Finding]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        yield _missing(path)
        return
    except OSError as error:
        remedy = "check the permissions of every folder above it, and the disk"
        yield Finding(Level.ERROR, "file", f"{path} cannot be reached ({error.strerror})", remedy)
        return
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        yield Finding(Level.ERROR, "file", f"{path} is {kind}", "name a file in the broker's URL")
        return
    yield Finding(Level.OK, "file", f"{path} has {size(found.st_size)}")
    if os.path.realpath(path) != path:
        what = f"{path} is reached by a link, and lies at {os.path.realpath(path)}"
        yield Finding(Level.INFO, "file", what, "use one name everywhere: processes wake each other by its name")
    if found.st_nlink > 1:
        what = f"{path} has {found.st_nlink} names (hard links), and SQLite keeps a log for each of them"
        yield Finding(Level.WARNING, "file", what, "stop all programs that use it, and leave it one name")


def _missing(path: str) -> Finding:
    if os.path.islink(path):
        what = f"{path} is a link to {os.readlink(path)}, which does not exist"
        return Finding(Level.ERROR, "file", what, "mend the link, or name another file in the broker's URL")
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        what = f"the folder {folder} does not exist"
        return Finding(Level.ERROR, "file", what, "create it, or name another file in the broker's URL")
    remedy = "start a worker or enqueue a job, which creates it; if jobs should be there, check the broker's URL"
    return Finding(Level.WARNING, "file", f"{path} does not exist", remedy)


def _file_system(path: str) -> Finding:
    kind = ground.file_system(Path(path).parent)
    if ground.is_network(kind):
        what = f"{path} lies on a network file system ({kind}), where SQLite loses data"
        return Finding(Level.ERROR, "place", what, "move it to a local disk")
    if faults.is_mounted_read_only(path):
        what, _, remedy = faults.read_only(path).partition("; ")
        return Finding(Level.ERROR, "place", what, remedy)
    if kind in _IN_MEMORY:
        what = f"{path} lies in memory ({kind}): every job is gone when this machine restarts"
        return Finding(Level.WARNING, "place", what, "move it to a disk")
    if kind in _LAYERS:
        what = f"{path} lies in the container's own layer ({kind}): every job is gone with the container"
        return Finding(Level.WARNING, "place", what, "move it to a volume")
    if kind in _SHARED:
        what = f"{path} lies in a folder that is shared with another machine ({kind})"
        return Finding(Level.WARNING, "place", what, "use it from one side only: SQLite's locks do not reach across")
    return Finding(Level.OK, "place", f"a local file system ({kind})" if kind else "a file system of unknown type")


def _disk(path: str) -> Iterator[Finding]:
    try:
        disk = os.statvfs(os.path.dirname(path))
    except (OSError, AttributeError):
        return
    free, whole = disk.f_bavail * disk.f_frsize, max(disk.f_blocks * disk.f_frsize, 1)
    what = f"{size(free)} are free on the disk of {path}, {free / whole:.0%} of it"
    remedy = "free some room, or move the file to a larger disk"
    if free < _NO_ROOM:
        yield Finding(Level.ERROR, "disk", what, remedy)
    elif free < _LITTLE_ROOM or (free < _AMPLE and free / whole < _LITTLE_SHARE):
        yield Finding(Level.WARNING, "disk", what, remedy)
    else:
        yield Finding(Level.OK, "disk", what)
    if disk.f_files and disk.f_favail < _FEW_INODES:
        level = Level.WARNING if disk.f_favail else Level.ERROR
        what = f"{disk.f_favail:,} inodes are left on the disk of {path}"
        yield Finding(level, "disk", what, "delete some files: SQLite makes and removes its own beside the store")


def _permissions(path: str) -> Iterator[Finding]:
    folder, me = os.path.dirname(path), os.geteuid()
    remedy = "run this as the user of the workers, or give the right to this one"
    if not os.access(folder, os.W_OK | os.X_OK):
        what = f"this user ({_user(me)}) may not write into {folder}, which SQLite needs beside the file"
        yield Finding(Level.ERROR, "permissions", what, remedy)
    owners = {}
    for name in (path + end for end in _NAMES):
        try:
            found = os.stat(name)
        except OSError:
            continue
        owners[name] = found.st_uid
        denied = [word for bit, word in ((os.R_OK, "read"), (os.W_OK, "write")) if not os.access(name, bit)]
        if denied:
            what = f"this user ({_user(me)}) may not {' or '.join(denied)} {name}"
            yield Finding(Level.ERROR, "permissions", what, remedy)
        if found.st_mode & stat.S_IWOTH:
            what = f"everybody on this machine may write {name}, and so enqueue jobs"
            yield Finding(Level.WARNING, "permissions", what, f"take that right away: chmod o-w {name}")
    owner = owners.get(path)
    for name, other in owners.items():
        if other != owner and owner is not None:
            what = f"{name} belongs to {_user(other)}, and {path} to {_user(owner)}"
            yield Finding(Level.WARNING, "permissions", what, "run everything that uses the store as one user")
    if owner is not None and owner != me:
        what = f"{path} belongs to {_user(owner)}, and this user is {_user(me)}"
        yield Finding(Level.INFO, "permissions", what, "run mouso as the owner; what root creates, others cannot write")


def _bells(bells: str, me: int) -> Iterator[Finding]:
    if not os.path.lexists(bells):
        return
    if not os.path.isdir(bells):
        what = f"{bells} is no folder, so processes cannot wake each other and look 50 times a second instead"
        yield Finding(Level.WARNING, "permissions", what, "remove it while nothing runs")
        return
    owner = os.stat(bells).st_uid
    if owner != me and not os.access(bells, os.R_OK | os.W_OK | os.X_OK):
        what = f"{bells} belongs to {_user(owner)}: what this user ({_user(me)}) enqueues starts up to 1 s late"
        yield Finding(Level.WARNING, "permissions", what, "run everything that uses the store as one user")


def _user(number: int) -> str:
    try:
        import pwd

        return f"{pwd.getpwuid(number).pw_name}, uid {number}"
    except (ImportError, KeyError):
        return f"uid {number}"


def _limits(path: str) -> Iterator[Finding]:
    """What a process that is started like this one may do."""
    try:
        import resource
    except ImportError:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max((os.path.getsize(path + end) for end in _NAMES if os.path.isfile(path + end)), default=0)
    if limit != resource.RLIM_INFINITY and limit < 2 * largest + _LITTLE_ROOM:
        level = Level.ERROR if limit < largest + _NO_ROOM else Level.WARNING
        what = f"a file may have {size(limit)} here (ulimit -f), and the store has files of up to {size(largest)}"
        yield Finding(level, "limits", what, "raise the limit for workers and programs")
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors != resource.RLIM_INFINITY and descriptors < _FEW_DESCRIPTORS:
        what = f"a process may have {descriptors} open files here (ulimit -n)"
        yield Finding(Level.WARNING, "limits", what, "raise the limit for workers and programs")
