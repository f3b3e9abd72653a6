"""The same jobs for PgQueuer; runs in the peers' environment: `python -m benchmarks.peers.pgqueuer_app PROCESSES`."""

import os
from typing import Any

import asyncpg  # type: ignore[import-not-found]  # why: lives in the peers' environment
import uvloop
from pgqueuer import AsyncpgDriver, PgQueuer  # type: ignore[import-not-found]  # why: as above

from benchmarks import slots
from benchmarks.peers.forked import forked

_BATCH = 500


async def connect() -> Any:
    """A driver with a connection of its own."""
    return AsyncpgDriver(await asyncpg.connect(os.environ["BENCH_URL"]))


async def _work() -> None:
    counted = slots.inherited()
    worker: Any = PgQueuer(await connect())

    async def noop(job: Any) -> None:
        counted.done()

    worker.entrypoint("noop")(noop)
    await worker.run(batch_size=_BATCH)


def serve() -> None:
    """One worker; on uvloop, as PgQueuer's own command runs it."""
    uvloop.run(_work())


if __name__ == "__main__":
    forked(serve)
