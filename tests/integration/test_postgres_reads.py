"""How much PostgreSQL reads for a verb does not grow with the jobs that wait."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from mouso.brokers.base import Want, WorkerInfo
from mouso.brokers.postgres import PostgresBroker
from mouso.job import Job, new_id
from mouso.urls import BrokerURL
from tests.servers.postgres import PostgresServer

WORKER = "1" * 16
WAITING, CLAIMED = 20_000, 100


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer(track_functions="all", autovacuum="off") as server:
        yield server


@pytest.fixture(params=["new", "analyzed"])
def broker(server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[PostgresBroker]:
    """One whose server knows nothing of its tables yet, or what is in them."""
    with closing(PostgresBroker(BrokerURL.parse(server.url))) as broker:
        for start in range(0, WAITING, 1000):
            queues = ("a", "b", "c")
            broker.enqueue([Job(id=new_id(), task="work", queue=queues[n % 3]) for n in range(start, start + 1000)])
        broker.heartbeat(WorkerInfo(id=WORKER, name="w", host="h", pid=1))
        if request.param == "analyzed":
            with server.client() as client:
                client.execute("VACUUM ANALYZE")
        yield broker


def read(server: PostgresServer) -> tuple[int, int]:
    """Rows of live jobs that were read so far, and calls of the function that locks claims."""
    with server.client() as client:
        client.execute("SELECT pg_stat_force_next_flush()")
        rows = client.execute(
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'live'"
        ).fetchone()
        calls = client.execute(
            "SELECT coalesce(sum(calls), 0)::int FROM pg_stat_user_functions WHERE funcname = 'lock_claims'"
        ).fetchone()
    assert rows is not None
    assert calls is not None
    return int(rows[0]), int(calls[0])


def flush(broker: PostgresBroker) -> None:
    """Makes its process of the server tell what it has read, which it does once a second at most."""
    broker._query("SELECT pg_stat_force_next_flush()")
    broker._query("SELECT 1")


def test_claiming(server: PostgresServer, broker: PostgresBroker) -> None:
    flush(broker)
    before = read(server)[0]
    leases = broker.exchange(WORKER, [], Want(limit=CLAIMED)).leases
    flush(broker)
    assert len(leases) == CLAIMED
    assert read(server)[0] - before < 20 * CLAIMED


def test_comparing_what_a_worker_holds(server: PostgresServer, broker: PostgresBroker) -> None:
    leases = broker.exchange(WORKER, [], Want(limit=CLAIMED)).leases
    flush(broker)
    before = read(server)
    assert broker.reconcile(WORKER, [(lease.key, lease.token) for lease in leases[1:]]) == []
    flush(broker)
    rows, calls = (now - then for now, then in zip(read(server), before, strict=True))
    assert calls == 1
    assert rows < 20 * CLAIMED
