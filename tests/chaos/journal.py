"""What the jobs of a chaos test write while they run: one line per event, appended in one `write`.

Nothing is kept open between two lines: some of these jobs close every descriptor of their process.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mouso import Context, StopRequested

VARIABLE = "MOUSO_TEST_JOURNAL"
_SUPERVISOR = os.getppid()
"""Who started this process, read while that one surely lives; a fork keeps its parent's."""


def record(event: str, job: str = "") -> None:
    """Appends a line about the job that runs here, or about another one."""
    assert " " not in event
    attempt = token = 0
    if not job:
        context = Context.current()
        job, attempt, token = context.job_id, context.attempt, context.token
    line = f"{time.monotonic_ns()} {os.getpid()} {_SUPERVISOR} {job} {attempt} {token} {event}\n"
    descriptor = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@contextmanager
def run() -> Iterator[int]:
    """A run from its start to its end, `fail` or `stop`; gives its token."""
    record("start")
    try:
        yield Context.current().token
    except (StopRequested, asyncio.CancelledError):
        record("stop")
        raise
    except BaseException:
        record("fail")
        raise
    else:
        record("end")


@dataclass(frozen=True, slots=True)
class Line:
    """One event.

    Attributes:
        at: Seconds on the system-wide monotonic clock.
        supervisor: The process that started this one.
    """

    at: float
    pid: int
    supervisor: int
    job: str
    attempt: int
    token: int
    event: str


class Tail:
    """Reads the journal as it grows.

    Attributes:
        lines: What was read so far.
        counts: How many of each event.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[Line] = []
        self.counts: Counter[str] = Counter()
        self._offset = 0

    def read(self) -> list[Line]:
        """Every line so far; the list is the same each time, and longer."""
        if not self.path.exists():
            return self.lines
        with self.path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for text in whole.decode().splitlines():
            at, pid, supervisor, job, attempt, token, event = text.split(" ")
            self.counts[event] += 1
            self.lines.append(Line(int(at) / 1e9, int(pid), int(supervisor), job, int(attempt), int(token), event))
        return self.lines
