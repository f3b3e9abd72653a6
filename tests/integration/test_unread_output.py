"""A worker whose output nobody reads: a log driver that hangs, or a terminal after Ctrl-S."""

import os
import pty
import signal
import termios
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.integration.harness import WAIT, Bench
from tests.stalls import elapsed
from tests.support import wait_until

JOBS = 300
GRACE = 2.0
APP = """
import logging
import time

@app.task(attempts=1)
def fail(n: int) -> None:
    print("printed by", n)
    raise RuntimeError("x" * 500)

@app.task
async def add(x: int, y: int) -> int:
    logging.getLogger("elsewhere").error("no handler: this comes by itself")
    return x + y

@app.task
def long(ctx: Context) -> None:
    note("start", "long")
    time.sleep(60)
"""
WORKER = """
import os, sys
output = os.open({path!r}, os.O_WRONLY | os.O_NOCTTY)
os.dup2(output, 1)
os.dup2(output, 2)
options = ["-p", "1", "-c", "4", "--grace", "{grace}", *{more!r}]
os.execv(sys.executable, [sys.executable, "-m", "mouso", "worker", "jobs:app", *options])
"""


class Unread:
    """A place to write to, and both ends of it."""

    def __init__(self, kind: str) -> None:
        if kind == "pipe":
            self.reading, self.writing = os.pipe()
            self.path = f"/proc/{os.getpid()}/fd/{self.writing}"
        else:
            self.reading, self.writing = pty.openpty()
            self.path = os.ttyname(self.writing)
            termios.tcflow(self.writing, termios.TCOOFF)

    def read(self) -> bytes:
        os.set_blocking(self.reading, False)
        parts = []
        with suppress(BlockingIOError):
            while part := os.read(self.reading, 1 << 20):
                parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


@pytest.fixture(params=["pipe", "terminal"])
def unread(request: pytest.FixtureRequest) -> Iterator[Unread]:
    made = Unread(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("more", [[], ["--log-format", "json", "--output", "raw"]], ids=["", "json-raw"])
def test_nobody_reads_what_it_writes(bench: Bench, unread: Unread, more: list[str]) -> None:
    """Jobs run on, SIGQUIT is answered to nobody, and it ends in time."""
    printing = 'print("', "logging.getLogger"  # which is left alone where output is raw
    jobs = bench.app("\n".join(line for line in APP.splitlines() if not more or not line.strip().startswith(printing)))
    worker = bench.program(WORKER.format(path=unread.path, grace=GRACE, more=more))
    failed = [jobs.fail.delay(n) for n in range(JOBS)]
    bench.wait_final(failed)
    worker.send(signal.SIGQUIT)
    assert jobs.add.delay(1, 2).get(timeout=WAIT) == 3
    handle = jobs.long.delay()
    bench.wait_for("start", count=1)
    at = worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert elapsed(at) < GRACE + 3
    assert [record.state for record in bench.records(job.id for job in failed)] == ["dead"] * JOBS
    (left,) = bench.records([handle.id])
    assert (left.state, left.attempts) == ("available", 0)
    wait_until(lambda: not worker.survivors(), timeout=5)


@pytest.mark.parametrize("unread", ["pipe"], indirect=True)
def test_who_reads_again_is_told_what_is_missing(bench: Bench, unread: Unread) -> None:
    jobs = bench.app(APP)
    worker = bench.program(WORKER.format(path=unread.path, grace=GRACE, more=[]))
    bench.wait_final([jobs.fail.delay(n) for n in range(JOBS)])
    unread.read()
    bench.wait_state(jobs.fail.delay(0), "dead")
    after = unread.read()
    assert b"lines of the log were left out here: nobody read them" in after
    assert after.count(b"\n") >= 2
    assert worker.stop() == 0
