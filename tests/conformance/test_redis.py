"""The Redis broker keeps what every broker guarantees."""

from collections.abc import Callable, Iterator

import pytest
import redis

from mouso.brokers import Broker
from mouso.brokers.redis import RedisBroker
from mouso.config import BrokerURL
from mouso.testing.clock import FakeClock
from mouso.testing.conformance import BrokerConformance


class TestRedisBroker(BrokerConformance):
    @pytest.fixture
    def make_broker(self, clock: FakeClock) -> Iterator[Callable[[], Broker]]:
        url = BrokerURL(scheme="redis", path="127.0.0.1:6399/0", params={})
        made: list[Broker] = []
        client = redis.Redis(port=6399)
        client.flushall()

        def make() -> Broker:
            made.append(RedisBroker(url, clock=clock, raw="redis://127.0.0.1:6399/0"))
            return made[-1]

        yield make
        for broker in made:
            broker.close()
        client.close()
