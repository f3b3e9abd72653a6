"""The worker's cgroups, with plain files in place of the kernel's: what is found, written and read."""

import errno
import fcntl
import os
import shutil
import signal
from pathlib import Path

import pytest

from mouso.errors import ConfigError
from mouso.isolation import Limits
from mouso.job import Charge, Lease
from mouso.retry import Backoff
from mouso.worker import cgroups
from mouso.worker.cgroups import Group, own_folder
from mouso.worker.deaths import Coroner
from mouso.worker.frames import TaskInfo
from mouso.worker.launch import Exit
from mouso.worker.process import ChildProcess

UNIFIED = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs ro,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"""


@pytest.mark.parametrize(
    ("memberships", "mounts", "folder"),
    [
        ("0::/system.slice/mouso.service\n", UNIFIED, "/sys/fs/cgroup/system.slice/mouso.service"),
        ("4:memory:/a\n1:name=systemd:/b\n0::/c\n", HYBRID, "/sys/fs/cgroup/unified/c"),
        ("0::/\n", UNIFIED, "/sys/fs/cgroup"),
        ("0::/pod/one\n", "30 24 0:26 /pod /sys/fs/cgroup rw - cgroup2 none rw", "/sys/fs/cgroup/one"),
        ("0::/pod\n", "30 24 0:26 /pod /sys/fs/cgroup rw - cgroup2 none rw", "/sys/fs/cgroup"),
        ("0::/a b:c\n", r"30 24 0:26 / /my\040cgroups rw - cgroup2 none rw", "/my cgroups/a b:c"),
        ("0::/poddy/one\n", "30 24 0:26 /pod /sys/fs/cgroup rw - cgroup2 none rw", None),
        ("0::/../other\n", UNIFIED, None),
        ("4:memory:/a\n", HYBRID, None),
        ("0::/a\n", "31 23 0:28 / /sys/fs/cgroup rw - tmpfs cgroup2 rw", None),
        ("", UNIFIED, None),
        ("0::/a\n", "", None),
    ],
)
def test_the_own_directory(memberships: str, mounts: str, folder: str | None) -> None:
    assert own_folder(memberships, mounts) == (None if folder is None else Path(folder))


# -- the memory controller's files


def files(folder: Path, **contents: str) -> Group:
    folder.mkdir(exist_ok=True)
    for name, text in contents.items():
        (folder / name.replace("_", ".", 1)).write_text(text)
    return Group(folder)


def test_a_limit_is_written_to_what_there_is(tmp_path: Path) -> None:
    group = files(tmp_path, memory_max="max\n")
    (tmp_path / "memory.oom.group").write_text("0\n")
    group.limit(64 << 20)
    assert (tmp_path / "memory.max").read_text().startswith(str(64 << 20))
    assert (tmp_path / "memory.oom.group").read_text() == "1\n"
    assert not (tmp_path / "memory.swap.max").exists()  # no swap accounting: nothing to write, and no error


def test_swap_counts_too(tmp_path: Path) -> None:
    (tmp_path / "memory.swap.max").write_text("max")
    Group(tmp_path).limit(1 << 30)
    assert (tmp_path / "memory.swap.max").read_text().startswith("0")


def test_without_the_controller_a_limit_does_nothing(tmp_path: Path) -> None:
    Group(tmp_path).limit(1 << 30)
    assert not list(tmp_path.iterdir())


EVENTS = "low 0\nhigh 0\nmax 12\noom {}\noom_kill {}\noom_group_kill 1\n"


@pytest.mark.parametrize(
    ("oom", "kills", "contents", "exhausted"),
    [
        (1, 2, {"memory_peak": "67108864\n", "memory_max": "1\n"}, 67108864),
        (1, 1, {"memory_max": "4096\n"}, 4096),  # before Linux 5.19
        (1, 1, {"memory_max": "max\n"}, 1),
        (3, 0, {"memory_peak": "67108864\n"}, 0),  # an allocation failed, nothing was killed
        (0, 1, {"memory_peak": "67108864\n"}, 0),  # the machine had no memory left: not this job's limit
    ],
)
def test_exhausted(tmp_path: Path, oom: int, kills: int, contents: dict[str, str], exhausted: int) -> None:
    group = files(tmp_path, memory_events=EVENTS.format(oom, kills), **contents)
    assert group.exhausted() == exhausted


def test_nothing_is_exhausted_without_the_controller(tmp_path: Path) -> None:
    assert Group(tmp_path).exhausted() == 0


def test_what_cannot_be_entered_is_told_and_not_fatal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Group(tmp_path / "gone").enter()
    assert "runs outside of its cgroup" in caplog.text
    Group(tmp_path / "gone").kill()
    assert Group(tmp_path / "gone").remove()


# -- what may be used


def test_nothing_is_done_without_delegation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cgroups.VARIABLE, raising=False)
    own = tmp_path / "own"
    files(own, cgroup_procs="", cgroup_subtree_control="")
    monkeypatch.setattr(cgroups, "own_folder", lambda *_: own)
    assert cgroups.open_groups("w") is None
    assert sorted(path.name for path in own.iterdir()) == ["cgroup.procs", "cgroup.subtree_control"]


@pytest.mark.parametrize("mark", ["user.delegate", "trusted.delegate"])
def test_delegation_is_systemds_mark_on_what_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    marks = {mark: b"1"}

    def getxattr(folder: Path, name: str) -> bytes:
        if name not in marks:
            raise OSError(errno.ENODATA, "No data available")
        return marks[name]

    monkeypatch.setattr(os, "getxattr", getxattr)
    assert not cgroups.is_delegated(tmp_path)  # no files of a cgroup in it
    files(tmp_path, cgroup_procs="", cgroup_subtree_control="")
    assert cgroups.is_delegated(tmp_path)
    marks[mark] = b"0"
    assert not cgroups.is_delegated(tmp_path)
    marks.clear()
    assert not cgroups.is_delegated(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "no cgroup", "plain files"])
def test_a_named_directory_that_cannot_be_used_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = tmp_path / "named"
    if kind != "missing":
        folder.mkdir()
    if kind == "plain files":
        files(folder, cgroup_procs="", cgroup_subtree_control="")
    monkeypatch.setenv(cgroups.VARIABLE, str(folder))
    with pytest.raises(ConfigError) as caught:
        cgroups.open_groups("w")
    assert str(caught.value).startswith(f"MOUSO_CGROUP={folder} cannot be used (")
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("mouso-*"))


# -- dead workers


def test_directories_of_dead_workers_are_removed(tmp_path: Path) -> None:
    for name in ("mouso-dead/job-1/below", "mouso-dead/supervisor", "mouso-alive/job-1", "other/job-1"):
        (tmp_path / name).mkdir(parents=True)
    lock = os.open(tmp_path / "mouso-alive", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cgroups.remove_dead(tmp_path)
    finally:
        os.close(lock)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mouso-alive", "other"]
    cgroups.remove_dead(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert (tmp_path / "other" / "job-1").exists()


def test_a_directory_that_is_removed_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = fcntl.flock, 0

    def slow(descriptor: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            shutil.rmtree(tmp_path / "mouso-w")
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    lock = cgroups._claim(tmp_path / "mouso-w")
    try:
        assert calls == 2
        assert (tmp_path / "mouso-w").stat().st_ino == os.fstat(lock).st_ino
    finally:
        os.close(lock)


# -- the verdict on a job that needed too much


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize(("attempts", "state", "reason"), [(1, "dead", "max_memory"), (5, "retryable", "")])
def test_a_job_that_the_kernel_killed_for_its_memory_has_failed(
    started: bool, attempts: int, state: str, reason: str
) -> None:
    child = ChildProcess(1, lambda *_: None, lambda *_: None, limits=Limits(max_memory=64 << 20))
    try:
        lease = Lease(1, 7, "id", "grow", "default", b"", "json", 0, 0, 0, 0, None, None)
        child.leases[lease.key] = lease
        if started:
            child.board.start(0, lease.key, 1, None)
        child.exit = Exit(-signal.SIGKILL, 1, exhausted=60 << 20)
        coroner = Coroner()
        coroner.tasks = {"grow": TaskInfo(queue="default", attempts=attempts, backoff=Backoff())}
        (outcome,) = coroner.examine(child, draining=False)
    finally:
        child.close()
    assert (outcome.state, outcome.reason, outcome.charge) == (state, reason, Charge.ATTEMPT)
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.reason) == ("MemoryError", "max_memory")
    assert "60 MiB" in outcome.error.message
    assert "64 MiB" in outcome.error.message
    assert not coroner.suspects
