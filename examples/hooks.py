"""Code around jobs: a connection for each process, a note around each run, a handler for what has happened."""

import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from mouso import Context, JobFailed, Mouso
from mouso.events import Event

app = Mouso("hooks")
NOTES = Path("hooks.txt")
resources: dict[str, sqlite3.Connection] = {}


@app.lifespan
async def connection() -> AsyncIterator[None]:
    """One connection for each child process, from before its first job until after its last."""
    resources["db"] = sqlite3.connect(":memory:", check_same_thread=False)
    yield
    resources.pop("db").close()


@app.middleware
def noted(job: Context, call: Callable[[], Any]) -> Any:
    """Goes around every run."""
    started = time.monotonic()
    try:
        return call()
    finally:
        note(f"run: {job.task} attempt {job.attempt}, {time.monotonic() - started < 60}")


@app.on("job.dead")
def told(event: Event) -> None:
    """Is told afterwards, and cannot change anything."""
    note(f"dead: {event.task}, {event.reason}")


@app.task(attempts=1)
def divide(a: int, b: int) -> int:
    value: int = resources["db"].execute("SELECT ? / ?", (a, b)).fetchone()[0] if b else a // b
    return value


def note(text: str) -> None:
    with NOTES.open("a") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    NOTES.write_text("")
    print(divide.delay(84, 2).get(timeout=30))
    try:
        divide.delay(1, 0).get(timeout=30)
    except JobFailed as failed:
        print(failed.error.type)
    deadline = time.monotonic() + 30
    while "dead:" not in NOTES.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    print(NOTES.read_text(), end="")
