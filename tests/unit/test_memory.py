"""What the system tells about memory, from files that look like the kernel's."""

from pathlib import Path

import pytest

from mouso.worker import memory

EVENTS = "low 0\nhigh 0\nmax 7\noom 2\noom_kill {}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


def told(monkeypatch: pytest.MonkeyPatch, folder: Path, *, two: bool) -> int:
    """How many kills there were for a worker in that cgroup, on a machine that has seen 99."""
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
    assert told(monkeypatch, own, two=two) == 3


def test_kills_of_jobs_that_have_cgroups_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    leaf = tmp_path / "mouso-worker" / memory.SUPERVISOR
    leaf.mkdir(parents=True)
    (leaf / "memory.events").write_text(EVENTS.format(0))
    (leaf.parent / "memory.events").write_text(EVENTS.format(1))
    assert told(monkeypatch, leaf, two=True) == 1


def test_kills_of_the_machine_where_there_is_no_cgroup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert told(monkeypatch, tmp_path / "none", two=True) == 99


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_cgroup", lambda: (tmp_path, True))
    monkeypatch.setattr(memory, "_MACHINE", tmp_path / "none")
    assert memory.oom_kills() == 0
