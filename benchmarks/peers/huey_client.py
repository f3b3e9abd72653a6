"""Huey's side of `benchmarks.client`: the commands that it can carry out."""

import json
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import sampling, slots
from benchmarks.peers.huey_app import noop, stamp


def single(jobs: str) -> dict[str, float]:
    """Enqueues with one call after the other; Huey has no bulk."""
    noop(0)
    with sampling.Timer(int(jobs)) as timer:
        for i in range(int(jobs)):
            noop(i)
    return timer.result()


def latency(starts: str, results: str) -> dict[str, Any]:
    """Samples how long jobs take to start, and results to come back."""
    return sampling.latency(
        slots.inherited(),
        int(starts),
        int(results),
        enqueue=lambda number: stamp(number),
        wait=lambda result: result.get(blocking=True, timeout=10, backoff=1, max_delay=0.01),
    )


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {"single": single, "latency": latency}

if __name__ == "__main__":
    print(json.dumps(COMMANDS[sys.argv[1]](*sys.argv[2:])), flush=True)
