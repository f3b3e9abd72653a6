"""Enqueues in processes that fork: parent and child go on, each by itself."""

import subprocess
import sys
from pathlib import Path

FORK = """
import asyncio, os, sys
from concurrent.futures import ThreadPoolExecutor
from mouso import Mouso
app = Mouso("shop", broker=sys.argv[1])

@app.task
def add(x: int) -> None: ...

add.delay(1)
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        add.delay(2)
        asyncio.run(add.adelay(3))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(add.delay, range(10)))
        os._exit(0)
    add.delay(4)
    assert os.waitpid(pid, 0)[1] == 0
print(sum(sum(queue.counts.values()) for queue in app.queues()))
app.close()
"""


def test_a_forked_child_enqueues_as_its_parent_does(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, f"sqlite:///{tmp_path}/jobs.db"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == (str(1 + 3 * (12 + 1)), "")


FORKS_AT_ONCE = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from mouso import Mouso
app = Mouso("shop", broker=sys.argv[1], enqueue_timeout=20)

@app.task
def add(x: int) -> None: ...

def fork(n: int) -> int:
    add.delay(n)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)[1]

with ThreadPoolExecutor(4) as pool:
    assert set(pool.map(fork, range(200))) == {0}
print(sum(sum(queue.counts.values()) for queue in app.queues()))
app.close()
"""


def test_threads_that_fork_at_once_hold_up_nobody(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKS_AT_ONCE, f"sqlite:///{tmp_path}/jobs.db"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == ("200", "")
