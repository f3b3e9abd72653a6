"""What goes on at the edges of an app's life: forks, full executors, closings, and whose connection is whose."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mouso import Mouso
from mouso.brokers.base import WorkerInfo
from mouso.errors import BrokerUnavailable, ConfigError
from mouso.events import Event
from mouso.observe.logs import _OneLine
from mouso.worker import proof
from mouso.worker.proof import Identity, identity, proven_dead
from tests.support import wait_until

FORK_UNDER_LOAD = """
import os, sys, threading
from mouso import Mouso

app = Mouso("t", broker=sys.argv[1])

@app.task(name="t")
def task(n: int) -> None: ...

stop = threading.Event()

def produce():
    while not stop.is_set():
        task.delay(1)

threads = [threading.Thread(target=produce) for _ in range(4)]
for thread in threads:
    thread.start()
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        task.options(queue="child").delay(2)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
print(next(q for q in app.queues() if q.name == "child").counts["available"])
"""


NO_MORE_THREADS = """
import asyncio, resource, threading
from mouso.brokers import connect
from mouso.worker.pump import Line
from mouso.worker.watchdog import Watchdog

line = Line(connect("memory://"), Watchdog())
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 20),) * 2)
try:
    threading.Thread(target=print).start()
except RuntimeError as error:
    print(error)
together = threading.Barrier(4)

async def main():
    print(sorted(await asyncio.gather(*(line.call(together.wait, 10) for _ in range(4)))))

asyncio.run(main())
line.close()
"""


@pytest.fixture
def app(tmp_path: Path) -> Mouso:
    return Mouso("test", broker=f"sqlite:///{tmp_path}/jobs.db")


def test_forks_while_threads_enqueue(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK_UNDER_LOAD, f"sqlite:///{tmp_path}/jobs.db"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == ("20", "")


def test_a_supervisor_calls_the_broker_where_no_thread_can_be_started() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_MORE_THREADS], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("can't start new thread\n[0, 1, 2, 3]\n", "")


def test_adelay_does_not_need_the_loops_executor(app: Mouso) -> None:
    @app.task
    def task() -> None: ...

    release = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        full = ThreadPoolExecutor(1)
        loop.set_default_executor(full)
        blocked = loop.run_in_executor(None, release.wait)
        await asyncio.wait_for(task.adelay(), 10)
        release.set()
        await blocked

    asyncio.run(main())
    app.close()


def test_a_final_job_needs_no_time(app: Mouso) -> None:
    @app.task
    def task() -> None: ...

    job = task.options(delay="1h").delay()
    job.cancel()
    assert [update.state for update in job.watch(timeout=0)] == ["cancelled"]
    app.close()


def test_closing_the_app_tells_who_waits(app: Mouso) -> None:
    @app.task
    def task() -> None: ...

    job = task.delay()
    errors: list[Exception] = []

    def wait() -> None:
        try:
            job.get()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: app.listener._subscriptions)
    app.close()
    thread.join(10)
    assert isinstance(errors[0], BrokerUnavailable)


def test_a_transaction_is_joined_by_its_own_app_only(app: Mouso, tmp_path: Path) -> None:
    other = Mouso("other", broker=f"sqlite:///{tmp_path}/other.db")
    mine, theirs = app.task(name="mine")(print), other.task(name="theirs")(print)
    app.broker.open()
    connection = sqlite3.connect(tmp_path / "jobs.db")
    with app.enqueue_in(connection):
        mine.delay()
        theirs.delay()
    connection.rollback()
    connection.close()
    assert (app.jobs(), len(other.jobs())) == ([], 1)
    app.close()
    other.close()


def test_a_locked_store_is_an_error_of_ours_inside_a_transaction(app: Mouso, tmp_path: Path) -> None:
    task = app.task(name="t")(print)
    app.broker.open()
    holder = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    connection = sqlite3.connect(tmp_path / "jobs.db", timeout=0)
    with app.enqueue_in(connection), pytest.raises(BrokerUnavailable, match="locked"):
        task.delay()
    holder.close()
    connection.close()
    app.close()


def test_a_coroutine_cannot_be_a_handler(app: Mouso) -> None:
    async def handler(event: Event) -> None: ...

    with pytest.raises(ConfigError, match="coroutine"):
        app.on("job.dead")(handler)


def test_log_lines_hold_no_control_characters() -> None:
    record = logging.LogRecord("mouso", logging.INFO, "", 0, "job %s", ("\x1b[31mred\nforged line",), None)
    assert _OneLine("%(message)s").format(record) == "job \\x1b[31mred\\nforged line"


class TestProof:
    """A worker is dead only if it cannot be otherwise."""

    @staticmethod
    def worker(pid: int, started: int, here: Identity) -> WorkerInfo:
        return WorkerInfo(
            id="w", name="w", host="h", pid=pid, boot=here.boot, namespace=here.namespace, started=started
        )

    def test_this_process_lives(self) -> None:
        here = identity()
        assert not proven_dead(self.worker(os.getpid(), here.started, here), here)

    def test_another_process_with_the_same_pid(self) -> None:
        here = identity()
        assert proven_dead(self.worker(os.getpid(), here.started - 1, here), here)

    def test_a_process_that_has_ended(self) -> None:
        here = identity()
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        assert proven_dead(self.worker(process.pid, here.started, here), here)

    @pytest.mark.parametrize("unread", [(0,), (1,), (0, 1)])
    def test_what_cannot_be_read_is_no_proof(self, unread: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
        """Files cannot be opened while the system has no descriptors left."""
        here, read, paths = identity(), proof._read, list[str]()

        def sometimes(path: str) -> str:
            paths.append(path)
            return "" if len(paths) - 1 in unread else read(path)

        monkeypatch.setattr(proof, "_read", sometimes)
        assert not proven_dead(self.worker(os.getpid(), here.started, here), here)

    def test_nothing_is_known_of_other_namespaces_and_boots(self) -> None:
        here = identity()
        for there in (here._replace(namespace="pid:[1]"), here._replace(boot="before")):
            assert not proven_dead(self.worker(os.getpid(), 1, there), here)

    def test_nothing_is_known_of_workers_that_say_nothing(self) -> None:
        here = identity()
        assert not proven_dead(WorkerInfo(id="w", name="w", host="h", pid=0), here)


def test_threads_share_commits(app: Mouso) -> None:
    """Whoever waits while another commits goes with the next batch."""

    @app.task
    def task(n: int) -> None: ...

    commits = []
    real = app.broker.enqueue

    def counting(*args: object, **kwargs: object) -> object:
        commits.append(1)
        time.sleep(0.001)  # a commit on a slow disk
        return real(*args, **kwargs)  # type: ignore[arg-type]  # passed on

    app.broker.enqueue = counting  # type: ignore[method-assign,assignment]  # a wrapper that counts
    with ThreadPoolExecutor(20) as threads:
        handles = list(threads.map(task.delay, range(400)))
    assert len({handle.id for handle in handles}) == 400
    assert len(commits) < 200
    app.close()
