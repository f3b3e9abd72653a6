"""Dramatiq on RabbitMQ; runs in the peers' environment: `python -m benchmarks.peers.dramatiq_rabbit_app PROCESSES`."""

import os
import sys
from typing import Any

import dramatiq  # type: ignore[import-not-found]  # why: lives in the peers' environment
from dramatiq.brokers.rabbitmq import RabbitmqBroker  # type: ignore[import-not-found]  # why: as above

from benchmarks import slots

_slots = slots.inherited()
dramatiq.set_broker(RabbitmqBroker(url=os.environ["BENCH_URL"], confirm_delivery=True))


def _noop(number: int) -> None:
    _slots.done()


noop: Any = dramatiq.actor(_noop, actor_name="noop")

if __name__ == "__main__":
    options = ["-p", sys.argv[1], "-t", "4"]
    os.execv(sys.executable, [sys.executable, "-m", "dramatiq", "benchmarks.peers.dramatiq_rabbit_app", *options])
