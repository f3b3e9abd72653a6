"""Functions as tasks: which can be one, what they are called, how they are called here and later."""

import asyncio
import functools
import inspect
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Optional

import pytest

import mouso
from mouso import Context, Job, Mouso, Retry
from mouso.errors import ArgumentError, BadPayload, ConfigError, OptionError, PayloadTooLarge
from mouso.job import JobOptions, new_id
from mouso.task import AsyncTask, Task


@pytest.fixture
def app() -> Iterator[Mouso]:
    with Mouso("shop", broker=f"memory://{new_id()}") as app:
        yield app


def stored(app: Mouso) -> list[Job]:
    """All jobs, the first enqueued first."""
    return app.jobs(limit=10_000)[::-1]


def run(task: Task[..., Any], job: Job, context: Context | None = None) -> Any:
    """What a worker does with a job, at its core."""
    args, kwargs = task.signature.decode(job.payload, job.codec)
    return task.invoke(context or Context(job_id=job.id), args, kwargs)


def add(x: int, y: int) -> int:
    """Adds two numbers."""
    return x + y


# -- names


def test_a_task_is_called_by_module_and_function(app: Mouso) -> None:
    assert app.task(add).name == f"{__name__}.add"


def test_a_function_in_a_function_is_called_by_its_place(app: Mouso) -> None:
    @app.task
    def inner() -> None: ...

    assert inner.name == f"{__name__}.test_a_function_in_a_function_is_called_by_its_place.<locals>.inner"


def test_a_task_may_be_given_a_name(app: Mouso) -> None:
    assert app.task(name="shop.add")(add).name == "shop.add"


SCRIPT = """
from mouso import Mouso
app = Mouso("shop", broker="memory://script")
@app.task
def add(x: int) -> None: ...
print(add.name)
"""


def test_a_task_of_a_script_is_called_as_a_worker_imports_it(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SCRIPT)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__main__.py").write_text(SCRIPT)
    for command, name in ((["shop.py"], "shop.add"), (["-m", "shop"], "shop.add"), (["-m", "pack"], "pack.add")):
        assert subprocess.check_output([sys.executable, *command], cwd=tmp_path, text=True).strip() == name


UNUSABLE: list[Any] = ["", " ", "a b", "a\n", "a\0", "\x1b[2J", "../etc/passwd", "a/b", "\u202e", 3, b"a"]


@pytest.mark.parametrize("name", [*UNUSABLE, "x" * 256, pytest.param("x" * 10_000, id="10 kB")])
def test_a_name_that_cannot_be_shown_is_refused(app: Mouso, name: Any) -> None:
    with pytest.raises(OptionError, match=r"task name .* is not usable; use 1 to 255 printable characters"):
        app.task(name=name)(add)
    assert not app.tasks


def test_two_tasks_of_one_name_are_refused(app: Mouso) -> None:
    app.task(add)
    with pytest.raises(ConfigError, match=r"a task called '.*\.add' is registered already; give one of them another"):
        app.task(add)
    assert app.task(name="other")(add).name == "other"


# -- what can be a task


class Sender:
    """A thing with a method for every kind of callable."""

    def method(self) -> None: ...
    @classmethod
    def of_class(cls) -> None: ...
    @staticmethod
    def static(x: int) -> int:
        return x

    def __call__(self, x: int) -> int:
        return x


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


REFUSED: list[tuple[Any, str]] = [
    (lambda: None, "a lambda has no name to find it by; write a function, or give it a name="),
    (functools.partial(add, 1), "is no plain function; wrap it in one, or give it a name="),
    (Sender().method, "Sender.method is a method, which a worker cannot find; decorate a function that calls it"),
    (Sender.of_class, "Sender.of_class is a method, which a worker cannot find"),
    (Sender(), "is no plain function; wrap it in one, or give it a name="),
    (Sender.__dict__["static"], "Sender.static is no plain function; wrap it in one, or give it a name="),
    (print, "print is no plain function; wrap it in one, or give it a name="),
    (Sender, "Sender is a class; decorate a function that makes the object"),
    (int, "int is a class; decorate a function that makes the object"),
    (generator, "generator is a generator; return a list or use a workflow"),
    (async_generator, "async_generator is a generator; return a list or use a workflow"),
    (functools.partial(generator), "is a generator; return a list or use a workflow"),
    ("shop.add", "'shop.add' is no function"),
    (3, "3 is no function"),
]


@pytest.mark.parametrize(("thing", "why"), REFUSED, ids=[why[:30] for _, why in REFUSED])
def test_what_a_worker_could_not_call_by_its_name_is_refused(app: Mouso, thing: Any, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        app.task(thing)
    assert why in str(caught.value)
    assert not app.tasks


NAMED: list[Callable[..., Any]] = [
    lambda x: x,
    functools.partial(add, y=0),
    Sender(),
    Sender.static,
    Sender.__dict__["static"],
    abs,
]


@pytest.mark.parametrize("thing", NAMED, ids=["lambda", "partial", "object", "static", "staticmethod", "builtin"])
def test_what_has_no_findable_name_may_be_given_one(app: Mouso, thing: Callable[..., Any]) -> None:
    task = app.task(name="shop.named")(thing)
    task.delay(3)
    assert run(task, stored(app)[0]) == 3


@pytest.mark.parametrize("thing", [generator, async_generator, Sender, 3])
def test_a_name_does_not_make_a_task_of_what_can_be_none(app: Mouso, thing: Any) -> None:
    with pytest.raises(ConfigError):
        app.task(name="shop.named")(thing)


def test_a_task_can_be_declared_as_another_task_too(app: Mouso) -> None:
    first = app.task(name="first", queue="a")(add)
    second = app.task(name="second", queue="b")(first)
    second.delay(1, 2)
    assert (first.name, second.name, stored(app)[0].task, stored(app)[0].queue) == ("first", "second", "second", "b")
    assert run(second, stored(app)[0]) == 3


def test_a_task_looks_like_its_function(app: Mouso) -> None:
    task = app.task(add)
    assert (vars(task)["__name__"], task.__doc__, task.__module__) == ("add", "Adds two numbers.", __name__)
    assert inspect.signature(task) == inspect.signature(add)


def test_attributes_of_the_function_leave_the_task_alone(app: Mouso) -> None:
    def odd() -> None: ...

    odd.name = "x"  # type: ignore[attr-defined]  # why: people do it
    odd._app = None  # type: ignore[attr-defined]  # why: people do it
    task = app.task(name="odd")(odd)
    task.delay()
    assert stored(app)[0].task == "odd"


def test_coroutine_functions_make_coroutine_tasks(app: Mouso) -> None:
    @app.task
    async def fetch(url: str) -> int:
        return len(url)

    assert isinstance(fetch, AsyncTask)
    assert fetch.is_async
    assert not app.task(add).is_async
    assert asyncio.run(fetch("abc")) == 3


# -- plain calls


def test_a_plain_call_runs_here_and_stores_nothing(app: Mouso) -> None:
    assert app.task(add)(4, y=4) == 8
    assert stored(app) == []


def test_a_plain_call_checks_no_types(app: Mouso) -> None:
    assert app.task(add)("a", "b") == "ab"  # type: ignore[comparison-overlap, arg-type]  # why: wrong on purpose


def test_in_a_plain_call_the_context_is_one_that_nobody_watches(app: Mouso) -> None:
    @app.task
    def rank(ctx: Context, name: str) -> tuple[str, str, int]:
        ctx.progress(1, 2)
        return ctx.task, name, ctx.attempt

    assert rank("ann") == (rank.name, "ann", 1)


def test_a_plain_call_may_bring_its_own_context(app: Mouso) -> None:
    @app.task
    def rank(ctx: Context, name: str) -> str:
        return ctx.job_id + name

    own: Any = rank
    assert own(Context(job_id="a"), "b") == "ab"
    assert own(ctx=Context(job_id="a"), name="b") == "ab"


# -- the context parameter


def first(ctx: Context, a: int, b: int = 2) -> Any:
    return ctx.job_id, a, b


def middle(a: int, ctx: Context, b: int = 2) -> Any:
    return ctx.job_id, a, b


def last(a: int, b: int, ctx: Context) -> Any:
    return ctx.job_id, a, b


def keyword_only(a: int, b: int = 2, *, ctx: Context) -> Any:
    return ctx.job_id, a, b


def positional_only(ctx: Context, a: int, /, b: int = 2) -> Any:
    return ctx.job_id, a, b


def quoted(a: int, ctx: "mouso.Context", b: int = 2) -> Any:
    return ctx.job_id, a, b


def before_rest(a: int, ctx: Context, *rest: int) -> Any:
    return ctx.job_id, a, *rest


def before_names(ctx: Context, /, a: int, **names: int) -> Any:
    return ctx.job_id, a, *names.values()


SHAPES = [first, middle, last, keyword_only, positional_only, quoted, before_rest, before_names]


@pytest.mark.parametrize("function", SHAPES, ids=lambda function: function.__name__)
def test_the_context_may_stand_anywhere(app: Mouso, function: Callable[..., Any]) -> None:
    task: Task[..., Any] = app.task(function)
    if function is before_names:
        task.delay(1, b=3)
    else:
        task.delay(1, 3)
    assert run(task, stored(app)[0], Context(job_id="j")) == ("j", 1, 3)


@pytest.mark.parametrize("function", [first, middle, last, keyword_only], ids=lambda function: function.__name__)
def test_the_other_arguments_may_be_named(app: Mouso, function: Callable[..., Any]) -> None:
    task: Task[..., Any] = app.task(function)
    task.delay(b=3, a=1)
    assert run(task, stored(app)[0], Context(job_id="j")) == ("j", 1, 3)
    assert task(b=3, a=1) == ("", 1, 3)


def test_the_context_cannot_be_passed_to_delay(app: Mouso) -> None:
    task: Task[..., Any] = app.task(middle)
    with pytest.raises(ArgumentError, match="got an unexpected keyword argument 'ctx'"):
        task.delay(1, ctx=Context())


def test_map_over_what_is_no_iterable_is_refused(app: Mouso) -> None:
    task: Any = app.task(add)
    words = r"map\(\) takes an iterable of tuples of arguments, not int; write map\(\[\(1,\), \(2,\)\]\)"
    with pytest.raises(ArgumentError, match=words):
        task.map(5)
    with pytest.raises(ArgumentError, match=words):
        asyncio.run(task.amap(5))


def optional(a: int, ctx: Context | None = None, b: int = 2) -> Any:
    return ctx.job_id if ctx else None, a, b


def optional_first(ctx: Optional[Context], a: int, b: int = 2) -> Any:  # noqa: UP045  # it is what people write
    return ctx.job_id if ctx else None, a, b


@pytest.mark.parametrize("function", [optional, optional_first])
def test_a_context_that_may_be_none_is_filled_in_too(app: Mouso, function: Any) -> None:
    task = app.task(function)
    task.delay(1, b=3)
    assert run(task, stored(app)[0], Context(job_id="j")) == ("j", 1, 3)
    assert task(1) == ("", 1, 2)


def test_a_context_that_may_be_none_is_known_by_its_text(app: Mouso) -> None:
    for written in ("Context | None", "Optional[mouso.Context]"):
        source = f"def task(a: int, ctx: {written!r} = None) -> object:\n    return ctx, a\n"
        names: dict[str, Any] = {}
        exec(source, names)
        assert app.task(names["task"]).context_parameter == ("ctx", 1)
        app.tasks.clear()


def test_a_class_of_the_apps_own_with_the_same_name_is_an_ordinary_annotation(app: Mouso) -> None:
    names: dict[str, Any] = {"Context": dict[str, int]}
    exec("def task(ctx: 'Context') -> object:\n    return ctx\n", names)
    assert app.task(names["task"]).context_parameter is None


def list_of(a: int, ctx: list[Context]) -> None: ...


def union_of(a: int, ctx: Context | int) -> None: ...


def annotated(ctx: Annotated[Context, "the job"]) -> None: ...


def any_number(*ctx: Context) -> None: ...


def by_name(**ctx: Context) -> None: ...


@pytest.mark.parametrize("function", [list_of, union_of, annotated, any_number, by_name])
def test_a_context_inside_another_annotation_is_refused_at_the_declaration(app: Mouso, function: Any) -> None:
    with pytest.raises(ConfigError, match=r"parameter 'ctx' is annotated .*Context.*; write ctx: Context, or call Co"):
        app.task(function)


def test_a_second_context_is_refused_at_the_declaration(app: Mouso) -> None:
    def both(ctx: Context, a: int, again: Context | None = None) -> None: ...

    for bind in ({}, {"bind": True}):
        with pytest.raises(ConfigError, match="parameters 'ctx' and 'again' both take the Context; leave 'again' out"):
            app.task(**bind)(both)  # type: ignore[call-overload]  # why: it is about what is refused


def test_a_context_under_type_checking_only_is_found_by_its_name(app: Mouso) -> None:
    source = "def task(ctx: 'Context', when: 'Missing') -> object:\n    return ctx, when\n"
    namespace: dict[str, Any] = {"__name__": "shop"}
    exec(source, namespace)
    task: Task[..., Any] = app.task(namespace["task"])
    assert task.context_parameter == ("ctx", 0)


def test_bind_gives_the_context_to_the_first_parameter(app: Mouso) -> None:
    @app.task(bind=True)
    def old(self: Any, x: int) -> Any:
        return self.request.id, self.request.retries, x

    old.delay(3)
    assert run(old, stored(app)[0], Context(job_id="j", attempt=2)) == ("j", 1, 3)
    assert old(3) == ("", 0, 3)


def test_a_bound_task_retries_as_in_celery(app: Mouso) -> None:
    @app.task(bind=True)
    def old(self: Any) -> None:
        try:
            raise OSError("no network")
        except OSError as error:
            raise self.retry(exc=error, countdown=60)  # noqa: B904  # why: as in Celery's manual

    with pytest.raises(Retry, match="no network") as caught:
        old()
    assert caught.value.delay == 60


@pytest.mark.parametrize("function", [lambda: None, lambda *, self: None, lambda *self: None], ids=["none", "kw", "*"])
def test_bind_needs_a_first_parameter(app: Mouso, function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="task t: bind=True needs a first parameter for the context"):
        app.task(bind=True, name="t")(function)


# -- delay


def test_delay_stores_the_job_and_returns_its_handle(app: Mouso) -> None:
    task = app.task(queue="mail", priority=7)(add)
    handle = task.delay(4, y=4)
    (job,) = stored(app)
    assert handle.id == job.id
    assert (job.task, job.queue, job.priority, job.payload) == (f"{__name__}.add", "mail", 7, b'{"x":4,"y":4}')
    assert run(task, job) == 8


def test_each_delay_makes_a_job_with_an_id_of_its_own(app: Mouso) -> None:
    task = app.task(add)
    assert len({task.delay(1, 1).id for _ in range(20)}) == 20


def test_adelay_stores_it_too(app: Mouso) -> None:
    task = app.task(add)

    async def main() -> str:
        return (await task.adelay(4, 4)).id

    assert [asyncio.run(main())] == [job.id for job in stored(app)]


def test_a_wrong_call_fails_in_the_producer_and_stores_nothing(app: Mouso) -> None:
    task: Any = app.task(add)
    with pytest.raises(TypeError, match="missing a required argument: 'y'; it takes \\(x: int, y: int\\) -> int"):
        task.delay(1)
    with pytest.raises(TypeError, match="argument 'y': Expected `int`, got `str`"):
        task.options(delay=3).delay(1, "2")
    with pytest.raises(TypeError, match="too many positional arguments"):
        asyncio.run(task.adelay(1, 2, 3))
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'z'"):
        task.map([(1, 2), {"x": 1, "y": 2, "z": 3}])
    assert stored(app) == []


def test_the_apps_payload_limit_holds() -> None:
    app = Mouso("shop", broker="memory://limit", payload_limit=20)

    @app.task
    def log(text: str) -> None: ...

    with pytest.raises(PayloadTooLarge, match="the limit is 20"):
        log.delay("x" * 20)


# -- options


def test_options_hold_for_the_jobs_they_are_given_for(app: Mouso) -> None:
    task = app.task(priority=1)(add)
    task.options(priority=50, queue="low", codec="msgpack", attempts=2).delay(1, 2)
    task.delay(1, 2)
    special, plain = stored(app)
    assert (special.priority, special.queue, special.codec) == (50, "low", "msgpack")
    assert special.options is not None
    assert (plain.priority, plain.queue, plain.codec, plain.options) == (1, "default", "json", None)
    assert run(task, special) == 3


def test_options_can_be_kept_and_used_again(app: Mouso) -> None:
    low = app.task(add).options(queue="low")
    low.delay(1, 2)
    low.map([(3, 4)])
    assert [job.queue for job in stored(app)] == ["low", "low"]


def test_a_unique_key_made_of_the_arguments_tells_them_apart(app: Mouso) -> None:
    once = app.task(unique=True)(add)
    a, b, c = once.delay(1, 2), once.delay(1, y=2), once.delay(1, 3)
    assert a.id == b.id != c.id
    assert len(stored(app)) == 2


def test_job_makes_what_delay_would_store(app: Mouso) -> None:
    task = app.task(add)
    job = task.options(id="a").job(1, 2)
    assert (job.id, job.task, job.payload) == ("a", task.name, b'{"x":1,"y":2}')
    assert stored(app) == []


# -- many at once


def test_map_takes_tuples_lists_and_mappings(app: Mouso) -> None:
    task = app.task(add)
    handles = task.map([(1, 2), (3, 4)])
    handles += task.map([[5, 6]])
    handles += task.map([{"x": 7, "y": 8}])
    assert [handle.id for handle in handles] == [job.id for job in stored(app)]
    assert [run(task, job) for job in stored(app)] == [3, 7, 11, 15]


def test_map_of_nothing_is_nothing(app: Mouso) -> None:
    assert app.task(add).map([]) == []


def test_amap_does_the_same(app: Mouso) -> None:
    handles = asyncio.run(app.task(add).amap((n, n) for n in range(3)))
    assert [handle.id for handle in handles] == [job.id for job in stored(app)]


@pytest.mark.parametrize("calls", [[1, 2], ["ab"], [None], [{1, 2}], ["", ()]])
def test_map_refuses_what_is_no_set_of_arguments(app: Mouso, calls: Any) -> None:
    task: Task[..., Any] = app.task(add)
    with pytest.raises(
        OptionError, match=r"map\(\) takes tuples of arguments, not .*; for one argument write \[\(1,\)"
    ):
        task.map(calls)


def test_one_id_for_many_jobs_is_refused(app: Mouso) -> None:
    same = app.task(add).options(id="a")
    with pytest.raises(OptionError, match=r"id= belongs to one job; map\(\) makes one per call"):
        same.map([(1, 2), (3, 4)])
    with pytest.raises(OptionError, match="id= belongs to one job"):
        asyncio.run(same.amap([(1, 2)]))
    assert stored(app) == []


# -- Celery's spelling


def test_apply_async_takes_arguments_and_options(app: Mouso) -> None:
    task = app.task(add)
    handle = task.apply_async((1,), {"y": 2}, countdown=60, task_id="a", queue="mail", priority=3, expires=120)
    (job,) = stored(app)
    assert (handle.id, job.id, job.queue, job.priority, job.state) == ("a", "a", "mail", 3, "scheduled")
    assert job.due == job.enqueued_at + 60_000
    assert job.expires_at == job.enqueued_at + 120_000
    assert run(task, job) == 3


def test_apply_async_takes_an_eta(app: Mouso) -> None:
    eta = datetime(2100, 1, 1, tzinfo=UTC)
    app.task(add).apply_async([1, 2], eta=eta, expires=datetime(2101, 1, 1, tzinfo=UTC))
    assert stored(app)[0].due == int(eta.timestamp()) * 1000


def test_apply_async_needs_no_arguments(app: Mouso) -> None:
    @app.task
    def ping() -> None: ...

    ping.apply_async()
    ping.apply_async(args=None, kwargs=None)
    ping.apply_async((), {})
    assert [job.payload for job in stored(app)] == [b"{}"] * 3


def test_apply_async_refuses_what_it_does_not_know(app: Mouso) -> None:
    task: Any = app.task(add)
    with pytest.raises(OptionError, match="there is no option 'serializer'"):
        task.apply_async((1, 2), serializer="pickle")
    with pytest.raises(OptionError, match=r"delay=.* is no duration"):
        task.apply_async((1, 2), countdown="soon")
    with pytest.raises(ArgumentError, match="missing a required argument: 'y'"):
        task.apply_async((1,))


@pytest.mark.parametrize("args", ["ab", b"ab", {1, 2}, {"x": 1}, 5, 0, "", iter([1, 2])])
def test_apply_async_takes_arguments_in_a_list_or_tuple(app: Mouso, args: Any) -> None:
    with pytest.raises(ArgumentError, match=rf"takes args as a list or tuple, not a {type(args).__name__}$"):
        app.task(add).apply_async(args)
    assert stored(app) == []


@pytest.mark.parametrize("kwargs", [5, "ab", [("x", 1), ("y", 2)], {1: 2}, 0])
def test_apply_async_takes_named_arguments_in_a_mapping(app: Mouso, kwargs: Any) -> None:
    with pytest.raises(ArgumentError, match=r"takes kwargs as a mapping by parameter name$"):
        app.task(add).apply_async((), kwargs)
    assert stored(app) == []


def test_options_are_checked_before_anything_is_asked_of_them(app: Mouso) -> None:
    class Odd:
        def __bool__(self) -> bool:
            raise RuntimeError("nobody may ask")

    task: Any = app.task(add)
    declare: Any = app.task
    for name in ("priority", "delay", "eta", "unique", "id", "keep_result"):
        with pytest.raises(OptionError, match=rf"\b{name}\b"):
            task.options(**{name: Odd()})
        with pytest.raises(OptionError, match=rf"\b{name}\b"):
            declare(name=f"with_{name}", **{name: Odd()})(add)


# -- what the worker reads


def test_the_run_settings_of_a_job_lie_over_those_of_its_task(app: Mouso) -> None:
    task = app.task(attempts=5, timeout=9)(add)
    job = task.options(attempts=1, headers={"a": "b"}).job(1, 2)
    settings = task.run_settings(job.options)
    assert (settings.policy.attempts, settings.timeout, settings.headers) == (1, 9.0, {"a": "b"})


@pytest.mark.parametrize(
    "stored", [b"", b"garbage", b"[]", b'{"headers": {"a": "\xff"}}', pytest.param(b'{"x":' + b"[" * 9999, id="deep")]
)
def test_options_that_cannot_be_read_are_named_and_shown(app: Mouso, stored: bytes) -> None:
    with pytest.raises(BadPayload, match=r"^the job's options cannot be read: .* \(starts .*\)$") as caught:
        app.task(add).run_settings(stored)
    assert f"(starts {stored[:16].hex(' ')})" in str(caught.value)


def test_arguments_arrive_in_the_types_of_the_annotations(app: Mouso) -> None:
    @app.task
    def remind(day: date, *, codes: set[int]) -> Any:
        return day, codes

    remind.delay(date(2030, 1, 2), codes={1, 2})
    assert run(remind, stored(app)[0]) == (date(2030, 1, 2), {1, 2})


def test_options_of_a_job_are_small(app: Mouso) -> None:
    job = app.task(add).options(attempts=3).job(1, 2)
    assert job.options == b'{"attempts":3}'
    assert JobOptions(attempts=3).timeout is None
