"""Which job runs where: read-ahead, the slots of a child, several workers and producers."""

import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import pytest

from mouso.handle import JobHandle
from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import JOB, started
from tests.stalls import elapsed
from tests.support import crowd, wait_until

pytestmark = pytest.mark.every_broker

GIVE_BACK = 0.25
SLACK = 1.0

HOLD = """
@app.task
def hold(n: int) -> None:
    note("start", str(n))
    while not Path("go").exists():
        time.sleep(0.01)

@app.task
async def hold_the_loop() -> None:
    note("block")
    while not Path("go").exists():
        time.sleep(0.01)
"""

MEET = """
def all_there(n: int) -> bool:
    Path(f"there-{n}").touch()
    return len(list(Path().glob("there-*"))) == 4

@app.task
def meet(n: int) -> None:
    note("start", str(n))
    while not all_there(n):
        time.sleep(0.01)
    note("end", str(n))

@app.task
async def meet_coroutine(n: int) -> None:
    note("start", str(n))
    while not all_there(n):
        await asyncio.sleep(0.01)
    note("end", str(n))
"""

# -- read-ahead


def test_a_long_job_does_not_hoard_others(bench: Bench) -> None:
    """Whatever was claimed for a child that turned out to be slow is started elsewhere after 250 ms."""
    jobs = bench.app(JOB + HOLD)
    bench.worker(processes=2, concurrency=1)
    bench.wait_final(jobs.job.map([(n,) for n in range(2000)]))  # it learns that jobs are tiny, and reads ahead
    before = len(bench.history("start"))
    calls: list[Any] = [jobs.hold.job(9000)]
    calls += [jobs.job.job(9001 + n) for n in range(200)]
    at = time.monotonic()
    handles = jobs.app.enqueue_many(calls)
    bench.wait_final(handles[1:])
    starts = bench.history("start")[before:]
    assert len(starts) == 201
    assert elapsed(at, max(line.at for line in starts)) < (GIVE_BACK + SLACK) * crowd()
    assert handles[0].state == "running"
    (bench.folder / "go").touch()
    records = bench.records(handle.id for handle in handles)
    assert all((r.attempts, r.crashes) == (0, 0) for r in records)


@pytest.mark.parametrize("task", ["job", "pause_coroutine"])
def test_a_blocked_event_loop_does_not_hoard_others(bench: Bench, task: str) -> None:
    jobs = bench.app(JOB + HOLD)
    bench.worker(processes=2, concurrency=4)
    blocker = jobs.hold_the_loop.delay()
    bench.wait_for("block")
    at = time.monotonic()
    calls = [(n,) if task == "job" else (n, 0.0) for n in range(20)]
    handles: list[JobHandle[Any]] = getattr(jobs, task).map(calls)
    bench.wait_final(handles)
    assert elapsed(at, max(line.at for line in bench.history("start"))) < (2 * GIVE_BACK + SLACK) * crowd()
    assert blocker.state == "running"
    assert sorted(started(bench)) == list(range(20)), "each ran once"
    (bench.folder / "go").touch()
    blocker.get(timeout=WAIT)
    assert sorted(started(bench)) == list(range(20)), "none ran again when the loop was free"


def test_coroutines_and_functions_share_the_slots(bench: Bench) -> None:
    """A coroutine behind a long function starts at once while a slot is free, and never beyond the slots."""
    jobs = bench.app(JOB + MEET)
    bench.worker(processes=1, concurrency=4)
    calls: list[Any] = [(jobs.meet if n % 2 == 0 else jobs.meet_coroutine).job(n) for n in range(4)]
    calls += [(jobs.pause if n % 2 == 0 else jobs.pause_coroutine).job(n, 0.02) for n in range(4, 40)]
    handles = jobs.app.enqueue_many(calls)
    bench.wait_final(handles)
    starts = {int(line.text): line.at for line in bench.history("start")}
    assert max(starts[n] for n in range(4)) < min(starts[n] for n in range(4, 40))
    running = most = 0
    for line in sorted(bench.history(), key=lambda line: line.at):
        running += {"start": 1, "end": -1}.get(line.event, 0)
        most = max(most, running)
    assert most == 4


def test_one_slot_under_bursts(bench: Bench) -> None:
    """Never two at once, and no slot is lost, however often it goes from idle to busy."""
    jobs = bench.app(JOB)
    worker = bench.worker(processes=1, concurrency=1)
    for burst in range(60):
        handles = jobs.pause.map([(n, 0.0) for n in range(5)])
        handles += jobs.pause_coroutine.map([(n, 0.0) for n in range(5)])
        bench.wait_final(handles)
        assert worker.alive, burst
    running = 0
    for line in bench.history():
        running += 1 if line.event == "start" else -1
        assert 0 <= running <= 1


# -- several workers and producers


def test_two_workers_share_one_file_fairly(bench: Bench) -> None:
    jobs = bench.app(JOB)
    workers = [bench.worker(processes=1, concurrency=2) for _ in range(2)]
    parents = {child: worker.pid for worker in workers for child in worker.children()}
    handles: list[JobHandle[int]] = []
    shares: Counter[int] = Counter()
    while any(shares[worker.pid] <= 100 for worker in workers):
        assert len(handles) < 4000, shares
        more = jobs.pause.map([(n, 0.01) for n in range(400)])
        bench.wait_final(more)
        handles += more
        shares = Counter(parents[line.pid] for line in bench.history("start"))
    assert shares.total() == len(handles), "each ran once"
    assert {r.worker for r in bench.records(h.id for h in handles)} == {w.id for w in jobs.app.workers()}


def test_several_producers(bench: Bench) -> None:
    """Threads, coroutines and processes enqueue into one file while two workers run: all is run once."""
    jobs = bench.app(JOB)
    script = bench.folder / "produce.py"
    script.write_text(
        "import sys, jobs\nfor n in range(200):\n    jobs.job.delay(int(sys.argv[1]) + n)\njobs.app.close()\n"
    )
    workers = [bench.worker(processes=1) for _ in range(2)]
    others = [
        subprocess.Popen([sys.executable, script, str(base)], cwd=bench.folder, env=bench.environment())
        for base in (10_000, 20_000, 30_000)
    ]

    def produce(base: int) -> None:
        for n in range(100):
            jobs.job.delay(base + n)

    threads = [threading.Thread(target=produce, args=(base,)) for base in range(0, 1000, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(WAIT) for other in others] == [0, 0, 0]
    wait_until(lambda: bench.states() == {"completed": 1600}, timeout=WAIT, interval=0.05)
    ran = Counter(started(bench))
    assert set(ran.values()) == {1}
    assert set(ran) == {*range(1000), *(base + n for base in (10_000, 20_000, 30_000) for n in range(200))}
    assert "lock" not in "".join(worker.log for worker in workers)


def test_workers_come_and_go_under_load(bench: Bench) -> None:
    """As in a rolling deployment: nothing is lost, nothing runs twice, nothing is charged."""
    jobs = bench.app(JOB)
    handles = jobs.pause.map([(n, 0.003) for n in range(1500)])
    current = bench.worker(processes=1, concurrency=4)
    for n in range(4):
        following = bench.worker(processes=1, concurrency=4)
        bench.wait_for("end", count=250 * (n + 1))
        assert current.stop() == 0
        current = following
    records = bench.wait_final(handles)
    assert {(r.state, r.attempts, r.crashes) for r in records} == {("completed", 0, 0)}
    assert Counter(started(bench)) == Counter(range(1500))


def test_large_payloads_in_one_go(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def size(data: str) -> str:
            return data
        """
    )
    bench.worker(processes=1, concurrency=16)
    data = "x" * ((1 << 20) - 100)
    bench.producer.pause("default")
    handles = [handle for _ in range(10) for handle in jobs.size.map([(data,)] * 4)]  # 40 MB at once may take 5 s
    bench.producer.resume("default")
    records = bench.wait_final(handles)
    assert {r.state for r in records} == {"completed"}
    assert handles[7].get() == data
