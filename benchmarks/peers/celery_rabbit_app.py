"""Celery on RabbitMQ; runs in the peers' environment: `python -m benchmarks.peers.celery_rabbit_app PROCESSES`."""

import os
import sys
from typing import Any

from celery import Celery  # type: ignore[import-not-found]  # why: lives in the peers' environment

from benchmarks import slots

_slots = slots.inherited()
app: Any = Celery("bench", broker=os.environ["BENCH_URL"])
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
)


@app.task(name="noop")  # type: ignore[untyped-decorator]  # why: as above
def noop(number: int) -> None:
    """Counts itself."""
    _slots.done()


if __name__ == "__main__":
    words = ["-m", "celery", "-A", "benchmarks.peers.celery_rabbit_app", "worker", "-c", sys.argv[1], "-l", "error"]
    os.execv(sys.executable, [sys.executable, *words, "--without-gossip", "--without-mingle", "--without-heartbeat"])
