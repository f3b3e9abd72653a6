"""A folder in which a page's snippets or an example run, with real workers."""

import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from tests.support import wait_until

WAIT = 20.0
_DRIVER = Path(__file__).with_name("driver.py")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
_SPAN = re.compile(r"\b\d+(\.\d+)? ?(ms|s|min|h|d)\b")


class Scratch:
    """One folder. It holds an empty pyproject.toml, so that the default broker is ``mouso.db`` in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pyproject.toml").write_text("")
        bin_ = Path(sys.executable).parent
        self.environment: Mapping[str, str] = {
            **os.environ,
            "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",  # a file that is rewritten within a second must be read again
            "COLUMNS": "200",
        }
        self._session: subprocess.Popen[str] | None = None
        self._workers: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._log: IO[str] = (folder / "python.log").open("w")

    # -- files and Python

    def write(self, name: str, text: str, *, more: bool = False) -> None:
        """Writes a file. Python starts anew after it; workers end if the file is changed, as a person would do it."""
        path = self.folder / name
        self._end_session()
        if path.exists():
            self.stop_workers()
        path.write_text(path.read_text() + "\n\n" + text if more else text)

    def python(self, code: str, file: str, line: int) -> None:
        """Runs a snippet after those before it; fails with what went wrong."""
        if self._session is None:
            self._session = subprocess.Popen(
                [sys.executable, str(_DRIVER)],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
        assert self._session.stdin is not None
        assert self._session.stdout is not None
        self._session.stdin.write(json.dumps([file, line, code]) + "\n")
        self._session.stdin.flush()
        answer = self._session.stdout.readline()
        assert answer, f"{file}:{line}: the snippet ended its process:\n{(self.folder / 'python.log').read_text()}"
        problem = json.loads(answer)
        assert problem is None, f"{problem}\n{self.logs()}"

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with session:
                assert session.stdin is not None
                session.stdin.close()
                session.wait(WAIT)

    # -- commands

    def shell(self, command: str) -> tuple[int, str]:
        """Runs a command to its end; returns its exit code and what it printed."""
        done = subprocess.run(
            command,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout

    def worker(self, command: str) -> None:
        """Starts ``mouso worker …`` in place of those that run, and waits until it has joined."""
        self.stop_workers()
        log = self.folder / f"worker-{command.__hash__() & 0xFFFF}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                shlex.split(command),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._workers.append((process, log))

        def joined() -> bool:
            assert process.poll() is None, f"{command!r} ended: {log.read_text()}"
            return process.pid in self._known_workers()

        wait_until(joined, timeout=WAIT, message=f"{command!r} has joined")

    def _known_workers(self) -> list[int]:
        """Process ids of the workers in any store of the folder."""
        found: list[int] = []
        for store in self.folder.glob("*.db"):
            connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
            try:
                rows = connection.execute("SELECT info FROM mouso_workers WHERE reaped_at IS NULL").fetchall()
            except sqlite3.Error:
                continue  # no store of jobs, or not one yet
            finally:
                connection.close()
            found += [json.loads(info)["pid"] for (info,) in rows]
        return found

    def stop_workers(self, number: int = signal.SIGTERM) -> None:
        """Stops all workers, which must end well."""
        workers, self._workers = self._workers, []
        for process, _ in workers:
            process.send_signal(number)
        for process, log in workers:
            code = process.wait(40)
            text = log.read_text()
            assert code == 0, f"the worker ended with {code}: {text}"
            assert "Traceback" not in text, text

    def logs(self) -> str:
        """What the workers have written."""
        return "\n".join(f"-- {log.name}\n{log.read_text()}" for _, log in self._workers)

    def close(self) -> None:
        """Ends everything."""
        try:
            self._end_session()
            self.stop_workers()
        finally:
            self._log.close()
            for process, _ in self._workers:
                process.kill()
                process.wait()


def normal(text: str) -> str:
    """A line of output without what differs from run to run: ids, instants, spans of time, the width of columns."""
    text = _INSTANT.sub("INSTANT", _UUID.sub("ID", text))
    return " ".join(_SPAN.sub("SPAN", text).split())
