"""The application: its settings, its tasks, its jobs, and the transactions of the caller."""

import asyncio
import math
import resource
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mouso import Context, Mouso, lifespan
from mouso.brokers.base import Capabilities, JobFilter, Want
from mouso.errors import (
    ArgumentError,
    BrokerUnavailable,
    CapabilityError,
    ConfigError,
    JobUnknown,
    MousoError,
    OptionError,
)
from mouso.events import Event
from mouso.handle import JobHandle
from mouso.job import new_id
from tests.stalls import elapsed
from tests.support import crowd


@pytest.fixture
def app() -> Iterator[Mouso]:
    with Mouso("shop", broker=f"memory://{new_id()}") as app:
        yield app


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def sqlite(file: Path) -> Iterator[Mouso]:
    with Mouso("shop", broker=f"sqlite:///{file}", enqueue_timeout=0.3) as app:
        app.broker.open()
        yield app


def add(x: int, y: int) -> int:
    return x + y


def mul(x: int, y: int) -> int:
    return x * y


# -- settings


def test_an_app_has_a_name_and_a_broker() -> None:
    app = Mouso("shop", broker="memory://here")
    assert (app.name, app.broker_url, app.broker.capabilities.name) == ("shop", "memory://here", "memory")
    assert repr(app) == "Mouso('shop', broker='memory://here')"


def test_the_broker_of_the_environment_is_used_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOUSO_BROKER", "memory://from-the-environment")
    assert Mouso("shop").broker_url == "memory://from-the-environment"


def test_nothing_is_opened_before_it_is_used(tmp_path: Path) -> None:
    app = Mouso("shop", broker=f"sqlite:///{tmp_path}/jobs.db")
    app.task(add)
    assert list(tmp_path.iterdir()) == []


def test_a_backend_is_accepted_for_celerys_sake() -> None:
    assert Mouso("tasks", broker="memory://celery", backend="redis://localhost").name == "tasks"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("broker", "nowhere"),
        ("broker", ""),
        ("payload_limit", 0),
        ("payload_limit", "1 MiB"),
        ("payload_limit", True),
        ("keys", 3),
        ("redact", 3),
        ("store", 3),
        ("keep_finished", "soon"),
        ("keep_dead", timedelta.max),
        ("enqueue_timeout", "soon"),
    ],
)
def test_a_setting_that_cannot_be_used_is_a_configuration_error(setting: str, value: Any) -> None:
    settings: dict[str, Any] = {"broker": "amqp://localhost" if setting == "store" else "memory://", setting: value}
    with pytest.raises(ConfigError) as caught:
        Mouso("shop", **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["redis://me:secret@cache:6379/0", "sqlite:///jobs.db", None, 5])
def test_a_name_that_is_the_brokers_url_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"is no name for an app; write Mouso\(\"app\", broker=") as caught:
        Mouso(name)
    assert "secret" not in str(caught.value)


def test_retention_is_set_by_age_and_count() -> None:
    app = Mouso(broker="memory://", keep_finished="1h", keep_dead="2d", max_finished=10, max_dead=20)
    retention = app.retention
    assert (retention.finished, retention.dead) == (3_600_000, 172_800_000)
    assert (retention.max_finished, retention.max_dead) == (10, 20)


def test_a_closed_app_opens_again_when_it_is_used(sqlite: Mouso) -> None:
    task = sqlite.task(add)
    task.delay(1, 2)
    sqlite.close()
    sqlite.close()
    task.delay(3, 4)
    assert len(sqlite.jobs()) == 2


# -- tasks


def test_a_task_is_found_by_its_name_or_its_last_part(app: Mouso) -> None:
    task = app.task(add)
    assert app.find_task(f"{__name__}.add") is task
    assert app.find_task("add") is task


def test_a_task_that_is_not_there_is_an_error_that_helps(app: Mouso) -> None:
    with pytest.raises(ConfigError, match="no task is called 'add'; none is registered"):
        app.find_task("add")
    app.task(name="shop.add")(add)
    app.task(name="cart.add")(add)
    with pytest.raises(ConfigError, match=r"no task is called 'shop\.ad'; did you mean 'shop\.add'\?"):
        app.find_task("shop.ad")
    with pytest.raises(ConfigError, match=r"no task is called 'zzz'; there are cart\.add, shop\.add"):
        app.find_task("zzz")


@pytest.mark.parametrize(("option", "value"), [("delay", 3), ("priority", 5), ("unique", True)])
def test_a_task_that_asks_for_more_than_its_broker_can_is_refused_when_it_is_declared(
    app: Mouso, monkeypatch: pytest.MonkeyPatch, option: str, value: Any
) -> None:
    poor = Capabilities(name="poor", delay=False, priority=False, unique=False)
    monkeypatch.setattr(type(app.broker), "capabilities", poor)
    options: Any = {option: value}
    with pytest.raises(CapabilityError, match=f"task t: {option}= needs a broker that can do it; poor cannot"):
        app.task(name="t", **options)(add)
    assert app.task(name="t")(add).name == "t"


def test_an_option_that_is_wrong_fails_at_the_declaration(app: Mouso) -> None:
    with pytest.raises(OptionError, match="priority=1000 is out of range"):
        app.task(priority=1000)(add)
    with pytest.raises(OptionError, match="there is no option 'prioritty'; did you mean 'priority'"):
        app.task(prioritty=1)(add)  # type: ignore[call-overload]  # why: wrong on purpose
    assert not app.tasks


def test_middleware_events_and_lifespans_are_registered(app: Mouso) -> None:
    @app.middleware
    def timed(job: Context, call: Any) -> Any:
        return call()

    @app.on("job.dead", "job.failed")
    def hear(event: Event) -> None: ...

    @app.lifespan
    async def pool() -> AsyncIterator[None]:
        yield

    assert app.middlewares == [timed]
    assert app.events.names == {"job.dead", "job.failed"}

    async def live() -> None:
        async with app.lifespans[0]():
            pass

    asyncio.run(live())


def test_a_context_manager_is_a_lifespan(app: Mouso) -> None:
    lived = []

    @app.lifespan
    @asynccontextmanager
    async def pool() -> AsyncIterator[None]:
        lived.append("pool")
        yield

    async def live() -> None:
        async with app.lifespans[0](), pool():
            pass

    asyncio.run(live())
    assert lived == ["pool", "pool"]


def test_a_lifespan_that_does_not_come_to_its_yield_is_named(
    app: Mouso, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @app.lifespan
    async def pool() -> AsyncIterator[None]:
        await asyncio.sleep(0.05)
        yield

    async def live() -> None:
        async with AsyncExitStack() as lifespans:
            await lifespan.enter(app.lifespans[0], lifespans)

    monkeypatch.setattr(lifespan, "_SLOW_START", 0.01)
    asyncio.run(live())
    assert caplog.messages == ["the lifespan 'pool' has not come to its yield after 0.01 s"]


def test_what_can_be_no_lifespan_is_refused(app: Mouso) -> None:
    def generator() -> Any:
        yield

    def plain() -> None: ...

    async def coroutine() -> None: ...

    async def takes(size: int) -> AsyncIterator[None]:
        yield

    async def pool() -> AsyncIterator[None]:
        yield

    wrong: list[tuple[Any, str]] = [
        (generator, "the lifespan generator is a generator that is not async; write @app.lifespan on: async def gen"),
        (contextmanager(generator), "the lifespan generator is a generator that is not async"),
        (plain, "the lifespan plain is a plain function without a yield"),
        (coroutine, "the lifespan coroutine is a coroutine function without a yield"),
        (takes, "the lifespan takes takes arguments, which nobody gives it; write"),
        (asynccontextmanager(takes), "the lifespan takes takes arguments"),
        (asynccontextmanager(pool)(), "the lifespan <.* is no function"),
        (object, "the lifespan object is no function"),
        (None, "the lifespan None is no function"),
    ]
    for function, why in wrong:
        with pytest.raises(ConfigError, match=why):
            app.lifespan(function)
    assert app.lifespans == []


def test_a_handler_of_an_unknown_event_is_refused(app: Mouso) -> None:
    with pytest.raises(ConfigError, match=r"no event is called 'job.death'; did you mean 'job.dead'"):
        app.on("job.death")(print)


# -- jobs


def test_jobs_are_listed_last_enqueued_first_and_page_by_page(app: Mouso) -> None:
    handles = app.task(add).map([(n, n) for n in range(5)])
    ids = [handle.id for handle in reversed(handles)]
    assert [job.id for job in app.jobs()] == ids
    assert [job.id for job in app.jobs(limit=2)] == ids[:2]
    assert [job.id for job in app.jobs(limit=2, after=ids[1])] == ids[2:4]


def test_jobs_are_chosen_by_state_queue_and_task(app: Mouso) -> None:
    plus, times = app.task(add), app.task(mul)
    waiting = plus.options(delay=60).delay(1, 2)
    mail = times.options(queue="mail").delay(1, 2)
    assert [job.id for job in app.jobs(state="scheduled")] == [waiting.id]
    assert [job.id for job in app.jobs(state=["available", "dead"])] == [mail.id]
    assert [job.id for job in app.jobs(queue="mail")] == [mail.id]
    assert [job.id for job in app.jobs(task=plus.name)] == [waiting.id]
    assert app.jobs(parked=True) == []


@pytest.mark.parametrize("until", [datetime(2100, 1, 1), "10m", math.nan, True])  # it is about that
def test_a_pause_until_no_instant_is_refused(app: Mouso, until: Any) -> None:
    with pytest.raises(OptionError, match="until"):
        app.pause("mail", until)
    assert app.queues() == []


def test_what_holds_no_jobs_is_refused(app: Mouso) -> None:
    words = r"enqueue_many takes jobs made by task.job\(...\), not NoneType; write app.enqueue_many\(\["
    nothing: Any = None
    with pytest.raises(ArgumentError, match=words):
        app.enqueue_many(nothing)
    with pytest.raises(ArgumentError, match=words):
        asyncio.run(app.aenqueue_many(nothing))


@pytest.mark.parametrize("state", ["death", "", ["dead", "gone"], 5, [5], [[]], object])
def test_a_state_that_does_not_exist_is_refused(app: Mouso, state: Any) -> None:
    with pytest.raises(OptionError, match=r"no state is called .*; (did you mean|there are)"):
        app.jobs(state=state)


def test_jobs_of_any_tasks_are_enqueued_together(app: Mouso) -> None:
    plus, times = app.task(add), app.task(mul)
    handles = app.enqueue_many([plus.job(1, 2), times.options(id="m").job(3, 4)])
    assert [handle.id for handle in handles] == [job.id for job in app.jobs()][::-1]
    assert handles[1].id == "m"
    assert app.enqueue_many([]) == []


def test_a_handle_may_be_of_a_job_that_is_not_there(app: Mouso) -> None:
    with pytest.raises(JobUnknown, match="no job has the id nothing"):
        _ = app.job("nothing").state


@pytest.mark.parametrize("wrong", [None, 3, b"id", ("id",), ["id"]])
def test_a_job_that_is_not_named_by_text_is_refused_at_once(app: Mouso, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^app\.job takes the id of a job as text, not .*; write app\.job\(handle"):
        app.job(wrong)


def test_queues_show_their_counts(app: Mouso) -> None:
    task = app.task(add)
    task.options(queue="mail").map([(1, 2)] * 3)
    task.options(queue="mail", delay=60).delay(1, 2)
    (queue,) = app.queues()
    assert (queue.name, dict(queue.counts), queue.paused) == ("mail", {"available": 3, "scheduled": 1}, False)


def test_a_paused_queue_gives_nothing_until_it_is_resumed(app: Mouso) -> None:
    app.task(add).options(queue="mail").delay(1, 2)
    app.pause("mail")
    assert app.broker.exchange("w", [], Want(limit=1)).leases == []
    assert app.queues()[0].paused
    app.resume("mail")
    assert len(app.broker.exchange("w", [], Want(limit=1)).leases) == 1


def test_a_pause_may_have_an_end(app: Mouso) -> None:
    end = datetime(2100, 1, 1, tzinfo=UTC)
    app.pause("mail", until=end)
    assert app.queues()[0].paused_until == int(end.timestamp()) * 1000
    with pytest.raises(ValueError, match=r"until=.* has no time zone"):
        app.pause("mail", until=datetime(2100, 1, 1))


def test_purge_removes_what_waits(app: Mouso) -> None:
    task = app.task(add)
    task.options(queue="mail").map([(n, n) for n in range(1500)])
    task.delay(1, 2)
    assert app.purge("mail") == 1500
    assert app.purge("mail") == 0
    assert len(app.jobs()) == 1


@pytest.mark.parametrize("verb", ["pause", "resume", "purge"])
def test_a_queue_that_cannot_be_named_so_is_refused(app: Mouso, verb: str) -> None:
    with pytest.raises(OptionError, match="queue name 'a b' is not usable"):
        getattr(app, verb)("a b")


def test_workers_that_hold_a_lease_are_listed(app: Mouso) -> None:
    app.task(add).delay(1, 2)
    assert app.workers() == []
    app.broker.exchange("w", [], Want(limit=1))
    assert [worker.id for worker in app.workers()] == ["w"]


# -- in the caller's transaction


def test_jobs_exist_once_the_caller_commits(sqlite: Mouso, file: Path) -> None:
    task = sqlite.task(add)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
        with connection, sqlite.enqueue_in(connection):
            connection.execute("INSERT INTO orders VALUES (1)")
            handle = task.delay(1, 2)
            many = task.map([(3, 4), (5, 6)])
            assert sqlite.jobs() == []
        assert [job.id for job in sqlite.jobs()][::-1] == [handle.id, *(other.id for other in many)]
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1,)


def test_jobs_never_existed_if_the_caller_rolls_back(sqlite: Mouso, file: Path) -> None:
    task = sqlite.task(add)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
        with sqlite.enqueue_in(connection):
            connection.execute("INSERT INTO orders VALUES (1)")
            task.options(id="a", unique="k", queue="new").delay(1, 2)
        connection.rollback()
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (0,)
    assert sqlite.jobs() == []
    assert task.options(id="a", unique="k", queue="new").delay(1, 2).id == "a"
    assert [queue.name for queue in sqlite.queues()] == ["new"]


def test_a_task_that_outlives_the_block_enqueues_for_itself(sqlite: Mouso, file: Path) -> None:
    """It was started in the block, whose context it has a copy of."""
    task = sqlite.task(add)

    async def background(over: asyncio.Event) -> JobHandle[int]:
        await over.wait()
        return await task.adelay(5, 6)

    async def request(connection: sqlite3.Connection) -> JobHandle[int]:
        over = asyncio.Event()
        with connection, sqlite.enqueue_in(connection):
            await task.adelay(1, 2)
            later = asyncio.create_task(background(over))
            await asyncio.sleep(0)
        over.set()
        return await later

    with closing(sqlite3.connect(file)) as connection:
        handle = asyncio.run(request(connection))
        assert not connection.in_transaction
        assert handle.state == "available"
    assert len(sqlite.jobs()) == 2


def test_a_block_that_is_left_in_another_task_is_an_error(sqlite: Mouso, file: Path) -> None:
    """As an asynchronous generator may be: what was enqueued in between was not part of it, so it must be said."""

    async def generator(connection: sqlite3.Connection) -> AsyncIterator[None]:
        with sqlite.enqueue_in(connection):
            yield

    async def main(connection: sqlite3.Connection) -> None:
        block = generator(connection)
        await asyncio.create_task(anext(block))  # type: ignore[arg-type]  # why: an awaitable, and a coroutine in fact
        await anext(block, None)

    with closing(sqlite3.connect(file)) as connection, pytest.raises(MousoError, match="entered in one task and left"):
        asyncio.run(main(connection))


def test_an_enqueue_opens_a_transaction_if_there_is_none(sqlite: Mouso, file: Path) -> None:
    task = sqlite.task(add)
    with closing(sqlite3.connect(file)) as connection:
        with sqlite.enqueue_in(connection):
            task.delay(1, 2)
        assert connection.in_transaction
        assert sqlite.jobs() == []
        connection.commit()
    assert len(sqlite.jobs()) == 1


def test_a_connection_that_commits_by_itself_does_so_with_each_enqueue(sqlite: Mouso, file: Path) -> None:
    task = sqlite.task(add)
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        with sqlite.enqueue_in(connection):
            task.options(id="a").delay(1, 2)
            assert not connection.in_transaction
            assert [job.id for job in sqlite.jobs()] == ["a"]
        task.delay(1, 2)  # nobody holds the lock


def test_a_connection_that_commits_by_itself_takes_part_in_begin_and_commit(sqlite: Mouso, file: Path) -> None:
    task = sqlite.task(add)
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        with sqlite.enqueue_in(connection):
            task.delay(1, 2)
        connection.execute("ROLLBACK")
        assert sqlite.jobs() == []


@pytest.mark.parametrize(("own", "most"), [(60.0, 10.0), (0.1, 1.8)])
def test_an_enqueue_waits_for_a_lock_until_its_deadline_or_as_long_as_the_connection(
    file: Path, own: float, most: float
) -> None:
    with (
        Mouso("shop", broker=f"sqlite:///{file}", enqueue_timeout=2.0) as app,
        closing(sqlite3.connect(file, isolation_level=None)) as other,
        closing(sqlite3.connect(file, timeout=own)) as connection,
    ):
        task = app.task(add)
        app.broker.open()
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with app.enqueue_in(connection), pytest.raises(BrokerUnavailable, match="is locked by another transaction"):
            task.delay(1, 2)
        assert elapsed(began) < most
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (own * 1000,)
        other.execute("ROLLBACK")


@pytest.mark.parametrize("isolation_level", ["DEFERRED", None])
def test_a_full_disk_in_the_callers_connection_is_told(sqlite: Mouso, file: Path, isolation_level: Any) -> None:
    """Also when SQLite has rolled back by itself, as it does when it has no room to spill its cache to."""
    task = sqlite.task(add)
    task.options(id="before").delay(1, 2)
    with closing(sqlite3.connect(file, isolation_level=isolation_level)) as connection:
        connection.execute("PRAGMA cache_size = 5")
        with files_no_larger_than(60_000), sqlite.enqueue_in(connection), pytest.raises(BrokerUnavailable) as full:
            task.map([(n, n) for n in range(1000)])
        assert "transaction" not in str(full.value)
        assert not connection.in_transaction
    assert [job.id for job in sqlite.jobs()] == ["before"]


@contextmanager
def files_no_larger_than(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_callers_row_factory_does_not_matter(sqlite: Mouso, file: Path) -> None:
    task = sqlite.task(add)

    def refuse(*_: object) -> None:
        raise AssertionError("the caller's own factory was used")

    for factory in (sqlite3.Row, lambda cursor, row: {"a": row}, refuse):
        with closing(sqlite3.connect(file)) as connection:
            connection.row_factory = factory
            connection.text_factory = bytes
            with connection, sqlite.enqueue_in(connection):
                handle = task.options(unique="k").delay(1, 2)
                assert task.options(unique="k").delay(1, 2) == handle
                task.map([(1, 2)])
            assert (connection.row_factory, connection.text_factory) == (factory, bytes)
    assert len(sqlite.jobs()) == 4


def test_a_connection_to_another_file_is_refused(sqlite: Mouso, tmp_path: Path) -> None:
    task = sqlite.task(add)
    for other in (tmp_path / "other.db", ":memory:"):
        with (
            closing(sqlite3.connect(other)) as connection,
            sqlite.enqueue_in(connection),
            pytest.raises(CapabilityError, match="the connection belongs to another database than "),
        ):
            task.delay(1, 2)
    assert sqlite.jobs() == []


def test_a_connection_that_is_closed_or_of_another_thread_is_refused(sqlite: Mouso, file: Path) -> None:
    task = sqlite.task(add)
    closed = sqlite3.connect(file)
    closed.close()
    thread = ThreadPoolExecutor(1)
    elsewhere = thread.submit(sqlite3.connect, file).result()
    for connection, why in (
        (closed, "Cannot operate on a closed database; give one that is open"),
        (elsewhere, "SQLite objects created in a thread can only be used in that same thread"),
    ):
        with (
            pytest.raises(CapabilityError, match=rf"^the connection to .* cannot be used: {why}") as refused,
            sqlite.enqueue_in(connection),
        ):
            task.delay(1, 2)
        assert "try again" not in str(refused.value)
    assert sqlite.jobs() == []
    thread.submit(elsewhere.close).result()
    thread.shutdown()


def test_a_transaction_that_has_read_an_older_state_must_begin_anew(sqlite: Mouso, file: Path) -> None:
    task = sqlite.task(add)
    task.delay(1, 2)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM mouso_jobs").fetchone()
        task.delay(1, 2)
        for _ in range(2):
            with (
                pytest.raises(BrokerUnavailable, match=r"roll it back and begin anew, with BEGIN IMMEDIATE$"),
                sqlite.enqueue_in(connection),
            ):
                task.delay(1, 2)
        connection.rollback()
        with connection, sqlite.enqueue_in(connection):
            task.delay(1, 2)
    assert len(sqlite.jobs()) == 3


@pytest.mark.parametrize("thing", [None, object(), "jobs.db"])
def test_what_is_no_connection_is_refused(sqlite: Mouso, thing: object) -> None:
    task = sqlite.task(add)
    with pytest.raises(CapabilityError, match="needs a"), sqlite.enqueue_in(thing):
        task.delay(1, 2)
    assert sqlite.jobs() == []


def test_a_broker_without_transactions_refuses(app: Mouso) -> None:
    with (
        closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(CapabilityError, match="enqueue_in needs a broker with transactions; memory has none"),
        app.enqueue_in(connection),
    ):
        pass


def test_after_the_block_jobs_are_stored_at_once_again(sqlite: Mouso, file: Path) -> None:
    task = sqlite.task(add)
    with closing(sqlite3.connect(file)) as connection:
        with sqlite.enqueue_in(connection):
            task.delay(1, 2)
        connection.rollback()
        task.delay(3, 4)
    assert [job.payload for job in sqlite.jobs()] == [b'{"x":3,"y":4}']


def test_adelay_takes_part_too(file: Path, sqlite: Mouso) -> None:
    task = sqlite.task(add)

    async def main(connection: sqlite3.Connection) -> None:
        with sqlite.enqueue_in(connection):
            await task.adelay(1, 2)

    with closing(sqlite3.connect(file)) as connection:
        asyncio.run(main(connection))
        assert sqlite.jobs() == []
        connection.commit()
    assert len(sqlite.jobs()) == 1


def test_others_wait_for_the_callers_transaction_no_longer_than_their_deadline(sqlite: Mouso, file: Path) -> None:
    task = sqlite.task(add)
    with closing(sqlite3.connect(file)) as connection:
        with sqlite.enqueue_in(connection):
            task.delay(1, 2)
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=r"stayed locked by another transaction for 0\.3 s"):
            task.delay(3, 4)
        assert time.monotonic() - began > 0.25
        assert elapsed(began) < 0.3 + 1.0 * crowd()
        connection.commit()
    assert len(sqlite.broker.find(JobFilter())) == 1


@pytest.mark.parametrize("timeout", [0, -1, "0s"])
def test_an_enqueue_without_time_is_refused(timeout: Any) -> None:
    with pytest.raises(ConfigError, match=f"enqueue_timeout={timeout!r} leaves no time; use a duration above 0"):
        Mouso("shop", broker="memory://", enqueue_timeout=timeout)


@pytest.mark.parametrize("value", ["\ud800", 10**30, ["mail"], {"a": 1}, 5, b"x", True, "a\nb", object()])
@pytest.mark.parametrize("name", ["task", "queue", "after"])
def test_jobs_are_looked_for_by_what_can_be_a_name(tmp_path: Path, name: str, value: Any) -> None:
    with Mouso("shop", broker=f"sqlite:///{tmp_path}/jobs.db") as app, pytest.raises(OptionError, match=f"^{name}="):
        app.jobs(**{name: value})
