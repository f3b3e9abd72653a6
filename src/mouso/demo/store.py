"""The demo's folder: its store of jobs, the report, the mails, the worker's log, and what it was all about.

A demo that was interrupted goes on with what is there; one that is complete starts afresh.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

_NOTE = "demo.json"
_OWN_FILES = ("report.html", "worker.log", "demo.db", "demo.db-wal", "demo.db-shm", "demo.db-journal")


class StoreInUse(Exception):
    """The folder cannot be used; the text says why, and what to do."""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What the folder's jobs are about: the code base's path; and whether the user has seen how it all ended."""

    root: str
    shown: bool = False


class Store:
    """The folder, by its path as the user wrote it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "worker.log"
        self.mails = folder / "mail"
        self.page = folder / "report.html"
        self.database = folder / "demo.db"

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Makes the folder, and keeps other demos out of it as long as the block lasts, or this process lives.

        Raises:
            StoreInUse: It holds something else, or another demo runs there.
        """
        if not str(self.folder).isprintable():
            raise StoreInUse(f"--store {str(self.folder)!r:.80} holds a character that cannot be shown; name another")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / _NOTE).exists() and any(self.folder.iterdir()):
                raise StoreInUse(f"{self.folder} holds other files; name a new or empty folder with --store")
            descriptor = os.open(self.folder / _NOTE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreInUse(f"{self.folder} cannot be used as the demo's folder: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise StoreInUse(f"another demo runs in {self.folder}; stop it, or name another --store") from None
        try:
            yield
        finally:
            os.close(descriptor)

    def holds_unfinished(self, root: str) -> bool:
        """Whether its jobs are about that code base, and the user was not shown yet how they ended."""
        try:
            note = msgspec.json.decode((self.folder / _NOTE).read_bytes(), type=Note)
        except (OSError, msgspec.DecodeError):
            return False
        return note == Note(root=root) and self.database.exists()

    def begin(self, root: str) -> None:
        """Notes which code base the jobs to come are about."""
        self._note(Note(root=root))

    def end(self, root: str) -> None:
        """Notes that the user was shown how the jobs ended."""
        self._note(Note(root=root, shown=True))

    def _note(self, note: Note) -> None:
        (self.folder / _NOTE).write_bytes(msgspec.json.encode(note))

    def clear(self) -> None:
        """Removes what earlier demos made, and nothing else."""
        for name in _OWN_FILES:
            (self.folder / name).unlink(missing_ok=True)
        for pattern in ("mail/*.eml", "mail/.*.eml-*", ".report.html-*"):
            for file in self.folder.glob(pattern):
                file.unlink(missing_ok=True)
        shutil.rmtree(f"{self.database}-bells", ignore_errors=True)
