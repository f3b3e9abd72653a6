"""A network between Mouso and a server that cuts, swallows, delays, and ends in the middle of a reply."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

import pytest

from tests.brokers import SERVERS
from tests.integration.harness import WAIT, Bench, Worker
from tests.integration.snippets import PAUSES
from tests.integration.test_redis_trouble import all_done, load
from tests.servers.proxy import Proxy
from tests.servers.server import Server
from tests.stalls import elapsed
from tests.support import wait_until

BACK = 6.0
"""Seconds after the end of a fault within which work goes on: five, and one for a busy machine."""


_LAZY = 2
"""What a worker opens when it first needs it."""
LONG = int(os.environ.get("MOUSO_TEST_FAULTS", "2"))
"""How often faults come that are noticed only when a call's time is over; 20 take minutes."""


class Line(NamedTuple):
    """A way to a server, through the proxy."""

    proxy: Proxy
    url: str


@pytest.fixture(params=SERVERS)
def line(request: pytest.FixtureRequest, shared_servers: Callable[[str], Server]) -> Iterator[Line]:
    server = shared_servers(request.param)
    with server.store(token_hex(4)) as url, Proxy(server.port) as proxy:
        yield Line(proxy, url.replace(str(server.port), str(proxy.port)))


def reset(proxy: Proxy) -> None:
    proxy.reset()


def truncate(proxy: Proxy) -> None:
    proxy.cut_after = 3
    wait_until(lambda: proxy.cut_after is None, timeout=WAIT)


def lag(proxy: Proxy) -> None:
    proxy.delay = 0.2
    time.sleep(0.3)
    proxy.delay = 0


def narrow(proxy: Proxy) -> None:
    proxy.rate = 20_000
    time.sleep(0.3)
    proxy.rate = None


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
        pytest.param(lag, 20, id="latency"),
        pytest.param(narrow, 20, id="bandwidth"),
        pytest.param(swallow("to", "from"), LONG, id="black hole"),
        pytest.param(swallow("from"), LONG, id="replies swallowed"),
        pytest.param(swallow("to"), LONG, id="requests swallowed"),
    ],
)
@pytest.mark.timeout(60 + 20 * LONG)
def test_work_goes_on_after_each(tmp_path: Path, line: Line, fault: Callable[[Proxy], None], times: int) -> None:
    proxy = line.proxy
    with closing(Bench(tmp_path, line.url)) as bench:
        jobs = bench.app(PAUSES)
        worker = bench.worker(processes=2)
        with load(jobs).going() as producer:
            wait_until(lambda: len(producer.accepted) > 50, timeout=WAIT)
            descriptors = _open_in(worker)
            for _ in range(times):
                fault(proxy)
                ended, at = len(bench.history("end")), time.monotonic()
                wait_until(lambda n=ended: len(bench.history("end")) > n + 5, timeout=WAIT)  # type: ignore[misc]  # why: binds the loop variable
                assert elapsed(at) < BACK
        all_done(bench, producer.accepted)
        assert proxy.connections <= 4, "two of the worker, two of the producer"
        more = _open_in(worker) - descriptors
        assert more.total() <= _LAZY, f"more of these than at the start: {more}"


def _open_in(worker: Worker) -> Counter[str]:
    """What a process has open, by kind."""
    folder = Path(f"/proc/{worker.pid}/fd")
    return Counter(os.readlink(path).partition(":[")[0] for path in folder.iterdir())
