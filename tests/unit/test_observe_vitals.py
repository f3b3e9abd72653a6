"""When a worker counts as live and ready, and what the service manager is told; all around it is made up."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mouso.brokers.base import WorkerInfo
from mouso.clock import SYSTEM
from mouso.observe.notify import Notifier
from mouso.worker import WorkerOptions
from mouso.worker.fleet import Census
from mouso.worker.vitals import Vitals
from tests.support import wait_until_async

INFO = WorkerInfo(id="0" * 16, name="w1", host="here", pid=1, slots=8)


class Told(Notifier):
    """Keeps what would be sent."""

    def __init__(self, interval: float | None = None) -> None:
        super().__init__("", interval)
        self.messages: list[dict[str, str]] = []

    @property
    def active(self) -> bool:
        return True

    def _send(self, **fields: str) -> None:
        self.messages.append(fields)


def made_up(**fields: Any) -> Any:
    return SimpleNamespace(**fields)


class Scene:
    """A worker that is well, until a test changes that."""

    def __init__(self, interval: float | None = None) -> None:
        self.pump = made_up(idle_seconds=0.0, unsettled=0)
        self.watchdog = made_up(stuck="")
        self.line = made_up(down_since=None, outages=0, outage_seconds=0.0)
        self.census = Census([1, 2], ready=2, running=0, held=0)
        self.fleet = made_up(census=lambda: self.census, size=2, restarts={})
        self.renewed = SYSTEM.steady()
        self.vitals = Vitals(WorkerOptions(app="shop:app"))
        self.told = self.vitals._notifier = Told(interval)
        self.vitals.begin(self.fleet, self.pump, self.watchdog)

    def join(self) -> "Scene":
        self.vitals.joined(self.line, INFO, lambda: self.renewed)
        return self

    def watch(self, ticks: int | None = None) -> list[dict[str, str]]:
        """What the service manager is told until it was told so often that the worker lives; None: for 0.2 s."""

        async def run() -> None:
            task = asyncio.create_task(self.vitals.watch())
            if ticks is None:
                await asyncio.sleep(0.2)
            else:
                await wait_until_async(lambda: sum("WATCHDOG" in message for message in self.told.messages) >= ticks)
            task.cancel()

        self.told.messages.clear()
        asyncio.run(run())
        return self.told.messages


def test_a_worker_that_is_well() -> None:
    scene = Scene().join()
    assert scene.vitals.stalled() == scene.vitals.unready() == ""
    assert scene.vitals.status() == "serving"


def test_before_the_broker_knows_it() -> None:
    scene = Scene()
    assert scene.vitals.stalled() == ""
    assert scene.vitals.unready() == scene.vitals.status() == "the worker is starting"


def test_the_broker_is_away() -> None:
    scene = Scene().join()
    scene.line.down_since = 1.0
    assert scene.vitals.stalled() == ""
    assert scene.vitals.unready() == scene.vitals.status() == "the broker does not answer"


def test_the_lease_is_not_renewed() -> None:
    scene = Scene().join()
    scene.renewed -= 9_000
    assert scene.vitals.unready() == ""
    scene.renewed -= 2_000
    assert scene.vitals.unready() == "the lease was not renewed for 11 s"
    assert scene.vitals.stalled() == ""


def test_children_are_missing() -> None:
    scene = Scene().join()
    scene.census = scene.census._replace(ready=1)
    assert (scene.vitals.unready(), scene.vitals.status()) == ("", "serving with 1 of 2 processes")
    scene.census = scene.census._replace(ready=0)
    assert scene.vitals.unready() == scene.vitals.status() == "no child process is ready"


@pytest.mark.parametrize(("running", "said"), [(0, "0 running jobs"), (1, "1 running job"), (3, "3 running jobs")])
def test_it_stops(running: int, said: str) -> None:
    scene = Scene().join()
    scene.census = scene.census._replace(running=running)
    scene.vitals.stopping()
    assert scene.vitals.unready() == "the worker is stopping"
    assert scene.vitals.status() == f"stopping: {said}"
    assert scene.told.messages == [{"STOPPING": "1"}]


def test_the_pump_stands_still() -> None:
    scene = Scene().join()
    scene.pump.idle_seconds = 19.0
    assert scene.vitals.stalled() == ""
    scene.pump.idle_seconds = 21.0
    assert scene.vitals.stalled() == "the pump has made no step for 21 s"


def test_ready_is_told_once() -> None:
    scene = Scene().join()
    assert scene.watch() == [{"STATUS": "serving"}, {"READY": "1"}]


@pytest.mark.parametrize("how", ["pump", "watchdog"])
def test_no_tick_without_progress(how: str, caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(interval=0.02).join()
    scene.watch(ticks=3)
    if how == "pump":
        scene.pump.idle_seconds = 30.0
    else:
        scene.watchdog.stuck = "the broker's exchange does not come back"
    assert not any("WATCHDOG" in message for message in scene.watch())
    assert caplog.text.count("the service manager is not told that the worker lives: ") == 1
    scene.pump.idle_seconds, scene.watchdog.stuck = 0.0, ""
    scene.watch(ticks=3)


def test_an_outage_of_the_broker_is_no_lack_of_progress() -> None:
    scene = Scene(interval=0.02).join()
    scene.line.down_since = 1.0
    scene.renewed -= 600_000
    scene.watch(ticks=3)
