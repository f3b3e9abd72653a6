"""Which files count when an app is to be reloaded, and when they have changed."""

import asyncio
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mouso import Mouso
from mouso.job import Charge, JobState, Lease, Outcome
from mouso.worker import WorkerOptions, reload
from mouso.worker.executor import Executor, Run
from mouso.worker.reload import Watch, folders, forget_compiled, stamps


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A folder with an app."""
    (tmp_path / "shop.py").write_text("x = 1\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "mail.py").write_text("y = 1\n")
    return tmp_path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "_POLL", 0.01)
    monkeypatch.setattr(reload, "_SETTLE", 0.01)


def found(folder: Path) -> set[str]:
    return {os.path.relpath(path, folder) for path, _ in stamps(str(folder))}


# -- which files


def test_python_files_at_any_depth(app: Path) -> None:
    assert found(app) == {"shop.py", "parts/mail.py"}


@pytest.mark.parametrize("name", [".venv", ".git", ".hidden", "__pycache__", "node_modules", "parts/.cache"])
def test_folders_that_are_left_out(app: Path, name: str) -> None:
    (app / name / "deeper").mkdir(parents=True)
    (app / name / "other.py").touch()
    (app / name / "deeper" / "other.py").touch()
    assert found(app) == {"shop.py", "parts/mail.py"}


def test_a_virtual_environment_of_any_name_is_left_out(app: Path) -> None:
    (app / "env" / "lib").mkdir(parents=True)
    (app / "env" / "lib" / "other.py").touch()
    assert "env/lib/other.py" in found(app)
    (app / "env" / "pyvenv.cfg").touch()
    assert found(app) == {"shop.py", "parts/mail.py"}


@pytest.mark.parametrize("name", ["shop.pyc", "jobs.db", "notes.txt", ".#shop.py", "py", "shop.py~", "shop.py.swp"])
def test_files_that_do_not_count(app: Path, name: str) -> None:
    (app / name).touch()
    assert found(app) == {"shop.py", "parts/mail.py"}


def test_links_that_lead_in_a_circle_or_nowhere(app: Path) -> None:
    (app / "again").symlink_to(app)
    (app / "gone.py").symlink_to(app / "nothing")
    (app / "linked.py").symlink_to(app / "shop.py")
    assert found(app) == {"shop.py", "parts/mail.py", "linked.py"}


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    assert found(tmp_path / "nothing") == set()


# -- which folders


def test_the_folder_that_the_worker_was_started_in(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(app)
    assert folders(WorkerOptions(app="shop:app")) == [str(app)]
    assert folders(WorkerOptions(app="nothing:app", folder=str(app / "parts"))) == [str(app / "parts")]
    assert folders(WorkerOptions(app="parts.mail:app", folder=str(app))) == [str(app)]


def test_an_app_that_lies_elsewhere(app: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "store_of_tests").mkdir()
    (other / "store_of_tests" / "__init__.py").touch()
    (other / "alone_of_tests.py").touch()
    sys.path.append(str(other))
    try:
        importlib.invalidate_caches()
        assert folders(WorkerOptions(app="store_of_tests.sub:app", folder=str(app))) == [
            str(app),
            str(other / "store_of_tests"),
        ]
        assert folders(WorkerOptions(app="alone_of_tests:app", folder=str(app))) == [str(app), str(other)]
    finally:
        sys.path.remove(str(other))


def test_installed_packages_are_not_watched(app: Path) -> None:
    assert folders(WorkerOptions(app="pytest:app", folder=str(app))) == [str(app)]


# -- changes


def change(app: Path, *steps: Callable[[], object]) -> list[str]:
    """What a watch sees of some steps that follow each other at once."""

    async def main() -> list[str]:
        watch = Watch(WorkerOptions(app="shop:app", folder=str(app)))
        for step in steps:
            step()
        async with asyncio.timeout(10):
            return await watch.changed()

    return [os.path.relpath(path, app) for path in asyncio.run(main())]


def test_a_new_text(app: Path) -> None:
    assert change(app, lambda: (app / "shop.py").write_text("x = 22\n")) == ["shop.py"]


def test_a_text_of_the_same_length(app: Path) -> None:
    assert change(app, lambda: (app / "shop.py").write_text("x = 2\n")) == ["shop.py"]


def test_another_file_with_the_same_length_and_time(app: Path) -> None:
    old = (app / "shop.py").stat()

    def replace() -> None:
        new = app / "shop.new"
        new.write_text("x = 2\n")
        os.utime(new, ns=(old.st_atime_ns, old.st_mtime_ns))
        new.replace(app / "shop.py")

    assert change(app, replace) == ["shop.py"]


def test_a_new_a_renamed_and_a_deleted_file(app: Path) -> None:
    (app / "old.py").touch()
    assert change(
        app,
        lambda: (app / "parts" / "new.py").touch(),
        lambda: (app / "shop.py").rename(app / "store.py"),
        lambda: (app / "old.py").unlink(),
    ) == ["old.py", "parts/new.py", "shop.py", "store.py"]


def looks(monkeypatch: pytest.MonkeyPatch, app: Path, *versions: str) -> tuple[list[str], int]:
    """What a watch sees when its looks show one version of the files each: a letter is a file, twice it has changed.

    Returns:
        The changed files, and how many looks were left.
    """
    left = [{name: (word.count(name), 0, 0) for name in word} for word in versions]
    monkeypatch.setattr(Watch, "_look", lambda self: left.pop(0))

    async def main() -> list[str]:
        return await Watch(WorkerOptions(app="shop:app", folder=str(app))).changed()

    return asyncio.run(main()), len(left)


def test_nothing_is_told_while_nothing_has_changed(monkeypatch: pytest.MonkeyPatch, app: Path) -> None:
    assert looks(monkeypatch, app, "ab", "ab", "ab", "abb", "abb", "x") == (["b"], 1)


def test_changes_are_told_together_when_they_are_over(monkeypatch: pytest.MonkeyPatch, app: Path) -> None:
    assert looks(monkeypatch, app, "abc", "aabc", "aac", "aacd", "aacd", "x") == (["a", "b", "d"], 1)


def test_what_is_taken_back_is_no_change(monkeypatch: pytest.MonkeyPatch, app: Path) -> None:
    assert looks(monkeypatch, app, "ab", "abb", "ab", "ab", "ab", "b", "b") == (["a"], 0)


def test_files_that_never_come_to_rest(monkeypatch: pytest.MonkeyPatch, app: Path) -> None:
    versions = ["a" * n for n in range(1, 100)]
    changed, left = looks(monkeypatch, app, *versions)
    assert changed == ["a"]
    assert left > 70


# -- jobs of another version


def test_a_job_of_a_task_that_is_not_there_goes_back() -> None:
    app = Mouso("reload", broker="memory://reload")
    executor = Executor(app, "0" * 16, lambda context, what: None)
    outcome = executor.prepare(Lease(7, 3, "a", "gone", "default", b"{}", "json", 0, 0, 0, 0, None, None))
    assert isinstance(outcome, Outcome)
    assert (outcome.state, outcome.charge) == (JobState.AVAILABLE, Charge.RELEASE)


def test_a_job_that_came_long_ago_goes_back() -> None:
    """This process stood still meanwhile: another worker may run it by now."""
    app = Mouso("reload", broker="memory://reload")

    @app.task(name="work")
    def work() -> None:
        return None

    executor = Executor(app, "0" * 16, lambda context, what: None)
    lease = Lease(7, 3, "a", "work", "default", b"{}", "json", 0, 0, 0, 0, None, None)
    assert isinstance(executor.prepare(lease, waited=4.0), Run)
    outcome = executor.prepare(lease, waited=16.0)
    assert isinstance(outcome, Outcome)
    assert (outcome.state, outcome.charge) == (JobState.AVAILABLE, Charge.RELEASE)


# -- what is compiled


def test_what_was_compiled_is_forgotten(app: Path) -> None:
    source, beside = app / "shop.py", app / "shopping.py"
    beside.touch()
    stale = Path(importlib.util.cache_from_source(str(source)))
    other = Path(importlib.util.cache_from_source(str(beside)))
    optimised = Path(importlib.util.cache_from_source(str(source), optimization="2"))
    for file in (stale, other, optimised):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    forget_compiled([str(source), str(app / "parts" / "mail.py"), "/nowhere/at/all.py"])
    assert not stale.exists()
    assert not optimised.exists()
    assert other.exists()
