"""Enqueues: they share round trips, keep their deadline, and fail together or not at all."""

import asyncio
import gc
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from mouso import Job, JobHandle, Mouso
from mouso.brokers.base import Broker, Capabilities, Enqueued
from mouso.brokers.memory import MemoryBroker
from mouso.errors import ArgumentError, BrokerUnavailable, OutcomeUnknown
from mouso.job import new_id
from mouso.producer import Producer, after
from tests.stalls import elapsed
from tests.support import wait_until, wait_until_async


class Recorder:
    """A broker that counts its round trips and can be held up.

    Attributes:
        sizes: How many jobs each ``enqueue`` was given.
        before: Called with the number of the round trip, from 1, before it is made.
        remote: Whether it passes for a server.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.sizes: list[int] = []
        self.timeouts: list[float] = []
        self.before: Callable[[int], object] = lambda number: None
        self.remote = False

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(self.broker.capabilities, remote=self.remote)

    def enqueue(self, jobs: Sequence[Job], *, connection: object = None, timeout: float = 5.0) -> list[Enqueued]:
        self.sizes.append(len(jobs))
        self.timeouts.append(timeout)
        self.before(len(self.sizes))
        return self.broker.enqueue(jobs, connection=connection, timeout=timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.broker, name)


class Line:
    """A producer in front of a memory broker whose first round trip lasts until ``go``."""

    def __init__(self, timeout: float = 10.0) -> None:
        self.memory = MemoryBroker()
        self.recorder = Recorder(cast(Broker, self.memory))
        self.recorder.before = self._hold
        self.producer = Producer(lambda: cast(Broker, self.recorder), timeout)
        self.held = threading.Event()
        self.go = threading.Event()
        self.then: Callable[[int], object] = lambda number: None
        self._pool = ThreadPoolExecutor(100)

    def _hold(self, number: int) -> None:
        if number == 1:
            self.held.set()
            assert self.go.wait(30)
        else:
            self.then(number)

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self._pool.shutdown()

    def submit(self, *sizes: int) -> list[Future[list[Enqueued]]]:
        """Hands over so many jobs from as many threads; the first one's round trip is under way, the others wait."""
        first = self._pool.submit(self.producer.submit, jobs(sizes[0]))
        assert self.held.wait(10)
        others = [self._pool.submit(self.producer.submit, jobs(size)) for size in sizes[1:]]
        wait_until(lambda: len(self.producer._waiting) == len(others))
        return [first, *others]

    @property
    def stored(self) -> int:
        return sum(sum(queue.counts.values()) for queue in self.memory.queues())


def jobs(count: int) -> list[Job]:
    return [Job(id=new_id(), task="shop.add") for _ in range(count)]


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Mouso]:
    with Mouso("shop", broker=f"sqlite:///{tmp_path}/jobs.db", enqueue_timeout=1.5) as app:
        app.broker.open()
        yield app


@pytest.fixture
def recorder(sqlite: Mouso) -> Recorder:
    """What the app's producer goes through."""
    recorder = Recorder(sqlite.broker)
    sqlite.producer = Producer(lambda: cast(Broker, recorder), 30.0)
    return recorder


def total(app: Mouso) -> int:
    return sum(sum(queue.counts.values()) for queue in app.queues())


# -- shared round trips


def test_one_enqueue_is_one_round_trip() -> None:
    recorder = Recorder(cast(Broker, MemoryBroker()))
    batch = jobs(3)
    assert Producer(lambda: cast(Broker, recorder)).submit(batch) == [Enqueued(job.id, True) for job in batch]
    assert recorder.sizes == [3]


def test_those_who_come_during_a_round_trip_share_the_next() -> None:
    with Line() as line:
        futures = line.submit(*[1] * 50)
        line.go.set()
        ids = {future.result(10)[0].id for future in futures}
    assert line.recorder.sizes == [1, 49]
    assert len(ids) == line.stored == 50


def test_each_gets_what_became_of_its_own_jobs() -> None:
    with Line() as line:
        batches = [jobs(size) for size in (1, 3, 2)]
        first = line._pool.submit(line.producer.submit, batches[0])
        assert line.held.wait(10)
        others = [line._pool.submit(line.producer.submit, batch) for batch in batches[1:]]
        line.go.set()
        for batch, future in zip(batches, [first, *others], strict=True):
            assert [enqueued.id for enqueued in future.result(10)] == [job.id for job in batch]


def test_a_round_trip_takes_a_thousand_jobs_at_most() -> None:
    with Line() as line:
        futures = line.submit(1, 600, 600, 600, 300)
        line.go.set()
        assert [len(future.result(10)) for future in futures] == [1, 600, 600, 600, 300]
    assert max(line.recorder.sizes) <= 1000
    assert line.stored == sum(line.recorder.sizes) == 2101


def test_a_long_list_goes_in_batches_of_a_thousand() -> None:
    recorder = Recorder(cast(Broker, MemoryBroker()))
    assert len(Producer(lambda: cast(Broker, recorder)).submit(jobs(2500))) == 2500
    assert recorder.sizes == [1000, 1000, 500]


def test_threads_that_enqueue_at_once_share_commits(sqlite: Mouso, recorder: Recorder) -> None:
    task = sqlite.task(name="add")(lambda x: x)
    start = threading.Barrier(50)

    def work(_: int) -> set[str]:
        start.wait(30)
        return {task.delay(n).id for n in range(20)}

    with ThreadPoolExecutor(50) as pool:
        ids = set().union(*pool.map(work, range(50)))
    assert len(ids) == total(sqlite) == sum(recorder.sizes) == 1000
    assert len(recorder.sizes) < 900


def test_a_thousand_adelays_share_a_few_round_trips(sqlite: Mouso, recorder: Recorder) -> None:
    task = sqlite.task(name="add")(lambda x: x)

    async def main() -> set[str]:
        return {handle.id for handle in await asyncio.gather(*(task.adelay(n) for n in range(1000)))}

    assert len(asyncio.run(main())) == total(sqlite) == 1000
    assert len(recorder.sizes) <= 3


def test_more_adelays_than_a_batch_go_in_several(sqlite: Mouso, recorder: Recorder) -> None:
    task = sqlite.task(name="add")(lambda x: x)

    async def main() -> int:
        return len(await asyncio.gather(*(task.adelay(n) for n in range(2500))))

    assert asyncio.run(main()) == 2500
    assert recorder.sizes == [1000, 1000, 500]


def test_adelay_does_not_block_its_loop() -> None:
    with Line() as line:

        async def main() -> None:
            enqueue = asyncio.create_task(line.producer.asubmit(jobs(1)))
            await wait_until_async(line.held.is_set)  # the loop goes on while the round trip is under way
            line.go.set()
            await enqueue

        asyncio.run(main())
    assert line.stored == 1


def test_a_caller_that_is_cancelled_does_not_disturb_the_others() -> None:
    with Line() as line:

        async def main() -> list[Enqueued]:
            first, second = (asyncio.create_task(line.producer.asubmit(jobs(1))) for _ in range(2))
            await wait_until_async(line.held.is_set)
            first.cancel()
            line.go.set()
            return await second

        assert len(asyncio.run(main())) == 1


def test_one_app_serves_many_loops_and_keeps_none_alive() -> None:
    producer = Producer(lambda: cast(Broker, MemoryBroker()))
    loops = []

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await producer.asubmit(jobs(1))

    for _ in range(3):
        asyncio.run(main())

    def none_is_left() -> bool:
        gc.collect()
        return [loop() for loop in loops] == [None, None, None]

    wait_until(none_is_left, message="the last one's thread has let go of it")


# -- the same job twice


def test_the_same_id_twice_is_one_job(sqlite: Mouso) -> None:
    task = sqlite.task(name="add")(lambda x: x)
    first, second = (task.options(id="a").delay(n) for n in (1, 2))
    assert first.id == second.id == "a"
    (job,) = sqlite.jobs()
    assert job.payload == b'{"x":1}'


def test_the_same_id_twice_in_one_round_trip_is_one_job() -> None:
    twins = [Job(id="a", task="shop.add"), Job(id="a", task="shop.add")]
    producer = Producer(lambda: cast(Broker, memory))
    memory = MemoryBroker()
    assert producer.submit(twins) == [Enqueued("a", True), Enqueued("a", False)]


def test_who_finds_a_unique_key_held_gets_the_holders_handle(sqlite: Mouso) -> None:
    task = sqlite.task(name="add")(lambda x: x)
    holder = task.options(unique="k").delay(1)
    assert task.options(unique="k", id="b").delay(2) == holder
    assert task.options(unique="k").map([(3,), (4,)]) == [holder, holder]
    assert asyncio.run(task.options(unique="k").adelay(5)) == holder
    assert total(sqlite) == 1


# -- signal handlers


class Interrupted:
    """What became of an enqueue by the handler of a signal, which interrupts the main thread.

    Attributes:
        ends: What the handler's enqueues returned or raised.
    """

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self.ends: list[object] = []

    def __enter__(self) -> "Interrupted":
        self._old = signal.signal(signal.SIGUSR1, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGUSR1, self._old)

    def _handle(self, *_: object) -> None:
        try:
            self.ends.append(self._producer.submit(jobs(1)))
        except Exception as error:
            self.ends.append(error)

    def refused(self) -> bool:
        [error] = self.ends
        return isinstance(error, BrokerUnavailable) and "a signal handler has interrupted; nothing was" in str(error)


def test_an_enqueue_in_a_handler_that_interrupts_one_is_refused_at_once(sqlite: Mouso, recorder: Recorder) -> None:
    recorder.before = lambda number: signal.raise_signal(signal.SIGUSR1)
    with Interrupted(sqlite.producer) as interrupted:
        assert len(sqlite.producer.submit(jobs(1))) == 1
        assert interrupted.refused()
        recorder.before = lambda number: None
        signal.raise_signal(signal.SIGUSR1)
    assert len(interrupted.ends) == 2
    assert isinstance(interrupted.ends[1], list)
    assert total(sqlite) == 2


def test_one_that_interrupts_a_thread_that_waits_for_its_turn_is_refused_as_well() -> None:
    def interrupt() -> None:
        wait_until(lambda: line.producer._waiting)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        wait_until(lambda: interrupted.ends)
        line.go.set()

    with Line() as line, Interrupted(line.producer) as interrupted:
        first = line.submit(1)[0]
        helper = line._pool.submit(interrupt)
        assert len(line.producer.submit(jobs(1))) == 1
        assert len(first.result(10)) == 1
        helper.result(10)
        assert interrupted.refused()
    assert line.stored == 2


def test_one_that_interrupts_an_enqueue_of_a_transaction_is_refused_as_well(
    sqlite: Mouso, recorder: Recorder, tmp_path: Path
) -> None:
    recorder.before = lambda number: signal.raise_signal(signal.SIGUSR1)
    with Interrupted(sqlite.producer) as interrupted, closing(sqlite3.connect(tmp_path / "jobs.db")) as own:
        with own, sqlite.producer.joined(own):
            sqlite.producer.submit(jobs(1))
        assert interrupted.refused()
    assert total(sqlite) == 1


# -- failures


def test_a_round_trip_that_fails_fails_for_all_who_share_it() -> None:
    def fail(number: int) -> None:
        if number == 2:
            raise BrokerUnavailable("no broker; nothing was stored")

    with Line() as line:
        line.then = fail
        first, *others = line.submit(*[1] * 20)
        line.go.set()
        assert len(first.result(10)) == 1
        for future in others:
            with pytest.raises(BrokerUnavailable, match="nothing was stored"):
                future.result(10)
        assert line.stored == 1
        assert len(line.producer.submit(jobs(1))) == 1


def test_an_interrupted_round_trip_leaves_nobody_hanging() -> None:
    def interrupt(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with Line() as line:
        line.then = interrupt
        _, *others = line.submit(*[1] * 5)
        line.go.set()
        errors = [future.exception(10) for future in others]
    assert sorted(type(error).__name__ for error in errors) == ["KeyboardInterrupt"] + ["OutcomeUnknown"] * 3


def test_an_adelay_that_fails_fails_for_all_who_share_it() -> None:
    def fail(number: int) -> None:
        raise BrokerUnavailable("no broker; nothing was stored")

    recorder = Recorder(cast(Broker, MemoryBroker()))
    recorder.before = fail
    producer = Producer(lambda: cast(Broker, recorder))

    async def main() -> list[Any]:
        return await asyncio.gather(*(producer.asubmit(jobs(1)) for _ in range(10)), return_exceptions=True)

    assert [type(error) for error in asyncio.run(main())] == [BrokerUnavailable] * 10
    assert recorder.sizes == [10]


@pytest.mark.parametrize("remote", [False, True])
def test_the_error_of_a_later_batch_says_how_many_jobs_are_stored(
    sqlite: Mouso, recorder: Recorder, remote: bool
) -> None:
    """Nobody may take it for one that has stored nothing, and repeat it all."""
    recorder.remote = remote

    @sqlite.task
    def task(x: int, y: int) -> None: ...

    def third(number: int) -> None:
        if number == 3:
            raise BrokerUnavailable("the store is locked; nothing was stored, try again")

    def calls(*last: int) -> Iterator[Any]:
        yield from ((n, n) for n in range(2500))
        yield last

    recorder.before = third
    words = "the store is locked; the first 2,000 jobs of this call are stored, do not repeat those"
    for store in (
        lambda: task.map(calls(1, 2)),
        lambda: asyncio.run(task.amap(calls(1, 2))),
        lambda: sqlite.enqueue_many(task.job(n, n) for n in range(2500)),
        lambda: asyncio.run(sqlite.aenqueue_many(task.job(n, n) for n in range(2500))),
        lambda: sqlite.producer.submit([task.job(n, n) for n in range(2500)]),
    ):
        recorder.sizes.clear()
        with pytest.raises(OutcomeUnknown) as unknown:
            store()
        assert str(unknown.value) == words
    recorder.before = lambda number: None
    with pytest.raises(ArgumentError, match=r"; the first 2,000 jobs of this call are stored, do not repeat those$"):
        task.map(calls(1, 2, 3))
    recorder.before = lambda number: third(3)
    with pytest.raises(BrokerUnavailable, match="nothing was stored"):
        task.map(calls(1, 2))


@pytest.mark.parametrize("remote", [False, True])
def test_the_callers_own_error_says_how_many_jobs_are_stored_as_well(
    sqlite: Mouso, recorder: Recorder, remote: bool
) -> None:
    recorder.remote = remote

    @sqlite.task
    def task(x: float) -> None: ...

    for store in (
        lambda: task.map((1 / (2500 - n),) for n in range(3000)),
        lambda: asyncio.run(task.amap((1 / (2500 - n),) for n in range(3000))),
        lambda: sqlite.enqueue_many(task.job(1 / (2500 - n)) for n in range(3000)),
    ):
        with pytest.raises(ZeroDivisionError) as raised:
            store()
        assert raised.value.__notes__ == ["the first 2,000 jobs of this call are stored, do not repeat those"]
    with pytest.raises(ZeroDivisionError) as raised:
        task.map((1 / (5 - n),) for n in range(10))
    assert not hasattr(raised.value, "__notes__"), "nothing is stored"


def test_a_batch_is_made_while_a_server_stores_the_one_before(sqlite: Mouso, recorder: Recorder) -> None:
    """All are stored, in order, and each handle is that of its job."""

    @sqlite.task
    def task(x: int) -> None: ...

    made = threading.Event()

    def calls() -> Iterator[tuple[int]]:
        for n in range(2500):
            if n == 1999:
                made.set()
            yield (n,)

    recorder.remote = True
    recorder.before = lambda number: made.wait(30)
    before = threading.active_count()
    handles = task.map(calls())
    assert recorder.sizes == [1000, 1000, 500]
    made.clear()
    handles += sqlite.enqueue_many(task.job(n) for (n,) in calls())
    assert recorder.sizes == [1000, 1000, 500] * 2
    arguments = [handle.record.payload for handle in (handles[0], handles[1500], handles[2499], handles[4000])]
    assert [msgspec.json.decode(payload) for payload in arguments] == [{"x": n} for n in (0, 1500, 2499, 1500)]
    assert len({handle.id for handle in handles}) == 5000
    wait_until(lambda: threading.active_count() == before)


def test_a_batch_goes_in_the_callers_thread_where_no_other_can_be_started(
    sqlite: Mouso, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    @sqlite.task
    def task(x: int) -> None: ...

    def full(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    recorder.remote = True
    monkeypatch.setattr(threading.Thread, "start", full)
    assert len(task.map((n,) for n in range(2500))) == 2500
    assert recorder.sizes == [1000, 1000, 500]


def test_an_interrupt_waits_for_the_batch_that_is_under_way(sqlite: Mouso, recorder: Recorder) -> None:
    """So that it can say how many are stored."""

    @sqlite.task
    def task(x: int) -> None: ...

    def calls() -> Iterator[tuple[int]]:
        yield from ((n,) for n in range(1500))
        raise KeyboardInterrupt

    recorder.remote = True
    with pytest.raises(KeyboardInterrupt) as raised:
        task.map(calls())
    assert raised.value.__notes__ == ["the first 1,000 jobs of this call are stored, do not repeat those"]
    assert total(sqlite) == 1000


@pytest.mark.parametrize("wrong", ["nope", None, {"x": 1}, JobHandle(Mouso("x", broker="memory://x"), "id")])
def test_what_is_no_job_is_refused_before_its_batch_is_stored(sqlite: Mouso, wrong: Any) -> None:
    @sqlite.task
    def task(x: int) -> None: ...

    for store in (sqlite.enqueue_many, lambda jobs: asyncio.run(sqlite.aenqueue_many(jobs))):
        message = rf"^enqueue_many takes jobs made by task.job\(...\), not {type(wrong).__name__}; write .*\]\)"
        with pytest.raises(ArgumentError, match=f"{message}$"):
            store([task.job(1), wrong])
        assert sqlite.jobs() == []
    with pytest.raises(ArgumentError, match=f"{message}; the first 1,000 jobs of this call are stored"):
        sqlite.enqueue_many([*(task.job(n) for n in range(1500)), wrong])


@pytest.mark.parametrize("kind", [BrokerUnavailable, OutcomeUnknown])
def test_an_error_that_several_callers_share_says_to_each_what_it_has_stored(kind: type[Exception]) -> None:
    """One that stored a batch before must not rewrite what the others are told."""
    shared = kind("the store is locked")
    with pytest.raises(OutcomeUnknown, match="the first 2 jobs of this call are stored"), after([1, 2]):
        raise shared
    with pytest.raises(kind, match=r"^the store is locked$"), after([]):
        raise shared


# -- deadlines


def test_an_adelay_behind_one_that_hangs_keeps_its_own_deadline() -> None:
    """It waits for the round trip that is under way, and has what is left of its time for its own."""

    async def main(line: Line) -> list[BaseException | list[Enqueued]]:
        first = asyncio.create_task(line.producer.asubmit(jobs(1)))
        await wait_until_async(line.held.is_set)
        others = [asyncio.create_task(line.producer.asubmit(jobs(1))) for _ in range(3)]
        began = time.monotonic()
        await wait_until_async(lambda: time.monotonic() - began > 1.0)
        line.go.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    with Line(timeout=0.8) as line:
        first, *others = asyncio.run(main(line))
    assert isinstance(first, list)
    assert [str(other) for other in others] == [
        "the broker did not answer within 0.8 s; nothing was stored, try again"
    ] * 3
    assert line.recorder.sizes == [1]


def test_who_waits_in_vain_for_its_turn_has_stored_nothing() -> None:
    with Line(timeout=1.5) as line:
        line._pool.submit(line.producer.submit, jobs(1))
        assert line.held.wait(10)
        started = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=r"did not answer within 1\.5 s; nothing was stored, try again"):
            line.producer.submit(jobs(1))
        assert time.monotonic() - started >= 1.45
        assert elapsed(started) < 2.9
    assert line.stored == 1


def test_who_is_part_of_a_round_trip_that_does_not_end_cannot_know() -> None:
    release = threading.Event()
    with Line(timeout=3) as line:
        line.then = lambda number: release.wait(30)
        _, *others = line.submit(1, 1, 1, 1)
        line.go.set()
        wait_until(lambda: sum(future.done() for future in others) == 2)  # the third one makes the round trip
        for future in [future for future in others if future.done()]:
            with pytest.raises(OutcomeUnknown, match="repeat the call with the same id"):
                future.result()
        release.set()
    assert line.stored == 4


def test_who_is_part_of_a_round_trip_that_ends_a_moment_late_learns_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mouso.producer._MOMENT", 10.0)

    def late(number: int) -> None:
        wait_until(lambda: deadline <= time.monotonic())
        raise BrokerUnavailable("no broker; nothing was stored")

    with Line(timeout=1.0) as line:
        line.then = late
        _, *others = line.submit(1, 1, 1)
        deadline = time.monotonic() + line.producer.timeout
        line.go.set()
        assert [type(future.exception(10)) for future in others] == [BrokerUnavailable] * 2


def test_the_time_spent_waiting_counts(sqlite: Mouso) -> None:
    with Line(timeout=5) as line:
        futures = line.submit(1, 1)
        wait_until(lambda: line.producer._waiting)
        line.go.set()
        for future in futures:
            future.result(10)
    assert line.recorder.timeouts[1] < line.recorder.timeouts[0] <= 5


@pytest.mark.parametrize("how", ["delay", "adelay", "map"])
def test_a_locked_store_ends_in_an_error_within_the_deadline(sqlite: Mouso, tmp_path: Path, how: str) -> None:
    task = sqlite.task(name="add")(lambda x: x)
    ways: dict[str, Callable[[], object]] = {
        "delay": lambda: task.delay(1),
        "adelay": lambda: asyncio.run(task.adelay(1)),
        "map": lambda: task.map([(1,), (2,)]),
    }
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(BrokerUnavailable, match="nothing was stored, try again"):
                ways[how]()
            assert time.monotonic() - started >= 1.4
            assert elapsed(started) < 2.9
        other.execute("ROLLBACK")
    assert total(sqlite) == 0
    ways[how]()
    assert total(sqlite) > 0


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_store_locked_by_another_process_does_too(sqlite: Mouso, tmp_path: Path) -> None:
    task = sqlite.task(name="add")(lambda x: x)
    command = [sys.executable, "-c", LOCK, str(tmp_path / "jobs.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                task.delay(1)
            assert elapsed(started) < 2.9
        other.communicate()
    task.delay(1)


def test_many_callers_of_a_locked_store_all_keep_the_deadline(sqlite: Mouso, tmp_path: Path) -> None:
    task = sqlite.task(name="add")(lambda x: x)

    def work(n: int) -> float:
        started = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            task.delay(n)
        return time.monotonic() - started

    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other, ThreadPoolExecutor(20) as pool:
        other.execute("BEGIN IMMEDIATE")
        assert max(pool.map(work, range(20))) < 2.9
    assert total(sqlite) == 0
