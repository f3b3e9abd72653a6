"""The RabbitMQ broker keeps what every broker guarantees, whatever store it has."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mouso.brokers import Broker, connect
from mouso.testing.clock import FakeClock
from mouso.testing.conformance import BrokerConformance
from mouso.testing.conformance.diagnosing import Diagnosing
from mouso.testing.conformance.leases import Reconciling, Retiring
from mouso.testing.conformance.operating import Pausing
from mouso.testing.conformance.storing import Opening, Transactions
from mouso.testing.conformance.working import Claiming, Settling, Sharing
from tests.servers.rabbitmq import RabbitServer
from tests.servers.server import Server

_numbers = count()


@pytest.fixture
def server(shared_servers: Callable[[str], Server]) -> RabbitServer:
    found = shared_servers("rabbitmq")
    assert isinstance(found, RabbitServer)
    return found


@contextmanager
def factory(url: str, clock: FakeClock) -> Iterator[Callable[[], Broker]]:
    """Makes brokers on one store, and closes them all."""
    with ExitStack() as made:
        yield lambda: made.enter_context(closing(connect(url, clock=clock)))


class TestRabbitBroker(BrokerConformance):
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "jobs.db"

    @pytest.fixture
    def make_broker(self, file: Path, clock: FakeClock, server: RabbitServer) -> Iterator[Callable[[], Broker]]:
        url = f"{server.alone}?namespace=test{next(_numbers)}&store=sqlite:///{file}"
        with factory(url, clock) as make:
            yield make

    @pytest.fixture
    def make_connection(self, file: Path) -> Callable[[], Any]:
        return lambda: sqlite3.connect(file)

    @pytest.fixture
    def broken(self, tmp_path: Path, server: RabbitServer) -> Broker:
        (tmp_path / "broken.db").write_bytes(b"no database\n" * 1000)
        return connect(f"{server.alone}?store=sqlite:///{tmp_path}/broken.db")


class TestLoneRabbitBroker(
    Opening, Transactions, Settling, Claiming, Sharing, Reconciling, Retiring, Pausing, Diagnosing
):
    """Without a store: those parts of the suite that are not about looking for jobs."""

    @pytest.fixture
    def make_broker(self, clock: FakeClock, server: RabbitServer) -> Iterator[Callable[[], Broker]]:
        url = f"{server.alone}?namespace=alone{next(_numbers)}"
        with factory(url, clock) as make:
            yield make

    @pytest.fixture
    def broken(self) -> Broker:
        return connect("amqp://127.0.0.1:1/")
