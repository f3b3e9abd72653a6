"""Workers that grow under load and shrink when it is quiet; what runs takes no notice."""

import os
import re
import signal
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from tests.integration.harness import WAIT, Bench, Worker
from tests.integration.snippets import PAUSES, SOUND
from tests.support import wait_until

TASKS = (
    PAUSES
    + SOUND
    + """
@app.task
def waits() -> int:
    note("start", "waits")
    while not Path("go").exists():
        time.sleep(0.01)
    return os.getpid()

@app.task(isolated=True)
def waits_alone() -> int:
    note("start", "waits")
    while not Path("go").exists():
        time.sleep(0.01)
    return os.getpid()
"""
)

PROGRAM = """
import sys
from mouso.worker import Scaling, WorkerOptions, run

sys.exit(run(WorkerOptions(app="jobs:app", autoscale={bounds}, concurrency={concurrency}, grace=1.0, scaling={scaling},
    queues={queues})))
"""
QUICK = {"look": 0.05, "wait": 0.1, "step": 0.1, "quiet": 0.3, "pressure": 2.0, "reserve": -1.0}
"""Seconds as short as can be; whatever else this machine does is no reason."""


def scaled(
    bench: Bench,
    bounds: tuple[int, int],
    *,
    concurrency: int = 2,
    queues: tuple[tuple[str, int], ...] | None = None,
    scaling: Mapping[str, float] | None = None,
) -> Worker:
    """A worker that scales as quickly as can be, and is there."""
    words = ", ".join(f"{name}={value}" for name, value in {**QUICK, **(scaling or {})}.items())
    source = PROGRAM.format(bounds=bounds, concurrency=concurrency, scaling=f"Scaling({words})", queues=queues)
    worker = bench.program(source)
    bench.wait_ready(worker, bounds[0])
    return worker


def slots(bench: Bench, worker: Worker) -> int:
    """What the store says of the worker."""
    return next(info.slots for info in bench.producer.workers() if info.pid == worker.pid)


def wait_size(bench: Bench, worker: Worker, size: int, concurrency: int = 2) -> None:
    wait_until(lambda: len(worker.children()) == size, timeout=WAIT, message=f"there are {size} children")
    wait_until(lambda: slots(bench, worker) == size * concurrency, timeout=WAIT, message="the store knows")


def steps(worker: Worker) -> list[tuple[int, int]]:
    """All changes that it has told."""
    return [(int(a), int(b)) for a, b in re.findall(r"autoscale: (\d+) → (\d+) processes: \S", worker.log)]


def uncharged(bench: Bench, handles: list[Any]) -> None:
    """Every job is completed, was started once and was charged nothing."""
    records = bench.wait_final(handles, timeout=60)
    assert Counter((r.state, r.attempts, r.crashes) for r in records) == {("completed", 0, 0): len(handles)}
    starts = Counter(line.job for line in bench.history("start"))
    assert all(starts[handle.id] == 1 for handle in handles)


def test_a_burst_and_its_end(bench: Bench) -> None:
    jobs = bench.app(TASKS)
    worker = scaled(bench, (1, 3))
    assert len(worker.children()) == 1
    assert slots(bench, worker) == 2
    held = jobs.waits.map([()] * 6)
    wait_size(bench, worker, 3)
    bench.wait_for("start", 6)
    assert len({line.pid for line in bench.history("start")}) == 3
    (bench.folder / "go").touch()
    handles = jobs.pause.map([(n, 0.01) for n in range(100)])
    handles += jobs.pause_coroutine.map([(n, 0.01) for n in range(100)])
    uncharged(bench, [*held, *handles])
    wait_size(bench, worker, 1)
    assert steps(worker)[:2] == [(1, 2), (2, 3)]
    assert steps(worker)[-2:] == [(3, 2), (2, 1)]
    assert all(abs(a - b) == 1 and 1 <= b <= 3 for a, b in steps(worker))
    assert re.search(r"all slots are taken, and the oldest job has waited \d+\.\d s", worker.log)
    assert "one less has been enough for" in worker.log
    assert "died" not in worker.log
    assert jobs.sound.delay(1).get(timeout=WAIT) == 1


def test_jobs_run_on_while_it_shrinks(bench: Bench) -> None:
    jobs = bench.app(TASKS)
    worker = scaled(bench, (1, 2), concurrency=1, scaling={"fill": 2.0})  # one less is always enough
    held = [jobs.waits.delay(), jobs.waits.delay()]
    bench.wait_for("start", 2)
    wait_until(lambda: (2, 1) in steps(worker), timeout=WAIT, message="it shrinks")
    assert len(worker.children()) == 2, "the one that has to go ends its job first"
    (bench.folder / "go").touch()
    uncharged(bench, held)
    assert len({handle.get() for handle in held}) == 2
    wait_size(bench, worker, 1, concurrency=1)


@pytest.mark.parametrize(
    ("scaling", "words"),
    [({"pressure": -1.0}, "so they do for CPUs"), ({"reserve": 1.0}, "of memory are too few for one more")],
)
def test_it_does_not_grow_where_there_is_no_room(bench: Bench, scaling: dict[str, float], words: str) -> None:
    jobs = bench.app(TASKS)
    worker = scaled(bench, (1, 3), scaling=scaling)
    handles = jobs.pause.map([(n, 0.05) for n in range(40)])
    wait_until(lambda: words in worker.log, timeout=WAIT, message="it tells why not")
    uncharged(bench, handles)
    assert steps(worker) == []
    assert len(worker.children()) == 1


def test_jobs_of_other_queues_do_not_make_it_grow(bench: Bench) -> None:
    jobs = bench.app(TASKS)
    worker = scaled(bench, (1, 2), concurrency=1, queues=(("served", 1), ("stopped", 1)), scaling={"quiet": 1000.0})
    jobs.app.pause("stopped")
    others = [jobs.sound.options(queue=name).delay(1) for name in ("other", "stopped")]
    held = jobs.waits.options(queue="served").delay()
    bench.wait_for("start")
    beats = {info.beat for info in bench.producer.workers()}
    wait_until(lambda: {i.beat for i in bench.producer.workers()} != beats, timeout=WAIT, message="a second has passed")
    assert steps(worker) == []
    (bench.folder / "go").touch()
    uncharged(bench, [held])
    assert [handle.state for handle in others] == ["available", "available"]


def test_isolated_jobs_count(bench: Bench) -> None:
    jobs = bench.app(TASKS)
    worker = scaled(bench, (1, 3), concurrency=1)
    held = jobs.waits_alone.map([()] * 3)
    bench.wait_for("start", 3)
    wait_until(lambda: slots(bench, worker) == 3, timeout=WAIT, message="each job has needed a slot")
    (bench.folder / "go").touch()
    uncharged(bench, held)
    wait_size(bench, worker, 1, concurrency=1)


def test_a_child_that_dies_is_replaced_at_any_size(bench: Bench) -> None:
    jobs = bench.app(TASKS)
    worker = scaled(bench, (1, 2), scaling={"quiet": 1000.0})
    held = jobs.waits.map([()] * 4)
    wait_size(bench, worker, 2)
    bench.wait_for("start", 4)
    (bench.folder / "go").touch()
    uncharged(bench, held)
    for pid in worker.children():
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda p=pid: p not in worker.children(), message="it is dead")  # type: ignore[misc]  # why: binds the loop variable
        wait_until(lambda: len(worker.children()) == 2, timeout=WAIT, message="another one takes its place")
    assert jobs.sound.delay(1).get(timeout=WAIT) == 1


def test_the_shutdown_while_it_grows(bench: Bench) -> None:
    jobs = bench.app(TASKS)
    worker = scaled(bench, (1, 4), concurrency=1)
    handles = jobs.pause.map([(n, 0.2) for n in range(200)])
    wait_until(lambda: steps(worker), timeout=WAIT, message="it grows")
    assert worker.stop() == 0
    counts = Counter((r.state, r.attempts, r.crashes) for r in bench.records([h.id for h in handles]))
    assert set(counts) <= {("completed", 0, 0), ("available", 0, 0)}
    assert not worker.survivors()


def test_from_the_command_line(bench: Bench) -> None:
    jobs = bench.app(TASKS)
    worker = bench.start("--autoscale", "2,3", "-c", "2")
    bench.wait_ready(worker, 2)
    assert len(worker.children()) == 2
    assert slots(bench, worker) == 4
    assert jobs.sound.delay(1).get(timeout=WAIT) == 1
