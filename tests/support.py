"""Helpers that every suite may use: waiting for a condition, a free port, this machine's load and processes."""

import asyncio
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from inspect import isawaitable
from typing import TypeVar, overload

from tests.stalls import elapsed

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout: float = 10, interval: float = 0.01, message: str = "") -> T:
    """Returns the condition's value as soon as it is true; use it where a test would sleep.

    Args:
        condition: Called again and again; an exception from it ends the wait.
        timeout: Seconds, without those for which the machine stood still.
        interval: Seconds between two calls; up to three times that once it takes longer.
        message: What was waited for; the condition's name by default.

    Raises:
        AssertionError: It was not true in time; the message holds its last value.
    """
    began = time.monotonic()
    while not (value := condition()):
        waited = elapsed(began)
        if waited >= timeout:
            raise AssertionError(_too_late(condition, message, timeout, value))
        time.sleep(min(max(interval, waited / 20), 3 * interval))
    return value


@overload
async def wait_until_async(
    condition: Callable[[], Awaitable[T]], timeout: float = ..., interval: float = ..., message: str = ...
) -> T: ...
@overload
async def wait_until_async(
    condition: Callable[[], T], timeout: float = ..., interval: float = ..., message: str = ...
) -> T: ...
async def wait_until_async(
    condition: Callable[[], object],
    timeout: float = 10,
    interval: float = 0.01,
    message: str = "",
) -> object:
    """Does what `wait_until` does without blocking the event loop; the condition may be a coroutine."""
    began = time.monotonic()
    while True:
        answer = condition()
        value = await answer if isawaitable(answer) else answer
        if value:
            return value
        if elapsed(began) >= timeout:
            raise AssertionError(_too_late(condition, message, timeout, value))
        await asyncio.sleep(interval)


def _too_late(condition: object, message: str, timeout: float, value: object) -> str:
    what = message or getattr(condition, "__qualname__", repr(condition))
    return f"not true within {timeout:g} s: {what} (last value: {value!r})"


def free_port() -> int:
    """Returns a TCP port of the loopback interface that nothing uses at this moment.

    It is none of those that the system gives to connections, one of which might take it before a server has started.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def crowd() -> float:
    """How many times as much as it can do this machine has to do; at least 1."""
    return max(os.getloadavg()[0] / len(os.sched_getaffinity(0)), 1.0)


def process_ids() -> list[int]:
    """Returns the ids of all processes of this machine; one may have ended when it is looked at."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
