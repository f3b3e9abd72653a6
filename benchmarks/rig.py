"""What is measured: a job system with its settings on one store, driven through processes of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import processes, slots
from benchmarks.processes import Worker, cpu_each, cpu_seconds, cpu_since
from benchmarks.stores import Store

ROOT = Path(__file__).resolve().parent.parent
_LOOK = 0.002
_PATIENCE = 180.0


class Folders(NamedTuple):
    """Temporary folders: the job systems' files go on a disk, the jobs' counts where nothing writes them to one."""

    disk: Path
    memory: Path


class Rig(ABC):
    """One job system on one new SQLite file, or on one new server.

    Args:
        folders: Where to put its files.
        label: Names the file.
        server: Runs already, for this one alone.
    """

    stop_signal = signal.SIGTERM

    def __init__(self, folders: Folders, label: str, server: Store | None = None) -> None:
        self.server = server
        self.file = folders.disk / f"{label}-{time.monotonic_ns()}.db"
        self._memory = folders.memory / f"{self.file.stem}.slots"
        self.slots = slots.Slots(self._memory)

    @abstractmethod
    def client_command(self) -> list[str]:
        """Starts the client; a command and its arguments are appended."""

    @abstractmethod
    def worker_command(self, processes: int, concurrency: int) -> list[str]:
        """Starts a worker."""

    @abstractmethod
    def settings(self) -> dict[str, str]:
        """Environment variables for both."""

    def _env(self, **more: str) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("MOUSO_")}
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        return {**env, **self.settings(), slots.VARIABLE: str(self._memory), "PYTHONPATH": path, **more}

    def client(self, command: str, *arguments: object, **settings: str) -> dict[str, Any]:
        """Runs a command of the client, with other settings if need be, and returns its answer.

        Raises:
            RuntimeError: It failed; holds its last words.
        """
        done = subprocess.run(
            [*self.client_command(), command, *map(str, arguments)],
            cwd=ROOT, env=self._env(**settings), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"the client failed at {command}:\n{done.stderr[-2000:]}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def fill(self, jobs: int) -> None:
        """Enqueues no-op jobs, as fast as may be."""
        self.client("fill", jobs)
        self.settle()

    def settle(self) -> None:
        """Waits until a server has done what it does later."""
        if self.server is not None:
            self.server.settle()

    @contextmanager
    def worker(self, processes_: int = 2, concurrency: int = 8, *options: str) -> Iterator[Worker]:
        """A worker that is running, with all counts at zero."""
        self._memory.unlink(missing_ok=True)
        self.slots = slots.Slots(self._memory)
        log = self.file.with_suffix(".log")
        command = [*self.worker_command(processes_, concurrency), *options]
        with processes.running(Worker(command, self._env(), ROOT, log), self.stop_signal) as worker:
            yield worker

    def wait_for(self, worker: Worker, jobs: int) -> slots.Count:
        """Waits until so many jobs are done.

        Raises:
            RuntimeError: The worker ended, or it took three minutes.
        """
        deadline = time.monotonic() + _PATIENCE
        while (count := self.slots.count()).jobs < jobs:
            time.sleep(_LOOK)
            worker.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.file.name}: {count.jobs} of {jobs} jobs were done in {_PATIENCE:g} s")
        return count

    def drain(self, jobs: int, concurrency: int = 8) -> dict[str, float]:
        """Lets a worker do jobs that wait already.

        Returns:
            ``rate`` in jobs per second from the first to the last, and ``cpu``, all the worker's processes' µs per
            job, from the first look at which one was done to 0.3 s after the last; ``server`` is that of the server.
        """
        with self.worker(2, concurrency) as worker:
            seen = self.wait_for(worker, 1)
            pids = worker.pids()
            before, served = cpu_seconds(pids), cpu_each(self._served_by())
            count = self.wait_for(worker, jobs)
            time.sleep(0.3)
            cpu, server = cpu_seconds(pids) - before, cpu_since(served, self._served_by())
        return {
            "rate": (jobs - 1) / (count.last - count.first) * 1e9,
            "cpu": cpu / (jobs - seen.jobs) * 1e6,
            "server": server / (jobs - seen.jobs) * 1e6,
            "first": (count.first - worker.started) / 1e9,
        }

    def _served_by(self) -> list[int]:
        return [] if self.server is None else self.server.processes()

    def discard(self) -> None:
        """Deletes its files, and ends its server."""
        if self.server is not None:
            self.server.discard()
        self._memory.unlink(missing_ok=True)
        for path in self.file.parent.glob(self.file.stem + "*"):
            if path.is_dir():
                for inside in path.iterdir():
                    inside.unlink()
                path.rmdir()
            else:
                path.unlink()


class MousoRig(Rig):
    """Mouso as it is by default: at least once, results stored, ``synchronous=FULL`` unless said otherwise."""

    def __init__(self, folders: Folders, synchronous: str, app: str, server: Store | None) -> None:
        super().__init__(folders, f"mouso-{synchronous}", server)
        self._synchronous = synchronous
        self._app = app

    def client_command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.client"]

    def worker_command(self, processes: int, concurrency: int) -> list[str]:
        options = ["-p", str(processes), "-c", str(concurrency), "--log-level", "warning"]
        return [sys.executable, "-m", "mouso", "worker", f"{self._app}:app", *options]

    def settings(self) -> dict[str, str]:
        file = f"sqlite:///{self.file}?synchronous={self._synchronous}"
        return {"MOUSO_BROKER": file if self.server is None else self.server.url}


class HueyRig(Rig):
    """Huey on SQLite, ``synchronous`` OFF (``fsync=False``) or FULL.

    Args:
        python: The interpreter of the environment with Huey in it.
    """

    stop_signal = signal.SIGINT

    def __init__(self, folders: Folders, python: Path, *, fsync: bool) -> None:
        super().__init__(folders, f"huey-{'full' if fsync else 'off'}")
        self._python = python
        self._fsync = fsync

    def client_command(self) -> list[str]:
        return [str(self._python), "-m", "benchmarks.peers.huey_client"]

    def worker_command(self, processes: int, concurrency: int) -> list[str]:
        options = ["-k", "process", "-w", str(processes), "-n", "-q"]
        return [str(self._python), "-m", "huey.bin.huey_consumer", "benchmarks.peers.huey_app.huey", *options]

    def settings(self) -> dict[str, str]:
        return {"BENCH_HUEY_FILE": str(self.file), "BENCH_HUEY_FSYNC": str(int(self._fsync))}

    def fill(self, jobs: int) -> None:
        self.client("single", jobs, BENCH_HUEY_FSYNC="0")


class PeerRig(Rig):
    """A peer on a server; `benchmarks.peers` has its app, which can be run, and its client.

    Args:
        python: The interpreter of the environment with the peers in it.
        name: What its modules' names begin with.
        settings: Further environment variables for both.
    """

    def __init__(self, folders: Folders, python: Path, name: str, server: Store, settings: Mapping[str, str]) -> None:
        super().__init__(folders, name, server)
        self._python, self._modules = str(python), f"benchmarks.peers.{name}"
        self._settings = {"BENCH_URL": server.url, **settings}

    def client_command(self) -> list[str]:
        return [self._python, "-m", f"{self._modules}_client"]

    def worker_command(self, processes: int, concurrency: int) -> list[str]:
        return [self._python, "-m", f"{self._modules}_app", str(processes)]

    def settings(self) -> dict[str, str]:
        return self._settings


def in_turn(runs: int, *steps: Callable[[], None]) -> None:
    """Runs the steps one after the other, ``runs`` times: A B A B, so that all see the same machine."""
    for _ in range(runs):
        for step in steps:
            step()
