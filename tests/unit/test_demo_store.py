"""The demo's folder, and the licence service's answers."""

from pathlib import Path

import pytest

from mouso.demo.licences import UNKNOWN, LicenceService
from mouso.demo.store import Store, StoreInUse


def test_a_new_folder_is_made_and_remembers_what_its_jobs_are_about(tmp_path: Path) -> None:
    store = Store(tmp_path / "a/b")
    with store.claimed():
        store.database.touch()
        assert not store.holds_unfinished("/code")
        store.begin("/code")
    store = Store(tmp_path / "a/b")
    with store.claimed():
        assert store.holds_unfinished("/code")
        assert not store.holds_unfinished("/other")
        store.end("/code")
        assert not store.holds_unfinished("/code")
        store.begin("/code")
        store.database.unlink()
        assert not store.holds_unfinished("/code")


def test_only_one_demo_at_a_time(tmp_path: Path) -> None:
    store = Store(tmp_path / "demo")
    with store.claimed():
        with pytest.raises(StoreInUse, match="another demo runs"), Store(tmp_path / "demo").claimed():
            pass
        store.begin("/code")
        with pytest.raises(StoreInUse, match="another demo runs"), Store(tmp_path / "demo").claimed():
            pass
    with store.claimed():
        pass


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(StoreInUse, match="other files"), Store(tmp_path).claimed():
        pass
    with pytest.raises(StoreInUse, match=r"File exists|Not a directory"), Store(tmp_path / "report.html").claimed():
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_only_what_the_demo_made_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path / "demo")
    with store.claimed():
        store.mails.mkdir()
        for name in (
            "demo.db",
            "demo.db-wal",
            "report.html",
            "worker.log",
            "mail/one.eml",
            "mine.txt",
            "mail/mine.txt",
        ):
            (store.folder / name).touch()
        store.clear()
        left = sorted(str(file.relative_to(store.folder)) for file in store.folder.rglob("*") if file.is_file())
        assert left == ["demo.json", "mail/mine.txt", "mine.txt"]


def test_a_licence_is_that_of_the_file_or_of_the_nearest_folder(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/LICENSE").write_text("Permission is hereby granted,\nfree of charge, to any person")
    (tmp_path / "a/b/own.py").write_text("# SPDX-License-Identifier: GPL-2.0 WITH x\n")
    service = LicenceService(tmp_path)
    assert service.licence_of(tmp_path / "a/b/own.py") == "GPL-2.0 WITH x"
    assert service.licence_of(tmp_path / "a/b/other.py") == "MIT"
    assert service.licence_of(tmp_path / "other.py") == UNKNOWN


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\udcff"])
def test_a_folder_whose_name_cannot_be_shown_is_not_made(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / name)
    with pytest.raises(StoreInUse, match="holds a character that cannot be shown"), store.claimed():
        pass
    assert list(tmp_path.iterdir()) == []
