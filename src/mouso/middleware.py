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

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

from mouso.context import Context

Middleware = Callable[[Context, Callable[[], Any]], Any]


def compose(layers: Sequence[Middleware], job: Context, call: Callable[[], Any]) -> Callable[[], Any]:
    """``call`` wrapped in the layers, the first registered outermost."""
    return reduce(lambda inner, layer: partial(layer, job, inner), reversed(layers), call)
