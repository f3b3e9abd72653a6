"""The same jobs for Huey; runs in the peers' environment."""

import os
from typing import Any

from huey import SqliteHuey  # type: ignore[import-not-found]  # why: lives in the peers' environment

from benchmarks import slots

huey: Any = SqliteHuey(
    "bench",
    filename=os.environ["BENCH_HUEY_FILE"],
    fsync=os.environ["BENCH_HUEY_FSYNC"] == "1",
)
_slots = slots.inherited()


def _noop(number: int) -> None:
    _slots.done()


def _stamp(number: int) -> int:
    _slots.stamp(number)
    return number


noop: Any = huey.task()(_noop)
stamp: Any = huey.task()(_stamp)
