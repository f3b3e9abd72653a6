"""The brokers that the process tests run on: for each test a store of its own, on a shared server or one of its own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex

import pytest

from tests import leaks
from tests.servers.postgres import PostgresServer
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.server import Server

SERVERS: dict[str, Callable[[Path], Server]] = {
    "redis": RedisServer,
    "postgres": lambda folder: PostgresServer(),
    "rabbitmq": RabbitServer,
}
STORES = tuple(name for name in SERVERS if name != "rabbitmq")
"""The servers that have jobs; RabbitMQ has their news only, the jobs are in a file beside it."""
EVERY = ("sqlite", *SERVERS)
MOST = ("sqlite", *STORES)


def add_option(parser: pytest.Parser) -> None:
    """Adds ``--broker``; for the hook of the conftest, which is called before this module is a plugin."""
    parser.addoption(
        "--broker",
        action="append",
        choices=EVERY,
        help="run the process tests on this broker (repeatable); else SQLite, and every broker where it matters",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test that uses a store on the brokers that were asked for, or that it asks for itself."""
    if "broker_name" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker
    every = marker("every_broker")
    names = metafunc.config.getoption("broker") or ((*MOST, *every.args) if every else ["sqlite"])
    if marker("only_sqlite"):
        names = ["sqlite"]
    if names != ["sqlite"]:
        metafunc.parametrize("broker_name", names, indirect=True)


@pytest.fixture
def broker_name(request: pytest.FixtureRequest) -> str:
    """What a test runs on."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture(scope="session")
def shared_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """A server of each kind that is needed, for all tests of this process."""
    running: dict[str, Server] = {}

    def find(name: str) -> Server:
        if name not in running:
            with leaks.lasting():
                server = SERVERS[name](tmp_path_factory.mktemp(name))
                with ExitStack() as failed:  # one that is too slow is nobody's: the next test starts another
                    failed.callback(server.end)
                    server.start()
                    failed.pop_all()
                running[name] = server
        return running[name]

    yield find
    for server in running.values():
        server.end()


@pytest.fixture
def broker_url(broker_name: str, shared_servers: Callable[[str], Server]) -> Iterator[str]:
    """The URL of a store that nobody else uses; empty for SQLite, where it is a file in the test's folder."""
    if broker_name == "sqlite":
        yield ""
        return
    server = shared_servers(broker_name)
    with server.store(token_hex(4)) as url:
        yield url


@contextmanager
def own_server(name: str, folder: Path) -> Iterator[Server]:
    """A server that a test may kill, freeze and fill."""
    place = folder / f"server-{name}"
    place.mkdir()
    # Else Redis keeps back for up to two seconds what it has accepted, while its disk stalls, and loses it when killed.
    with RedisServer(place, appendfsync="always") if name == "redis" else SERVERS[name](place) as server:
        yield server
