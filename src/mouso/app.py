"""The application: a registry of tasks, their settings, and the broker they share."""

from __future__ import annotations

import inspect
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import datetime
from itertools import islice
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, Self, TypeVar, Unpack, cast, overload

from mouso.brokers import Broker, connect
from mouso.brokers.base import BATCH, Enqueued, JobFilter, QueueInfo, Retention, WorkerInfo
from mouso.clock import Duration, instant, millis
from mouso.config import closest
from mouso.context import Context
from mouso.errors import ArgumentError, CapabilityError, ConfigError, OptionError, shown
from mouso.events import EVENTS, EventBus, Handler, check_event
from mouso.handle import JobHandle
from mouso.job import Job, JobState, check_name
from mouso.keys import Key, read_keys
from mouso.lifespan import Lifespan, lifespan_of
from mouso.middleware import Middleware, check_middleware
from mouso.options import Options
from mouso.producer import Producer, after
from mouso.redaction import Redaction
from mouso.signing import trusting
from mouso.task import AsyncTask, Task
from mouso.urls import PARAMETERS, BrokerURL, default_broker_url, default_store_url, redact
from mouso.waiting import Listener

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=Middleware)
H = TypeVar("H", bound=Handler)
L = TypeVar("L", bound=Callable[[], AsyncIterator[Any] | AbstractAsyncContextManager[Any]])
Coro = Coroutine[Any, Any, R]
_NEEDS = {
    "delay": "delay",
    "eta": "delay",
    "priority": "priority",
    "unique": "unique",
    "id": "unique",
    "keep_result": "results",
}
"""The capability that an option needs."""
MOST_LISTED = 10_000
"""The longest page of ``Mouso.jobs``."""


class _Whatever:
    """Stands for any type in ``Mouso.task``; nobody makes one."""


class TaskDecorator(Protocol):
    """What ``app.task(...)`` returns: makes a task of a function. See ``Mouso.task`` for the order of the overloads."""

    @overload
    def __call__(self, function: Callable[Concatenate[_Whatever, ...], Coro[R]], /) -> AsyncTask[..., R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[_Whatever, ...], R], /) -> Task[..., R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Context, P], Coro[R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Coro[R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Context, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class BoundTaskDecorator(Protocol):
    """What ``app.task(bind=True)`` returns: the first parameter is the context, whatever its annotation."""

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Coro[R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Task[P, R]: ...


class Mouso:
    """An application's background jobs.

    Args:
        name: For people; shown by the tools.
        broker: URL of the store of jobs. Default: ``$MOUSO_BROKER``, else ``sqlite:///mouso.db`` beside the nearest
            ``pyproject.toml`` or ``.git`` at or above the calling module, else in the current directory.
        store: URL of what remembers the jobs, for RabbitMQ, which only delivers them; the other brokers are stores.
        backend: Accepted for Celery's sake: results live in the broker. With a RabbitMQ on this machine it stands for
            ``store=`` and ``mouso.db``, as above.
        payload_limit: Most bytes of encoded arguments, and of a result.
        keep_finished: How long results and other finished jobs are kept.
        keep_dead: How long dead jobs are kept.
        max_finished, max_dead: How many of them at most; those enqueued first go, whatever their ``keep_result`` says.
        enqueue_timeout: Total deadline of an enqueue.
        log_lines: How many of the last lines of ``ctx.log`` stay with each run, 0..10,000; 0 keeps none.
        log_bytes: How many bytes of text in all, up to 1 MiB.
        keys: Keys, or their texts, see ``mouso.keys.read_keys``; default: those of ``$MOUSO_KEYS``, else none. With
            keys, jobs are signed, and workers run signed jobs only.
        encrypt: Encrypt arguments and results, with the first key that can; default: if one of the keys is a
            ``Key.aes``, which is good for nothing else.
        accept_unsigned: Run jobs without a signature too, while a system is moved to keys.
        signed_for: How long a signature holds, from when the job is enqueued or due; a job with ``expires=`` is
            signed until then.
        allow_pickle: Let tasks choose ``codec="pickle"``; takes keys.
        redact: Patterns of names whose values listings and logs do not show, beside ``mouso.redaction.HIDDEN``; False
            shows all.

    Raises:
        ConfigError: The URL or a setting cannot be used.
    """

    def __init__(
        self,
        name: str = "app",
        broker: str | None = None,
        *,
        store: str | None = None,
        backend: str | None = None,
        payload_limit: int = 1 << 20,
        keep_finished: Duration = "24h",
        keep_dead: Duration = "30d",
        max_finished: int = 1_000_000,
        max_dead: int = 100_000,
        enqueue_timeout: Duration = 5.0,
        log_lines: int = 100,
        log_bytes: int = 16 << 10,
        keys: Sequence[Key | str] | Key | str | None = None,
        encrypt: bool | None = None,
        accept_unsigned: bool = False,
        signed_for: Duration = "30d",
        allow_pickle: bool = False,
        redact: Sequence[str] | bool = (),
    ) -> None:
        self.name = _app_name(name)
        self.broker_url = _broker_url(broker, store, backend, sys._getframe(1).f_globals.get("__name__"))
        if isinstance(payload_limit, bool) or not isinstance(payload_limit, int) or payload_limit < 1:
            raise ConfigError(f"payload_limit={payload_limit!r:.80} is no number of bytes; the default is 1048576")
        self.payload_limit = payload_limit
        for name_, count in (("max_finished", max_finished), ("max_dead", max_dead)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise ConfigError(f"{name_}={count!r:.80} is no number of jobs; use a whole number from 0")
        for name_, count, most in (("log_lines", log_lines, 10_000), ("log_bytes", log_bytes, 1 << 20)):
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= most:
                raise ConfigError(f"{name_}={count!r:.80} is out of range; use a whole number from 0 to {most:,}")
        self.log_lines, self.log_bytes = log_lines, log_bytes
        try:
            self.retention = Retention(
                finished=millis(keep_finished, "keep_finished"),
                dead=millis(keep_dead, "keep_dead"),
                max_finished=max_finished,
                max_dead=max_dead,
            )
            timeout, validity = millis(enqueue_timeout, "enqueue_timeout") / 1000, millis(signed_for, "signed_for")
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if timeout <= 0:
            raise ConfigError(f"enqueue_timeout={enqueue_timeout!r:.80} leaves no time; use a duration above 0")
        self.tasks: dict[str, Task[..., Any]] = {}
        self.events = EventBus()
        self.middlewares: list[Middleware] = []
        self.lifespans: list[Lifespan] = []
        self.redaction = Redaction(redact)
        self.trust = trusting(
            read_keys(keys), encrypt=encrypt, accept_unsigned=accept_unsigned, signed_for=validity, pickle=allow_pickle
        )
        self.allow_pickle = allow_pickle
        self.producer = Producer(lambda: self.broker, timeout, sign=self.trust.sign if self.trust else None)
        self.listener = Listener(lambda: self.broker)
        self._creates = True
        self._broker: Broker | None = None
        self._connecting = threading.Lock()

    def __repr__(self) -> str:
        return f"Mouso({self.name!r}, broker={redact(self.broker_url)!r})"

    @property
    def broker(self) -> Broker:
        """The broker; connected at the first use."""
        if self._broker is None:
            with self._connecting:
                if self._broker is None:
                    self._broker = self.producer.broker = connect(self.broker_url, create=self._creates)
        return self._broker

    @broker.setter
    def broker(self, broker: Broker) -> None:
        self._broker = self.producer.broker = broker

    def join_store(self) -> None:
        """Says that a worker serves the store: it is there, or has gone, and this process makes no new one."""
        self.close()
        self._creates, self._broker, self.producer.broker = False, None, None

    def close(self) -> None:
        """Lets go of the broker's connections and threads; a later use opens them again."""
        self.listener.close()
        if self._broker is not None:
            self._broker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- tasks

    # A first parameter that takes anything (``object``, ``Any``, no annotation) would take a ``Context`` as well, but
    # is an ordinary one: the overloads with ``_Whatever`` catch it first, and leave its arguments unchecked.
    @overload
    def task(self, function: Callable[Concatenate[_Whatever, ...], Coro[R]], /) -> AsyncTask[..., R]: ...
    @overload
    def task(self, function: Callable[Concatenate[_Whatever, ...], R], /) -> Task[..., R]: ...
    @overload
    def task(self, function: Callable[Concatenate[Context, P], Coro[R]], /) -> AsyncTask[P, R]: ...
    @overload
    def task(self, function: Callable[P, Coro[R]], /) -> AsyncTask[P, R]: ...
    @overload
    def task(self, function: Callable[Concatenate[Context, P], R], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self, /, *, name: str | None = None, bind: Literal[False] = False, **options: Unpack[Options]
    ) -> TaskDecorator: ...
    @overload
    def task(
        self, /, *, name: str | None = None, bind: Literal[True], **options: Unpack[Options]
    ) -> BoundTaskDecorator: ...
    def task(self, function: Any = None, /, *, name: str | None = None, bind: bool = False, **options: Any) -> Any:
        """Registers a function as a task; also usable with arguments, ``@app.task(queue="mail")``.

        Args:
            name: What jobs call it; default ``module.function``.
            bind: The first parameter takes the ``Context``, whatever its annotation.
            **options: Defaults of its jobs, see ``Options``.

        Raises:
            ConfigError: The function cannot be a task, or the name is taken.
            CapabilityError: The broker lacks what an option needs.
            OptionError: An option is unknown or out of its range.
        """

        given = cast(Options, options)  # checked by Task

        def register(function: Callable[..., Any]) -> Task[..., Any]:
            cls: type[Task[..., Any]] = AsyncTask if inspect.iscoroutinefunction(function) else Task
            task: Task[..., Any] = cls(self, function, name=name, bind=bind, options=given)
            if task.name in self.tasks:
                raise ConfigError(f"a task called {task.name!r} is registered already; give one of them another name=")
            self.require_capabilities(task.name, given)
            self.tasks[task.name] = task
            return task

        return register if function is None else register(function)

    def require_capabilities(self, task: str, options: Options) -> None:
        """Refuses options that the broker cannot do.

        Raises:
            CapabilityError: Names the option and the broker.
        """
        capabilities = self.broker.capabilities  # it is known from the first declaration on, also to forks
        for name in _NEEDS.keys() & options.keys():
            if options.get(name) and not getattr(capabilities, _NEEDS[name]):
                raise CapabilityError(f"task {task}: {name}= needs a broker that can do it; {capabilities.name} cannot")

    def require_results(self, what: str) -> None:
        """Refuses what needs a broker that remembers jobs.

        Raises:
            CapabilityError: It does not.
        """
        if not self.broker.capabilities.results:
            raise CapabilityError(
                f"{what} needs a broker that remembers jobs; {self.broker.capabilities.name} does not: name a store, as"
                " in Mouso(broker=…, store=…)"
            )

    def find_task(self, name: str) -> Task[..., Any]:
        """The task of this name.

        Raises:
            ConfigError: None is; names the closest.
        """
        task = self.tasks.get(name)
        if task is None:
            known = [n for n in self.tasks if n.rpartition(".")[2] == name]
            if len(known) == 1:
                return self.tasks[known[0]]
            hint = (
                closest(name, self.tasks)
                or closest(name, {n.rpartition(".")[2] for n in self.tasks})
                or (f"there are {', '.join(sorted(self.tasks))}" if self.tasks else "none is registered")
            )
            raise ConfigError(f"no task is called {name!r}; {hint}")
        return task

    def middleware(self, function: M) -> M:
        """Registers a function ``(job, call)`` around every run; see ``mouso.middleware``.

        Raises:
            ConfigError: It is none, or does not take these two.
        """
        check_middleware(function)
        self.middlewares.append(function)
        return function

    def on(self, *names: str) -> Callable[[H], H]:
        """Registers a handler of events, ``@app.on("job.dead")``; see ``mouso.events.EVENTS``.

        Raises:
            ConfigError: No event has this name, or the handler is no plain function that takes one.
        """
        for name in names:
            check_event(name)
        if not names:
            raise ConfigError(f'app.on() names no event; write @app.on("job.dead"), there are {", ".join(EVENTS)}')

        def register(handler: H) -> H:
            for name in names:
                self.events.add(name, handler)
            return handler

        return register

    def lifespan(self, function: L) -> L:
        """Registers an async generator that runs around the life of each child: pools, clients, models.

        Raises:
            ConfigError: It is no async generator function, or takes arguments.
        """
        self.lifespans.append(lifespan_of(function))
        return function

    # -- jobs

    def enqueue_many(self, jobs: Iterable[Job]) -> list[JobHandle[Any]]:
        """Enqueues jobs made by ``task.job(...)``, of any tasks, 1,000 in a round trip.

        Raises:
            As ``Task.map``.
        """
        handles: list[JobHandle[Any]] = []
        source = _each(jobs)
        under_way: deque[Sequence[Job]] = deque()

        def batches() -> Iterator[Sequence[Job]]:
            while batch := _jobs(source):
                under_way.append(batch)
                yield batch

        def stored(enqueued: Sequence[Enqueued]) -> None:
            handles.extend(self._handles(under_way.popleft(), enqueued))

        with after(handles):
            self.producer.submit_each(batches(), stored)
        return handles

    async def aenqueue_many(self, jobs: Iterable[Job]) -> list[JobHandle[Any]]:
        """``enqueue_many`` for coroutines."""
        handles: list[JobHandle[Any]] = []
        source = _each(jobs)
        with after(handles):
            while batch := _jobs(source):
                handles += self._handles(batch, await self.producer.asubmit(batch))
        return handles

    def _handles(self, jobs: Sequence[Job], stored: Sequence[Enqueued]) -> list[JobHandle[Any]]:
        return [
            JobHandle(self, enqueued.id, self.tasks.get(job.task)) for enqueued, job in zip(stored, jobs, strict=True)
        ]

    @contextmanager
    def enqueue_in(self, connection: object) -> Iterator[None]:
        """Makes enqueues of this block part of the caller's transaction: the jobs exist if it commits.

        Args:
            connection: A ``sqlite3.Connection`` to the broker's own file.

        Raises:
            CapabilityError: The broker has no transactions, or the connection is of another database.
        """
        if connection is None:
            raise CapabilityError("enqueue_in needs a connection, not None")
        if not self.broker.capabilities.transactional:
            raise CapabilityError(
                f"enqueue_in needs a broker with transactions; {self.broker.capabilities.name} has none"
            )
        self.broker.open()
        with self.producer.joined(connection):
            yield

    def job(self, id: str) -> JobHandle[Any]:
        """A handle of the job with this id, whether it exists or not.

        Raises:
            ArgumentError: It is no text.
        """
        if not isinstance(id, str):
            raise ArgumentError(f"app.job takes the id of a job as text, not {shown(id)}; write app.job(handle.id)")
        return JobHandle(self, id)

    def jobs(
        self,
        *,
        state: JobState | str | Collection[JobState | str] | None = None,
        queue: str | None = None,
        task: str | None = None,
        parked: bool | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[Job]:
        """Lists jobs, the last enqueued first.

        Args:
            state: One state or several.
            parked: True for those whose task no worker knows.
            after: The id of the last job of the page before.

        Raises:
            OptionError: No state has this name, a name can be none's, or the limit is out of range.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MOST_LISTED:
            raise OptionError(f"limit={limit!r:.80} is out of range; use 1 to {MOST_LISTED:,}")
        states = None if state is None else _states(state)
        for name, value in (("queue", queue), ("task", task), ("after", after)):
            if value is not None and not (isinstance(value, str) and value.isprintable()):
                raise OptionError(f"{name}={shown(value)} can be none's; use a printable text")
        where = JobFilter(states=states, queue=queue, task=task, parked=parked, limit=limit, after=after)
        return self.broker.find(where)

    def queues(self) -> list[QueueInfo]:
        """Every queue with its counts by state."""
        return self.broker.queues()

    def workers(self) -> list[WorkerInfo]:
        """Workers that hold a lease.

        Raises:
            CapabilityError: The broker knows none of them.
        """
        self.require_results("a list of workers")
        return self.broker.workers()

    def pause(self, queue: str, until: datetime | None = None) -> None:
        """Stops workers from taking jobs of a queue, until ``resume`` or an aware datetime.

        Raises:
            OptionError: The name can be no queue's, or ``until`` is no instant.
        """
        name = check_name(queue, "queue")
        try:
            end = None if until is None else instant(until, "until")
        except ValueError as error:
            raise OptionError(str(error)) from None
        self.broker.pause(name, end)

    def resume(self, queue: str) -> None:
        """Ends a pause."""
        self.broker.resume(check_name(queue, "queue"))

    def purge(self, queue: str) -> int:
        """Deletes all waiting jobs of a queue for good; returns how many."""
        check_name(queue, "queue")
        purged = 0
        while count := self.broker.purge(queue, BATCH):
            purged += count
        return purged


def _app_name(given: object) -> str:
    if isinstance(given, str) and "://" not in given:
        return given
    # A URL taken for a name would send its jobs to a file that nobody asked for.
    wrong = shown(redact(given) if isinstance(given, str) else given)
    raise ConfigError(f'{wrong} is no name for an app; write Mouso("app", broker="redis://…")')


def _broker_url(broker: str | None, store: str | None, backend: str | None, module: str | None) -> str:
    url = BrokerURL.parse(default_broker_url(module) if broker is None else broker)
    lacks = "store" in PARAMETERS[url.scheme] and "store" not in url.params
    if store is None and backend is not None and lacks and url.is_here:
        store = default_store_url(module)
    return str(url if store is None else url.with_store(store))


def _states(given: object) -> frozenset[JobState]:
    try:
        wanted = [given] if isinstance(given, str) else list(given)  # type: ignore[call-overload]  # that is asked here
    except TypeError:
        wanted = [given]
    for name in wanted:
        if not isinstance(name, str) or name not in list(JobState):
            hint = closest(name, JobState) if isinstance(name, str) else ""
            raise OptionError(f"no state is called {shown(name)}; {hint or 'there are ' + ', '.join(JobState)}")
    return frozenset(map(JobState, wanted))


def _each(jobs: Iterable[Job]) -> Iterator[Job]:
    try:
        return iter(jobs)
    except TypeError:
        raise _no_job(jobs) from None


def _no_job(given: object) -> ArgumentError:
    return ArgumentError(
        f"enqueue_many takes jobs made by task.job(...), not {type(given).__name__}; "
        "write app.enqueue_many([add.job(1, 2), …])"
    )


def _jobs(source: Iterator[Job]) -> list[Job]:
    """The next batch; empty at the end.

    Raises:
        ArgumentError: Something else is among them.
    """
    batch = list(islice(source, BATCH))
    for job in batch:
        if not isinstance(job, Job):
            raise _no_job(job)
    return batch
