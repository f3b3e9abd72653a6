"""A task: a function that can be called here or run later by a worker.

The life of a call: ``delay`` → the arguments are bound, checked and encoded (``codec.Signature``) → a ``Job`` with a
fresh id → ``producer.Producer.submit`` → ``Broker.enqueue`` → a ``JobHandle``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    Union,
    Unpack,
    get_args,
    get_origin,
    overload,
)

import msgspec

from mouso.brokers.base import BATCH, Enqueued
from mouso.codec import Signature, type_hints
from mouso.context import Context
from mouso.errors import ArgumentError, BadPayload, ConfigError, OptionError
from mouso.handle import JobHandle
from mouso.job import Job, JobOptions, check_name, new_id
from mouso.options import AUTO, Options, RunSettings, Template, task_defaults, template, unique_key
from mouso.producer import after
from mouso.retry import Backoff, module_name
from mouso.wire import PICKLE, first_line, preview

if TYPE_CHECKING:
    from mouso.app import Mouso

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A", contravariant=True)
B = TypeVar("B", contravariant=True)
C = TypeVar("C", contravariant=True)
D = TypeVar("D", contravariant=True)
E = TypeVar("E", contravariant=True)
F = TypeVar("F", contravariant=True)
G = TypeVar("G", contravariant=True)
H = TypeVar("H", contravariant=True)


# What ``map`` asks of a task, for type checkers: that it takes so many arguments. One that has defaults fits several.
class _Takes0(Protocol[R]):
    def delay(self, /) -> JobHandle[R]: ...


class _Takes1(Protocol[A, R]):
    def delay(self, a: A, /) -> JobHandle[R]: ...


class _Takes2(Protocol[A, B, R]):
    def delay(self, a: A, b: B, /) -> JobHandle[R]: ...


class _Takes3(Protocol[A, B, C, R]):
    def delay(self, a: A, b: B, c: C, /) -> JobHandle[R]: ...


class _Takes4(Protocol[A, B, C, D, R]):
    def delay(self, a: A, b: B, c: C, d: D, /) -> JobHandle[R]: ...


class _Takes5(Protocol[A, B, C, D, E, R]):
    def delay(self, a: A, b: B, c: C, d: D, e: E, /) -> JobHandle[R]: ...


class _Takes6(Protocol[A, B, C, D, E, F, R]):
    def delay(self, a: A, b: B, c: C, d: D, e: E, f: F, /) -> JobHandle[R]: ...


class _Takes7(Protocol[A, B, C, D, E, F, G, R]):
    def delay(self, a: A, b: B, c: C, d: D, e: E, f: F, g: G, /) -> JobHandle[R]: ...


class _Takes8(Protocol[A, B, C, D, E, F, G, H, R]):
    def delay(self, a: A, b: B, c: C, d: D, e: E, f: F, g: G, h: H, /) -> JobHandle[R]: ...


_Arguments = list[Any] | Mapping[str, Any] | tuple[Any, Any, Any, Any, Any, Any, Any, Any, Any, *tuple[Any, ...]]
"""What ``map`` also takes, unchecked by type checkers: a list, keyword arguments, nine arguments and more."""


class Call(Generic[P, R]):
    """A task together with the options of its next jobs."""

    def __init__(self, app: Mouso, task: Task[P, R] | None, template: Template) -> None:
        self._app = app
        self._task: Task[P, R] = task if task is not None else self  # type: ignore[assignment]  # a Task is its own call
        self._template = template
        if template.codec == PICKLE and not app.allow_pickle:
            raise OptionError(
                f"task {self._task.name}: codec='pickle' takes Mouso(…, allow_pickle=True) and keys=; "
                "else use 'json' or 'msgpack'"
            )

    def delay(self, /, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """Enqueues a job with these arguments and returns at once.

        Raises:
            JobRejected: The job is certainly not stored.
            BrokerUnavailable: Likewise; try again.
            OutcomeUnknown: It may be stored; repeat with the same ``id``.
        """
        stored = self._app.producer.submit((self._build(args, kwargs),))[0]
        return JobHandle(self._app, stored.id, self._task)

    async def adelay(self, /, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """``delay`` for coroutines; concurrent ones share round trips."""
        stored = (await self._app.producer.asubmit((self._build(args, kwargs),)))[0]
        return JobHandle(self._app, stored.id, self._task)

    def job(self, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        """The job that ``delay`` would enqueue, for ``app.enqueue_many``."""
        return self._build(args, kwargs)

    @overload
    def map(self: _Takes0[R], calls: Iterable[tuple[()]]) -> list[JobHandle[R]]: ...
    @overload
    def map(self: _Takes1[A, R], calls: Iterable[tuple[A]]) -> list[JobHandle[R]]: ...
    @overload
    def map(self: _Takes2[A, B, R], calls: Iterable[tuple[A, B]]) -> list[JobHandle[R]]: ...
    @overload
    def map(self: _Takes3[A, B, C, R], calls: Iterable[tuple[A, B, C]]) -> list[JobHandle[R]]: ...
    @overload
    def map(self: _Takes4[A, B, C, D, R], calls: Iterable[tuple[A, B, C, D]]) -> list[JobHandle[R]]: ...
    @overload
    def map(self: _Takes5[A, B, C, D, E, R], calls: Iterable[tuple[A, B, C, D, E]]) -> list[JobHandle[R]]: ...
    @overload
    def map(self: _Takes6[A, B, C, D, E, F, R], calls: Iterable[tuple[A, B, C, D, E, F]]) -> list[JobHandle[R]]: ...
    @overload
    def map(
        self: _Takes7[A, B, C, D, E, F, G, R], calls: Iterable[tuple[A, B, C, D, E, F, G]]
    ) -> list[JobHandle[R]]: ...
    @overload
    def map(
        self: _Takes8[A, B, C, D, E, F, G, H, R], calls: Iterable[tuple[A, B, C, D, E, F, G, H]]
    ) -> list[JobHandle[R]]: ...
    @overload
    def map(self, calls: Iterable[_Arguments]) -> list[JobHandle[R]]: ...
    def map(self, calls: Iterable[Any]) -> list[JobHandle[R]]:
        """Enqueues one job per tuple of arguments (or mapping of keyword arguments), 1,000 in a round trip.

        Where the broker is a server, the next 1,000 are taken from ``calls`` while it stores those before.

        Type checkers check tuples of up to eight; a longer one, a list or a mapping is checked when it is enqueued.

        Returns:
            One handle per job, in order.

        Raises:
            As ``delay``; batches of 1,000 that went before stay stored: then it is not ``BrokerUnavailable`` but
            ``OutcomeUnknown``, and each error says how many.
        """
        handles: list[JobHandle[R]] = []
        batches = self._batches(calls)

        def stored(enqueued: list[Enqueued]) -> None:
            handles.extend(JobHandle(self._app, e.id, self._task) for e in enqueued)

        with after(handles):
            self._app.producer.submit_each(batches, stored)
        return handles

    @overload
    async def amap(self: _Takes0[R], calls: Iterable[tuple[()]]) -> list[JobHandle[R]]: ...
    @overload
    async def amap(self: _Takes1[A, R], calls: Iterable[tuple[A]]) -> list[JobHandle[R]]: ...
    @overload
    async def amap(self: _Takes2[A, B, R], calls: Iterable[tuple[A, B]]) -> list[JobHandle[R]]: ...
    @overload
    async def amap(self: _Takes3[A, B, C, R], calls: Iterable[tuple[A, B, C]]) -> list[JobHandle[R]]: ...
    @overload
    async def amap(self: _Takes4[A, B, C, D, R], calls: Iterable[tuple[A, B, C, D]]) -> list[JobHandle[R]]: ...
    @overload
    async def amap(self: _Takes5[A, B, C, D, E, R], calls: Iterable[tuple[A, B, C, D, E]]) -> list[JobHandle[R]]: ...
    @overload
    async def amap(
        self: _Takes6[A, B, C, D, E, F, R], calls: Iterable[tuple[A, B, C, D, E, F]]
    ) -> list[JobHandle[R]]: ...
    @overload
    async def amap(
        self: _Takes7[A, B, C, D, E, F, G, R], calls: Iterable[tuple[A, B, C, D, E, F, G]]
    ) -> list[JobHandle[R]]: ...
    @overload
    async def amap(
        self: _Takes8[A, B, C, D, E, F, G, H, R], calls: Iterable[tuple[A, B, C, D, E, F, G, H]]
    ) -> list[JobHandle[R]]: ...
    @overload
    async def amap(self, calls: Iterable[_Arguments]) -> list[JobHandle[R]]: ...
    async def amap(self, calls: Iterable[Any]) -> list[JobHandle[R]]:
        """``map`` for coroutines."""
        handles: list[JobHandle[R]] = []
        batches = self._batches(calls)
        with after(handles):
            for batch in batches:
                handles += [JobHandle(self._app, e.id, self._task) for e in await self._app.producer.asubmit(batch)]
        return handles

    def _batches(self, calls: Iterable[Any]) -> Iterator[list[Job]]:
        source = self._each(calls)

        def batches() -> Iterator[list[Job]]:
            while batch := [self._build_from(call) for call in islice(source, BATCH)]:
                yield batch

        return batches()

    def _each(self, calls: Iterable[Any]) -> Iterator[Any]:
        if self._template.id is not None:
            raise OptionError(f"task {self._task.name}: id= belongs to one job; map() makes one per call")
        try:
            return iter(calls)
        except TypeError:
            raise ArgumentError(
                f"task {self._task.name}: map() takes an iterable of tuples of arguments, not {type(calls).__name__}; "
                "write map([(1,), (2,)])"
            ) from None

    def _build_from(self, call: Any) -> Job:
        if isinstance(call, Mapping):
            return self._build((), call)
        if isinstance(call, (tuple, list)):
            return self._build(call, {})
        raise OptionError(
            f"task {self._task.name}: map() takes tuples of arguments, not {type(call).__name__}; "
            "for one argument write [(1,), (2,)]"
        )

    def _build(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Job:
        task, t = self._task, self._template
        payload = task.signature.encode(args, kwargs, t.codec, self._app.payload_limit)
        return Job(
            id=t.id or new_id(),
            task=task.name,
            payload=payload,
            codec=t.codec,
            queue=t.queue,
            priority=t.priority,
            delay=t.delay,
            due=t.due,
            ttl=t.ttl,
            expires_at=t.expires_at,
            unique=self.key_of(payload, t.codec) if t.unique == AUTO else t.unique,
            unique_scope=t.unique_scope,
            unique_period=t.unique_period,
            options=t.options,
        )

    def key_of(self, payload: bytes, codec: str) -> str:
        """The unique key that ``unique=True`` makes of encoded arguments, before they are signed."""
        trust, content = self._app.trust, self._task.signature.canonical(payload, codec)
        return unique_key(self._task.name, content, None if trust is None else trust.digest(content))


class Task(Call[P, R]):
    """A registered function. Calling it runs it here; ``delay`` has a worker run it.

    Attributes:
        name: What jobs call it; ``module.function`` unless given.
        function: The function itself.
        is_async: Whether it is a coroutine function.
        signature: How its arguments and result travel.
        settings: How a worker runs it.
    """

    def __init__(
        self, app: Mouso, function: Callable[..., Any], *, name: str | None, bind: bool, options: Options
    ) -> None:
        self.name = check_task_name(function, name)
        defaults, self.settings = task_defaults(options, self.name)
        super().__init__(app, None, defaults)
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        self.context_parameter = _context_parameter(self.name, function, bind=bind)
        injected = frozenset({self.context_parameter[0]}) if self.context_parameter else frozenset[str]()
        self.signature = Signature(self.name, function, injected, hides=app.redaction.hides, pickle=app.allow_pickle)
        functools.update_wrapper(self, function, updated=())

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    @property
    def default_queue(self) -> str:
        """Where its jobs wait unless they say otherwise."""
        return self._template.queue

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the function here and now, as if it were no task."""
        if self.context_parameter is None:
            return self.function(*args, **kwargs)  # type: ignore[no-any-return]  # R by construction
        if self.context_parameter[0] in kwargs or any(isinstance(arg, Context) for arg in args):
            return self.function(*args, **kwargs)  # type: ignore[no-any-return]  # the caller brought its own
        return self.invoke(Context(task=self.name), args, kwargs)  # type: ignore[no-any-return]  # R by construction

    def invoke(self, context: Context, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Calls the function with its context filled in."""
        if self.context_parameter is None:
            return self.function(*args, **kwargs)
        name, position = self.context_parameter
        if position is None:
            return self.function(*args, **{**kwargs, name: context})
        if position <= len(args):
            return self.function(*args[:position], context, *args[position:], **kwargs)
        return self.function(*args, **{**kwargs, name: context})

    def options(self, **options: Unpack[Options]) -> Call[P, R]:
        """The task with other options for its next jobs; see ``Options``.

        Raises:
            CapabilityError: The broker lacks what an option needs.
            OptionError: An option is unknown or out of its range.
        """
        checked = template(self._template, options, self.name)
        self._app.require_capabilities(self.name, options)
        return Call(self._app, self, checked)

    def run_settings(self, encoded: bytes | None) -> RunSettings:
        """How to run one job: the task's settings, and over them what the job brings along.

        Raises:
            BadPayload: That cannot be read.
        """
        if encoded is None:
            return self.settings
        try:
            own = msgspec.json.decode(encoded, type=JobOptions)
        except (ValueError, RecursionError) as error:
            raise BadPayload(
                f"the job's options cannot be read: {first_line(error)} (starts {preview(encoded)})"
            ) from None
        policy = {
            "attempts": own.attempts,
            "backoff": Backoff(*own.backoff) if own.backoff else None,
            "retry_on": own.retry_on,
            "discard_on": own.discard_on,
        }
        given = {name: value for name, value in policy.items() if value is not None}
        return RunSettings(
            policy=msgspec.structs.replace(self.settings.policy, **given),
            timeout=self.settings.timeout if own.timeout is None else own.timeout or None,
            keep_result=self.settings.keep_result if own.keep_result is None else own.keep_result,
            headers=own.headers or {},
        )

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        countdown: float | None = None,
        task_id: str | None = None,
        **options: Unpack[Options],
    ) -> JobHandle[R]:
        """Celery's spelling of ``options(...).delay(...)``: ``countdown`` is ``delay``, ``task_id`` is ``id``.

        Raises:
            ArgumentError: ``args`` is no list or tuple, ``kwargs`` no mapping by name, or they do not fit.
        """
        if not isinstance(args, list | tuple | type(None)):
            kind = type(args).__name__
            raise ArgumentError(f"task {self.name}: apply_async takes args as a list or tuple, not a {kind}")
        if not (kwargs is None or (isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs))):
            raise ArgumentError(f"task {self.name}: apply_async takes kwargs as a mapping by parameter name")
        if countdown is not None:
            options["delay"] = countdown
        if task_id is not None:
            options["id"] = task_id
        call: Any = self.options(**options)
        return call.delay(*(args or ()), **(kwargs or {}))  # type: ignore[no-any-return]  # a JobHandle[R]


class AsyncTask(Task[P, R]):
    """A registered coroutine function; calling it gives a coroutine."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:  # type: ignore[override]  # its nature
        """Runs the coroutine function here, as if it were no task."""
        return super().__call__(*args, **kwargs)  # type: ignore[return-value]  # the function is a coroutine function


def check_task_name(function: Callable[..., Any], name: str | None) -> str:
    """Finds a task's name and refuses what a worker could not call by it.

    Raises:
        ConfigError: The object is no plain function or coroutine function.
        OptionError: The name cannot be used.
    """
    shown = getattr(function, "__qualname__", None) or repr(function)
    if isinstance(function, type):
        raise ConfigError(f"{shown} is a class; decorate a function that makes the object")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"{shown} is a generator; return a list or use a workflow")
    if not callable(function):
        raise ConfigError(f"{function!r:.80} is no function")
    if name is not None:
        return check_name(name, "task")
    if inspect.ismethod(function):
        raise ConfigError(f"{shown} is a method, which a worker cannot find; decorate a function that calls it")
    if not inspect.isfunction(function):
        raise ConfigError(f"{shown} is no plain function; wrap it in one, or give it a name=")
    if function.__name__ == "<lambda>":
        raise ConfigError("a lambda has no name to find it by; write a function, or give it a name=")
    return check_name(f"{module_name(function.__module__)}.{function.__qualname__}", "task")


def _context_parameter(task: str, function: Callable[..., Any], *, bind: bool) -> tuple[str, int | None] | None:
    """Name and position of the parameter that takes the context; a keyword-only one has no position."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    found: dict[str, int | None] = {}
    if bind:
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise ConfigError(f"task {task}: bind=True needs a first parameter for the context")
        found[parameters[0].name] = 0
    hints = type_hints(function)
    for position, parameter in enumerate(parameters):
        name, hint = parameter.name, hints.get(parameter.name, Any)
        if name in found:
            continue
        if _is_context(hint, parameter.annotation) and parameter.kind not in _MANY:
            found[name] = None if parameter.kind is inspect.Parameter.KEYWORD_ONLY else position
        elif _holds_context(hint):
            written = inspect.formatannotation(hint) if parameter.kind not in _MANY else f"*{name}: Context"
            raise ConfigError(
                f"task {task}: parameter {name!r} is annotated {written}, and the worker fills in one Context alone; "
                "write ctx: Context, or call Context.current() where it is needed"
            )
    if len(found) > 1:
        first, second = list(found)[:2]
        raise ConfigError(
            f"task {task}: parameters {first!r} and {second!r} both take the Context; leave {second!r} out, "
            "or give it another annotation"
        )
    return next(iter(found.items()), None)


_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_CONTEXT_TEXTS = frozenset(
    text
    for name in ("Context", "mouso.Context")
    for text in (name, f"{name}|None", f"None|{name}", f"Optional[{name}]", f"typing.Optional[{name}]")
)


def _is_context(hint: Any, written: object) -> bool:
    """Whether an annotation is ``Context``, or that or None; as text, if it cannot be resolved."""
    if hint is Any and isinstance(written, str):
        return "".join(written.split()) in _CONTEXT_TEXTS
    return hint is Context or (get_origin(hint) in (Union, UnionType) and set(get_args(hint)) == {Context, type(None)})


def _holds_context(hint: Any) -> bool:
    parts = hint if isinstance(hint, list) else get_args(hint)
    return hint is Context or any(map(_holds_context, parts))
