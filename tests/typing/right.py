"""What type checkers must know about tasks, handles and results."""

from collections.abc import Coroutine
from typing import Any, assert_type

from mouso import JobHandle
from mouso.task import AsyncTask, Task
from tests.typing.tasks import (
    add,
    deliver,
    fetch,
    greet,
    log,
    matrix,
    nothing,
    old,
    old_async,
    rank,
    render,
    send,
    ship,
    total,
)


def a_plain_call_gives_the_functions_own_value() -> None:
    assert_type(add(4, 4), int)
    assert_type(greet("Ann"), str)
    assert_type(old(1), str)
    coroutine: Coroutine[Any, Any, bytes] = fetch("http://localhost")
    coroutine.close()


def the_context_is_no_argument() -> None:
    assert_type(rank("Ann"), list[int])
    assert_type(rank.delay("Ann"), JobHandle[list[int]])
    assert_type(render.delay(3, draft=True), JobHandle[None])
    assert_type(deliver.delay("a@b.c"), JobHandle[int])
    assert_type(old.delay(1), JobHandle[str])
    assert_type(old_async.delay(x=1), JobHandle[str])


def delay_gives_a_handle_of_the_result() -> None:
    assert_type(add.delay(4, 4), JobHandle[int])
    assert_type(add.delay(x=4, y=4).get(timeout=1), int)
    assert_type(fetch.delay("http://localhost"), JobHandle[bytes])
    assert_type(send.delay("a@b.c", subject="hello"), JobHandle[None])
    assert_type(greet.delay("Ann", greeting="Hi"), JobHandle[str])
    assert_type(total.delay(1, 2.5, scale=2), JobHandle[float])
    assert_type(nothing.delay(), JobHandle[None])


async def adelay_gives_one_too() -> None:
    assert_type(await add.adelay(4, 4), JobHandle[int])
    assert_type(await (await add.adelay(4, 4)).aget(timeout="1s"), int)
    assert_type(await fetch.adelay("http://localhost"), JobHandle[bytes])
    assert_type(await fetch("http://localhost"), bytes)


async def options_keep_the_arguments() -> None:
    assert_type(add.options(delay="10m", priority=50, unique=True).delay(4, 4), JobHandle[int])
    assert_type(await rank.options(queue="low").adelay("Ann"), JobHandle[list[int]])
    assert_type(add.options(priority=3).map([(1, 2)]), list[JobHandle[int]])
    assert_type(add.apply_async((4, 4), countdown=3, task_id="a"), JobHandle[int])


async def map_takes_tuples_of_the_arguments() -> None:
    assert_type(add.map([(1, 2), (3, 4)]), list[JobHandle[int]])
    assert_type(add.map((i, i) for i in range(3)), list[JobHandle[int]])
    assert_type(await add.amap([(1, 2)]), list[JobHandle[int]])
    assert_type(rank.map([("Ann",)]), list[JobHandle[list[int]]])
    assert_type(greet.map([("Ann",)]), list[JobHandle[str]])
    assert_type(greet.map([("Ann", "Hi")]), list[JobHandle[str]])
    assert_type(total.map([(1.5,)]), list[JobHandle[float]])


async def map_takes_empty_tuples_where_no_argument_is_needed() -> None:
    assert_type(nothing.map([() for _ in range(3)]), list[JobHandle[None]])
    assert_type(nothing.map([(), ()]), list[JobHandle[None]])
    assert_type(await nothing.amap([()]), list[JobHandle[None]])
    assert_type(total.map([()]), list[JobHandle[float]])


def map_takes_long_tuples() -> None:
    assert_type(ship.map([(1, "Ann", "Elm St", "Ulm", 0.5)]), list[JobHandle[str]])
    assert_type(ship.map([(1, "Ann", "Elm St", "Ulm", 0.5, True)]), list[JobHandle[str]])
    assert_type(matrix.map((n, 2, 3, 4, 5, 6, 7, "8") for n in range(3)), list[JobHandle[int]])


def map_takes_lists_and_mappings_unchecked() -> None:
    assert_type(render.map([{"pages": 3, "draft": True}]), list[JobHandle[None]])
    assert_type(add.map([[1, 2]]), list[JobHandle[int]])
    assert_type(total.map([(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]), list[JobHandle[float]])


def a_first_parameter_that_takes_anything_is_no_context() -> None:
    assert_type(log.delay("text", 1), JobHandle[None])
    assert_type(log.delay(value=3), JobHandle[None])


def coroutine_functions_make_coroutine_tasks() -> None:
    plain: Task[[int, int], int] | Task[..., Any] = add
    coroutine: AsyncTask[..., bytes] = fetch
    assert_type(plain.name, str)
    assert_type(coroutine.is_async, bool)
