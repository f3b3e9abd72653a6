"""Random histories: whatever is done to a broker, it shows the same as the memory broker, its specification.

Both brokers live by one fake clock. Each rule does one thing to both and compares what they return; after each
rule everything that can be seen of them is compared. Where the contract leaves a broker free (which of several
queues a worker without shares is served from first, which jobs a small limit hits), the rules stay out of the way.
"""

import operator
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace

from mouso.brokers import Broker, connect
from mouso.brokers.base import Command, JobFilter, JobUpdate, Retention, Update, Want, WorkerInfo
from mouso.brokers.memory import MemoryBroker
from mouso.brokers.postgres import PostgresBroker
from mouso.brokers.redis import RedisBroker
from mouso.brokers.sqlite import SQLiteBroker
from mouso.errors import ErrorInfo
from mouso.job import (
    TRANSITIONS,
    Charge,
    Job,
    JobState,
    Lease,
    LogLine,
    Outcome,
    Progress,
    UniqueScope,
    encode_log,
)
from mouso.testing.clock import FakeClock
from mouso.urls import BrokerURL
from tests.servers.postgres import PostgresServer
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.server import Server

IDS = [f"j{n}" for n in range(8)]
QUEUES = ["mail", "default", "news"]
TASKS = {"1" * 16: ("send", "add"), "2" * 16: ("add", "odd")}
"""Workers and what they know; nobody knows the task "strange"."""
SCOPES = {"queued": UniqueScope.QUEUED, "live": UniqueScope.LIVE, "period": UniqueScope.PERIOD}
"""A key is always used with the scope of its name: with two scopes a key can have two holders."""
PLENTY = 1000
DELAYS = [0, 1, 700, 5000, 30_000]

workers = st.sampled_from(sorted(TASKS))
queues = st.sampled_from(QUEUES)
some_ids = st.lists(st.sampled_from([*IDS, "unknown"]), max_size=3)
delays = st.none() | st.sampled_from(DELAYS)
texts = st.sampled_from(["", "why", "nö\0"])
errors = st.none() | st.builds(ErrorInfo, type=st.just("ValueError"), message=texts, attempt=st.integers(1, 3))


@st.composite
def new_jobs(draw: st.DrawFn) -> dict[str, Any]:
    """The fields of a new job; ``due`` and ``expires_at`` count from now."""
    unique = draw(st.none() | st.sampled_from(sorted(SCOPES)))
    return {
        "id": draw(st.sampled_from(IDS)),
        "task": draw(st.sampled_from(["send", "add", "odd", "strange"])),
        "queue": draw(queues),
        "priority": draw(st.sampled_from([0, 0, -1, 100])),
        "payload": draw(st.sampled_from([b"{}", b"\0"])),
        "options": draw(st.sampled_from([None, b"{}"])),
        "unique": unique,
        "unique_scope": SCOPES.get(unique or "", UniqueScope.LIVE),
        "unique_period": 4000 if unique == "period" else 0,
        draw(st.sampled_from(["delay", "due"])): draw(delays),
        draw(st.sampled_from(["ttl", "expires_at"])): draw(delays),
    }


logs = st.sampled_from([None, encode_log([LogLine(1, "INFO", "nö\0")], 0), encode_log([LogLine(2, "ERROR", "e")], 7)])
runs = st.fixed_dictionaries({"run_seconds": st.sampled_from([0.0, 0.25]), "log": logs}) | st.fixed_dictionaries(
    {
        "run_seconds": st.sampled_from([0.0, 0.25]),
        "started_at": st.just(1_700_000_000_000),
        "cpu_seconds": st.sampled_from([None, 0.5]),
        "peak_memory": st.sampled_from([None, 1 << 40]),
        "pid": st.sampled_from([None, 4711]),
        "log": logs,
    }
)
"""What an outcome tells of the run: less if it did not start."""
completions = st.fixed_dictionaries(
    {
        "state": st.just(JobState.COMPLETED),
        "keep": st.sampled_from([None, 500, 50_000]),
        "result": st.sampled_from([None, b"1"]),
    }
)
others = st.fixed_dictionaries(
    {
        "state": st.sampled_from(sorted(set(TRANSITIONS[JobState.RUNNING]) - {JobState.COMPLETED})),
        "charge": st.sampled_from(Charge),
        "delay": st.sampled_from(DELAYS),
        "reason": texts,
        "error": errors,
    }
)
ends = st.builds(operator.or_, completions | others, runs)
settled = st.dictionaries(st.integers(0, 7), ends, max_size=3)
"""What becomes of which of the last claims, counted from the youngest; most of the older ones no longer hold."""
shares = st.lists(st.tuples(queues, st.integers(0, 3)), max_size=3, unique_by=lambda share: share[0])


class Side:
    """One of the two brokers, with its own keys of the same claims."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.claims: list[Lease] = []

    def claim(self, back: int) -> Lease:
        """The claim so many claims ago."""
        return self.claims[-1 - back % len(self.claims)]

    def name(self, key: int | str) -> str:
        """The id of the job with this key."""
        return next(lease.id for lease in reversed(self.claims) if lease.key == key)


class History(RuleBasedStateMachine):
    """One history of a broker and its specification.

    Attributes:
        least_jump: Seconds. A server that many hosts use takes what is less for the drift of their clocks.
    """

    least_jump = 0

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.folder = tempfile.TemporaryDirectory()
        self.spec = Side(MemoryBroker(clock=self.clock))
        self.real = Side(self.make(Path(self.folder.name)))
        self.seen: dict[str, JobUpdate | None] = dict.fromkeys([*IDS, "unknown"])

    @classmethod
    def serve(cls, folder: Path) -> AbstractContextManager[object]:
        """What has to run for all histories, with its files in an empty folder."""
        return nullcontext()

    def make(self, folder: Path) -> Broker:
        """The broker to compare, with its store, which is empty, in an empty folder if it is one of files."""
        raise NotImplementedError

    def teardown(self) -> None:
        self.real.broker.close()
        self.folder.cleanup()

    def both(self, verb: Callable[[Side], Any]) -> Any:
        """What both brokers return, which has to be the same."""
        expected, found = verb(self.spec), verb(self.real)
        assert found == expected
        return expected

    # -- producers and workers ---------------------------------------------------------------------------------

    @rule(jobs=st.lists(new_jobs(), min_size=1, max_size=3))
    def enqueue(self, jobs: Sequence[dict[str, Any]]) -> None:
        now = self.clock.now()
        absolute = [
            Job(**job | {name: now + job[name] for name in ("due", "expires_at") if job.get(name) is not None})
            for job in jobs
        ]
        self.both(lambda side: side.broker.enqueue(absolute))

    @rule(worker=workers, ends=settled, limit=st.integers(0, 4), shares=shares)
    def exchange_shares(
        self, worker: str, ends: dict[int, dict[str, Any]], limit: int, shares: list[tuple[str, int]]
    ) -> None:
        self.exchange(worker, ends, Want(limit=limit, shares=shares))

    @rule(worker=workers, ends=settled, shares=shares)
    def exchange_known_tasks(self, worker: str, ends: dict[int, dict[str, Any]], shares: list[tuple[str, int]]) -> None:
        self.exchange(worker, ends, Want(limit=PLENTY, shares=shares, tasks=frozenset(TASKS[worker])))

    @rule(worker=workers, ends=settled)
    def exchange_everything(self, worker: str, ends: dict[int, dict[str, Any]]) -> None:
        self.exchange(worker, ends, Want(limit=PLENTY))

    def exchange(self, worker: str, ends: dict[int, dict[str, Any]], want: Want) -> None:
        if all(known.id != worker for known in self.spec.broker.workers()):
            self.heartbeat(worker)

        def verb(side: Side) -> Any:
            leases = {side.claim(back).key: (side.claim(back), end) for back, end in ends.items() if side.claims}
            done = side.broker.exchange(worker, [_outcome(*pair) for pair in leases.values()], want)
            fenced = sorted(side.name(key) for key in done.fenced)
            side.claims += _in_order(done.leases, want)
            claimed = [replace(lease, key=0) for lease in _in_order(done.leases, want)]
            return claimed, fenced, done.parked, done.next_due

        self.both(verb)

    @rule(worker=workers)
    def heartbeat(self, worker: str) -> None:
        info = WorkerInfo(id=worker, name="w", host="h", pid=1, tasks=TASKS[worker], started_at=int(worker[0]))

        def verb(side: Side) -> list[Command]:
            commands = side.broker.heartbeat(info)
            named = [replace(command, key=side.name(command.key)) for command in commands if command.token]
            named.sort(key=lambda command: (str(command.key), command.kind))
            return [*commands[: len(commands) - len(named)], *named]

        self.both(verb)

    @rule(
        worker=workers,
        back=st.integers(0, 7),
        progress=st.none() | st.builds(Progress, st.integers(0, 2), st.none(), texts),
        log=logs,
        stack=st.none() | texts,
    )
    def report(self, worker: str, back: int, progress: Progress | None, log: bytes | None, stack: str | None) -> None:
        def verb(side: Side) -> bool:
            lease = side.claim(back)
            return bool(side.broker.report(worker, [Update(lease.key, lease.token, progress, log, stack)]))

        if self.spec.claims:
            self.both(verb)

    @rule(worker=workers)
    def retire(self, worker: str) -> None:
        self.both(lambda side: side.broker.retire(worker))

    # -- time and upkeep ---------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.001, 0.699, 4.003, 15.001]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-60, -1, 1, 60]))
    def jump(self, seconds: float) -> None:
        if abs(seconds) >= self.least_jump:
            self.clock.jump(seconds)

    @rule()
    def reap(self) -> None:
        self.both(lambda side: sorted(side.broker.reap(PLENTY)))

    @rule(limit=st.sampled_from([1, PLENTY]))
    def promote(self, limit: int) -> None:
        waiting = self.spec.broker.find(JobFilter(limit=PLENTY))
        dues = [job.due for job in waiting if job.due is not None]
        free = len(dues) != len(set(dues)) or any(job.expires_at is not None for job in waiting)
        self.both(lambda side: side.broker.promote(PLENTY if free else limit))

    @rule(finished=st.sampled_from([0, 5001, 10**9]), dead=st.sampled_from([0, 10**9]), most=st.sampled_from([2, 100]))
    def prune(self, finished: int, dead: int, most: int) -> None:
        rules = Retention(finished=finished, dead=dead, max_finished=most, max_dead=most)
        self.both(lambda side: side.broker.prune(PLENTY, rules))

    # -- operators and waiting callers -------------------------------------------------------------------------

    @rule(ids=some_ids)
    def cancel(self, ids: list[str]) -> None:
        self.both(lambda side: side.broker.cancel(ids))

    @rule(ids=some_ids, payload=st.none() | st.just(b"new"))
    def retry(self, ids: list[str], payload: bytes | None) -> None:
        self.both(lambda side: side.broker.retry(ids, payload=payload))

    @rule(ids=some_ids)
    def delete(self, ids: list[str]) -> None:
        self.both(lambda side: side.broker.delete(ids))

    @rule(id=st.sampled_from([*IDS, "unknown"]))
    def ask_stack(self, id: str) -> None:
        self.both(lambda side: side.broker.ask_stack(id))

    @rule(queue=queues, left=st.none() | st.sampled_from(DELAYS))
    def pause(self, queue: str, left: int | None) -> None:
        until = None if left is None else self.clock.now() + left
        self.both(lambda side: side.broker.pause(queue, until))

    @rule(queue=queues)
    def resume(self, queue: str) -> None:
        self.both(lambda side: side.broker.resume(queue))

    @rule(queue=queues)
    def purge(self, queue: str) -> None:
        self.both(lambda side: side.broker.purge(queue, PLENTY))

    @rule(
        states=st.none() | st.frozensets(st.sampled_from(JobState)),
        queue=st.none() | queues,
        task=st.none() | st.sampled_from(["send", "strange"]),
        parked=st.sampled_from([None, True, False]),
        limit=st.sampled_from([1, 3, PLENTY]),
        after=st.none() | st.sampled_from(IDS),
    )
    def find(self, **where: Any) -> None:
        self.both(lambda side: side.broker.find(JobFilter(**where)))

    @rule()
    def watch(self) -> None:
        updates = self.both(lambda side: side.broker.watch(self.seen, 0))
        self.seen |= {update.id: update for update in updates}

    # -- what can be seen --------------------------------------------------------------------------------------

    @invariant()
    def same_jobs(self) -> None:
        self.both(lambda side: side.broker.get(IDS))
        self.both(lambda side: [job.id for job in side.broker.find(JobFilter(limit=PLENTY))])

    @invariant()
    def same_runs(self) -> None:
        self.both(lambda side: [side.broker.runs(id) for id in IDS])

    @invariant()
    def same_queues(self) -> None:
        self.both(lambda side: side.broker.queues())

    @invariant()
    def same_workers(self) -> None:
        self.both(lambda side: [replace(worker, running=0) for worker in side.broker.workers()])


def _outcome(lease: Lease, end: dict[str, Any]) -> Outcome:
    return Outcome(key=lease.key, token=lease.token, id=lease.id, task=lease.task, queue=lease.queue, **end)


def _in_order(leases: Sequence[Lease], want: Want) -> list[Lease]:
    """The leases in an order that does not depend on which queue came first, unless that was asked for."""
    return sorted(leases, key=lambda lease: lease.queue) if want.shares is None else list(leases)


class MemoryHistory(History):
    """The specification against itself: what the rules say of a broker is true of this one."""

    def make(self, folder: Path) -> Broker:
        return MemoryBroker(clock=self.clock)


class SQLiteHistory(History):
    def make(self, folder: Path) -> Broker:
        return SQLiteBroker(BrokerURL.parse(f"sqlite:///{folder}/jobs.db?synchronous=normal"), clock=self.clock)


class RedisHistory(History):
    """On a server of its own, emptied for each history."""

    least_jump = 3
    server: RedisServer

    @classmethod
    def serve(cls, folder: Path) -> AbstractContextManager[Server]:
        cls.server = RedisServer(folder, appendfsync="no")
        return cls.server

    def make(self, folder: Path) -> Broker:
        with self.server.client() as client:
            client.flushall()
        return RedisBroker(BrokerURL.parse(self.server.url), clock=self.clock)


class PostgresHistory(History):
    """On a server of its own, emptied for each history."""

    least_jump = 3
    server: PostgresServer

    @classmethod
    def serve(cls, folder: Path) -> AbstractContextManager[Server]:
        cls.server = PostgresServer()
        return cls.server

    def make(self, folder: Path) -> Broker:
        with self.server.client() as client:
            client.execute("DROP SCHEMA IF EXISTS mouso CASCADE")
        return PostgresBroker(BrokerURL.parse(f"{self.server.url}?notify=off"), clock=self.clock)


class RabbitHistory(History):
    """With a store in a file for each history."""

    server: RabbitServer

    @classmethod
    def serve(cls, folder: Path) -> AbstractContextManager[Server]:
        cls.server = RabbitServer(folder)
        return cls.server

    def make(self, folder: Path) -> Broker:
        return connect(f"{self.server.alone}?store=sqlite:///{folder}/jobs.db", clock=self.clock)


@pytest.mark.parametrize(
    ("history", "times"),
    [
        (MemoryHistory, 100),
        (SQLiteHistory, 200),
        (RedisHistory, 100),
        (PostgresHistory, 30),
        (RabbitHistory, 20),
    ],
)
@pytest.mark.timeout(600)
def test_a_broker_shows_what_the_memory_broker_shows(history: type[History], times: int, tmp_path: Path) -> None:
    """The same history leaves the same jobs, queues, workers and leases on every broker."""
    with history.serve(tmp_path):
        run_histories(history, times)


def run_histories(history: type[History], times: int) -> None:
    run_state_machine_as_test(
        history,
        settings=settings(
            derandomize=True,
            database=None,
            deadline=None,
            max_examples=times,
            stateful_step_count=50,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
