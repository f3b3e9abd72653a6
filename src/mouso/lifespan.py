"""Lifespans: what is made before the first job of a child, and let go after its last."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from mouso.config import one_line
from mouso.errors import ConfigError, StartError

Lifespan = Callable[[], AbstractAsyncContextManager[Any]]

_SLOW_START = 30.0
"""Seconds after which it is worth a line that a lifespan has not started yet."""
_NO_YIELD = "generator didn't yield"
"""What ``contextlib`` says."""

log = logging.getLogger("mouso.worker")


def lifespan_of(function: Callable[..., Any]) -> Lifespan:
    """An async generator function as a lifespan, whether ``asynccontextmanager`` is around it or not.

    Raises:
        ConfigError: It is something else, or takes arguments.
    """
    name = getattr(function, "__name__", None) or repr(function)
    advice = f"write @app.lifespan on: async def {name}(): …, with one yield in it"
    if not callable(function) or not inspect.isasyncgenfunction(inspect.unwrap(function)):
        raise ConfigError(f"the lifespan {name:.80} is {_kind(function)}; {advice}")
    try:
        inspect.signature(function).bind()
    except TypeError:
        raise ConfigError(f"the lifespan {name:.80} takes arguments, which nobody gives it; {advice}") from None
    return asynccontextmanager(function) if inspect.isasyncgenfunction(function) else function


def _kind(function: object) -> str:
    if inspect.isgeneratorfunction(inspect.unwrap(function) if callable(function) else function):
        return "a generator that is not async"
    if inspect.iscoroutinefunction(function):
        return "a coroutine function without a yield"
    if inspect.isfunction(function):
        return "a plain function without a yield"
    return "no function"


async def enter(lifespan: Lifespan, lifespans: AsyncExitStack) -> None:
    """Enters a lifespan, to be left with others; whatever it raises then is one line in the log.

    Raises:
        StartError: It failed at its start: what it needs may be there later.
        ConfigError: It has ended without a yield.
    """
    import asyncio

    around, name = lifespan(), getattr(lifespan, "__name__", "?")
    late = asyncio.get_running_loop().call_later(
        _SLOW_START, log.warning, "the lifespan %r has not come to its yield after %g s", name, _SLOW_START
    )
    try:
        await around.__aenter__()
    except BaseException as error:  # sys.exit, too
        unfit = isinstance(error, RuntimeError) and str(error) == _NO_YIELD
        raise (ConfigError if unfit else StartError)(_failed(name, "start", error)) from error
    finally:
        late.cancel()

    async def leave(*details: Any) -> None:
        try:
            await around.__aexit__(*details)
        except BaseException as error:
            if error is not details[1]:
                log.error(_failed(name, "end", error))

    lifespans.push_async_exit(leave)


def _failed(name: str, when: str, error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{frame.filename}, line {frame.lineno}"
    return f"the lifespan {name!r} failed at its {when}: {where}: {type(error).__name__}: {one_line(error)}"
