"""The same jobs for Procrastinate, run in the peers' environment; this is the worker."""

import asyncio
import os
from typing import Any

from procrastinate import App, PsycopgConnector  # type: ignore[import-not-found]  # why: lives in the peers' environment

from benchmarks import slots
from benchmarks.peers.forked import forked

_CONCURRENCY = 100

app: Any = App(connector=PsycopgConnector(conninfo=os.environ["BENCH_URL"]))
_slots = slots.inherited()


async def _noop(number: int) -> None:
    _slots.done()


noop: Any = app.task(_noop, name="noop")


async def _work() -> None:
    async with app.open_async():
        await app.run_worker_async(concurrency=_CONCURRENCY)


def serve() -> None:
    """One worker."""
    asyncio.run(_work())


if __name__ == "__main__":
    forked(serve)
