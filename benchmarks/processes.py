"""Processes that are measured: started, asked for CPU time and memory by way of /proc, and stopped by their ids."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_CPU_CLOCK = 2
"""CPUCLOCK_SCHED: with a process's id it names the clock of its CPU time, threads that ended included."""


def tree(pid: int) -> list[int]:
    """A process and its living descendants."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                after_name = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(after_name[1]), []).append(int(entry))
    found = [pid]
    for process in found:
        found += parents.get(process, [])
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time of living processes so far, in seconds, to the ns."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += time.clock_gettime((~pid << 3) | _CPU_CLOCK)
    return total


def cpu_each(pids: Sequence[int]) -> dict[int, float]:
    """CPU time of living processes so far, by process."""
    return {pid: cpu_seconds([pid]) for pid in pids}


def cpu_since(before: Mapping[int, float], pids: Sequence[int]) -> float:
    """CPU time that these processes have taken since ``cpu_each`` was asked; some may have started or ended since."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in cpu_each(pids).items())


def pss_mib(pids: Sequence[int], kind: str = "Pss") -> float:
    """Memory of processes in MiB, what they share divided among them (PSS); ``Pss_Anon`` is that of no file."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(f"{kind}:"):
                    total += int(line.split()[1])
    return total / 1024


class Worker:
    """A worker under measurement.

    Attributes:
        started: When it was started, in ns on CLOCK_MONOTONIC.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], folder: Path, log: Path) -> None:
        self._log = log
        with log.open("ab") as out:
            self.started = time.monotonic_ns()
            self._process = subprocess.Popen(
                command, cwd=folder, env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def log(self) -> str:
        """What it has written."""
        return self._log.read_text(errors="replace")

    def pids(self) -> list[int]:
        """Its processes."""
        return tree(self._process.pid)

    def check(self) -> None:
        """Raises RuntimeError if it has ended."""
        code = self._process.poll()
        if code is not None:
            raise RuntimeError(f"the worker ended with {code}:\n{self._log.read_text(errors='replace')[-2000:]}")

    def stop(self, number: int) -> None:
        """Ends it with a signal, and after 10 s by force."""
        pids = self.pids()
        self._process.send_signal(number)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()


@contextlib.contextmanager
def running(worker: Worker, number: int = signal.SIGTERM) -> Iterator[Worker]:
    """Stops a worker at the end of the block."""
    try:
        yield worker
    finally:
        worker.stop(number)
