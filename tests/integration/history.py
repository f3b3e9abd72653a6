"""What jobs write while they run, and how a test reads it: one line per event, appended in one `write`.

The file outlives every process, so it says what really ran, whatever the broker believes.
"""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from mouso import Context

VARIABLE = "MOUSO_TEST_HISTORY"
_open: dict[str, int] = {}
_opening = threading.Lock()


def note(event: str, text: str = "") -> None:
    """Appends a line about the job that runs here, or about the process if none does; the event is one word."""
    assert " " not in event
    path = os.environ[VARIABLE]
    with _opening:
        if path not in _open:
            _open[path] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        context = Context.current()
        job = f"{context.job_id} {context.attempt} {context.token}"
    except Exception:
        job = "- 0 0"
    os.write(_open[path], f"{time.monotonic_ns()} {os.getpid()} {job} {event} {text}\n".encode())


@dataclass(frozen=True, slots=True)
class Line:
    """One event.

    Attributes:
        at: Seconds on the system-wide monotonic clock.
        job: The job's id, or "-".
    """

    at: float
    pid: int
    job: str
    attempt: int
    token: int
    event: str
    text: str


def read(path: Path) -> list[Line]:
    """Every event so far, in the order of writing."""
    lines = []
    whole, _, _ = path.read_text().rpartition("\n") if path.exists() else ("", "", "")  # the last may be half-written
    for text in whole.splitlines():
        at, pid, job, attempt, token, event, rest = text.split(" ", 6)
        lines.append(Line(int(at) / 1e9, int(pid), job, int(attempt), int(token), event, rest))
    return lines
