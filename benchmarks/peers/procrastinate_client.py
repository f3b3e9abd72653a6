"""Procrastinate's side of `benchmarks.client`: the commands that it can carry out."""

import asyncio
import json
import sys
from collections.abc import Callable

from benchmarks import sampling
from benchmarks.peers.procrastinate_app import app, noop

_CHUNK = 1000


async def _fill(jobs: int) -> dict[str, float]:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        with sampling.Timer(jobs) as timer:
            for start in range(0, jobs, _CHUNK):
                await noop.batch_defer_async(*({"number": i} for i in range(start, min(start + _CHUNK, jobs))))
    return timer.result()


def fill(jobs: str) -> dict[str, float]:
    """Makes the tables and enqueues in bulk."""
    return asyncio.run(_fill(int(jobs)))


COMMANDS: dict[str, Callable[..., dict[str, float]]] = {"fill": fill}

if __name__ == "__main__":
    print(json.dumps(COMMANDS[sys.argv[1]](*sys.argv[2:])), flush=True)
