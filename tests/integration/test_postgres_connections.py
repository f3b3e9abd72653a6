"""How many connections a process has to PostgreSQL, whose they are, and whose transaction a job joins."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from mouso.brokers.base import Want, WorkerInfo
from mouso.brokers.postgres import PostgresBroker
from mouso.errors import CapabilityError
from mouso.job import Job, JobState, new_id
from mouso.urls import BrokerURL
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer
from tests.support import wait_until

WORKER = "1" * 16
OURS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'mouso' AND datname = 'postgres' ORDER BY 1"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def broker(server: PostgresServer) -> Iterator[PostgresBroker]:
    with closing(PostgresBroker(BrokerURL.parse(server.url))) as broker:
        broker.open()
        yield broker
    rows(server, "DROP SCHEMA mouso CASCADE")


def rows(server: PostgresServer, sql: str) -> list[Any]:
    with server.client() as client:
        found = client.execute(sql.encode())
        return found.fetchall() if found.description else []


def job(id: str) -> Job:
    return Job(id=id, task="work")


def test_a_worker_has_two_connections_and_a_producer_one(server: PostgresServer, broker: PostgresBroker) -> None:
    """However many threads call, and whatever they call."""
    threads = [threading.Thread(target=lambda: [broker.enqueue([job(new_id())]) for _ in range(20)]) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(rows(server, OURS)) == 1
    broker.wait(0)
    broker.heartbeat(WorkerInfo(id=WORKER, name="w", host="h", pid=1))
    broker.exchange(WORKER, [], Want(limit=5))
    broker.wait(0)
    broker.queues()
    assert len(rows(server, OURS)) == 2
    broker.close()
    wait_until(lambda: rows(server, OURS) == [], message="the connections are closed")


def prepared(broker: PostgresBroker) -> int:
    """How many statements are prepared in the session of its connection."""
    with broker._link.session(time.monotonic() + 5) as session:
        [(count,)] = session.fetch("SELECT count(*) FROM pg_prepared_statements")
    return int.from_bytes(count or b"")


def test_statements_are_prepared(server: PostgresServer, broker: PostgresBroker) -> None:
    """A session that has lost them, and a function that gives something else, cost nothing but time."""
    for _ in range(3):
        broker.enqueue([job(new_id())])
    assert prepared(broker) == 1
    broker.queues()
    assert prepared(broker) == 1, "a query that is different each time is not"
    with broker._link.session(time.monotonic() + 5) as session:
        session.run("DEALLOCATE ALL")
    assert broker.enqueue([job("a")])[0].created
    assert not broker.enqueue([job("a")])[0].created
    rows(server, f"SELECT pg_terminate_backend(pid) FROM ({OURS}) AS ours")
    broker.heartbeat(WorkerInfo(id=WORKER, name="w", host="h", pid=1))
    assert [lease.id for lease in broker.exchange(WORKER, [], Want(limit=9)).leases][-1] == "a"
    assert prepared(broker) == 2, "the new session has them again"
    broker.resume("default")
    rows(server, "DROP FUNCTION mouso.resume; CREATE FUNCTION mouso.resume(text) RETURNS integer RETURN 1")
    broker.resume("default")


def test_behind_a_pooler_nothing_is_prepared(server: PostgresServer, broker: PostgresBroker) -> None:
    broker.enqueue([job(new_id())])
    with PgBouncer(server) as pool, closing(PostgresBroker(BrokerURL.parse(pool.url))) as pooled:
        for _ in range(3):
            pooled.enqueue([job(new_id())])
        assert prepared(pooled) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_has_a_connection_of_its_own(server: PostgresServer, broker: PostgresBroker) -> None:
    """The parent's is neither used nor closed by it."""
    broker.enqueue([job("parent 1".replace(" ", "-"))])
    broker.wait(0)
    before = rows(server, OURS)
    child = os.fork()
    if child == 0:
        try:
            broker.enqueue([job("child")])
            broker.wait(0)
            broker.close()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    broker.enqueue([job("parent-2")])
    assert rows(server, OURS) == before
    assert [found and found.state for found in broker.get(["parent-1", "child", "parent-2"])] == ["available"] * 3


def test_a_worker_behind_a_pool_looks_instead_of_listening(server: PostgresServer, broker: PostgresBroker) -> None:
    """A process that PgBouncer lends out is left without a LISTEN, which the next one to have it would inherit."""
    with PgBouncer(server) as pool, closing(PostgresBroker(BrokerURL.parse(pool.url))) as pooled:
        assert not pooled.wait(0.01)
        pooled.enqueue([job("a")])
        assert not pooled.wait(0.01)
        assert [lease.id for lease in pooled.exchange(WORKER, [], Want(limit=1)).leases] == ["a"]
        assert rows(server, "SELECT 1 FROM mouso.ears") == []


def test_a_listener_that_is_cut_off_listens_again(server: PostgresServer, broker: PostgresBroker) -> None:
    for _ in range(3):
        while broker.wait(0):
            pass
        assert rows(server, f"SELECT count(pg_terminate_backend(pid)) FROM ({OURS}) ours") == [(2,)]
        assert broker.wait(5)
        wait_until(lambda: broker.wait(0.1), message="it listens again")
        while broker.wait(0):
            pass
        threading.Timer(0.1, broker.enqueue, [[job(new_id())]]).start()
        assert broker.wait(5)


def test_nobody_is_rung_where_nobody_listens(server: PostgresServer, broker: PostgresBroker) -> None:
    """A commit with a NOTIFY waits for all others of the database."""
    with server.client() as spy:
        spy.execute('LISTEN "mouso_w_""mouso"""')
        broker.enqueue([job("a")])
        assert list(spy.notifies(timeout=0.2)) == []
        broker.wait(0)
        broker.enqueue([job("b"), job("c")])
        assert len(list(spy.notifies(timeout=0.5))) == 1


# -- the caller's own transaction --------------------------------------------------------------------------------------


def test_an_async_connection(server: PostgresServer, broker: PostgresBroker) -> None:
    async def use(end: str) -> None:
        async with await psycopg.AsyncConnection.connect(server.url) as connection:
            broker.enqueue([job(f"{end}-1")], connection=connection)
            await connection.execute("SELECT 1")
            broker.enqueue([job(f"{end}-2")], connection=connection)
            await getattr(connection, end)()

    for end in ("rollback", "commit"):
        asyncio.run(use(end))
    assert rows(server, "SELECT id FROM mouso.live JOIN mouso.jobs USING (seq) ORDER BY 1") == [
        ("commit-1",),
        ("commit-2",),
    ]


class Wrapped:
    """As Django's: the connection is made when it is needed, and lies below."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.connection: psycopg.Connection[Any] | None = None

    def ensure_connection(self) -> None:
        self.connection = self.connection or self._server.client(autocommit=False)


class Alchemical:
    """As SQLAlchemy's: it has to know of the transaction, or its commit does nothing."""

    def __init__(self, below: "psycopg.Connection[Any]") -> None:
        self.connection = self
        self.driver_connection = below
        self.begun = False

    def in_transaction(self) -> bool:
        return self.begun

    def begin(self) -> None:
        self.begun = True

    def exec_driver_sql(self) -> None: ...

    def commit(self) -> None:
        if self.begun:
            self.driver_connection.commit()


def test_connections_of_other_libraries(server: PostgresServer, broker: PostgresBroker) -> None:
    """Found by what they offer in public, without importing them."""
    django = Wrapped(server)
    broker.enqueue([job("a")], connection=django)
    assert broker.get(["a"]) == [None]
    assert django.connection is not None
    with django.connection as below:
        below.commit()
        alchemical = Alchemical(below)
        broker.enqueue([job("b")], connection=alchemical)
        assert broker.get(["b"]) == [None]
        alchemical.commit()
    assert [found and found.state for found in broker.get(["a", "b"])] == [JobState.AVAILABLE] * 2


def test_a_connection_in_use_is_refused(server: PostgresServer, broker: PostgresBroker) -> None:
    with (
        server.client(autocommit=False) as client,
        client.pipeline(),
        pytest.raises(CapabilityError, match="pipeline"),
    ):
        broker.enqueue([job("a")], connection=client)
    assert broker.get(["a"]) == [None]
