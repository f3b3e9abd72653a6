"""The SQLite broker keeps what every broker guarantees."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mouso.brokers import Broker
from mouso.brokers.sqlite import SQLiteBroker
from mouso.testing.clock import FakeClock
from mouso.testing.conformance import BrokerConformance
from mouso.urls import BrokerURL


class TestSQLiteBroker(BrokerConformance):
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "jobs.db"

    @pytest.fixture
    def make_broker(self, file: Path, clock: FakeClock) -> Iterator[Callable[[], Broker]]:
        url = BrokerURL.parse(f"sqlite:///{file}")
        made: list[Broker] = []

        def make() -> Broker:
            made.append(SQLiteBroker(url, clock=clock))
            return made[-1]

        yield make
        for broker in made:
            broker.close()

    @pytest.fixture
    def make_connection(self, file: Path) -> Callable[[], Any]:
        return lambda: sqlite3.connect(file)

    @pytest.fixture
    def broken(self, tmp_path: Path) -> Broker:
        (tmp_path / "broken.db").write_bytes(b"no database\n" * 1000)
        return SQLiteBroker(BrokerURL.parse(f"sqlite:///{tmp_path}/broken.db"))
