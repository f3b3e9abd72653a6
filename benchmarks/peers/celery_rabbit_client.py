"""Celery's side of `benchmarks.client` on RabbitMQ: the commands that it can carry out."""

import json
import sys
from collections.abc import Callable

from benchmarks import sampling
from benchmarks.peers.celery_rabbit_app import noop


def fill(jobs: str) -> dict[str, float]:
    """Enqueues with one call after the other; Celery has no bulk."""
    noop.delay(0)
    with sampling.Timer(int(jobs) - 1) as timer:
        for i in range(1, int(jobs)):
            noop.delay(i)
    return timer.result()


COMMANDS: dict[str, Callable[..., dict[str, float]]] = {"fill": fill}

if __name__ == "__main__":
    print(json.dumps(COMMANDS[sys.argv[1]](*sys.argv[2:])), flush=True)
