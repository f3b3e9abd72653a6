"""A real worker for a test: an app module in the test's own folder, processes, signals, and what they left behind.

1. `Bench.app` writes the module `jobs` and imports it here, as a producer would.
2. `Bench.worker` starts `python -m mouso worker jobs:app` and waits until it is known to the broker.
3. The jobs write a history (`history.note`); the test reads it, and the rows of the store.
4. At the end every worker is stopped, must exit with 0, must have logged no traceback, and must leave nothing.
"""

import importlib.util
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from mouso import Mouso
from mouso.handle import JobHandle
from mouso.job import Job, JobState
from tests.integration import history
from tests.integration.history import Line
from tests.support import process_ids, wait_until

ROOT = Path(__file__).parents[2]
WAIT = 20.0
"""Seconds that a test waits for what should take a fraction of one; machines can be slow."""
_QUIET = 2.0
"""Seconds after which a worker may have joined without a word: some are told to log little."""

HEADER = """\
import asyncio, os, signal, sys, threading, time
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from uuid import UUID
from mouso import *
from mouso import Mouso, Context, Retry, Snooze, Cancel, Discard, exponential, constant
from tests.integration.history import note

app = Mouso("jobs", broker={broker!r})
"""


class Worker:
    """One worker process.

    Attributes:
        quiet: Whether a traceback in its log is a failure.
    """

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
        self.log_file = log
        self.quiet = True
        self.started = time.monotonic()
        self.stopped_at: float | None = None
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._known_children: set[int] = set()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """Everything that it and its children have written so far."""
        return self.log_file.read_text(errors="replace")

    def children(self) -> list[int]:
        """Its live children that run jobs, the eldest first: its own child processes, and copies of its templates."""
        parents = _parents()
        own = [pid for pid in parents if parents[pid] == self.pid]
        templates = [pid for pid in own if _is_template(pid)]
        copies = [pid for pid in parents if templates and parents[pid] in templates]
        found = sorted({*own, *copies})
        self._known_children.update(found)
        return [pid for pid in found if pid not in templates]

    def templates(self) -> list[int]:
        """Its live template processes, of which isolated and preloaded children are copies."""
        parents = _parents()
        return sorted(pid for pid in parents if parents[pid] == self.pid and _is_template(pid))

    def send(self, number: int) -> float:
        """Sends a signal to the supervisor alone; returns when, on the monotonic clock."""
        self.children()
        now = time.monotonic()
        self._process.send_signal(number)
        return now

    def send_group(self, number: int) -> float:
        """Sends a signal to the supervisor's process group, as a terminal or a container's init does."""
        self.children()
        now = time.monotonic()
        os.killpg(self.pid, number)
        return now

    def wait(self, timeout: float = WAIT) -> int:
        """Waits for the end and returns the exit code, which is negative for a signal."""
        self.children()
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGQUIT)
            time.sleep(1.0)
            children = {pid: _state(pid) for pid in self._known_children}
            raise AssertionError(
                f"not ended within {timeout:g} s; its children: {children}; its stacks:\n{self.log[-20_000:]}"
            ) from None
        self.stopped_at = time.monotonic()
        return code

    def stop(self, number: int = signal.SIGTERM, timeout: float = WAIT) -> int:
        """Asks it to end, waits, and returns the exit code."""
        if self.alive:
            self.send(number)
        return self.wait(timeout)

    def survivors(self) -> list[int]:
        """Children that are still there."""
        return [pid for pid in self._known_children if _is_child_of_worker(pid)]

    def destroy(self) -> None:
        """Kills it and its children, whatever they do."""
        children = [] if not self.alive else self.children()
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        for pid in {*children, *self.survivors()}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Bench:
    """One test's folder: the app, the store, the history and the workers.

    Attributes:
        store: The file of the jobs, if they are in SQLite.
        broker_url: Where the jobs are.
    """

    def __init__(self, folder: Path, broker_url: str = "") -> None:
        self.folder = folder
        self.store = folder / "jobs.db"
        self.broker_url = broker_url or f"sqlite:///{self.store}"
        self.history_file = folder / "history"
        self.workers: list[Worker] = []
        self._modules: list[ModuleType] = []
        self._numbers = itertools.count(1)

    # -- the app

    def write(self, source: str, name: str = "jobs", *, header: bool = True) -> Path:
        """Writes a module beside the store; the header makes `app` and imports what tasks use."""
        path = self.folder / f"{name}.py"
        top = HEADER.format(broker=self.broker_url) if header else ""
        path.write_text(top + textwrap.dedent(source))
        return path

    def app(self, source: str, name: str = "jobs") -> Any:
        """Writes the module and imports it here; returns it."""
        path = self.write(source, name)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        self._modules.append(module)
        spec.loader.exec_module(module)
        return module

    def bells(self) -> list[Path]:
        """The sockets by which processes wake each other, where they do."""
        folder = Path(f"{self.store}-bells")
        return list(folder.iterdir()) if folder.exists() else []

    @property
    def producer(self) -> Mouso:
        """The app as this process imported it."""
        app = self._modules[0].app
        assert isinstance(app, Mouso)
        return app

    def environment(self, **more: str) -> dict[str, str]:
        """Variables for a process that can import the app and whose jobs write the history."""
        paths = os.pathsep.join(filter(None, [str(self.folder), str(ROOT), os.environ.get("PYTHONPATH")]))
        return {**os.environ, history.VARIABLE: str(self.history_file), "PYTHONPATH": paths, **more}

    # -- workers

    def start(self, *arguments: str, app: str = "jobs:app", **environment: str) -> Worker:
        """Starts a worker and does not wait."""
        return self._start("-m", "mouso", "worker", app, *arguments, **environment)

    def program(self, source: str) -> Worker:
        """Starts a worker by a program, as with what the command line has no option for, and does not wait."""
        return self._start("-c", source)

    def _start(self, *arguments: str, **environment: str) -> Worker:
        log = self.folder / f"worker-{next(self._numbers)}.log"
        worker = Worker([sys.executable, *arguments], self.folder, self.environment(**environment), log)
        self.workers.append(worker)
        return worker

    def worker(self, *arguments: str, processes: int = 1, concurrency: int = 4, app: str = "jobs:app") -> Worker:
        """Starts a worker and waits until it has joined and all of its children serve."""
        worker = self.start("-p", str(processes), "-c", str(concurrency), *arguments, app=app)
        self.wait_ready(worker, processes)
        return worker

    def wait_ready(self, worker: Worker, processes: int = 1) -> None:
        """Waits until a worker has joined the broker and its children are through their imports."""

        def joined() -> bool:
            assert worker.alive, f"the worker ended: {worker.log}"
            if " serves " not in worker.log and time.monotonic() - worker.started < _QUIET:
                return False  # to look into the log is a hundred times cheaper than into the store
            if not self.producer.broker.capabilities.inspect:
                return " serves " in worker.log
            return any(info.pid == worker.pid for info in self.producer.workers())

        wait_until(joined, timeout=WAIT, message="the worker has joined")
        wait_until(lambda: len(worker.children()) >= processes, timeout=WAIT, message="all children are there")
        wait_until(lambda: all(map(_has_reader, worker.children())), timeout=WAIT, message="all children serve")

    # -- what happened

    def history(self, event: str | None = None) -> list[Line]:
        """The events that jobs have noted, all or of one kind."""
        lines = history.read(self.history_file)
        return lines if event is None else [line for line in lines if line.event == event]

    def wait_for(self, event: str, count: int = 1, timeout: float = WAIT) -> list[Line]:
        """Waits until an event has been noted so often; returns all of its lines."""

        def enough() -> list[Line] | None:
            lines = self.history(event)
            return lines if len(lines) >= count else None

        found = wait_until(enough, timeout=timeout, message=f"{count} × {event}")
        assert found is not None
        return found

    def wait_final(self, handles: Iterable[JobHandle[Any]], timeout: float = WAIT) -> list[Job]:
        """Waits until jobs are final; returns their records, in order."""
        ids = [handle.id for handle in handles]
        live = set(ids)

        def done() -> bool:
            for record in self.records(live):
                if record.state.final:
                    live.discard(record.id)
            return not live

        try:
            wait_until(done, timeout=timeout, interval=0.05, message=f"{len(ids)} jobs are final")
        except AssertionError as error:
            logs = "\n".join(worker.log[-4000:] for worker in self.workers)
            raise AssertionError(
                f"{error}; {len(live)} are not: {dict(self.states())}; the workers' logs:\n{logs}"
            ) from None
        return self.records(ids)

    def wait_state(self, handle: JobHandle[Any], *states: str, timeout: float = WAIT) -> Job:
        """Waits until a job is in one of these states; returns its record."""
        wanted = {JobState(state) for state in states}
        wait_until(lambda: handle.state in wanted, timeout=timeout, message=f"{handle.id} is {states}")
        return handle.record

    def records(self, ids: Iterable[str]) -> list[Job]:
        """The jobs with these ids, which must exist."""
        found: list[Job] = []
        wanted = list(ids)
        for start in range(0, len(wanted), 1000):
            for record in self.producer.broker.get(wanted[start : start + 1000]):
                assert record is not None
                found.append(record)
        return found

    def states(self) -> Counter[str]:
        """How many jobs the store holds in each state."""
        counts: Counter[str] = Counter()
        for queue in self.producer.queues():
            counts.update({str(state): n for state, n in queue.counts.items() if n})
        return counts

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Runs a statement in the store directly, as a broken or hostile program might."""
        connection = sqlite3.connect(self.store, timeout=10)
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        try:
            with connection:
                return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    # -- the end

    def close(self) -> None:
        """Stops what runs and checks that it ended well."""
        try:
            self._stop_all()
        finally:
            for worker in self.workers:
                worker.destroy()
            for module in self._modules:
                if isinstance(getattr(module, "app", None), Mouso):
                    module.app.close()
                sys.modules.pop(module.__name__, None)
        ended = all(worker.stopped_at is not None for worker in self.workers)
        left = self.bells() if ended else []
        assert not left, f"sockets are left: {left}"

    def _stop_all(self) -> None:
        running = [worker for worker in self.workers if worker.alive]
        for worker in running:
            worker.send(signal.SIGTERM)
        for worker in running:
            code = worker.wait(40)
            assert code == 0, f"the worker ended with {code}: {worker.log}"
        for worker in self.workers:
            if worker.quiet:
                assert "Traceback" not in worker.log, worker.log
            wait_until(lambda w=worker: not w.survivors(), timeout=5, message="the worker's children are gone")  # type: ignore[misc]  # why: binds the loop variable


def kill_one(processes: Callable[[], Sequence[int]], choose: Callable[[Sequence[int]], int]) -> tuple[int, float]:
    """Kills one of some processes; returns it, and when, on the monotonic clock."""
    while True:
        victim = choose(wait_until(processes, message="there is a process to be killed"))
        at = time.monotonic()
        with suppress(ProcessLookupError):  # a child in which a suspect was tried again, alone, ends by itself
            os.kill(victim, signal.SIGKILL)
            return victim, at


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _parents() -> dict[int, int]:
    """The parent of every live process: one look at each, which is the most of what a test's process does."""
    stats = {pid: _stat(pid) for pid in process_ids()}
    return {pid: int(fields[1]) for pid, fields in stats.items() if fields and fields[0] != "Z"}


def _is_template(pid: int) -> bool:
    return b"mouso.worker.template" in _command(pid)


def _state(pid: int) -> str:
    fields = _stat(pid)
    return fields[0] if fields else "Z"


def _is_child_of_worker(pid: int) -> bool:
    return b"mouso.worker." in _command(pid) and _state(pid) != "Z"


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _has_reader(pid: int) -> bool:
    """Whether a child has started the thread that takes jobs, the last step before it serves."""
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False
