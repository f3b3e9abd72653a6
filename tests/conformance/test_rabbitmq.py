"""The RabbitMQ broker keeps what every broker guarantees, whatever store it has."""

import sqlite3
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mouso.brokers import Broker, connect
from mouso.testing.clock import FakeClock
from mouso.testing.conformance import BrokerConformance
from tests.servers.rabbitmq import RabbitServer

_numbers = count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    with RabbitServer(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


class TestRabbitBroker(BrokerConformance):
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "jobs.db"

    @pytest.fixture
    def make_broker(self, file: Path, clock: FakeClock, server: RabbitServer) -> Iterator[Callable[[], Broker]]:
        url = f"{server.alone}?namespace=test{next(_numbers)}&store=sqlite:///{file}"
        made: list[Broker] = []

        def make() -> Broker:
            made.append(connect(url, clock=clock))
            return made[-1]

        yield make
        for broker in made:
            broker.close()

    @pytest.fixture
    def make_connection(self, file: Path) -> Callable[[], Any]:
        return lambda: sqlite3.connect(file)

    @pytest.fixture
    def broken(self, tmp_path: Path, server: RabbitServer) -> Broker:
        (tmp_path / "broken.db").write_bytes(b"no database\n" * 1000)
        return connect(f"{server.alone}?store=sqlite:///{tmp_path}/broken.db")
