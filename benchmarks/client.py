"""The enqueueing side, in a process of its own: `python -m benchmarks.client COMMAND …` prints one JSON object.

The peers' clients have the same commands. Rates are jobs per second of wall clock, `cpu` is this process's µs per job.
"""

import asyncio
import gc
import json
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import sampling, slots
from benchmarks.jobs import app, nap, noop, stamp, work

_CHUNK = 10_000


def fill(jobs: str) -> dict[str, float]:
    """Enqueues no-op jobs in bulk and keeps no handles."""
    with sampling.Timer(int(jobs)) as timer:
        for start in range(0, int(jobs), _CHUNK):
            noop.map([(i,) for i in range(start, min(start + _CHUNK, int(jobs)))])
    return timer.result()


def schedule(jobs: str) -> dict[str, float]:
    """Enqueues no-op jobs that are due in a day."""
    later = noop.options(delay="1d")
    with sampling.Timer(int(jobs)) as timer:
        for start in range(0, int(jobs), _CHUNK):
            later.map([(i,) for i in range(start, min(start + _CHUNK, int(jobs)))])
    return timer.result()


def bulk(jobs: str) -> dict[str, float]:
    """Enqueues with one call of ``map``, as a user would."""
    calls = [(i,) for i in range(int(jobs))]
    app.broker.open()
    gc.collect()
    with sampling.Timer(int(jobs)) as timer:
        noop.map(calls)
    return timer.result()


def single(jobs: str) -> dict[str, float]:
    """Enqueues with one ``delay()`` after the other."""
    app.broker.open()
    noop.delay(0)
    with sampling.Timer(int(jobs)) as timer:
        for i in range(int(jobs)):
            noop.delay(i)
    return timer.result()


def concurrent(jobs: str) -> dict[str, float]:
    """Enqueues with ``adelay()``, 1,000 at once."""

    async def enqueue() -> dict[str, float]:
        await noop.adelay(0)
        with sampling.Timer(int(jobs)) as timer:
            for _ in range(int(jobs) // 1000):
                await asyncio.gather(*(noop.adelay(i) for i in range(1000)))
        return timer.result()

    return asyncio.run(enqueue())


def naps(jobs: str, seconds: str) -> dict[str, float]:
    """Enqueues coroutine jobs that sleep."""
    with sampling.Timer(int(jobs)) as timer:
        nap.map([(float(seconds),)] * int(jobs))
    return timer.result()


def works(jobs: str, iterations: str) -> dict[str, float]:
    """Enqueues CPU-bound jobs."""
    with sampling.Timer(int(jobs)) as timer:
        work.map([(int(iterations),)] * int(jobs))
    return timer.result()


def latency(starts: str, results: str) -> dict[str, Any]:
    """Samples how long jobs take to start, and results to come back."""
    return sampling.latency(
        slots.inherited(),
        int(starts),
        int(results),
        enqueue=lambda number: stamp.delay(number),
        wait=lambda job: job.get(timeout=10),
    )


def ordinary(jobs: str) -> dict[str, float]:
    """Enqueues jobs of the app with an isolated task."""
    from benchmarks import isolated_jobs

    with isolated_jobs.app, sampling.Timer(int(jobs)) as timer:
        isolated_jobs.noop.map([(i,) for i in range(int(jobs))])
    return timer.result()


def isolated(starts: str, results: str) -> dict[str, Any]:
    """Samples how long isolated jobs take to start, and results to come back."""
    from benchmarks import isolated_jobs

    with isolated_jobs.app:
        return sampling.latency(
            slots.inherited(),
            int(starts),
            int(results),
            enqueue=lambda number: isolated_jobs.stamp_alone.delay(number),
            wait=lambda job: job.get(timeout=10),
        )


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    command.__name__: command
    for command in (fill, schedule, bulk, single, concurrent, naps, works, latency, ordinary, isolated)
}  # fmt: skip


def main() -> None:
    """Carries out one command."""
    answer = COMMANDS[sys.argv[1]](*sys.argv[2:])
    app.close()
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
