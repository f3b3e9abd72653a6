"""Very many producers that enqueue at the same moment: each job is stored, once."""

import contextlib
import json
import sqlite3
import subprocess
import sys

import pytest

from mouso.brokers.sqlite.store import Store
from mouso.errors import BrokerUnavailable
from tests.integration.harness import Bench
from tests.integration.snippets import SOUND

MOST_DESCRIPTORS = 24
"""Of one process: its three streams, two pipes, and what the store needs, whatever the number of threads."""

PRODUCERS = """
import json, os, sys, threading
import jobs
from mouso.errors import BrokerUnavailable

jobs.app.producer.timeout = 60.0

processes, threads = map(int, sys.argv[1:])
gate, latch = os.pipe()
inbox, outbox = os.pipe()

def produce():
    os.close(latch)
    threading.stack_size(256 << 10)
    stored, refused, go = [], [], threading.Event()

    def enqueue():
        go.wait()
        try:
            stored.append(jobs.sound.delay(1).id)
        except BrokerUnavailable as error:
            refused.append(str(error))

    started = [threading.Thread(target=enqueue) for _ in range(threads)]
    for thread in started:
        thread.start()
    os.read(gate, 1)  # ends when the latch is closed
    go.set()
    most = 0
    for thread in started:
        while thread.is_alive():
            most = max(most, len(os.listdir("/proc/self/fd")))
            thread.join(0.01)
    with os.fdopen(outbox, "w") as answer:
        answer.write(json.dumps([stored, refused, most]) + "\\n")

for _ in range(processes):
    if os.fork() == 0:
        os.close(inbox)
        produce()
        os._exit(0)
os.close(gate)
os.close(outbox)
os.close(latch)
with os.fdopen(inbox) as answers:
    lines = answers.read().splitlines()
for _ in range(processes):
    os.wait()
print(json.dumps([json.loads(line) for line in lines]))
"""


@pytest.mark.parametrize(("processes", "threads"), [(1, 1000), (50, 1), (8, 40)])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "used"])
def test_all_at_once(bench: Bench, processes: int, threads: int, fresh: bool) -> None:
    """Also where each of them finds no store, and would create it."""
    jobs = bench.app(SOUND)
    if not fresh:
        jobs.app.broker.open()
    done = subprocess.run(
        [sys.executable, "-c", PRODUCERS, str(processes), str(threads)],
        cwd=bench.folder, env=bench.environment(), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    answers = json.loads(done.stdout)
    assert len(answers) == processes
    stored = [id for ids, _, _ in answers for id in ids]
    refused = [text for _, texts, _ in answers for text in texts]
    assert refused == []
    assert len(stored) == processes * threads
    assert sorted(id for (id,) in bench.sql("SELECT id FROM mouso_jobs WHERE id <> ''")) == sorted(stored)
    assert max(most for _, _, most in answers) <= MOST_DESCRIPTORS


def test_who_waits_long_tries_seldom(bench: Bench) -> None:
    """Hundreds that tried 200 times a second would leave no CPU to the one whose turn it is."""
    tries: list[str] = []
    with contextlib.closing(Store(str(bench.store), "full")) as store:
        store.open()
        assert store._writer is not None
        store._writer.set_trace_callback(tries.append)
        with contextlib.closing(sqlite3.connect(bench.store, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(BrokerUnavailable, match="for 2 s"), store.write(timeout=2.0):
                pass
        store._writer.set_trace_callback(None)
    assert 2 < len(tries) < 100
