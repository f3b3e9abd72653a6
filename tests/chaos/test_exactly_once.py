"""What jobs do in their own transaction happens exactly once, whatever becomes of those who run them."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mouso.job import JobState
from tests.brokers import own_server
from tests.chaos.arena import pass_time
from tests.integration.effects import Effects
from tests.integration.harness import Bench, Worker, kill_one
from tests.servers.server import Server
from tests.support import wait_until

JOBS = 600
SOURCE = """
import random

@app.task
def follow(n: int) -> int:
    return n

def pay(ctx: Context, n: int) -> int:
    time.sleep(random.expovariate(100))
    db = ctx.transaction()
    db.execute({insert!r}, (ctx.job_id, n))
    follow.delay(n)
    if random.random() < 0.1:
        time.sleep(0.01)
    return n

@app.task(attempts=100, backoff=constant(0.05))
def function(ctx: Context, n: int) -> int:
    return pay(ctx, n)

@app.task(attempts=100, backoff=constant(0.05))
async def coroutine(ctx: Context, n: int) -> int:
    await asyncio.sleep(0)
    return pay(ctx, n)
"""


class Trade:
    """Two workers, and jobs of which each has one effect and one job that follows."""

    def __init__(self, bench: Bench, random: Random) -> None:
        self.bench = bench
        self.random = random
        self.effects = Effects(bench)
        self.jobs: Any = bench.app(SOURCE.replace("{insert!r}", repr(self.effects.insert)))
        tasks = self.jobs.function, self.jobs.coroutine
        self.handles = [handle for task in tasks for handle in task.map([(n,) for n in range(JOBS // 2)])]
        self.pair = [self.start(), self.start()]
        for worker in self.pair:
            bench.wait_ready(worker, 2)

    def start(self) -> Worker:
        return self.bench.start("-p", "2", "-c", "4", "--grace", "2")

    def going(self, effects: int) -> None:
        """Waits until so many more effects are there, or all are."""
        before = len(self.effects.rows())
        wanted = min(before + effects, JOBS)
        wait_until(lambda: len(self.effects.rows()) >= wanted, timeout=60, interval=0.02, message="it goes on")

    def kill_child(self) -> None:
        kill_one(self.random.choice(self.pair).children, self.random.choice)

    def replace(self) -> None:
        number = self.random.randrange(2)
        self.pair[number].destroy()
        self.pair[number].stopped_at = time.monotonic()
        self.pair[number] = self.start()

    def judge(self) -> None:
        """Each job that completed has its effect and its follower once, and no other job has any."""
        self.bench.wait_final(self.handles, timeout=120)
        records = self.bench.records(handle.id for handle in self.handles)
        completed = sorted(record.id for record in records if record.state is JobState.COMPLETED)
        assert len(completed) >= JOBS - 5, Counter((record.state, record.reason) for record in records)
        assert all(record.reason == "poison" for record in records if record.state is not JobState.COMPLETED)
        assert sorted(job for job, _ in self.effects.rows()) == completed, "each effect is there once"
        wait_until(lambda: set(self.followers()) == {JobState.COMPLETED}, timeout=60, message="the followers are done")
        assert sum(self.followers().values()) == len(completed), "each job that follows is there once"

    def followers(self) -> Counter[JobState]:
        return Counter(job.state for job in self.jobs.app.jobs(task="jobs.follow", limit=2 * JOBS))


@pytest.fixture
def trade(tmp_path: Path, seed: int, broker_url: str, broker_name: str) -> Iterator[Trade]:
    if broker_name == "redis":
        pytest.skip("Redis has no transactions to join")
    with closing(Bench(tmp_path, broker_url)) as bench:
        yield Trade(bench, Random(seed))


@pytest.mark.every_broker
def test_killed(trade: Trade) -> None:
    """Children and whole workers."""
    for _ in range(4):
        trade.going(30)
        trade.kill_child()
        trade.going(30)
        trade.replace()
    trade.judge()


@pytest.mark.every_broker
def test_frozen_longer_than_the_lease(trade: Trade) -> None:
    """A worker that stops in the middle of its transactions and goes on when others have done its work."""
    trade.going(60)
    worker = trade.pair[0]
    stopped = [worker.pid, *worker.children()]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    pass_time(18.0)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    trade.judge()


def test_the_server_is_killed(tmp_path: Path, seed: int) -> None:
    """PostgreSQL loses its processes and all connections, with transactions in every state."""
    random = Random(seed)
    server: Server
    with own_server("postgres", tmp_path) as server, server.store("trade") as url:
        folder = tmp_path / "bench"
        folder.mkdir()
        with closing(Bench(folder, url)) as bench:
            trade = Trade(bench, random)
            for _ in range(3):
                trade.going(50)
                pass_time(random.uniform(0, 0.1))
                server.kill()
                server.start()
            trade.judge()
