"""Waiting for a condition: its value comes back, its lateness is an error that says what was seen."""

import asyncio
import itertools

import pytest

from tests.support import wait_until, wait_until_async


def test_wait_until_returns_the_value() -> None:
    counter = itertools.count()
    assert wait_until(lambda: next(counter) >= 3 and "seen", interval=0) == "seen"


def test_wait_until_says_what_it_last_saw() -> None:
    with pytest.raises(AssertionError, match=r"not true within 0 s: three jobs \(last value: \[\]\)"):
        wait_until(list, timeout=0, message="three jobs")


def test_wait_until_passes_the_conditions_own_error_on() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 // 0)


@pytest.mark.asyncio
async def test_wait_until_async_lets_others_run() -> None:
    done = asyncio.Event()
    asyncio.get_running_loop().call_soon(done.set)
    assert await wait_until_async(done.is_set)


@pytest.mark.asyncio
async def test_wait_until_async_awaits_a_coroutine() -> None:
    async def answer() -> int:
        return 42

    assert await wait_until_async(answer) == 42
    with pytest.raises(AssertionError, match="last value: 0"):
        await wait_until_async(lambda: 0, timeout=0)


@pytest.mark.xdist_group("together")
def test_groups_of_tests_stay_together(request: pytest.FixtureRequest) -> None:
    """Or each of the processes that run tests builds the documentation and starts servers for a few of them."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@together"), "this pytest and this pytest-xdist do not go together"
