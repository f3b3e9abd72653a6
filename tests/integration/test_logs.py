"""The log of real workers: JSON that stays JSON whatever happens, text for people, and an outage in two lines."""

import contextlib
import json
import os
import re
import signal
import sqlite3
from datetime import UTC, datetime
from typing import Any

from tests.integration.harness import WAIT, Bench, Worker
from tests.integration.snippets import SOUND
from tests.support import wait_until

NOISY = (
    SOUND
    + """
import logging

def deep(n: int) -> None:
    if n:
        deep(n - 1)
    raise ValueError("x" * 200)

@app.task(attempts=1)
def fail(n: int) -> None:
    deep(40)

@app.task(attempts=1)
def talk(ctx: Context, text: str) -> None:
    ctx.log.warning("%s", text)
    logging.getLogger("mouso.worker").error("from a job", exc_info=ValueError(text * 3000))

@app.task(attempts=1)
def loggers() -> dict[str, list[str]]:
    root = logging.getLogger()
    return {"handlers": [repr(h) for h in root.handlers], "level": [str(root.level)]}

@app.task
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
"""
)
HOSTILE = 'é 北京 \U0001f600 \x1b[31m\r\n\x00\x7f\x9b\u202e "quoted" {"level": "fake"}\n'


def entries(worker: Worker) -> list[dict[str, Any]]:
    """Every line of a worker's log, each of which must be an object of printable ASCII."""
    found = []
    for line in worker.log.splitlines():
        assert line.isascii(), line
        assert line.isprintable(), line
        entry = json.loads(line)
        assert {"time", "level", "logger", "message", "pid"} <= set(entry), line
        assert entry["time"].endswith("Z")
        datetime.fromisoformat(entry["time"])
        found.append(entry)
    return found


def said(worker: Worker, text: str) -> list[dict[str, Any]]:
    return [entry for entry in entries(worker) if text in entry["message"]]


def test_json_whatever_happens(bench: Bench) -> None:
    jobs = bench.app(NOISY)
    worker = bench.worker("--log-format", "json", processes=2, concurrency=4)
    worker.quiet = False
    failing = jobs.fail.map([(n,) for n in range(200)])
    talking = [jobs.talk.delay(HOSTILE) for _ in range(20)]
    bench.wait_final([*failing, *talking])
    dying = jobs.die.delay()  # not before: who is killed in the middle of a line leaves half of it
    bench.wait_final([dying])
    assert worker.stop() == 0
    pids = {entry["pid"] for entry in entries(worker)}
    assert worker.pid in pids
    assert len(pids) > 2
    dead = said(worker, "is dead (attempts)")
    # A job whose child died before its outcome was stored fails once more.
    assert {entry["job_id"] for entry in dead} == {handle.id for handle in failing}
    for entry in dead:
        assert {name: entry[name] for name in ("level", "logger", "task", "queue", "attempt")} == {
            "level": "error", "logger": "mouso.job", "task": "jobs.fail", "queue": "default", "attempt": 1,
        }  # fmt: skip
    (poison,) = said(worker, "is dead (poison)")
    assert (poison["job_id"], poison["task"], poison["pid"]) == (dying.id, "jobs.die", worker.pid)
    talked = [entry for entry in entries(worker) if entry["message"] == HOSTILE]
    assert {entry["job_id"] for entry in talked} == {handle.id for handle in talking}
    raised = said(worker, "from a job")
    assert {entry["job_id"] for entry in raised} == {handle.id for handle in talking}
    for entry in raised:
        assert entry["exception"].startswith("ValueError: é 北京")
        assert len(entry["exception"]) < 17_000
        assert entry["exception"].endswith(HOSTILE)


def test_text_is_the_default(bench: Bench) -> None:
    jobs = bench.app(NOISY)
    worker = bench.worker()
    worker.quiet = False
    handle = jobs.talk.delay(HOSTILE)
    bench.wait_final([handle])
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO     worker .* serves", worker.log, re.MULTILINE)
    assert f"WARNING  [{handle.id}] é 北京 \U0001f600 \\x1b[31m\\r\\n\\x00\\x7f\\x9b\\u202e " in worker.log
    assert "ValueError: é 北京" in worker.log
    assert worker.log.replace("\n", "").isprintable()


def test_the_root_logger_is_left_to_the_app(bench: Bench) -> None:
    jobs = bench.app(NOISY)
    bench.worker("--log-format", "json", "--log-level", "debug")
    assert jobs.loggers.delay().get(timeout=WAIT) == {"handlers": [], "level": ["30"]}


def test_levels(bench: Bench) -> None:
    bench.app(SOUND)
    worker = bench.worker("--log-format", "json", "--log-level", "error")
    os.kill(worker.children()[0], signal.SIGKILL)
    wait_until(lambda: said(worker, "died"), timeout=WAIT)
    assert {entry["level"] for entry in entries(worker)} == {"error"}


def test_an_outage_is_one_line_when_it_starts_and_one_when_it_ends(bench: Bench) -> None:
    jobs = bench.app(SOUND)
    worker = bench.worker("--log-format", "json")
    handle = jobs.sound.delay(1)
    assert handle.get(timeout=WAIT) == 1
    before = len(entries(worker))
    connection = sqlite3.connect(bench.store, isolation_level=None, timeout=WAIT)
    with contextlib.closing(connection):
        locked_at = datetime.now(UTC)
        connection.execute("BEGIN EXCLUSIVE")
        (lost,) = wait_until(lambda: said(worker, "the broker does not answer: "), timeout=WAIT)
        # Calls that need no lock go well meanwhile, and calls that do fail again and again.
        (fenced,) = wait_until(lambda: said(worker, "its jobs are stopped"), timeout=WAIT)
        connection.execute("ROLLBACK")
    (back,) = wait_until(lambda: said(worker, "the broker answers again after"), timeout=WAIT)
    (renewed,) = wait_until(lambda: said(worker, "takes jobs again"), timeout=WAIT)
    assert jobs.sound.delay(2).get(timeout=WAIT) == 2
    assert "jobs.db" in lost["message"]
    assert (lost["level"], back["level"]) == ("error", "info")
    lost_at, back_at = (datetime.fromisoformat(entry["time"]) for entry in (lost, back))
    lasted = float(back["message"].split()[-2])
    # The call that failed had waited for the lock before it was given up: that time belongs to the outage.
    assert (back_at - lost_at).total_seconds() + 3 < lasted < (back_at - locked_at).total_seconds() + 2
    messages = [entry["message"] for entry in entries(worker)[before:]]
    assert sorted(messages) == sorted(entry["message"] for entry in (lost, fenced, back, renewed))
