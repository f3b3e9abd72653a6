"""An idle pump: who waits for the bell claims by itself, and never at the same time as the loop."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from mouso.brokers.base import Exchange, Want
from mouso.errors import BrokerUnavailable
from mouso.job import Lease, Outcome
from mouso.worker.pump import Broken, Pump
from mouso.worker.shares import Turns
from tests.unit.test_pump_reports import Fleet as EmptyFleet
from tests.unit.test_pump_reports import ended

WAIT = 10.0


class Broker:
    """Rings when it is told to; an exchange waits until it may go on.

    Attributes:
        jobs: How many it has.
        verbs: What it was called for, in order.
        open: Lets exchanges go on.
        most: The most calls under way at a time, of those that must not be.
        fails: The next exchange fails.
    """

    def __init__(self) -> None:
        self.bell = threading.Event()
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.jobs = 0
        self.claims = 0
        self.verbs: list[str] = []
        self.wants: list[Want] = []
        self.held: list[tuple[int | str, int]] = []
        self.fails = False
        self.most = 0
        self._under_way = 0
        self._lock = threading.Lock()

    def wait(self, timeout: float) -> bool:
        rung = self.bell.wait(timeout)
        self.bell.clear()
        return rung

    def ring(self, jobs: int) -> None:
        with self._lock:
            self.jobs += jobs
        self.entered.clear()
        self.bell.set()

    def exchange(self, worker: str, outcomes: list[Outcome], want: Want) -> Exchange:
        with self._lock:
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        self.verbs.append(f"exchange {len(outcomes)}")
        self.wants.append(want)
        self.entered.set()
        assert self.open.wait(WAIT)
        with self._lock:
            self._under_way -= 1
            if self.fails:
                self.fails = False
                raise BrokerUnavailable("out of order")
            taken = min(want.limit, self.jobs)
            self.jobs -= taken
            self.claims += taken
            keys = range(self.claims - taken, self.claims)
        return Exchange(
            leases=[Lease(k, 1, f"{k}", "work", "default", b"{}", "json", 0, 0, 0, 0, None, None) for k in keys]
        )

    def reconcile(self, worker: str, held: list[tuple[int | str, int]]) -> list[int | str]:
        self.verbs.append("reconcile")
        self.held = list(held)
        assert not self._under_way
        return []


class Line:
    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    async def call(self, verb: Callable[..., Any], *args: Any) -> Any:
        try:
            return await asyncio.to_thread(verb, *args)
        except BrokerUnavailable as error:
            raise Broken(str(error)) from error


class Fleet(EmptyFleet):
    def __init__(self, slots: int = 4) -> None:
        super().__init__()
        self.slots = slots
        self.leases: list[Lease] = []

    def room(self) -> int:
        return max(self.slots - len(self.leases), 0)

    def has(self, jobs: int) -> bool:
        return len(self.leases) == jobs

    def place(self, leases: Any) -> None:
        self.leases += leases

    def held(self) -> list[tuple[int | str, int]]:
        return [(lease.key, lease.token) for lease in self.leases]


def with_an_idle_pump(scene: Callable[[Pump, Broker, Fleet], Awaitable[None]], turns: Turns | None = None) -> Broker:
    async def main() -> Broker:
        pump, broker, fleet = Pump("w", turns), Broker(), Fleet()
        pump.connect(Line(broker), fleet)  # type: ignore[arg-type]  # why: stand-ins for both
        pump.learn(frozenset({"work"}), None)
        run = asyncio.create_task(pump.run())
        await until(lambda: broker.verbs == ["exchange 0"])
        try:
            async with asyncio.timeout(WAIT):
                await scene(pump, broker, fleet)
        finally:
            pump.claiming = False
            run.cancel()
            broker.open.set()
            broker.bell.set()
            await asyncio.gather(run, return_exceptions=True)
        return broker

    return asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110  # why: what is looked at is plain attributes
            await asyncio.sleep(0.001)


def test_a_ring_leads_to_one_claim() -> None:
    async def scene(pump: Pump, broker: Broker, fleet: Fleet) -> None:
        for _ in range(3):
            before = len(fleet.leases)
            broker.ring(1)
            await until(partial(fleet.has, before + 1))

    broker = with_an_idle_pump(scene)
    assert broker.verbs[:4] == ["exchange 0"] * 4
    assert [want.limit for want in broker.wants[:4]] == [4, 4, 3, 2], "what there is room for at each time"


def test_more_than_one_claim_can_hold_is_claimed_on() -> None:
    async def scene(pump: Pump, broker: Broker, fleet: Fleet) -> None:
        broker.ring(6)
        await until(lambda: len(fleet.leases) == 4)
        del fleet.leases[:]
        pump.look()
        await until(lambda: len(fleet.leases) == 2)

    with_an_idle_pump(scene)


def test_an_outcome_waits_for_what_is_claimed_at_the_bell() -> None:
    async def scene(pump: Pump, broker: Broker, fleet: Fleet) -> None:
        broker.open.clear()
        broker.ring(2)
        await asyncio.to_thread(broker.entered.wait, WAIT)
        pump.settle([ended(7)])
        pump.doubt()
        await asyncio.sleep(0.02)
        assert broker.verbs == ["exchange 0", "exchange 0"], "the loop waits"
        broker.open.set()
        await until(lambda: pump.empty)
        assert broker.verbs[2:4] == ["reconcile", "exchange 1"]
        assert broker.held == [(0, 1), (1, 1), (7, 1)], "what was claimed at the bell is held by then"

    assert with_an_idle_pump(scene).most == 1


@pytest.mark.parametrize("stopped", [True, False])
def test_a_ring_while_there_is_nothing_to_claim_for(stopped: bool) -> None:
    """It leads to a look by the loop, which asks for no jobs."""

    async def scene(pump: Pump, broker: Broker, fleet: Fleet) -> None:
        if stopped:
            pump.claiming = False
        else:
            fleet.slots = 0
            pump.look()
            await asyncio.sleep(0.05)
        done = len(broker.verbs)
        broker.ring(3)
        await until(lambda: not broker.bell.is_set())
        await asyncio.sleep(0.05)
        assert broker.verbs[done:] == []
        assert not fleet.leases

    with_an_idle_pump(scene)


def test_a_claim_that_fails_at_the_bell_is_doubted() -> None:
    async def scene(pump: Pump, broker: Broker, fleet: Fleet) -> None:
        broker.fails = True
        broker.ring(1)
        await until(lambda: len(fleet.leases) == 1)
        assert broker.verbs[1:4] == ["exchange 0", "reconcile", "exchange 0"]

    with_an_idle_pump(scene)


@pytest.mark.parametrize("where", ["exchange", "place"])
def test_what_nobody_expects_ends_the_pump(where: str) -> None:
    """Else the worker would live on and hear nothing any more."""

    async def main() -> None:
        pump, broker, fleet = Pump("w", None), Broker(), Fleet()
        pump.connect(Line(broker), fleet)  # type: ignore[arg-type]  # why: stand-ins for both
        pump.learn(frozenset({"work"}), None)
        run = asyncio.create_task(pump.run())
        await until(lambda: broker.verbs == ["exchange 0"])
        await until(lambda: pump._bell is not None)
        setattr(broker if where == "exchange" else fleet, where, None)
        broker.ring(1)
        async with asyncio.timeout(WAIT):
            with pytest.raises(TypeError, match="not callable"):
                await run

    asyncio.run(main())


def test_queues_keep_their_turns() -> None:
    """A share that was offered at the bell and not used up takes nothing from the next."""

    async def scene(pump: Pump, broker: Broker, fleet: Fleet) -> None:
        fleet.slots = 1
        pump.look()
        for _ in range(8):
            broker.ring(1)
            await until(lambda: len(fleet.leases) == 1)
            await until(lambda: pump._bell is not None and not pump._bell_answers)
            del fleet.leases[:]
            broker.entered.clear()
            pump.look()
            await until(broker.entered.is_set)

    broker = with_an_idle_pump(scene, Turns([("a", 3), ("b", 1)]))
    firsts = [want.shares[0][0] for want in broker.wants if want.shares and want.limit == 1]
    assert abs(firsts.count("a") - 3 * firsts.count("b")) <= 3


def test_many_rings_and_outcomes_at_once() -> None:
    """Each job is placed once, whoever claims it, and no two exchanges are ever under way."""

    async def scene(pump: Pump, broker: Broker, fleet: Fleet) -> None:
        fleet.slots = 3
        done: list[Lease] = []
        for number in range(400):
            broker.ring(1)
            if number % 3 == 0:
                await asyncio.sleep(0)
            if number % 5 == 0:
                await asyncio.sleep(0.001)
            if fleet.leases:
                lease = fleet.leases.pop()
                done.append(lease)
                pump.settle([ended(int(lease.key))])
        while len(done) < 400:
            await until(lambda: bool(fleet.leases))
            done += fleet.leases
            pump.settle([ended(int(lease.key)) for lease in fleet.leases])
            fleet.leases.clear()
        assert sorted(int(lease.key) for lease in done) == list(range(400))

    assert with_an_idle_pump(scene).most == 1


def test_a_failure_at_the_bell_of_a_worker_that_has_stopped_is_nobodys_business() -> None:
    """Python would write of an exception that was never retrieved."""

    async def main() -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        pump, broker = Pump("w", None), Broker()
        pump.connect(Line(broker), Fleet())  # type: ignore[arg-type]  # why: stand-ins for both
        pump.learn(frozenset({"work"}), None)
        run = asyncio.create_task(pump.run())
        await until(lambda: broker.verbs == ["exchange 0"])
        broker.open.clear()
        broker.fails = True
        broker.ring(1)
        await asyncio.to_thread(broker.entered.wait, WAIT)
        bell = pump._bell
        assert bell is not None
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        broker.open.set()
        await until(bell.done)
        del pump, run, bell
        gc.collect()
        return told

    assert asyncio.run(main()) == []
