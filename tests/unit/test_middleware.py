"""Code around every run."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mouso import Context, Mouso
from mouso.errors import ConfigError
from mouso.middleware import compose

JOB = Context(job_id="a", task="shop.add")
Call = Callable[[], Any]


def test_without_layers_the_call_is_the_task_itself() -> None:
    def task() -> int:
        return 3

    assert compose([], JOB, task) is task


def test_the_first_layer_is_the_outermost() -> None:
    order = []

    def outer(job: Context, call: Call) -> Any:
        order.append("outer in")
        value = call()
        order.append("outer out")
        return value

    def inner(job: Context, call: Call) -> Any:
        order.append("inner")
        return call()

    def task() -> int:
        order.append("task")
        return 3

    assert compose([outer, inner], JOB, task)() == 3
    assert order == ["outer in", "inner", "task", "outer out"]


def test_a_layer_gets_the_context_of_the_run() -> None:
    seen = []

    def layer(job: Context, call: Call) -> Any:
        seen.append(job)
        return call()

    compose([layer], JOB, lambda: None)()
    assert seen == [JOB]


def test_a_layer_may_change_the_value_or_answer_itself() -> None:
    assert compose([lambda job, call: call() + 1], JOB, lambda: 3)() == 4
    assert compose([lambda job, call: 7], JOB, lambda: 1 / 0)() == 7


def test_a_layer_sees_the_exception_and_may_turn_it_into_a_value() -> None:
    def layer(job: Context, call: Call) -> Any:
        try:
            return call()
        except ZeroDivisionError:
            return "caught"

    assert compose([layer], JOB, lambda: 1 / 0)() == "caught"


def test_an_exception_passes_through_layers_that_do_not_care() -> None:
    with pytest.raises(ZeroDivisionError):
        compose([lambda job, call: call()] * 3, JOB, lambda: 1 / 0)()


def test_coroutine_layers_go_around_a_coroutine() -> None:
    async def layer(job: Context, call: Call) -> Any:
        return await call() + 1

    async def task() -> int:
        await asyncio.sleep(0)
        return 3

    assert asyncio.run(compose([layer, layer], JOB, task)()) == 5


def test_a_call_can_be_made_twice() -> None:
    runs = []
    compose([lambda job, call: (call(), call())], JOB, lambda: runs.append(1))()
    assert len(runs) == 2


class Layer:
    """An object that is called like a function."""

    def __call__(self, job: Context, call: Call) -> Any:
        return call()


def generator(job: Context, call: Call) -> Any:
    yield call()


REFUSED: list[tuple[Any, str]] = [
    (5, "the middleware 5 is no function"),
    (None, "the middleware None is no function"),
    (lambda job: 1, r"the middleware <lambda> does not take \(job, call\)"),
    (Layer, r"the middleware Layer does not take \(job, call\)"),
    (lambda job, call, other: 1, r"the middleware <lambda> does not take \(job, call\)"),
    (generator, "the middleware generator is a generator"),
]


@pytest.mark.parametrize(("layer", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_go_around_a_run_is_refused_where_it_is_registered(layer: Any, words: str) -> None:
    app = Mouso("shop", "memory://middleware")
    with pytest.raises(ConfigError, match=f"{words}.*; write def name"):
        app.middleware(layer)
    assert app.middlewares == []


def test_whatever_takes_job_and_call_may_go_around_a_run() -> None:
    app, layer = Mouso("shop", "memory://middleware"), Layer()
    assert app.middleware(layer) is layer
    app.middleware(lambda *args: args[1]())
    app.middleware(max)  # it does not tell what it takes
    assert len(app.middlewares) == 3
