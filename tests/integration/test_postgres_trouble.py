"""What goes wrong with a PostgreSQL while jobs are enqueued and worked off: nothing is lost or done twice."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest

from mouso import Mouso
from mouso.brokers import connect
from mouso.brokers.base import Want, WorkerInfo
from mouso.brokers.postgres import PostgresBroker
from mouso.errors import BrokerError, BrokerUnavailable, CapabilityError, ConfigError, OutcomeUnknown
from mouso.job import Job, JobState, Outcome, new_id
from mouso.urls import BrokerURL
from tests.servers.postgres import PostgresServer
from tests.stalls import elapsed
from tests.support import wait_until

WORKER = "1" * 16


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer(fsync=True, max_connections="20", deadlock_timeout="400ms") as server:
        yield server


@pytest.fixture
def make_broker(server: PostgresServer) -> Iterator[Callable[[], PostgresBroker]]:
    made: list[PostgresBroker] = []

    def make() -> PostgresBroker:
        made.append(PostgresBroker(BrokerURL.parse(server.url)))
        return made[-1]

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
def broker(make_broker: Callable[[], PostgresBroker]) -> PostgresBroker:
    broker = make_broker()
    broker.open()
    return broker


class Load:
    """A producer and a worker that go on whatever happens, each with a broker of its own.

    Attributes:
        accepted: Ids of jobs that an enqueue returned for.
        errors: What the calls raised.
        exchanges: How many of them succeeded.
    """

    def __init__(self, make: Callable[[], PostgresBroker]) -> None:
        self._brokers = make(), make()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._produce, self._work)]
        self.accepted: list[str] = []
        self.errors: list[Exception] = []
        self.exchanges = 0

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        self.progress()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def progress(self, within: float = 20.0) -> float:
        """Waits until both have got on again; returns how long that took, in seconds."""
        began = time.monotonic()
        accepted, exchanges = len(self.accepted), self.exchanges
        wait_until(
            lambda: len(self.accepted) > accepted + 5 and self.exchanges > exchanges + 5,
            timeout=within,
            message=f"work goes on; {self.errors[-3:]}",
        )
        return time.monotonic() - began

    def _produce(self) -> None:
        while not self._over.is_set():
            job = Job(id=new_id(), task="work")
            while not self._over.is_set():
                try:
                    self._brokers[0].enqueue([job])
                    self.accepted.append(job.id)
                    break
                except BrokerError as error:
                    self.errors.append(error)
            self._over.wait(0.001)

    def _work(self) -> None:
        broker, ends, held = self._brokers[1], list[Outcome](), list[tuple[int | str, int]]()
        info = WorkerInfo(id=WORKER, name="w", host="h", pid=1, tasks=("work",))
        agreed = False
        while not self._over.is_set():
            try:
                if not agreed:
                    broker.heartbeat(info)
                    gone = set(broker.reconcile(WORKER, held))
                    ends = [end for end in ends if end.key not in gone]
                    agreed = True
                done = broker.exchange(WORKER, ends, Want(limit=10))
                ends = [
                    Outcome(lease.key, lease.token, lease.id, lease.task, lease.queue, JobState.COMPLETED)
                    for lease in done.leases
                ]
                self.exchanges += 1
            except BrokerError as error:
                self.errors.append(error)
                agreed = False
            held = [(end.key, end.token) for end in ends]
            if not ends:
                self._over.wait(0.001)


def finish(broker: PostgresBroker, load: Load) -> None:
    """Works off what is left, and sees that every accepted job was completed."""
    broker.retire(WORKER)
    while leases := broker.exchange(WORKER, [], Want(limit=1000)).leases:
        ends = [Outcome(one.key, one.token, one.id, one.task, one.queue, JobState.COMPLETED) for one in leases]
        assert broker.exchange(WORKER, ends, Want(limit=0)).fenced == []
    for start in range(0, len(load.accepted), 1000):
        found = broker.get(load.accepted[start : start + 1000])
        assert Counter(job and job.state for job in found) == {JobState.COMPLETED: len(found)}


def rows(server: PostgresServer, sql: str) -> list[Any]:
    with server.client() as client:
        return client.execute(sql).fetchall()


def test_connections_that_are_terminated(
    server: PostgresServer, broker: PostgresBroker, make_broker: Callable[[], PostgresBroker]
) -> None:
    """Every connection is cut, again and again, in the midst of work."""
    with Load(make_broker) as load:
        for _ in range(10):
            cut = rows(
                server, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mouso'"
            )
            assert cut
            assert load.progress() < 5
    finish(broker, load)
    [(jobs, ids)] = rows(server, "SELECT count(*), count(DISTINCT id) FROM mouso.jobs")
    assert jobs == ids >= len(load.accepted)
    assert rows(server, "SELECT 1 FROM mouso.history GROUP BY seq HAVING count(*) > 1") == []


def test_a_server_that_is_killed(
    server: PostgresServer, broker: PostgresBroker, make_broker: Callable[[], PostgresBroker]
) -> None:
    """What was accepted survives SIGKILL of the whole server, and work goes on by itself."""
    with Load(make_broker) as load:
        for _ in range(3):
            server.kill()
            server.start()
            assert load.progress() < 8
    finish(broker, load)
    assert rows(server, "SELECT 1 FROM mouso.history GROUP BY seq HAVING count(*) > 1") == []
    assert rows(server, "SELECT 1 FROM mouso.live JOIN mouso.history USING (seq)") == []


def test_a_server_that_is_read_only_for_a_while(
    server: PostgresServer, broker: PostgresBroker, make_broker: Callable[[], PostgresBroker]
) -> None:
    """As after a failover to a standby that has not been promoted yet."""
    with Load(make_broker) as load:
        with server.client() as client:
            client.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            client.execute("SELECT pg_reload_conf()")
            wait_until(
                lambda: any("read-only" in str(error) for error in load.errors),
                timeout=15,
                message="the load notices",
            )
            client.execute("SET default_transaction_read_only = off")
            client.execute("ALTER SYSTEM RESET default_transaction_read_only")
            client.execute("SELECT pg_reload_conf()")
        assert load.progress() < 5
    assert all(isinstance(error, (BrokerUnavailable, OutcomeUnknown)) for error in load.errors)
    finish(broker, load)


def test_a_deadlock(server: PostgresServer, broker: PostgresBroker) -> None:
    """The server ends one of two that wait for each other; if it is ours, it is done again."""
    broker.enqueue([Job(id="a", task="work"), Job(id="b", task="work")])
    lock = "SELECT FROM mouso.live JOIN mouso.jobs USING (seq) WHERE id = %s FOR UPDATE OF live"
    for _ in range(5):
        with ThreadPoolExecutor(1) as pool, server.client(autocommit=False) as other:
            other.execute("SET deadlock_timeout = '10s'")  # so that the broker's statement is the one that is ended
            other.execute(lock, ["b"])
            cancelling = pool.submit(broker.cancel, ["a", "b"])
            wait_until(lambda: bool(rows(server, "SELECT 1 FROM pg_locks WHERE NOT granted")), message="it waits")
            with suppress(psycopg.errors.DeadlockDetected):
                other.execute(lock, ["a"])
            other.rollback()
            assert cancelling.result(20) == ["cancelled", "cancelled"]
        assert [job and job.state for job in broker.get(["a", "b"])] == [JobState.CANCELLED] * 2
        assert broker.retry(["a", "b"]) == ["retried", "retried"]
    broker.close()  # a connection's statistics are told at its end
    counted = "SELECT 1 FROM pg_stat_database WHERE datname = 'postgres' AND deadlocks >= 5"
    wait_until(lambda: bool(rows(server, counted)), message="the server ended the broker's statement each time")


def test_serialization_failures(server: PostgresServer, make_broker: Callable[[], PostgresBroker]) -> None:
    """With a stricter isolation as the server's default, who was overtaken is done again."""
    with server.client() as client:
        client.execute("ALTER ROLE postgres SET default_transaction_isolation = 'repeatable read'")
    brokers = [make_broker() for _ in range(4)]
    brokers[0].enqueue([Job(id=f"j{n}", task="work") for n in range(400)])
    claimed: list[str] = []

    def claim(mine: PostgresBroker, worker: str) -> None:
        while True:
            leases = mine.exchange(worker, [], Want(limit=5)).leases
            if not leases:
                return
            claimed.extend(lease.id for lease in leases)
            ends = [Outcome(x.key, x.token, x.id, x.task, x.queue, JobState.COMPLETED) for x in leases]
            assert mine.exchange(worker, ends, Want(limit=0)).fenced == []

    threads = [threading.Thread(target=claim, args=(mine, str(n) * 16)) for n, mine in enumerate(brokers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert Counter(claimed) == {f"j{n}": 1 for n in range(400)}
    assert rows(server, "SELECT state, count(*) FROM mouso.history GROUP BY 1") == [("completed", 400)]


def test_no_connection_is_left(server: PostgresServer, make_broker: Callable[[], PostgresBroker]) -> None:
    """An error within the deadline while the server has no connection to give, and success once it has."""
    broker = make_broker()
    broker.open()
    broker.close()
    held: list[psycopg.Connection[Any]] = []
    try:
        with suppress(psycopg.OperationalError):
            while len(held) < 30:
                held.append(server.client())
        assert len(held) < 30
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="too many"):
            broker.enqueue([Job(id="a", task="work")], timeout=1)
        assert elapsed(began) < 6
        threading.Timer(0.5, held.pop().close).start()
        assert [done.created for done in broker.enqueue([Job(id="a", task="work")], timeout=10)] == [True]
    finally:
        for connection in held:
            connection.close()


def test_a_server_that_does_not_answer(server: PostgresServer, broker: PostgresBroker) -> None:
    """A frozen server is a black hole: an error within the deadline, the first time and the next; then one job."""
    job = Job(id="a", task="work")
    broker.enqueue([Job(id="first", task="work")])
    server.freeze()
    try:
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises((OutcomeUnknown, BrokerUnavailable)):
                broker.enqueue([job], timeout=1)
            assert elapsed(began) < 1.5
    finally:
        server.thaw()
    broker.enqueue([job])
    assert rows(server, "SELECT count(*) FROM mouso.jobs WHERE id = 'a'") == [(1,)]
    assert rows(server, "SELECT count(*) FROM mouso.live") == [(2,)]


def test_jobs_of_a_transaction(server: PostgresServer) -> None:
    """Jobs exist if and only if the caller's transaction does, beside its own data."""
    app = Mouso("shop", broker=server.url)

    @app.task
    def work(n: int) -> None: ...

    with closing(app.broker), server.client(autocommit=False) as client:
        app.broker.open()
        client.execute("CREATE TABLE orders (n integer)")
        client.commit()
        for n, end in enumerate((client.rollback, client.commit)):
            client.execute("INSERT INTO orders VALUES (%s)", [n])
            with app.enqueue_in(client):
                job = work.delay(n)
            assert rows(server, "SELECT count(*) FROM mouso.live") == [(0,)]
            end()
        assert rows(server, "SELECT n FROM orders") == [(1,)]
        assert rows(server, "SELECT id FROM mouso.jobs") == [(job.id,)]
        with client.transaction(), app.enqueue_in(client), suppress(ZeroDivisionError), client.transaction():
            work.delay(2)
            raise ZeroDivisionError
        assert rows(server, "SELECT count(*) FROM mouso.jobs") == [(1,)]


def test_a_connection_that_is_none(server: PostgresServer, broker: PostgresBroker) -> None:
    """Another database, a closed connection, and what is no connection are refused in words."""
    job = Job(id="a", task="work")
    with server.client() as client:
        client.execute("CREATE DATABASE other")
    with server.client(dbname="other", autocommit=False) as elsewhere:
        with pytest.raises(CapabilityError, match="another database"):
            broker.enqueue([job], connection=elsewhere)
        elsewhere.rollback()
        with closing(connect(server.url.removesuffix("postgres") + "other")) as own:
            own.open()
            with pytest.raises(CapabilityError, match="leads to another store than"):
                broker.enqueue([job], connection=elsewhere)
            with pytest.raises(CapabilityError, match="leads to another store than"):
                broker.transaction(elsewhere)
            assert own.get(["a"]) == broker.get(["a"]) == [None]
            own.enqueue([job], connection=elsewhere)
            elsewhere.commit()
            assert own.get(["a"]) != [None]
    with pytest.raises(CapabilityError, match="closed"):
        broker.enqueue([job], connection=elsewhere)
    with pytest.raises(CapabilityError, match="not str"):
        broker.enqueue([job], connection="x")


def test_good_refusals_are_said_in_words(server: PostgresServer) -> None:
    """No such database, no such role, no rights: a ConfigError, without the password."""
    with server.client() as client:
        client.execute("CREATE ROLE guest LOGIN")
        client.execute("REVOKE CREATE ON DATABASE postgres FROM PUBLIC")
    for url in (
        f"postgresql://postgres:secret@127.0.0.1:{server.port}/nowhere",
        f"postgresql://nobody:secret@127.0.0.1:{server.port}/postgres",
        f"postgresql://guest:secret@127.0.0.1:{server.port}/postgres",
    ):
        with closing(PostgresBroker(BrokerURL.parse(url))) as broker:
            with pytest.raises(ConfigError) as caught:
                broker.enqueue([Job(id="a", task="work")])
            assert "secret" not in str(caught.value)


def test_the_server_that_takes_jobs_is_found_among_several(server: PostgresServer) -> None:
    """One is gone, one is read-only, and the deadline is shared among them."""
    with PostgresServer(default_transaction_read_only="on") as standby:
        hosts = f"127.0.0.1:1,127.0.0.1:{standby.port},127.0.0.1:{server.port}"
        url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
        with closing(PostgresBroker(BrokerURL.parse(url))) as broker:
            standby.freeze()
            began = time.monotonic()
            broker.enqueue([Job(id="a", task="work")], timeout=4)
            assert elapsed(began) < 4
            standby.thaw()
            rows(server, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mouso'")
            broker.enqueue([Job(id="b", task="work")])
    assert rows(server, "SELECT id FROM mouso.jobs ORDER BY id") == [("a",), ("b",)]
