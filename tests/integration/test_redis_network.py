"""A network between Mouso and Redis that cuts, swallows, delays, and ends in the middle of a reply."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import PAUSES
from tests.integration.test_redis_trouble import all_done, load
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer
from tests.support import wait_until

BACK = 6.0
"""Seconds after the end of a fault within which work goes on: five, and one for a busy machine."""


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as server, Proxy(server.port) as proxy:
        yield proxy


def reset(proxy: Proxy) -> None:
    proxy.reset()


def truncate(proxy: Proxy) -> None:
    proxy.cut_after = 3
    wait_until(lambda: proxy.cut_after is None, timeout=WAIT)


def lag(proxy: Proxy) -> None:
    proxy.delay = 0.2
    time.sleep(0.6)
    proxy.delay = 0


def swallow(*ways: str) -> Callable[[Proxy], None]:
    def fault(proxy: Proxy) -> None:
        proxy.swallow = frozenset(ways)
        time.sleep(1.0)
        proxy.swallow = frozenset()

    return fault


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        pytest.param(reset, 20, id="reset"),
        pytest.param(truncate, 20, id="truncated reply"),
        pytest.param(lag, 5, id="latency"),
        pytest.param(swallow("to", "from"), 3, id="black hole"),
        pytest.param(swallow("from"), 3, id="replies swallowed"),
        pytest.param(swallow("to"), 3, id="requests swallowed"),
    ],
)
def test_work_goes_on_after_each(tmp_path: Path, proxy: Proxy, fault: Callable[[Proxy], None], times: int) -> None:
    with closing(Bench(tmp_path, f"redis://127.0.0.1:{proxy.port}/0")) as bench:
        jobs = bench.app(PAUSES)
        worker = bench.worker(processes=2)
        with load(jobs).going() as producer:
            wait_until(lambda: len(producer.accepted) > 50, timeout=WAIT)
            descriptors = len(os.listdir(f"/proc/{worker.pid}/fd"))
            for _ in range(times):
                fault(proxy)
                ended, at = len(bench.history("end")), time.monotonic()
                wait_until(lambda n=ended: len(bench.history("end")) > n + 5, timeout=WAIT)  # type: ignore[misc]  # why: binds the loop variable
                assert time.monotonic() - at < BACK
        all_done(bench, producer.accepted)
        assert proxy.connections <= 4, "two of the worker, two of the producer"
        assert len(os.listdir(f"/proc/{worker.pid}/fd")) <= descriptors
