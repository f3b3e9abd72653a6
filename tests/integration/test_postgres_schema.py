"""The schema of a PostgreSQL store: who makes it, which versions fit, and what the roles may do."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from mouso.brokers.base import Level, Retention, Want, WorkerInfo
from mouso.brokers.postgres import PostgresBroker, schema
from mouso.errors import BrokerError, ConfigError, SchemaError
from mouso.job import Job, JobState, Outcome
from mouso.urls import BrokerURL
from tests.servers.postgres import PostgresServer

WORKER = "1" * 16


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def empty(server: PostgresServer) -> PostgresServer:
    run(server, "DROP SCHEMA IF EXISTS mouso CASCADE")
    return server


def run(server: PostgresServer, sql: str, **options: Any) -> list[Any]:
    with server.client(**options) as client:
        found = client.execute(sql.encode())
        return found.fetchall() if found.description else []


def broker_for(server: PostgresServer, user: str = "postgres", query: str = "") -> "closing[PostgresBroker]":
    url = server.url.replace("postgres@", f"{user}@")
    return closing(PostgresBroker(BrokerURL.parse(url + query)))


def job(id: str) -> Job:
    return Job(id=id, task="work")


def test_an_older_store_is_not_touched_until_somebody_migrates(empty: PostgresServer) -> None:
    with broker_for(empty) as broker:
        broker.open()
    run(empty, "UPDATE mouso.meta SET value = value - 1 WHERE key = 'version'")
    with broker_for(empty) as broker:
        with pytest.raises(SchemaError, match="run mouso migrate"):
            broker.enqueue([job("a")])
        assert {finding.check for finding in findings(broker, Level.ERROR)} == {"schema"}
    [(version,)] = run(empty, "SELECT value FROM mouso.meta WHERE key = 'version'")
    assert version == schema.version() - 1


def test_a_newer_store_is_refused_with_both_versions(empty: PostgresServer) -> None:
    with broker_for(empty) as broker:
        broker.open()
        run(empty, "UPDATE mouso.meta SET value = 99 WHERE key = 'version'")
        broker.close()
        for verb in (broker.open, broker.migrate):
            with pytest.raises(SchemaError, match=f"99.*{schema.version()}"):
                verb()


def test_a_role_that_may_not_make_the_schema_says_so(empty: PostgresServer) -> None:
    run(empty, "DROP ROLE IF EXISTS guest; CREATE ROLE guest LOGIN")
    with broker_for(empty, "guest") as broker, pytest.raises(ConfigError, match="mouso migrate"):
        broker.open()
    assert run(empty, "SELECT 1 FROM pg_namespace WHERE nspname = 'mouso'") == []


@pytest.mark.parametrize("name", ["mouso", "Jobs_2"])
def test_the_printed_sql_makes_the_same_store(server: PostgresServer, name: str) -> None:
    """For those who migrate with a tool of their own: the broker finds nothing left to do."""
    run(server, f'DROP SCHEMA IF EXISTS "{name}" CASCADE')
    run(server, schema.sql(name))
    with broker_for(server, query=f"?schema={name}") as broker:
        assert broker.migrate() == (schema.version(), schema.version())
        assert [done.created for done in broker.enqueue([job("a")])] == [True]
    assert run(server, f'SELECT id FROM "{name}".jobs') == [("a",)]


def test_a_program_of_each_role_can_do_its_work_and_no_more(empty: PostgresServer) -> None:
    """A producer enqueues and waits; a worker does the rest; neither may make tables."""
    with broker_for(empty) as owner:
        owner.open()
        run(empty, schema.roles_sql("mouso"))
        run(empty, schema.roles_sql("mouso"))
        for kind in ("producer", "worker", "dashboard"):
            run(empty, f"DROP ROLE IF EXISTS a_{kind}; CREATE ROLE a_{kind} LOGIN IN ROLE mouso_{kind}")
    with (
        broker_for(empty, "a_producer") as producer,
        broker_for(empty, "a_worker") as worker,
        broker_for(empty, "a_dashboard") as dashboard,
    ):
        producer.enqueue([job("a")])
        producer.enqueue([job("b"), job("c"), Job(id="d", task="work", unique="key")])
        worker.heartbeat(WorkerInfo(id=WORKER, name="w", host="h", pid=1, tasks=("work",)))
        leases = worker.exchange(WORKER, [], Want(limit=2)).leases
        ends = [Outcome(x.key, x.token, x.id, x.task, x.queue, JobState.COMPLETED) for x in leases]
        assert worker.exchange(WORKER, ends, Want(limit=0)).fenced == []
        run(empty, "UPDATE mouso.meta SET value = 0 WHERE key = 'turned'")
        assert worker.prune(10, Retention(finished=0)) == 2
        assert [update.state for update in producer.watch({"c": None}, 0)] == [JobState.AVAILABLE]
        assert dashboard.cancel(["c"]) == ["cancelled"]
        for verb in (lambda: producer.cancel(["d"]), lambda: producer.exchange(WORKER, [], Want(limit=1))):
            with pytest.raises(ConfigError, match="permission denied"):
                verb()
        for user in ("a_producer", "a_worker", "a_dashboard"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                run(empty, "CREATE TABLE mouso.mine (n integer)", user=user)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            run(empty, "SELECT mouso.drop_day(1, 1, 1, 1, 1, 1, 1)", user="a_producer")
    with broker_for(empty) as owner:
        assert [found and found.state for found in owner.get(["c", "d"])] == [JobState.CANCELLED, JobState.AVAILABLE]


def test_a_producer_expires_nothing_but_what_is_past_its_expiry(empty: PostgresServer) -> None:
    """It may end no job, but that which holds a key that it wants, and waits past its expiry."""
    with broker_for(empty) as owner:
        owner.open()
        run(empty, schema.roles_sql("mouso"))
        run(empty, "DROP ROLE IF EXISTS a_producer; CREATE ROLE a_producer LOGIN IN ROLE mouso_producer")
    with broker_for(empty, "a_producer") as producer:
        first, second = (Job(id=id, task="work", unique="key", ttl=ttl) for id, ttl in (("a", 0), ("b", 3_600_000)))
        assert [done.created for done in producer.enqueue([first, second])] == [True, True]
        far_ahead = "SELECT mouso.expire_holder(9000000000000, 'key')"
        assert run(empty, far_ahead, user="a_producer") == [(False,)]
        assert [job and job.state for job in producer.get(["a", "b"])] == [JobState.EXPIRED, JobState.AVAILABLE]
    run(empty, "DROP ROLE IF EXISTS guest; CREATE ROLE guest LOGIN; GRANT USAGE ON SCHEMA mouso TO guest")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        run(empty, far_ahead, user="guest")
    run(empty, "REVOKE USAGE ON SCHEMA mouso FROM guest")


def findings(broker: PostgresBroker, level: Level, *, full: bool = False) -> list[Any]:
    diagnosis = broker.diagnose(retention=Retention(), full=full)
    if diagnosis.view is not None:
        diagnosis.view.close()
    return [finding for finding in diagnosis.findings if finding.level is level]


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        ("DELETE FROM mouso.live", "consistency"),
        ("UPDATE mouso.live SET state = 'running', worker = 4711", "consistency"),
        ("INSERT INTO mouso.tallies VALUES (1, 'mail', 'dead')", "consistency"),
        ("INSERT INTO mouso.keys VALUES ('key', 4711, NULL, 'x')", "consistency"),
    ],
)
def test_what_another_program_broke_is_found(empty: PostgresServer, broken: str, check: str) -> None:
    with broker_for(empty) as broker:
        broker.enqueue([job("a")])
        assert findings(broker, Level.ERROR, full=True) == []
        run(empty, broken)
        assert [finding.check for finding in findings(broker, Level.ERROR, full=True)] == [check]


def test_trouble_ahead_is_found(empty: PostgresServer) -> None:
    with broker_for(empty) as broker:
        broker.enqueue([job("a")])
        run(empty, "ALTER TABLE mouso.live SET (autovacuum_enabled = off)")
        run(empty, "UPDATE mouso.live SET due = 1, state = 'scheduled'")
        warned = {finding.check: finding.what for finding in findings(broker, Level.WARNING)}
        assert "live" in warned["vacuum"]
        assert "due" in warned["upkeep"]


def test_a_store_that_cannot_be_reached_is_a_finding() -> None:
    with closing(PostgresBroker(BrokerURL.parse("postgresql://me:secret@127.0.0.1:1/x"))) as broker:
        [finding] = findings(broker, Level.ERROR)
        assert finding.check == "connection"
        assert "secret" not in finding.what
        with pytest.raises(BrokerError):
            broker.enqueue([job("a")], timeout=0.2)
