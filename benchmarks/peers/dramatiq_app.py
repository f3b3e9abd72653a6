"""The same jobs for Dramatiq; runs in the peers' environment: `python -m benchmarks.peers.dramatiq_app PROCESSES`."""

import os
import sys
from typing import Any

import dramatiq  # type: ignore[import-not-found]  # why: lives in the peers' environment
from dramatiq.brokers.redis import RedisBroker  # type: ignore[import-not-found]  # why: as above
from dramatiq.results import Results  # type: ignore[import-not-found]  # why: as above
from dramatiq.results.backends import RedisBackend  # type: ignore[import-not-found]  # why: as above

from benchmarks import slots

_slots = slots.inherited()
_url = os.environ["BENCH_URL"]
_results = os.environ["BENCH_RESULTS"] == "1"
_broker: Any = RedisBroker(url=_url)
if _results:
    _broker.add_middleware(Results(backend=RedisBackend(url=_url)))
dramatiq.set_broker(_broker)


def _noop(number: int) -> int:
    _slots.done()
    return number


noop: Any = dramatiq.actor(_noop, actor_name="noop", **({"store_results": True} if _results else {}))

if __name__ == "__main__":
    options = ["-p", sys.argv[1], "-t", "4"]
    os.execv(sys.executable, [sys.executable, "-m", "dramatiq", "benchmarks.peers.dramatiq_app", *options])
