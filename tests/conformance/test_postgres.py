"""The PostgreSQL broker keeps what every broker guarantees."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import psycopg
import pytest

from mouso.brokers import Broker
from mouso.brokers.postgres import PostgresBroker
from mouso.testing.clock import FakeClock
from mouso.testing.conformance import BrokerConformance
from mouso.urls import BrokerURL
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer
from tests.support import free_port

_numbers = count()


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer(max_connections="200") as server:
        yield server


@pytest.fixture(scope="module")
def pool(server: PostgresServer) -> Iterator[PgBouncer]:
    with PgBouncer(server) as pool:
        yield pool


def makes(server: PostgresServer, url: str, clock: FakeClock) -> Iterator[Callable[[], Broker]]:
    """What makes brokers on a schema of their own."""
    schema = f"test{next(_numbers)}"
    made: list[Broker] = []

    def make() -> Broker:
        made.append(PostgresBroker(BrokerURL.parse(f"{url}schema={schema}"), clock=clock))
        return made[-1]

    yield make
    for broker in made:
        broker.close()
    with server.client() as client:
        client.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


class TestPostgresBroker(BrokerConformance):
    @pytest.fixture
    def make_broker(self, clock: FakeClock, server: PostgresServer) -> Iterator[Callable[[], Broker]]:
        yield from makes(server, f"{server.url}?", clock)

    @pytest.fixture
    def make_connection(self, server: PostgresServer) -> Callable[[], Any]:
        return lambda: server.client(autocommit=False)

    @pytest.fixture
    def broken(self) -> Broker:
        return PostgresBroker(BrokerURL.parse(f"postgresql://127.0.0.1:{free_port()}/none"))


class TestPostgresBrokerBehindPgBouncer(BrokerConformance):
    """In transaction mode, where every statement may meet another process of the server, and nobody listens."""

    @pytest.fixture
    def make_broker(self, clock: FakeClock, server: PostgresServer, pool: PgBouncer) -> Iterator[Callable[[], Broker]]:
        yield from makes(server, f"{pool.url}?notify=off&", clock)

    @pytest.fixture
    def make_connection(self, pool: PgBouncer) -> Callable[[], Any]:
        return lambda: psycopg.connect(pool.url, prepare_threshold=None)

    @pytest.fixture
    def broken(self, pool: PgBouncer) -> Broker:
        return PostgresBroker(BrokerURL.parse(pool.url.rpartition("/")[0] + "/unknown?notify=off"))
