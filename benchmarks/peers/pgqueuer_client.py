"""PgQueuer's side of `benchmarks.client`: the commands that it can carry out."""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

from pgqueuer import Queries  # type: ignore[import-not-found]  # why: lives in the peers' environment

from benchmarks import sampling
from benchmarks.peers.pgqueuer_app import connect

_CHUNK = 10_000


async def _fill(jobs: int) -> dict[str, float]:
    queries: Any = Queries(await connect())
    await queries.install()
    with sampling.Timer(jobs) as timer:
        for start in range(0, jobs, _CHUNK):
            payloads = [json.dumps(i).encode() for i in range(start, min(start + _CHUNK, jobs))]
            await queries.enqueue(["noop"] * len(payloads), payloads, [0] * len(payloads))
    return timer.result()


def fill(jobs: str) -> dict[str, float]:
    """Makes the tables and enqueues in bulk."""
    return asyncio.run(_fill(int(jobs)))


COMMANDS: dict[str, Callable[..., dict[str, float]]] = {"fill": fill}

if __name__ == "__main__":
    print(json.dumps(COMMANDS[sys.argv[1]](*sys.argv[2:])), flush=True)
