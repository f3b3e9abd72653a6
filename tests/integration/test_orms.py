"""Transactions of SQLAlchemy, Django and asynchronous psycopg: jobs join them, and end in them."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool

from mouso import Context, Mouso
from mouso.brokers.base import JobFilter
from mouso.errors import BrokerUnavailable, CapabilityError, JobFailed
from mouso.testing.inline import run_until_idle
from tests.servers.postgres import PostgresServer


class Base(DeclarativeBase):
    """What SQLAlchemy maps."""


class Order(Base):
    """A row of the user's."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def app(server: PostgresServer) -> Iterator[Mouso]:
    with server.client() as client:
        client.execute(
            "DROP SCHEMA IF EXISTS mouso CASCADE; DROP TABLE IF EXISTS orders; CREATE TABLE orders (id bigint)"
        )
    app = Mouso("shop", broker=server.url)

    @app.task(name="follow")
    def follow(order: int) -> int:
        return order

    with closing(app.broker):
        app.broker.open()
        yield app


@pytest.fixture
def url(server: PostgresServer) -> str:
    """The database as SQLAlchemy names it."""
    return server.url.replace("postgresql://", "postgresql+psycopg://")


def orders(server: PostgresServer) -> list[int]:
    with server.client() as client:
        return [id for (id,) in client.execute("SELECT id FROM orders ORDER BY id")]


def jobs(app: Mouso, task: str = "follow") -> int:
    return len(app.broker.find(JobFilter(task=task)))


class Undone(Exception):
    """What makes a caller roll back."""


@contextmanager
def undone(fails: bool) -> Iterator[None]:
    if not fails:
        yield
        return
    with pytest.raises(Undone):
        yield


# -- enqueue_in


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", ["connection", "session"])
def test_sqlalchemy(server: PostgresServer, app: Mouso, url: str, kind: str, fails: bool) -> None:
    engine = create_engine(url)
    opened: Callable[[], Any] = engine.connect if kind == "connection" else lambda: Session(engine)
    with undone(fails), opened() as connection, connection.begin():
        connection.execute(text("INSERT INTO orders VALUES (1)"))
        with app.enqueue_in(connection):
            app.tasks["follow"].delay(1)
        assert jobs(app) == 0
        if fails:
            raise Undone
    engine.dispose()
    assert (orders(server), jobs(app)) == (([], 0) if fails else ([1], 1))


def test_a_session_of_sqlalchemy_that_has_done_nothing_yet(app: Mouso, url: str) -> None:
    engine = create_engine(url)
    with Session(engine) as session:
        with app.enqueue_in(session):
            app.tasks["follow"].delay(1)
        assert jobs(app) == 0
        session.commit()
    engine.dispose()
    assert jobs(app) == 1


MODES = {"isolation": "serializable", "read_only": "off", "deferrable": "on"}


def modes(connection: Any, run: Callable[[str], Any] = str) -> dict[str, str]:
    """How the transaction of a connection was begun."""
    return {name: connection.execute(run(f"SHOW transaction_{name}")).fetchone()[0] for name in MODES}


def test_the_transaction_is_begun_as_its_connection_wants_it(server: PostgresServer, app: Mouso, url: str) -> None:
    """The enqueue begins it, and psycopg's own ``BEGIN`` says what was set; SQLAlchemy and Django set the same."""
    with psycopg.connect(server.url) as connection:
        connection.isolation_level, connection.deferrable = psycopg.IsolationLevel.SERIALIZABLE, True
        for read_only in (None, False):
            connection.read_only = read_only
            with app.enqueue_in(connection):
                app.tasks["follow"].delay(1)
            assert modes(connection) == MODES
            connection.commit()
        connection.read_only = True
        with app.enqueue_in(connection), pytest.raises(BrokerUnavailable, match="read-only"):
            app.tasks["follow"].delay(1)
        connection.rollback()
    engine = create_engine(url, isolation_level="REPEATABLE READ")
    with engine.connect() as joined, app.enqueue_in(joined):
        app.tasks["follow"].delay(1)
        assert modes(joined, text)["isolation"] == "repeatable read"
        joined.commit()
    engine.dispose()
    assert jobs(app) == 3


def test_a_job_s_transaction_is_begun_as_its_connection_wants_it(server: PostgresServer, app: Mouso) -> None:
    @app.task(name="pay", attempts=1)
    def pay(ctx: Context) -> dict[str, str]:
        mine = psycopg.connect(server.url)
        mine.isolation_level, mine.deferrable = psycopg.IsolationLevel.SERIALIZABLE, True
        return modes(ctx.transaction(mine))

    handle = pay.delay()
    run_until_idle(app)
    assert handle.get(timeout=5) == MODES


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", ["connection", "session"])
def test_sqlalchemy_with_asyncio(server: PostgresServer, app: Mouso, url: str, kind: str, fails: bool) -> None:
    async def main() -> None:
        engine = create_async_engine(url)
        opened: Callable[[], Any] = engine.connect if kind == "connection" else lambda: AsyncSession(engine)
        with undone(fails):
            async with opened() as connection, connection.begin():
                await connection.execute(text("INSERT INTO orders VALUES (1)"))
                with app.enqueue_in(connection):
                    await app.tasks["follow"].adelay(1)
                assert jobs(app) == 0
                if fails:
                    raise Undone
        await engine.dispose()

    asyncio.run(main())
    assert (orders(server), jobs(app)) == (([], 0) if fails else ([1], 1))


@pytest.mark.parametrize("fails", [False, True])
def test_psycopg_with_asyncio(server: PostgresServer, app: Mouso, fails: bool) -> None:
    async def main() -> None:
        with undone(fails):
            async with await psycopg.AsyncConnection.connect(server.url) as connection:
                await connection.execute("INSERT INTO orders VALUES (1)")
                with app.enqueue_in(connection):
                    await app.tasks["follow"].adelay(1)
                assert jobs(app) == 0
                if fails:
                    raise Undone

    asyncio.run(main())
    assert (orders(server), jobs(app)) == (([], 0) if fails else ([1], 1))


@pytest.fixture
def django(server: PostgresServer) -> Iterator[Any]:
    """Django's connection, in a handler of this test's own."""
    from django import setup
    from django.conf import settings
    from django.db.utils import ConnectionHandler

    if not settings.configured:
        settings.configure(USE_TZ=True)
        setup()
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": "127.0.0.1",
        "PORT": str(server.port),
    }
    connection = ConnectionHandler({"default": database})["default"]
    yield connection
    connection.close()


@pytest.mark.parametrize("fails", [False, True])
def test_django(server: PostgresServer, app: Mouso, django: Any, fails: bool) -> None:
    django.set_autocommit(False)
    with django.cursor() as cursor:
        cursor.execute("INSERT INTO orders VALUES (1)")
    with app.enqueue_in(django):
        app.tasks["follow"].delay(1)
    assert jobs(app) == 0
    if fails:
        django.rollback()
    else:
        django.commit()
    assert (orders(server), jobs(app)) == (([], 0) if fails else ([1], 1))


# -- ctx.transaction


@pytest.fixture(params=["connection", "session", "django"])
def hand_over(request: pytest.FixtureRequest, url: str) -> Iterator[Callable[[Context, int], Any]]:
    """Begins the transaction and adds an order to it, in the ways of each library."""
    engine = create_engine(url)

    def begin(ctx: Context, order: int) -> Any:
        if request.param == "django":
            connection = ctx.transaction(request.getfixturevalue("django"))
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO orders VALUES (%s)", [order])
        elif request.param == "session":
            session = ctx.transaction(Session(engine))
            session.add(Order(id=order))  # which is written when Mouso commits
        else:
            ctx.transaction(engine.connect()).execute(text("INSERT INTO orders VALUES (:n)"), {"n": order})

    yield begin
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # a QueuePool has it
    engine.dispose()


def pays_once(server: PostgresServer, app: Mouso) -> None:
    """Runs a job that fails at first: what it did and enqueued then is undone, and is there once in the end."""
    handle = app.tasks["pay"].delay(7)
    run_until_idle(app)
    app.broker.promote(10)
    run_until_idle(app)
    assert handle.get(timeout=5) == 7
    assert (orders(server), jobs(app), handle.record.attempts) == ([7], 1, 1)


def test_a_job_that_ends_in_it(server: PostgresServer, app: Mouso, hand_over: Callable[[Context, int], Any]) -> None:
    @app.task(name="pay", backoff=lambda error, attempt: 0.0)
    def pay(ctx: Context, order: int) -> int:
        hand_over(ctx, order)
        app.tasks["follow"].delay(order)
        if ctx.attempt == 1:
            raise Undone
        return order

    pays_once(server, app)


@pytest.mark.parametrize("kind", ["psycopg", "connection", "session"])
def test_a_coroutine_that_ends_in_it(server: PostgresServer, app: Mouso, url: str, kind: str) -> None:
    @app.task(name="pay", backoff=lambda error, attempt: 0.0)
    async def pay(ctx: Context, order: int) -> int:
        engine = create_async_engine(url, poolclass=NullPool)
        if kind == "psycopg":
            connection = ctx.transaction(await psycopg.AsyncConnection.connect(server.url))
            await connection.execute("INSERT INTO orders VALUES (%s)", [order])
        else:
            opened: Any = AsyncSession(engine) if kind == "session" else await engine.connect()
            if kind == "session":
                with pytest.raises(CapabilityError, match=r"call: await session\.connection\(\)"):
                    ctx.transaction(opened)
                await opened.connection()
            await ctx.transaction(opened).execute(text("INSERT INTO orders VALUES (:n)"), {"n": order})
        await app.tasks["follow"].adelay(order)
        if ctx.attempt == 1:
            raise Undone
        return order

    pays_once(server, app)


def test_what_the_database_refuses_at_the_end_fails_the_job(server: PostgresServer, app: Mouso, url: str) -> None:
    engine = create_engine(url)
    with server.client() as client:
        client.execute("ALTER TABLE orders ADD CONSTRAINT once UNIQUE (id) DEFERRABLE INITIALLY DEFERRED")

    @app.task(name="pay", attempts=1)
    def pay(ctx: Context, order: int) -> None:
        session = ctx.transaction(Session(engine))
        for _ in range(2):
            session.execute(text("INSERT INTO orders VALUES (:n)"), {"n": order})
        app.tasks["follow"].delay(order)

    handle = pay.delay(7)
    run_until_idle(app)
    with pytest.raises(JobFailed, match="once"):
        handle.get(timeout=5)
    engine.dispose()
    assert (orders(server), jobs(app)) == ([], 0)


def test_a_plain_function_with_an_asynchronous_connection(server: PostgresServer, app: Mouso) -> None:
    @app.task(name="pay", attempts=1)
    def pay(ctx: Context) -> None:
        connection = asyncio.run(psycopg.AsyncConnection.connect(server.url))
        try:
            ctx.transaction(connection)
        finally:
            connection.pgconn.finish()

    handle = pay.delay()
    run_until_idle(app)
    with pytest.raises(JobFailed, match="hand over another one, or use a coroutine"):
        handle.get(timeout=5)


def test_a_connection_that_commits_by_itself(server: PostgresServer, app: Mouso) -> None:
    with server.client() as client, pytest.raises(CapabilityError, match="commits by itself"):
        app.broker.transaction(client)
