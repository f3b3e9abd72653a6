"""What stands still is told, relieved or ended: the supervisor, a call of the broker, a child, a child's event loop."""

import os
import signal
import sqlite3
import time
from contextlib import closing

import pytest

from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import PAUSES, SOUND, still_sound
from tests.stalls import elapsed
from tests.support import crowd, wait_until

IMPATIENT = """
import functools, pathlib, sys, time
if any(word.endswith("mouso/__main__.py") for word in sys.orig_argv) or "mouso" in sys.orig_argv:
    import mouso.worker.watchdog as watchdog
    watchdog._PATIENCE = watchdog.Patience(look=0.2, tell=15, end=30)
    watchdog.Watchdog.__init__.__defaults__ = (watchdog._PATIENCE,)

    import mouso.brokers.sqlite.broker as module
    import mouso.worker.pump as pump
    exchange, report = module.SQLiteBroker.exchange, pump.Pump.settle

    @functools.wraps(exchange)
    def stuck(self, *args):
        while pathlib.Path("stick").exists():
            time.sleep(0.01)
        return exchange(self, *args)

    def blocked(self, outcomes):
        while pathlib.Path("block").exists():
            time.sleep(0.01)
        return report(self, outcomes)

    module.SQLiteBroker.exchange, pump.Pump.settle = stuck, blocked
"""

LOOP = """
@app.task
async def blocks() -> None:
    note("start")
    os.close(os.open("gate", os.O_RDONLY))  # the line that is told

@app.task
async def good(n: int) -> int:
    return n
"""

GIL = """
@app.task
def holds() -> None:
    import ctypes
    note("start")
    ctypes.PyDLL(None).open(b"gate", os.O_RDONLY)
    note("end")
"""


@pytest.mark.parametrize(("what", "words"), [("stick", "exchange does not come back"), ("block", "event loop")])
def test_a_worker_that_stands_still_ends_with_75(bench: Bench, what: str, words: str) -> None:
    jobs = bench.app(SOUND)
    (bench.folder / "sitecustomize.py").write_text(IMPATIENT)
    worker = bench.worker()
    worker.quiet = False
    still_sound(jobs)
    (bench.folder / what).touch()
    jobs.sound.delay(2)
    children = worker.children()
    assert worker.wait(WAIT) == 75
    assert words in worker.log
    assert "exit code 75" in worker.log
    assert "most recent call first" in worker.log
    wait_until(lambda: not worker.survivors(), timeout=WAIT)
    assert children
    (bench.folder / what).unlink()
    bench.worker()
    still_sound(jobs)


@pytest.mark.parametrize("what", ["stick", "block"])
def test_a_short_standstill_is_told_and_survived(bench: Bench, what: str) -> None:
    jobs = bench.app(SOUND)
    (bench.folder / "sitecustomize.py").write_text(IMPATIENT.replace("end=30", "end=1000"))
    worker = bench.worker()
    still_sound(jobs)
    (bench.folder / what).touch()
    job = jobs.sound.delay(2)
    wait_until(lambda: "so far" in worker.log, timeout=WAIT)
    (bench.folder / what).unlink()
    assert job.get(timeout=WAIT) == 2
    assert worker.log.count("so far") == 1


def test_a_frozen_worker_does_not_take_itself_for_one_that_stands_still(bench: Bench) -> None:
    jobs = bench.app(SOUND)
    (bench.folder / "sitecustomize.py").write_text(IMPATIENT)
    worker = bench.worker()
    worker.send(signal.SIGSTOP)
    frozen = time.monotonic()
    wait_until(lambda: time.monotonic() - frozen > 5, timeout=WAIT)
    worker.send(signal.SIGCONT)
    still_sound(jobs)
    assert "so far" not in worker.log


def test_who_blocks_the_event_loop_is_named_with_its_line(bench: Bench) -> None:
    jobs = bench.app(LOOP)
    os.mkfifo(bench.folder / "gate")
    worker = bench.worker()
    job = jobs.blocks.delay()
    [started] = bench.wait_for("start")
    wait_until(lambda: "blocks the event loop" in worker.log, timeout=WAIT)
    assert elapsed(started.at) < 2.0 * crowd()
    open_gate(bench)
    [line] = [line for line in worker.log.splitlines() if "blocks the event loop" in line]
    number = 1 + (bench.folder / "jobs.py").read_text().splitlines().index(
        '    os.close(os.open("gate", os.O_RDONLY))  # the line that is told'
    )
    assert f"job {job.id} (jobs.blocks)" in line
    assert f"jobs.py:{number}, in blocks" in line
    wait_until(lambda: "the event loop moves again after" in worker.log, timeout=WAIT)
    assert jobs.good.delay(3).get(timeout=WAIT) == 3
    assert worker.log.count("blocks the event loop") == 1


def test_what_waits_behind_a_job_that_holds_the_interpreter_goes_to_others(bench: Bench) -> None:
    jobs = bench.app(GIL + SOUND)
    os.mkfifo(bench.folder / "gate")
    worker = bench.worker(processes=2, concurrency=4)
    handles = jobs.sound.map([(n,) for n in range(500)])
    bench.wait_final(handles)
    jobs.holds.delay()
    handles = jobs.sound.map([(n,) for n in range(2000)])
    bench.wait_for("start")
    records = bench.wait_final(handles)
    assert not bench.history("end"), "the job must not have ended before those that waited"
    open_gate(bench)
    assert {(r.state, r.attempts, r.crashes) for r in records} == {("completed", 0, 0)}
    bench.wait_for("end")
    still_sound(jobs)
    assert len(worker.children()) == 2


def test_a_child_that_is_stopped_is_replaced(bench: Bench) -> None:
    jobs = bench.app(PAUSES)
    worker = bench.worker(processes=2, concurrency=2)
    handles = jobs.pause.map([(n, 0.05) for n in range(200)])
    bench.wait_for("start", 20)
    frozen = worker.children()[0]
    os.kill(frozen, signal.SIGSTOP)
    records = bench.wait_final(handles)
    assert {(r.state, r.attempts) for r in records} == {("completed", 0)}
    assert frozen not in worker.children()
    assert "did not answer" in worker.log
    again = [key for key, n in _starts(bench).items() if n > 1]
    assert len(again) <= 2, "only what ran in the stopped child may run again"


def open_gate(bench: Bench) -> None:
    """Lets the job go on that opens the gate, too."""
    os.close(os.open(bench.folder / "gate", os.O_WRONLY))


def _starts(bench: Bench) -> dict[str, int]:
    counts: dict[str, int] = {}
    for line in bench.history("start"):
        counts[line.job] = counts.get(line.job, 0) + 1
    return counts


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_a_broker_that_does_not_answer_holds_up_no_end(bench: Bench, busy: bool) -> None:
    """Whoever stops a worker may kill it three seconds after its grace, so it has ended by then, whatever hangs."""
    jobs = bench.app("""
@app.task
def deaf() -> None:
    note("start")
    while not Path("enough").exists():
        time.sleep(0.05)
""")
    worker = bench.worker("--grace", "1")
    handle = jobs.deaf.delay()
    bench.wait_for("start")
    if not busy:
        (bench.folder / "enough").touch()
        bench.wait_final([handle])
    with closing(sqlite3.connect(bench.store, isolation_level=None, timeout=10)) as other:
        other.execute("BEGIN EXCLUSIVE")
        at = worker.send(signal.SIGTERM)
        assert worker.wait() == 75
    assert worker.stopped_at is not None
    assert elapsed(at, worker.stopped_at) < 1 + 3 + 0.5 * crowd()
    (bench.folder / "enough").touch()
    bench.worker()
    [record] = bench.wait_final([handle])
    assert (record.state, record.attempts, record.crashes) == ("completed", 0, 0)
