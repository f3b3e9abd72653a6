"""Code around every run of every task.

A middleware takes the run's ``Context`` and ``call``, which goes on to the next middleware and at last to the task::

    @app.middleware
    def timed(job, call):
        started = time.monotonic()
        try:
            return call()
        finally:
            metrics.observe(job.task, time.monotonic() - started)

A plain function goes around plain tasks, an ``async def`` (which awaits ``call()``) around coroutine tasks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

from mouso.context import Context
from mouso.errors import ConfigError, shown
from mouso.retry import takes

Middleware = Callable[[Context, Callable[[], Any]], Any]


def check_middleware(function: object) -> None:
    """Refuses what cannot go around a run, as far as can be told without calling it.

    Raises:
        ConfigError: Says what to write.
    """
    name = getattr(function, "__name__", None) or shown(function)
    advice = "write def name(job, call), or async def for coroutine tasks, and return what call() returns"
    if not callable(function):
        raise ConfigError(f"the middleware {name:.80} is no function; {advice}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"the middleware {name:.80} is a generator; {advice}")
    if not takes(function, Context(), lambda: None):
        raise ConfigError(f"the middleware {name:.80} does not take (job, call); {advice}")


def compose(layers: Sequence[Middleware], job: Context, call: Callable[[], Any]) -> Callable[[], Any]:
    """``call`` wrapped in the layers, the first registered outermost."""
    return reduce(lambda inner, layer: partial(layer, job, inner), reversed(layers), call)
