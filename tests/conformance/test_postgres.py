"""The PostgreSQL broker keeps what every broker guarantees."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from mouso.brokers import Broker
from mouso.brokers.postgres import PostgresBroker
from mouso.testing.clock import FakeClock
from mouso.testing.conformance import BrokerConformance
from mouso.urls import BrokerURL
from tests.servers.postgres import PostgresServer

_numbers = count()


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(max_connections="200") as server:
        yield server


class TestPostgresBroker(BrokerConformance):
    @pytest.fixture
    def make_broker(self, clock: FakeClock, server: PostgresServer) -> Iterator[Callable[[], Broker]]:
        schema = f"test{next(_numbers)}"
        made: list[Broker] = []

        def make() -> Broker:
            made.append(PostgresBroker(BrokerURL.parse(f"{server.url}?schema={schema}"), clock=clock))
            return made[-1]

        yield make
        for broker in made:
            broker.close()
        with server.client() as client:
            client.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")

    @pytest.fixture
    def make_connection(self, server: PostgresServer) -> Callable[[], Any]:
        return lambda: server.client(autocommit=False)
