"""How a PostgreSQL store stays small and fast: days are dropped as a whole, and dead rows are not stepped over."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from mouso.brokers.base import Retention, Want
from mouso.brokers.postgres import PostgresBroker
from mouso.brokers.postgres.floors import Floors
from mouso.clock import SYSTEM
from mouso.job import Charge, Job, JobState, Lease, Outcome
from mouso.urls import BrokerURL
from tests.servers.postgres import PostgresServer

WORKER = "1" * 16
DAY = 86_400_000
PROMPT = Retention(finished=0, dead=0)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def broker(server: PostgresServer) -> Iterator[PostgresBroker]:
    with server.client() as client:
        client.execute("DROP SCHEMA IF EXISTS mouso CASCADE")
    with closing(PostgresBroker(BrokerURL.parse(server.url))) as broker:
        broker.open()
        yield broker


def job_id(days_ago: int, n: int) -> str:
    """A UUIDv7 of a day in the past."""
    at = SYSTEM.now() - days_ago * DAY
    return f"{at >> 16:08x}-{at & 0xFFFF:04x}-7000-8000-{n:012x}"


def finish(broker: PostgresBroker, ids: list[str], state: JobState, **fields: Any) -> None:
    broker.enqueue([Job(id=id, task="work", queue="mail") for id in ids])
    leases = broker.exchange(WORKER, [], Want(limit=len(ids))).leases
    ends = [Outcome(x.key, x.token, x.id, x.task, x.queue, state, **fields) for x in leases]
    assert broker.exchange(WORKER, ends, Want(limit=0)).fenced == []


def rows(server: PostgresServer, sql: str) -> list[Any]:
    with server.client() as client:
        return client.execute(sql).fetchall()


def turn(server: PostgresServer, broker: PostgresBroker, retention: Retention) -> int:
    """Prunes as a minute later."""
    rows(server, "UPDATE mouso.meta SET value = 0 WHERE key = 'turned' RETURNING 1")
    return broker.prune(1000, retention)


def test_the_next_days_are_made_ahead(server: PostgresServer, broker: PostgresBroker) -> None:
    today = SYSTEM.now() // DAY
    assert rows(server, "SELECT * FROM mouso.days()") == [(today,), (today + 1,)]
    turn(server, broker, Retention())
    assert rows(server, "SELECT * FROM mouso.days()") == [(today + n,) for n in range(4)]


def test_a_day_gets_what_came_before_its_partition(server: PostgresServer, broker: PostgresBroker) -> None:
    ids = [job_id(-3, n) for n in range(5)]
    finish(broker, ids[:4], JobState.COMPLETED)
    broker.enqueue([Job(id=ids[4], task="work")])
    assert rows(server, "SELECT count(*) FROM mouso.jobs_default") == [(5,)]
    turn(server, broker, Retention())
    assert rows(server, "SELECT count(*) FROM mouso.jobs_default") == [(0,)]
    assert [job and job.state for job in broker.get(ids)] == [JobState.COMPLETED] * 4 + [JobState.AVAILABLE]
    assert not any(done.created for done in broker.enqueue([Job(id=id, task="work") for id in ids]))


@pytest.mark.parametrize("rule", ["age", "number"])
def test_a_large_day_is_dropped_but_for_what_is_wanted(
    server: PostgresServer, broker: PostgresBroker, rule: str
) -> None:
    """Live jobs, dead ones and those with a time of their own outlive their day."""
    rows(server, "UPDATE mouso.meta SET value = 0 WHERE key = 'large_day' RETURNING 1")
    rows(server, f"SELECT mouso.add_day({SYSTEM.now() // DAY - 2})")
    done, dead, kept, waiting = (
        [job_id(2, first + n) for n in range(many)] for first, many in ((0, 900), (1000, 3), (2000, 2), (3000, 4))
    )
    finish(broker, done, JobState.COMPLETED)
    finish(broker, dead, JobState.DEAD, reason="attempts", charge=Charge.ATTEMPT)
    if rule == "age":
        finish(broker, kept, JobState.COMPLETED, keep=DAY)
    broker.enqueue([Job(id=id, task="work", delay=DAY) for id in waiting])
    retention = Retention(finished=0) if rule == "age" else Retention(max_finished=0)
    assert turn(server, broker, retention) == 900
    assert (SYSTEM.now() // DAY - 2,) not in rows(server, "SELECT * FROM mouso.days()")
    assert broker.get(done) == [None] * 900
    assert [job and job.state for job in broker.get([*dead, *waiting])] == [JobState.DEAD] * 3 + [
        JobState.SCHEDULED
    ] * 4
    if rule == "age":
        assert [job and job.state for job in broker.get(kept)] == [JobState.COMPLETED] * 2
    [queue] = [queue for queue in broker.queues() if queue.name == "mail"]
    assert queue.counts == {JobState.DEAD: 3} | ({JobState.COMPLETED: 2} if rule == "age" else {})
    assert all(done.created for done in broker.enqueue([Job(id=done[0], task="work")]))
    assert broker.retry(dead) == ["retried"] * 3
    assert len(broker.exchange(WORKER, [], Want(limit=10)).leases) == 4


def test_a_day_of_which_much_is_wanted_stays(server: PostgresServer, broker: PostgresBroker) -> None:
    rows(server, "UPDATE mouso.meta SET value = 0 WHERE key = 'large_day' RETURNING 1")
    day = SYSTEM.now() // DAY - 2
    rows(server, f"SELECT mouso.add_day({day})")
    finish(broker, [job_id(2, n) for n in range(50)], JobState.COMPLETED)
    assert rows(server, f"SELECT mouso.drop_day({day}, mouso.now(), 49, {DAY}, 0, 0, 0)") == [(0,)]
    assert rows(server, f"SELECT mouso.drop_day({day}, mouso.now(), 50, {DAY}, 0, 0, 0)") == [(0,)]
    assert (day,) not in rows(server, "SELECT * FROM mouso.days()")
    assert rows(server, "SELECT count(*) FROM mouso.history_default") == [(50,)]


def test_a_small_day_is_emptied_job_by_job(server: PostgresServer, broker: PostgresBroker) -> None:
    day = SYSTEM.now() // DAY - 3
    rows(server, f"SELECT mouso.add_day({day})")
    finish(broker, [job_id(3, n) for n in range(30)], JobState.COMPLETED)
    assert broker.prune(20, PROMPT) == 20
    assert broker.prune(20, PROMPT) == 10
    assert turn(server, broker, PROMPT) == 0
    assert (day,) not in rows(server, "SELECT * FROM mouso.days()")


def test_a_reader_does_not_let_days_turn_and_nobody_waits_for_long(
    server: PostgresServer, broker: PostgresBroker
) -> None:
    """A transaction that has looked at the tables holds them; the next turn makes it good."""
    with server.client(autocommit=False) as reader:
        reader.execute("SELECT count(*) FROM mouso.jobs")
        assert turn(server, broker, Retention()) == 0
        assert len(rows(server, "SELECT * FROM mouso.days()")) == 2
        broker.enqueue([Job(id="a", task="work")])
    turn(server, broker, Retention())
    assert len(rows(server, "SELECT * FROM mouso.days()")) == 4


def test_a_claim_goes_on_where_the_last_one_began_while_dead_rows_slow_it(
    server: PostgresServer, broker: PostgresBroker
) -> None:
    """What came back elsewhere waits for a moment, unless there is too little else; what came back here does not."""
    broker.enqueue([Job(id=f"j{n}", task="work") for n in range(20)])
    with closing(PostgresBroker(BrokerURL.parse(server.url))) as other:
        other.exchange("2" * 16, [], Want(limit=2))
        leases = broker.exchange(WORKER, [], Want(limit=3)).leases
        broker._floors.claimed(leases, slow=["default"])
        assert other.retire("2" * 16) == 2
        assert [lease.id for lease in broker.exchange(WORKER, [], Want(limit=2)).leases] == ["j5", "j6"]
        broker.enqueue([Job(id="urgent", task="work", priority=9)])
        found = [lease.id for lease in broker.exchange(WORKER, [], Want(limit=2)).leases]
        assert found == ["urgent", "j7"]
        found = [lease.id for lease in broker.exchange(WORKER, [], Want(limit=14)).leases]
        assert sorted(found) == sorted(["j0", "j1", *(f"j{n}" for n in range(8, 20))])
    assert broker.retire(WORKER) == 21
    assert [lease.id for lease in broker.exchange(WORKER, [], Want(limit=3)).leases] == ["urgent", "j0", "j1"]


def test_floors_leave_no_lower_priority_behind() -> None:
    def lease(key: int, priority: int, queue: str = "a") -> Lease:
        return Lease(key, 1, str(key), "work", queue, b"{}", "json", 0, 0, 0, 0, None, None, priority)

    floors = Floors()
    floors.claimed([lease(5, 0), lease(6, 0), lease(7, 0, "b")], slow=["a"])
    assert floors.current() == {"a": 5}, "the other queue was not slow"
    floors.claimed([lease(9, 3)], slow=[])
    assert floors.current() == {"a": 5}, "a higher one says nothing of those below"
    floors.claimed([lease(10, 3), lease(8, 0)], slow=[])
    assert floors.current() == {"a": 8}
    floors.claimed([lease(20, -1)], slow=[])
    assert floors.current() == {}, "a job between may be lower still"


def test_a_slow_claim_of_several_priorities_has_no_floor(server: PostgresServer, broker: PostgresBroker) -> None:
    """What is slow is for the server to say: here, everything."""
    [(source,)] = rows(server, "SELECT pg_get_functiondef('mouso.exchange'::regproc)")
    assert "'5 milliseconds'" in source
    with server.client() as client:
        client.execute(source.replace("'5 milliseconds'", "'0'"))
    broker.enqueue([Job(id=f"{n}", task="work", priority=n % 3, queue="mixed") for n in range(9)])
    broker.enqueue([Job(id=f"one-{n}", task="work", priority=7, queue="uniform") for n in range(9)])
    found = [broker.exchange(WORKER, [], Want(limit=1, shares=[("mixed", 1)])).leases[0].id for _ in range(9)]
    assert found == ["2", "5", "8", "1", "4", "7", "0", "3", "6"]
    broker.exchange(WORKER, [], Want(limit=2, shares=[("uniform", 2)]))
    assert list(broker._floors.current()) == ["uniform"]
