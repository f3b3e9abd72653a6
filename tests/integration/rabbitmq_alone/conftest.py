"""One server for all tests of RabbitMQ without a store, as it takes its time to start."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from secrets import token_hex

import pytest

from mouso.brokers import connect
from mouso.brokers.rabbitmq.alone import LoneRabbitBroker
from tests.integration.harness import Bench
from tests.servers.rabbitmq import RabbitServer


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    with RabbitServer(tmp_path_factory.mktemp("rabbitmq"), "consumer_timeout = 3600000\n") as server:
        yield server


@pytest.fixture
def url(server: RabbitServer) -> str:
    return f"{server.alone}?namespace={token_hex(4)}"


@pytest.fixture
def bench(tmp_path: Path, url: str) -> Iterator[Bench]:
    with closing(Bench(tmp_path, url)) as made:
        yield made


@pytest.fixture
def broker(url: str) -> Iterator[LoneRabbitBroker]:
    with closing(connect(url)) as made:
        assert isinstance(made, LoneRabbitBroker)
        made.open()
        yield made
