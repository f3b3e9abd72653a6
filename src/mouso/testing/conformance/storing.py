"""Opening a store and putting jobs into it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from msgspec.structs import replace

from mouso.brokers.base import Broker, Enqueued, JobFilter, Update, WorkerInfo
from mouso.errors import CapabilityError
from mouso.job import FINAL, Job, JobState, Progress, UniqueScope
from mouso.testing.clock import FakeClock
from mouso.testing.conformance.kit import (
    FOREVER,
    TASK,
    W1,
    MakeBroker,
    Suite,
    against,
    claim,
    claim_one,
    complete,
    ended_by,
    enqueue,
    everything,
    exchange,
    failure,
    finish,
    ids,
    make_job,
    outcome,
    read,
    release,
    settle,
    state,
    together,
)

VERBS: dict[str, Callable[[Broker], object]] = {
    "enqueue": lambda broker: broker.enqueue([make_job()]),
    "wait": lambda broker: broker.wait(0),
    "interrupt": lambda broker: broker.interrupt(),
    "exchange": lambda broker: exchange(broker, 1),
    "heartbeat": lambda broker: broker.heartbeat(WorkerInfo(id=W1, name="w", host="h", pid=1)),
    "report": lambda broker: broker.report(W1, [Update(1, 1, Progress(1))]),
    "retire": lambda broker: broker.retire(W1),
    "promote": lambda broker: broker.promote(10),
    "reap": lambda broker: broker.reap(10),
    "prune": lambda broker: broker.prune(10, FOREVER),
    "cancel": lambda broker: broker.cancel(["unknown"]),
    "retry": lambda broker: broker.retry(["unknown"]),
    "delete": lambda broker: broker.delete(["unknown"]),
    "pause": lambda broker: broker.pause("mail"),
    "resume": lambda broker: broker.resume("mail"),
    "purge": lambda broker: broker.purge("mail", 10),
    "get": lambda broker: broker.get(["unknown"]),
    "runs": lambda broker: broker.runs("unknown"),
    "ask_stack": lambda broker: broker.ask_stack("unknown"),
    "find": lambda broker: broker.find(JobFilter()),
    "queues": lambda broker: broker.queues(),
    "workers": lambda broker: broker.workers(),
    "watch": lambda broker: broker.watch({"unknown": None}, 0),
    "notices": lambda broker: broker.notices(),
    "migrate": lambda broker: broker.migrate(),
}

PAYLOADS = {
    "empty": b"",
    "NUL": b"\0",
    "NULs inside": b'{"a":"\0\0"}',
    "no UTF-8": b"\xff\xfe\x80",
    "all bytes": bytes(range(256)),
    "quotes": b"'; DROP TABLE jobs; --",
    "1 MiB": b"\xa5" * (1 << 20),
}
IDS = ["0", "-1", "00", "a.b:c_d-e", "A" * 128, "null", "1e3", "--", "a:b", "019a0000-0000-7000-8000-000000000000"]
NAMES = ["größe", "队列", "e\u0301", "a:b", "{a}", "*", "a%b_", "'a'", '"', "null", "0", "🐭", "q" * 255]


class Opening(Suite):
    """``open``, ``close`` and ``migrate``."""

    def test_opening_again_does_nothing(self, broker: Broker) -> None:
        """Calling it again does nothing."""
        broker.open()
        enqueue(broker, "a")
        broker.open()
        assert state(broker, "a") is JobState.AVAILABLE

    @pytest.mark.parametrize("verb", VERBS)
    def test_every_other_verb_opens_by_itself(self, broker: Broker, verb: str) -> None:
        """Every other verb opens by itself."""
        VERBS[verb](broker)

    @pytest.mark.parametrize("verb", VERBS)
    def test_a_verb_after_close_opens_again(self, broker: Broker, verb: str) -> None:
        """Calling it again does nothing. A later verb opens again. Nothing stored is lost."""
        enqueue(broker, "a")
        broker.close()
        broker.close()
        VERBS[verb](broker)
        assert "a" in everything(broker)

    def test_nothing_stored_is_lost_by_closing(self, broker: Broker, make_broker: MakeBroker) -> None:
        """Nothing stored is lost."""
        enqueue(broker, "a", "b")
        complete(broker, "c", result=b"1")
        before = everything(broker)
        broker.close()
        assert everything(make_broker()) == before

    def test_many_open_a_new_store_at_once(self, make_broker: MakeBroker) -> None:
        """Connects, creates an empty store's schema."""
        brokers = [make_broker() for _ in range(4)]
        together(*[broker.open for broker in brokers])
        enqueue(brokers[0], "a")
        assert [state(broker, "a") for broker in brokers] == [JobState.AVAILABLE] * 4

    def test_two_migrations_at_once(self, make_broker: MakeBroker) -> None:
        """Two at once: one does it, the other finds it done."""
        first, second = together(make_broker().migrate, make_broker().migrate)
        assert first[1] == second[1]
        assert [before for before, after in (first, second) if before != after] in ([], [0])
        assert make_broker().migrate() == (first[1], first[1])


class Enqueueing(Suite):
    """``enqueue``, without unique keys."""

    def test_one_result_per_job_in_order(self, broker: Broker) -> None:
        """One ``Enqueued`` per job, in order."""
        enqueue(broker, "b")
        results = broker.enqueue([make_job("c"), make_job("b"), make_job("a")])
        assert results == [Enqueued("c", True), Enqueued("b", False), Enqueued("a", True)]
        assert broker.enqueue([]) == []

    def test_what_is_stored_is_what_was_given(self, broker: Broker, clock: FakeClock) -> None:
        """Stores jobs: everything in a job's first block comes back, and the rest is the broker's."""
        given = Job(
            id="a",
            task="tasks.é",
            payload=b'{"x":1}',
            codec="msgpack",
            queue="mail",
            priority=-100,
            delay=5000,
            ttl=60_000,
            unique="key",
            unique_scope=UniqueScope.QUEUED,
            unique_period=7,
            options=b'{"attempts":3}',
        )
        broker.enqueue([given])
        now = clock.now()
        stored = replace(given, delay=None, ttl=None, due=now + 5000, expires_at=now + 60_000)
        assert read(broker, "a") == replace(stored, state=JobState.SCHEDULED, enqueued_at=now)

    def test_what_the_broker_fills_in_cannot_be_given(self, broker: Broker) -> None:
        """A producer fills the first block, the broker the rest."""
        complete(broker, "a", result=b"1")
        broker.enqueue([replace(read(broker, "a"), id="b", attempts=9, claims=9, parked=True)])
        job = read(broker, "b")
        assert (job.state, job.attempts, job.claims, job.result) == (JobState.AVAILABLE, 0, 0, None)
        assert (job.finished_at, job.worker, job.parked) == (None, None, False)

    def test_delay_and_ttl_count_from_now(self, broker: Broker, clock: FakeClock) -> None:
        """``delay`` and ``ttl`` count from now; ``due`` and ``expires_at`` are taken as they are."""
        now = clock.now()
        enqueue(broker, "counted", delay=2000, ttl=9000)
        enqueue(broker, "absolute", due=now + 2000, expires_at=now + 9000)
        for job in (read(broker, "counted"), read(broker, "absolute")):
            assert (job.due, job.expires_at) == (now + 2000, now + 9000)

    @pytest.mark.parametrize("bad", [0, 1, 999])
    def test_all_are_stored_or_none(self, broker: Broker, bad: int) -> None:
        """All are stored or none."""
        jobs = [make_job(f"j{n}") for n in range(1000)]
        jobs[bad] = replace(jobs[bad], delay="soon")
        with suppress(Exception):
            broker.enqueue(jobs)
        assert len(everything(broker)) in (0, 1000)
        jobs[bad] = make_job(f"j{bad}")
        broker.enqueue(jobs)
        assert len(everything(broker)) == 1000

    def test_nobody_sees_a_part(self, broker: Broker, make_broker: MakeBroker) -> None:
        """All are stored or none."""
        reader, written = make_broker(), threading.Event()
        reader.open()

        def write() -> bool:
            broker.enqueue([make_job(f"j{n}") for n in range(1000)])
            written.set()
            return True

        def look() -> bool:
            last_look = False
            while not last_look:
                last_look = written.is_set()
                found = reader.get(["j0", "j500", "j999"])
                if any(found):
                    return all(found)
            return False

        assert together(write, look) == [True, True]

    @pytest.mark.parametrize(
        ("when", "expected"),
        [
            ({}, JobState.AVAILABLE),
            ({"delay": 0}, JobState.AVAILABLE),
            ({"delay": 1}, JobState.SCHEDULED),
            ({"due": -1}, JobState.AVAILABLE),
            ({"due": 0}, JobState.AVAILABLE),
            ({"due": 1}, JobState.SCHEDULED),
            ({"due": 10**12}, JobState.SCHEDULED),
        ],
        ids=str,
    )
    def test_a_job_due_later_is_scheduled(
        self, broker: Broker, clock: FakeClock, when: dict[str, int], expected: JobState
    ) -> None:
        """A job that is due later is scheduled, any other available."""
        enqueue(broker, "a", **{name: clock.now() + n if name == "due" else n for name, n in when.items()})
        assert state(broker, "a") is expected

    @pytest.mark.parametrize("held_by", sorted(FINAL | {JobState.AVAILABLE, JobState.RUNNING, JobState.SCHEDULED}))
    def test_an_id_that_is_stored_already(self, broker: Broker, held_by: JobState) -> None:
        """An id that is stored already, in any state, changes nothing and is reported as not created."""
        enqueue(broker, "a", payload=b"1")
        if held_by is not JobState.AVAILABLE:
            lease = claim_one(broker)
            if held_by is not JobState.RUNNING:
                settle(broker, outcome(lease, held_by, delay=1000))
        before = everything(broker)
        results = broker.enqueue([make_job("a", payload=b"2", queue="mail", unique="key"), make_job("b")])
        assert results == [Enqueued("a", False), Enqueued("b", True)]
        assert {**before, "b": read(broker, "b")} == everything(broker)
        assert [queue.name for queue in broker.queues()] == ["default"]

    def test_an_id_twice_in_one_call(self, broker: Broker) -> None:
        """An id that is stored already, in any state, changes nothing and is reported as not created."""
        results = broker.enqueue([make_job("a", payload=b"1"), make_job("a", payload=b"2")])
        assert results == [Enqueued("a", True), Enqueued("a", False)]
        assert read(broker, "a").payload == b"1"

    def test_a_thousand_at_once(self, broker: Broker) -> None:
        """0..1,000 jobs: they are stored, claimed, settled, read and repeated a thousand at a time."""
        jobs = [make_job(f"j{n}", payload=str(n).encode()) for n in range(1000)]
        assert all(done.created for done in broker.enqueue(jobs))
        assert not any(done.created for done in broker.enqueue(jobs))
        leases = claim(broker, 1000)
        assert [lease.id for lease in leases] == [job.id for job in jobs]
        assert settle(broker, *[outcome(x, JobState.COMPLETED, result=x.payload) for x in leases]) == []
        found = broker.get([job.id for job in reversed(jobs)])
        assert [job and job.result for job in found] == [job.payload for job in reversed(jobs)]
        assert len(broker.find(JobFilter(limit=1000))) == 1000

    @pytest.mark.parametrize("payload", PAYLOADS)
    def test_bytes_stay_as_they_are(self, broker: Broker, payload: str) -> None:
        """Encoded arguments, options and results are bytes that no broker looks into."""
        data = PAYLOADS[payload]
        enqueue(broker, "a", payload=data, options=data)
        lease = claim_one(broker)
        assert (lease.payload, lease.options) == (data, data)
        settle(broker, outcome(lease, JobState.COMPLETED, result=data))
        job = read(broker, "a")
        assert (job.payload, job.options, job.result) == (data, data, data)

    def test_odd_ids_are_different_jobs(self, broker: Broker) -> None:
        """``A-Z a-z 0-9 _ . : -``: case and leading zeros count."""
        odd = [*IDS, "a", "A"]
        enqueue(broker, *odd)
        assert [lease.id for lease in claim(broker, 100)] == odd
        assert [state(broker, id) for id in odd] == [JobState.RUNNING] * len(odd)

    @pytest.mark.parametrize("name", NAMES)
    def test_odd_names(self, broker: Broker, name: str) -> None:
        """A name is 1..255 printable characters: of a queue, a task, a unique key."""
        enqueue(broker, "a", queue=name, task=name, unique=name)
        enqueue(broker, "b", queue="other")
        assert broker.enqueue([make_job(unique=name)]) == [Enqueued("a", False)]
        assert name in [queue.name for queue in broker.queues()]
        assert [job.id for job in broker.find(JobFilter(queue=name, task=name))] == ["a"]
        broker.pause(name)
        assert claim(broker, shares=[(name, 1)], tasks=frozenset({name})) == []
        broker.resume(name)
        lease = claim_one(broker, shares=[(name, 1)], tasks=frozenset({name}))
        assert (lease.id, lease.queue, lease.task) == ("a", name, name)


def _add(broker: Broker, id: str, scope: UniqueScope, period: int = 60_000) -> Enqueued:
    [done] = broker.enqueue([make_job(id, unique="key", unique_scope=scope, unique_period=period)])
    return done


class UniqueKeys(Suite):
    """``enqueue``, with unique keys."""

    @pytest.mark.parametrize("scope", UniqueScope)
    def test_a_held_key_reports_its_holder(self, broker: Broker, scope: UniqueScope) -> None:
        """A unique key that is held changes nothing and reports its holder."""
        assert _add(broker, "a", scope) == Enqueued("a", True)
        before = everything(broker)
        for newcomer in UniqueScope:
            assert _add(broker, "b", newcomer) == Enqueued("a", False)
        assert everything(broker) == before
        enqueue(broker, "c", unique="another")

    def test_a_key_twice_in_one_call(self, broker: Broker) -> None:
        """A unique key that is held changes nothing and reports its holder."""
        results = broker.enqueue([make_job("a", unique="key"), make_job("b", unique="key"), make_job("c")])
        assert results == [Enqueued("a", True), Enqueued("a", False), Enqueued("c", True)]

    def test_queued_ends_with_the_first_claim(self, broker: Broker) -> None:
        """One of scope ``queued`` is held until the job is first claimed."""
        _add(broker, "a", UniqueScope.QUEUED)
        lease = claim_one(broker)
        assert _add(broker, "b", UniqueScope.QUEUED) == Enqueued("b", True)
        settle(broker, release(lease))
        assert _add(broker, "c", UniqueScope.QUEUED) == Enqueued("b", False)

    @pytest.mark.parametrize("end", [JobState.CANCELLED, JobState.EXPIRED])
    def test_queued_ends_without_a_claim(self, broker: Broker, clock: FakeClock, end: JobState) -> None:
        """One of scope ``queued`` is held until the job is first claimed."""
        broker.enqueue([make_job("a", unique="key", unique_scope=UniqueScope.QUEUED, ttl=1000)])
        if end is JobState.CANCELLED:
            broker.cancel(["a"])
        clock.advance(2)
        broker.promote(10)
        assert state(broker, "a") is end
        assert _add(broker, "b", UniqueScope.QUEUED) == Enqueued("b", True)

    @pytest.mark.parametrize("end", sorted(FINAL))
    def test_live_ends_with_the_job(self, broker: Broker, clock: FakeClock, end: JobState) -> None:
        """One of scope ``live`` until it is final."""
        _add(broker, "a", UniqueScope.LIVE)
        lease = claim_one(broker)
        assert _add(broker, "b", UniqueScope.LIVE) == Enqueued("a", False)
        settle(broker, outcome(lease, JobState.RETRYABLE, delay=1000))
        assert _add(broker, "b", UniqueScope.LIVE) == Enqueued("a", False)
        clock.advance(2)
        broker.promote(10)
        finish(broker, end, "a")
        assert _add(broker, "b", UniqueScope.LIVE) == Enqueued("b", True)

    def test_period_lasts_as_long_as_it_says(self, broker: Broker, clock: FakeClock) -> None:
        """One of scope ``period`` for that long from its enqueue."""
        _add(broker, "a", UniqueScope.PERIOD)
        finish(broker, JobState.COMPLETED, "a")
        clock.advance(59.9)
        assert _add(broker, "b", UniqueScope.PERIOD) == Enqueued("a", False)
        clock.advance(0.2)
        assert _add(broker, "b", UniqueScope.PERIOD) == Enqueued("b", True)

    def test_period_outlives_its_job(self, broker: Broker, clock: FakeClock) -> None:
        """One of scope ``period`` for that long from its enqueue, whatever becomes of the finished job meanwhile."""
        _add(broker, "a", UniqueScope.PERIOD)
        finish(broker, JobState.COMPLETED, "a", keep=1000)
        clock.advance(30)
        assert broker.prune(10, FOREVER) == 1
        assert _add(broker, "b", UniqueScope.PERIOD) == Enqueued("a", False)

    def test_period_ends_while_its_job_is_still_there(self, broker: Broker, clock: FakeClock) -> None:
        """One of scope ``period`` for that long from its enqueue."""
        _add(broker, "a", UniqueScope.PERIOD, period=1000)
        clock.advance(2)
        assert _add(broker, "b", UniqueScope.PERIOD) == Enqueued("b", True)

    @pytest.mark.parametrize("scope", UniqueScope)
    def test_a_deleted_job_holds_no_key(self, broker: Broker, scope: UniqueScope) -> None:
        """Removes jobs and all that is kept of them."""
        _add(broker, "a", scope)
        broker.delete(["a"])
        assert _add(broker, "b", scope) == Enqueued("b", True)

    @pytest.mark.parametrize("scope", UniqueScope)
    def test_one_of_many_gets_the_key(self, broker: Broker, make_broker: MakeBroker, scope: UniqueScope) -> None:
        """A unique key that is held changes nothing and reports its holder."""
        brokers = [broker, make_broker()] * 3
        results = together(*[lambda b=b, n=n: _add(b, f"j{n}", scope) for n, b in enumerate(brokers)])
        [winner] = [done.id for done in results if done.created]
        assert {done.id for done in results} == {winner}
        assert list(everything(broker)) == [winner]


def _wait_past_expiry(broker: Broker, clock: FakeClock, origin: str, **fields: Any) -> None:
    """Stores the job "a", which holds a key and waits past its expiry; nobody has expired it yet."""
    task = "nobody's" if origin is PARKED else TASK
    delay = 500_000 if origin is JobState.SCHEDULED else 0
    enqueue(broker, "a", unique="key", task=task, ttl=1000, delay=delay, **fields)
    if origin is PARKED:
        claim(broker, tasks=frozenset({TASK}))
        assert read(broker, "a").parked
    if origin is JobState.RETRYABLE:
        settle(broker, failure(claim_one(broker), delay=500_000))
    clock.advance(2)
    assert state(broker, "a") == (JobState.AVAILABLE if origin is PARKED else origin)


PARKED = "parked"
PAST_EXPIRY = [
    (UniqueScope.LIVE, JobState.AVAILABLE),
    (UniqueScope.LIVE, JobState.SCHEDULED),
    (UniqueScope.LIVE, JobState.RETRYABLE),
    (UniqueScope.LIVE, PARKED),
    (UniqueScope.QUEUED, JobState.AVAILABLE),
    (UniqueScope.QUEUED, JobState.SCHEDULED),
    (UniqueScope.QUEUED, PARKED),
]
"""Each scope that ends with its job, with each state in which a job waits and holds a key of it."""


class KeysPastExpiry(Suite):
    """Who holds a unique key when its job was not started in time."""

    @pytest.mark.parametrize(("scope", "origin"), PAST_EXPIRY)
    def test_a_waiting_job_holds_no_key(
        self, broker: Broker, clock: FakeClock, scope: UniqueScope, origin: str
    ) -> None:
        """A job that waits past its expiry holds no key of scope ``queued`` or ``live``: it expires in the same step
        in which another takes it."""
        _wait_past_expiry(broker, clock, origin, unique_scope=scope)
        before = read(broker, "a")
        assert _add(broker, "b", scope) == Enqueued("b", True)
        expired = {"state": JobState.EXPIRED, "reason": "expired", "finished_at": clock.now(), "due": None}
        assert read(broker, "a") == replace(before, parked=False, **expired)
        assert [queue.counts for queue in broker.queues()] == [{JobState.EXPIRED: 1, JobState.AVAILABLE: 1}]
        assert broker.promote(10) == 0
        assert _add(broker, "c", scope) == Enqueued("b", False)
        assert ids(claim(broker, 10)) == ["b"]

    @pytest.mark.parametrize("newcomer", UniqueScope)
    def test_it_gives_way_to_every_scope(self, broker: Broker, clock: FakeClock, newcomer: UniqueScope) -> None:
        """It expires in the same step in which another takes it, for whatever time."""
        _wait_past_expiry(broker, clock, JobState.AVAILABLE)
        assert _add(broker, "b", newcomer) == Enqueued("b", True)
        assert _add(broker, "c", UniqueScope.LIVE) == Enqueued("b", False)
        assert state(broker, "a") is JobState.EXPIRED

    @pytest.mark.parametrize("scope", UniqueScope)
    def test_a_period_lasts(self, broker: Broker, clock: FakeClock, scope: UniqueScope) -> None:
        """One of scope ``period`` for that long from its enqueue, whether or not its job was started in time."""
        _wait_past_expiry(broker, clock, JobState.AVAILABLE, unique_scope=UniqueScope.PERIOD, unique_period=3000)
        before = everything(broker)
        assert _add(broker, "b", scope) == Enqueued("a", False)
        assert everything(broker) == before
        clock.advance(2)
        assert _add(broker, "b", scope) == Enqueued("b", True)

    def test_a_running_job_keeps_it(self, broker: Broker, clock: FakeClock) -> None:
        """One that runs keeps it."""
        enqueue(broker, "a", unique="key", ttl=1000)
        lease = claim_one(broker)
        clock.advance(2)
        before = everything(broker)
        assert _add(broker, "b", UniqueScope.LIVE) == Enqueued("a", False)
        assert everything(broker) == before
        assert settle(broker, release(lease)) == []
        assert _add(broker, "b", UniqueScope.LIVE) == Enqueued("b", True)
        assert state(broker, "a") is JobState.EXPIRED

    def test_the_last_moment(self, broker: Broker, clock: FakeClock) -> None:
        """A job that waits past its expiry holds no key; until then it does."""
        enqueue(broker, "a", unique="key", ttl=1000)
        clock.advance(0.999)
        assert _add(broker, "b", UniqueScope.LIVE) == Enqueued("a", False)
        clock.advance(0.001)
        assert _add(broker, "b", UniqueScope.LIVE) == Enqueued("b", True)

    def test_several_in_one_call(self, broker: Broker, clock: FakeClock) -> None:
        """It expires in the same step in which another takes it, even if both came in one call."""
        _wait_past_expiry(broker, clock, JobState.AVAILABLE)
        late = [make_job(id, unique="key", ttl=0) for id in "bc"]
        given = [*late, make_job("d", unique="key"), make_job("e", unique="key"), make_job("f")]
        stored = broker.enqueue(given)
        assert stored == [*(Enqueued(id, True) for id in "bcd"), Enqueued("d", False), Enqueued("f", True)]
        assert [state(broker, id) for id in "abc"] == [JobState.EXPIRED] * 3
        assert ids(claim(broker, 10)) == ["d", "f"]

    def test_an_id_that_is_there_takes_no_key(self, broker: Broker, clock: FakeClock) -> None:
        """An id that is stored already, in any state, changes nothing."""
        _wait_past_expiry(broker, clock, JobState.AVAILABLE)
        enqueue(broker, "b")
        before = everything(broker)
        for id in "ab":
            assert broker.enqueue([make_job(id, unique="key")]) == [Enqueued(id, False)]
        assert everything(broker) == before

    def test_waiting_callers_hear_of_it(self, broker: Broker, make_broker: MakeBroker, clock: FakeClock) -> None:
        """No final state is missed: it expires in the same step."""
        _wait_past_expiry(broker, clock, JobState.AVAILABLE)
        other = make_broker()
        [seen] = other.watch({"a": None}, 0)
        [news] = ended_by(lambda: other.watch({"a": seen}, 8.0), lambda: _add(broker, "b", UniqueScope.LIVE))
        assert news.state is JobState.EXPIRED
        other.close()

    def test_one_of_many_takes_it(self, broker: Broker, make_broker: MakeBroker, clock: FakeClock) -> None:
        """It expires in the same step in which another takes it, once, whoever else is at it."""
        _wait_past_expiry(broker, clock, JobState.AVAILABLE)
        brokers = [broker, make_broker()] * 3
        adds = [lambda b=b, n=n: _add(b, f"j{n}", UniqueScope.LIVE) for n, b in enumerate(brokers)]
        results, _ = against(lambda: together(*adds), lambda: broker.promote(10))
        [winner] = [done.id for done in results if done.created]
        assert {done.id for done in results} == {winner}
        assert {id: job.state for id, job in everything(broker).items()} == {
            winner: JobState.AVAILABLE,
            "a": JobState.EXPIRED,
        }
        assert [queue.counts for queue in broker.queues()] == [{JobState.EXPIRED: 1, JobState.AVAILABLE: 1}]


class Transactions(Suite):
    """``enqueue`` with the caller's connection."""

    def test_a_wrong_connection_is_refused(self, broker: Broker) -> None:
        """``connection`` is of the wrong kind or the broker takes none."""
        with pytest.raises(CapabilityError):
            broker.enqueue([make_job("a")], connection=object())
        assert state(broker, "a") is None

    @pytest.fixture
    def connection(self, request: pytest.FixtureRequest, broker: Broker) -> Iterator[Any]:
        if not broker.capabilities.transactional:
            pytest.skip(f"{broker.capabilities.name} joins no transaction")
        broker.open()
        connection = request.getfixturevalue("make_connection")()
        yield connection
        connection.close()

    def test_jobs_exist_if_the_caller_commits(self, broker: Broker, connection: Any) -> None:
        """With ``connection`` the jobs exist if and only if the caller commits; from then on a claim finds them,
        whether or not anything has rung."""
        job = make_job("a", unique="key", task=TASK)
        assert broker.enqueue([job], connection=connection) == [Enqueued("a", True)]
        assert state(broker, "a") is None
        connection.commit()
        assert claim_one(broker).id == "a"

    def test_jobs_do_not_exist_if_the_caller_rolls_back(self, broker: Broker, connection: Any) -> None:
        """With ``connection`` the jobs exist if and only if the caller commits."""
        broker.enqueue([make_job("a", unique="key"), make_job("b", queue="mail")], connection=connection)
        connection.rollback()
        assert everything(broker) == {}
        assert broker.enqueue([make_job("c", unique="key")]) == [Enqueued("c", True)]
        assert [queue.name for queue in broker.queues()] == ["default"]

    def test_a_key_past_its_expiry_is_taken_if_the_caller_commits(
        self, broker: Broker, clock: FakeClock, connection: Any
    ) -> None:
        """With ``connection`` the jobs exist if and only if the caller commits; so long the others are as they were."""
        _wait_past_expiry(broker, clock, JobState.AVAILABLE)
        before = everything(broker)
        for end in (connection.rollback, connection.commit):
            assert broker.enqueue([make_job("b", unique="key")], connection=connection) == [Enqueued("b", True)]
            assert everything(broker) == before
            end()
        assert {id: job.state for id, job in everything(broker).items()} == {
            "b": JobState.AVAILABLE,
            "a": JobState.EXPIRED,
        }

    def test_a_queue_is_known_after_a_rollback(self, broker: Broker, connection: Any) -> None:
        """With ``connection`` the jobs exist if and only if the caller commits."""
        broker.enqueue([make_job("a", queue="mail")], connection=connection)
        connection.rollback()
        enqueue(broker, "b", queue="mail")
        assert [queue.name for queue in broker.queues()] == ["mail"]
