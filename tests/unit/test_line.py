"""When an outage of the broker is over: what only waits says nothing of it."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from mouso.errors import BrokerUnavailable
from mouso.worker.pump import Broken, Line


class Verbs:
    """A broker's; those named in ``down`` fail."""

    def __init__(self) -> None:
        self.down: set[str] = set()

    def exchange(self) -> str:
        return self._answer("exchange")

    def heartbeat(self) -> str:
        return self._answer("heartbeat")

    def exchange_at_bell(self) -> str:
        return self._answer("bell")

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _answer(self, verb: str) -> str:
        if verb in self.down:
            raise BrokerUnavailable(f"{verb} is out of order")
        return verb


def with_a_line(scene: Callable[[Line, Verbs], Coroutine[Any, Any, None]]) -> None:
    verbs, watchdog = Verbs(), SimpleNamespace(calls={})
    line = Line(verbs, watchdog)  # type: ignore[arg-type]  # why: stand-ins for both
    try:
        asyncio.run(scene(line, verbs))
    finally:
        line.close()
    assert not watchdog.calls


async def fails(line: Line, verb: Callable[..., Any]) -> None:
    with pytest.raises(Broken, match="out of order"):
        await line.call(verb)


def test_waiting_at_the_bell_ends_no_outage() -> None:
    async def scene(line: Line, verbs: Verbs) -> None:
        verbs.down = {"exchange"}
        for _ in range(2):
            await fails(line, verbs.exchange)
            await line.call(verbs.exchange_at_bell)
            await line.call(verbs.heartbeat)
            assert line.down_since is not None
        assert line.outages == 1
        verbs.down = set()
        await line.call(verbs.exchange)
        assert line.down_since is None

    with_a_line(scene)


def test_a_bell_that_failed_is_well_again_with_a_heartbeat() -> None:
    """A worker without room exchanges nothing for as long as its jobs last."""

    async def scene(line: Line, verbs: Verbs) -> None:
        verbs.down = {"bell"}
        await fails(line, verbs.exchange_at_bell)
        assert line.down_since is not None
        await line.call(verbs.heartbeat)
        assert line.down_since is None

    with_a_line(scene)
