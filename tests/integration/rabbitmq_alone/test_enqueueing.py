"""Who enqueues into RabbitMQ without a store, and what is refused there."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from mouso import Mouso
from mouso.brokers.rabbitmq.alone import LoneRabbitBroker
from mouso.errors import CapabilityError
from mouso.job import Job, JobState
from tests.integration.harness import Bench
from tests.integration.rabbitmq_alone.kit import waiting
from tests.support import wait_until

pytestmark = pytest.mark.xdist_group("RabbitMQ alone")


def test_many_threads_share_confirms(url: str) -> None:
    with Mouso("many", broker=url) as app:

        @app.task
        def work(n: int) -> None: ...

        work.delay(0)

        def produce() -> None:
            for n in range(50):
                work.delay(n)

        threads = [threading.Thread(target=produce) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        broker = app.broker
        assert isinstance(broker, LoneRabbitBroker)
        wait_until(lambda: waiting(broker) == 401)


FORK = """
import os, sys
from mouso import Mouso

with Mouso("forks", broker=sys.argv[1]) as app:
    @app.task
    def work() -> None: ...

    work.delay()
    pid = os.fork()
    if not pid:
        work.delay()
        app.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    work.delay()
    import time
    deadline = time.monotonic() + 10
    while sum(sum(q.counts.values()) for q in app.queues()) != 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    print(sum(sum(q.counts.values()) for q in app.queues()))
"""


def test_a_fork_has_connections_of_its_own(url: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_what_needs_a_store_is_refused(url: str) -> None:
    """When it is declared, or else when it is called; each time with the remedy."""
    with Mouso("refused", broker=url) as app:

        @app.task(keep_result=False, priority=3)
        def work() -> None: ...

        with pytest.raises(CapabilityError, match="unique="):
            app.task(unique=True, name="unique")(lambda: None)
        refused: list[Callable[[], object]] = [
            lambda: work.options(id="x"),
            lambda: work.options(unique="x"),
            lambda: work.options(keep_result="1h"),
            lambda: app.job("x").get(timeout=1),
            lambda: app.job("x").state,
            lambda: app.job("x").cancel(),
            lambda: app.job("x").stack(),
            lambda: next(app.job("x").watch()),
            lambda: app.jobs(),
            lambda: app.jobs(state="running"),
            lambda: app.workers(),
            lambda: app.enqueue_in(object()).__enter__(),
            lambda: app.broker.enqueue([Job(id="a", task="b", unique="c")]),
        ]
        for call in refused:
            with pytest.raises(CapabilityError, match="store") as caught:
                call()
            assert "\n" not in str(caught.value)


def test_progress_is_not_kept_and_no_error(bench: Bench) -> None:
    jobs = bench.app("""
    @app.task
    def steps(ctx: Context) -> None:
        for n in range(3):
            ctx.progress(n, 3)
        ctx.log.warning("here")
        note("end", "1")
    """)
    bench.worker()
    jobs.steps.delay()
    bench.wait_for("end")
    wait_until(lambda: jobs.app.queues()[0].counts[JobState.AVAILABLE] == 0)
    assert jobs.app.jobs(state="dead") == []
