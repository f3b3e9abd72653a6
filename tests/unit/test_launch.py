"""Processes that the supervisor starts, and how they end."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import pytest

from mouso.worker.launch import Exit, Spawned, describe


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


@pytest.fixture(params=["pidfd", "thread"])
def spawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Spawned]:
    if request.param == "thread":
        monkeypatch.delattr(os, "pidfd_open")
    return lambda command: Spawned(command, ())


def run(test: Callable[[], Awaitable[Exit]]) -> Exit:
    async def bounded() -> Exit:
        return await asyncio.wait_for(test(), 20)

    return asyncio.run(bounded())


@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_code_and_memory(spawn: Callable[[list[str]], Spawned], code: int) -> None:
    found = run(lambda: spawn(python(f"x = bytearray(50 << 20); raise SystemExit({code})")).wait())
    assert found.code == code
    assert 50 << 20 < found.max_rss < 500 << 20


def test_a_signal_is_a_negative_code(spawn: Callable[[list[str]], Spawned]) -> None:
    async def kill() -> Exit:
        process = spawn(python("import time; time.sleep(100)"))
        process.signal(signal.SIGTERM)
        found = await process.wait()
        process.signal(signal.SIGTERM)  # nobody is there any more
        assert await process.wait() == found
        return found

    assert run(kill).code == -signal.SIGTERM


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Exit(0), "exit code 0"),
        (Exit(7, 5), "exit code 7"),
        (Exit(-9), "signal 9, SIGKILL"),
        (Exit(-63), "signal 63"),
        (Exit(None), "exit code unknown"),
    ],
)
def test_words(found: Exit, words: str) -> None:
    assert describe(found) == words
