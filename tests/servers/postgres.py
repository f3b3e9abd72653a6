"""A private PostgreSQL, copied from one that is made once."""

import atexit
import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from tests.servers.server import READY, Server, program

_SERVICE_USER = "postgres" if os.geteuid() == 0 else None
"""PostgreSQL refuses to run as root."""


class PostgresServer(Server):
    """A PostgreSQL server, in a folder of its own that its user may enter.

    Args:
        fsync: Whether what is committed survives a loss of power, and what that costs.
        settings: More settings, as in its configuration file: ``max_connections="10"``.
    """

    user = _SERVICE_USER

    def __init__(self, *, fsync: bool = False, **settings: str) -> None:
        super().__init__(_folder())
        switch = "on" if fsync else "off"
        self.settings = {
            "fsync": switch,
            "full_page_writes": switch,
            "synchronous_commit": "on",
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "shared_buffers": "64MB",
            "logging_collector": "off",
            "restart_after_crash": "on",
        } | settings
        subprocess.run(["cp", "-a", _template(), self.folder / "data"], check=True)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @contextmanager
    def store(self, name: str) -> Iterator[str]:
        yield f"{self.url}?schema=jobs_{name}"
        with self.client() as client:
            client.execute(f"DROP SCHEMA IF EXISTS jobs_{name} CASCADE")

    def command(self) -> Sequence[str]:
        words = [program("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        for name, value in self.settings.items():
            words += ["-c", f"{name}={value}"]
        return words

    def client(self, **options: Any) -> "psycopg.Connection[Any]":
        """A connection that commits by itself; close it."""
        return psycopg.connect(self.url, **{"autocommit": True, "connect_timeout": 5} | options)

    def answers(self) -> bool:
        with suppress(psycopg.OperationalError), self.client() as client:
            return client.execute("SELECT 1").fetchone() == (1,)
        return False

    def stop(self) -> None:
        """Ends it in good order, whoever is connected."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(READY)
            self._process = None

    def end(self) -> None:
        """Ends it for good, but so that it gives back its shared memory, and removes its folder."""
        with suppress(ProcessLookupError, AssertionError):
            self.thaw()
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(READY)
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def owned(path: Path, text: str | None = None) -> Path:
    """A folder, or a file with this text, that is made the server's user's; pytest's own are the tests' user's."""
    if text is not None:
        path.write_text(text)
    if _SERVICE_USER is not None:
        shutil.chown(path, _SERVICE_USER, _SERVICE_USER)
    return path


def _folder() -> Path:
    return owned(Path(tempfile.mkdtemp(prefix="mouso-postgres-")))


@functools.cache
def _template() -> Path:
    """The data of a new server."""
    folder = _folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run(
        [program("initdb"), "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
        check=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        user=_SERVICE_USER,
        group=_SERVICE_USER,
        extra_groups=None if _SERVICE_USER is None else [],
    )
    return folder / "data"
