"""A supervisor without memory: what it could not hand over is not held, so that the store gives it back."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from mouso.worker import frames
from mouso.worker.process import ChildProcess
from mouso.worker.pump import Pump
from tests.unit.test_pump_reports import Broker, Fleet, Line, ended
from tests.unit.test_recall import lease


def no_memory(*_: object) -> Any:
    raise MemoryError


@pytest.fixture(params=[False, True], ids=["regular", "spare"])
def child(request: pytest.FixtureRequest) -> Iterator[ChildProcess]:
    made = ChildProcess(2, lambda child, message: None, lambda child: None, spare=request.param)
    yield made
    made.close()


def test_what_could_not_be_sent_is_not_held(child: ChildProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    child.assign([lease(1)])
    monkeypatch.setattr(frames, "encode", no_memory)
    with pytest.raises(MemoryError):
        child.assign([lease(2)])
    assert list(child.leases) == [1]
    assert child.killed == child.spare, "a spare child would wait for its job for ever"


def test_a_child_that_cannot_be_heard_ends_and_its_jobs_are_released(
    child: ChildProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    child.assign([lease(1)])
    monkeypatch.setattr(child._splitter, "feed", no_memory)
    child.buffer_updated(10)
    assert child.killed


def test_so_does_one_whose_socket_ended_for_want_of_memory(child: ChildProcess) -> None:
    """asyncio ends it when there is none for what was just read, or waits to be written."""

    async def lose() -> None:
        child.connection_lost(MemoryError())

    child.assign([lease(1)])
    asyncio.run(lose())
    assert child.killed


@pytest.mark.parametrize("when", ["before", "after"])
def test_outcomes_are_stored_all_the_same(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the exchange nothing has happened; after it, what was claimed is not held, and the store is asked."""

    async def run() -> Broker:
        broker, fleet = Broker(), Fleet()
        line, pump = Line(broker), Pump("w", None)
        pump.connect(line, fleet)  # type: ignore[arg-type]  # why: stand-ins for both
        pump.learn(frozenset(), None)
        pump.settle([ended(1), ended(2)])
        with monkeypatch.context() as patch:
            patch.setattr(fleet, {"before": "room", "after": "place"}[when], no_memory)
            with pytest.raises(MemoryError):
                await pump.run()
        assert pump.unsettled == {"before": 2, "after": 0}[when]
        pump.doubt()
        pump.look()
        again = asyncio.create_task(pump.run())
        async with asyncio.timeout(10):
            await line.idle.wait()
        again.cancel()
        assert pump.empty
        return broker

    broker = asyncio.run(run())
    assert [key for _, key in broker.settled] == [1, 2]
    assert "reconcile" in broker.verbs
