"""What the system tells about memory, from files that look like the kernel's."""

import signal
from pathlib import Path

import pytest

from mouso.clock import SYSTEM
from mouso.worker import deaths, memory
from mouso.worker.launch import Exit

EVENTS = "low 0\nhigh 0\nmax 7\noom 2\noom_kill {}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


def told(monkeypatch: pytest.MonkeyPatch, folder: Path, *, two: bool) -> tuple[int, str]:
    """How many kills there were for a worker in that cgroup, and where that stands, on a machine that has seen 99."""
    machine = folder.parent / "vmstat"
    machine.write_text("nr_free_pages 1\noom_kill 99\n")
    monkeypatch.setattr(memory, "_cgroup", lambda: (folder, two))
    monkeypatch.setattr(memory, "_MACHINE", machine)
    return memory.oom_kills()


@pytest.mark.parametrize(
    ("name", "text", "two"), [("memory.events", EVENTS, True), ("memory.oom_control", CONTROL, False)]
)
def test_kills_of_the_cgroup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, text: str, two: bool) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / name).write_text(text.format(3))
    assert told(monkeypatch, own, two=two) == (3, f"{name} of its cgroup")


def test_kills_of_jobs_that_have_cgroups_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    leaf = tmp_path / "mouso-worker" / memory.SUPERVISOR
    leaf.mkdir(parents=True)
    (leaf / "memory.events").write_text(EVENTS.format(0))
    (leaf.parent / "memory.events").write_text(EVENTS.format(1))
    assert told(monkeypatch, leaf, two=True) == (1, "memory.events of its cgroup")


def test_kills_of_the_machine_where_there_is_no_cgroup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert told(monkeypatch, tmp_path / "none", two=True) == (99, str(tmp_path / "vmstat"))


def test_kills_of_the_machine_where_an_old_kernel_does_not_count_those_of_the_cgroup(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\n")
    assert told(monkeypatch, own, two=False) == (99, str(tmp_path / "vmstat"))


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_cgroup", lambda: (tmp_path, True))
    monkeypatch.setattr(memory, "_MACHINE", tmp_path / "none")
    assert memory.oom_kills() == (0, "")


@pytest.mark.parametrize("where", ["memory.events of its cgroup", "memory.oom_control of its cgroup", "/proc/vmstat"])
def test_a_death_for_want_of_memory_names_the_file_that_told_of_it(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    counts = iter([(1, where), (2, where), (2, where)])
    monkeypatch.setattr(memory, "oom_kills", lambda: next(counts))
    coroner = deaths.Coroner()
    assert coroner.describe(Exit(-signal.SIGKILL)).endswith(f"; the kernel killed for want of memory (see {where})")
    assert "want of memory" not in coroner.describe(Exit(-signal.SIGKILL))


def hints(monkeypatch: pytest.MonkeyPatch, deaths_seen: list[tuple[float, int, int]]) -> list[bool]:
    """Whether each death is told to be for want of memory, given when it is seen, with which code, and after how many
    kills of the kernel in all; there were five before the first."""
    counts = iter([(kills, "/proc/vmstat") for kills in (5, *(kills for *_, kills in deaths_seen))])
    times = iter([at for at, *_ in deaths_seen])
    monkeypatch.setattr(memory, "oom_kills", lambda: next(counts))
    monkeypatch.setattr(SYSTEM, "monotonic", lambda: next(times))
    coroner = deaths.Coroner()
    return ["want of memory" in coroner.describe(Exit(code)) for _, code, _ in deaths_seen]


def test_each_of_several_that_the_kernel_killed_at_once_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [(1.0, -9, 8), (1.0, -9, 8), (1.1, -9, 8), (1.2, -9, 8), (1.3, -9, 9)]
    assert hints(monkeypatch, seen) == [True, True, True, False, True]


def test_one_that_ended_otherwise_takes_no_kill_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [(1.0, 1, 6), (1.0, -11, 6), (1.1, -9, 6), (1.2, -9, 6)]
    assert hints(monkeypatch, seen) == [False, False, True, False]


def test_a_kill_that_no_death_has_explained_explains_none_much_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a program that a job had started."""
    assert hints(monkeypatch, [(1.0, -9, 7), (60.0, -9, 7), (61.0, -9, 8)]) == [True, False, True]
