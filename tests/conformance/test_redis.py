"""The Redis broker keeps what every broker guarantees."""

from collections.abc import Callable, Iterator

import pytest

from mouso.brokers import Broker
from mouso.brokers.redis import RedisBroker
from mouso.testing.clock import FakeClock
from mouso.testing.conformance import BrokerConformance
from mouso.urls import BrokerURL
from tests.servers.redis import RedisServer
from tests.support import free_port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


class TestRedisBroker(BrokerConformance):
    @pytest.fixture
    def make_broker(self, clock: FakeClock, server: RedisServer) -> Iterator[Callable[[], Broker]]:
        made: list[Broker] = []

        def make() -> Broker:
            made.append(RedisBroker(BrokerURL.parse(server.url), clock=clock))
            return made[-1]

        yield make
        for broker in made:
            broker.close()
        with server.client() as client:
            client.flushall()

    @pytest.fixture
    def broken(self) -> Broker:
        return RedisBroker(BrokerURL.parse(f"redis://127.0.0.1:{free_port()}"))
