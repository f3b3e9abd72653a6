"""The pump and news of running jobs: stored before what these end with; the last wins, late ones harm nobody."""

import asyncio
from collections.abc import Callable
from typing import Any

from mouso.brokers.base import Exchange, Update
from mouso.clock import SYSTEM
from mouso.job import JobState, Lease, Outcome, Progress
from mouso.worker.pump import Broken, Pump


class Broker:
    """Notes what it is called for, and is out of order for the first ``broken`` calls."""

    def __init__(self, broken: int = 0, fenced: list[int | str] | None = None) -> None:
        self.broken = broken
        self.fenced = fenced or []
        self.reports: list[list[Update]] = []
        self.settled: list[tuple[int, int | str]] = []
        self.verbs: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def report(self, worker: str, updates: list[Update]) -> list[int | str]:
        self.reports.append(updates)
        self.meanwhile()
        return self.fenced

    def exchange(self, worker: str, outcomes: list[Outcome], want: object) -> Exchange:
        self.settled += [(len(self.reports), outcome.key) for outcome in outcomes]
        return Exchange(leases=[])

    def reconcile(self, worker: str, held: object) -> list[int | str]:
        return []

    def wait(self, timeout: float) -> bool:
        return False


class Line:
    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.idle = asyncio.Event()

    async def call(self, verb: Callable[..., Any], *args: Any) -> Any:
        name = verb.__name__
        self.broker.verbs.append(name)
        if name == "exchange_at_bell":
            self.idle.set()
            await asyncio.sleep(3600)
        await asyncio.sleep(0)
        if self.broker.broken:
            self.broker.broken -= 1
            raise Broken("out of order")
        return verb(*args)


class Fleet:
    busy = False

    def __init__(self) -> None:
        self.stopped: list[tuple[int | str, int]] = []

    def room(self) -> int:
        return 0

    def well_fed(self, seconds: float) -> bool:
        return False

    def held(self) -> list[tuple[int | str, int]]:
        return []

    def place(self, leases: object) -> None: ...

    def fence(self, claims: list[tuple[int | str, int]]) -> None:
        self.stopped += claims


def pumped(broker: Broker, fill: Callable[[Pump], object]) -> Fleet:
    """Lets a pump work until it has nothing more to do."""

    async def main() -> Fleet:
        pump, line, fleet = Pump("w", None), Line(broker), Fleet()
        pump.connect(line, fleet)  # type: ignore[arg-type]  # why: stand-ins for both
        pump.learn(frozenset({"work"}), None)
        fill(pump)
        task = asyncio.create_task(pump.run())
        async with asyncio.timeout(10):
            await line.idle.wait()
        assert pump.empty
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return fleet

    return asyncio.run(main())


def test_the_last_of_each_kind_is_stored() -> None:
    broker = Broker()

    def fill(pump: Pump) -> None:
        for n in range(1000):
            pump.report([Update(1, 1, Progress(n)), Update(1, 1, log=b"%d" % n), Update(2, 5, Progress(-n))])
        pump.report([Update(1, 1, stack="here")])

    pumped(broker, fill)
    [updates] = broker.reports
    assert updates == [
        Update(1, 1, Progress(999)),
        Update(1, 1, log=b"999"),
        Update(2, 5, Progress(-999)),
        Update(1, 1, stack="here"),
    ]


def test_an_outage_keeps_them_and_what_is_newer_wins() -> None:
    broker = Broker(broken=1)
    pumps: list[Pump] = []

    def fill(pump: Pump) -> None:
        pumps.append(pump)
        pump.report([Update(1, 1, Progress(1)), Update(2, 1, Progress(2))])
        asyncio.get_running_loop().call_later(0.01, pump.report, [Update(1, 1, Progress(9))])

    pumped(broker, fill)
    assert broker.reports[-1] == [Update(1, 1, Progress(9)), Update(2, 1, Progress(2))]


def test_news_are_stored_before_what_a_job_ends_with() -> None:
    broker = Broker()

    def fill(pump: Pump) -> None:
        pump.settle([Outcome(1, 1, "a", "work", "default", JobState.COMPLETED)])
        pump.report([Update(1, 1, log=b"x")])

    pumped(broker, fill)
    assert broker.verbs.index("report") < broker.verbs.index("exchange")


def test_who_was_overtaken_is_told_with_the_claim_that_it_was() -> None:
    broker = Broker(fenced=[1])
    fleet = pumped(broker, lambda pump: pump.report([Update(1, 3, Progress(1)), Update(2, 4, Progress(1))]))
    assert fleet.stopped == [(1, 3)]


def test_news_that_come_while_others_are_reported_are_stored_before_what_their_job_ends_with() -> None:
    broker = Broker()

    def fill(pump: Pump) -> None:
        pump.report([Update(1, 1, Progress(1))])
        pump.settle([ended(1)])
        broker.meanwhile = lambda: begin_and_end(pump)

    def begin_and_end(pump: Pump) -> None:
        broker.meanwhile = lambda: None
        pump.report([Update(2, 1, Progress(2))])
        pump.settle([ended(2)])

    pumped(broker, fill)
    assert [[update.key for update in updates] for updates in broker.reports] == [[1], [2]]
    assert broker.settled == [(1, 1), (2, 2)], "each after as many reports"


def ended(key: int) -> Outcome:
    return Outcome(key, 1, f"job-{key}", "work", "default", JobState.COMPLETED)


def test_what_was_claimed_before_a_standstill_is_not_started() -> None:
    """The lease has ended meanwhile, and others may run it: the store is asked who has what, and the rest goes back."""
    now = SYSTEM.steady()
    placed: list[object] = []
    broker = Claims()

    def fill(pump: Pump) -> None:
        pump.leased_until = now - 1
        broker.meanwhile = lambda: setattr(pump, "leased_until", now + 60_000)
        pump._fleet.room = lambda: 1  # type: ignore[method-assign]  # why: a stand-in
        pump._fleet.place = placed.append  # type: ignore[assignment]  # why: a stand-in
        pump.look()

    pumped(broker, fill)
    assert placed[0] == [], "of the second exchange, which found nothing more"
    assert broker.verbs[:3] == ["exchange", "reconcile", "exchange"]


class Claims(Broker):
    """Has one job."""

    def exchange(self, worker: str, outcomes: list[Outcome], want: object) -> Exchange:
        first = self.verbs.count("exchange") == 1
        self.meanwhile()
        lease = Lease(1, 1, "id", "work", "default", b"{}", "json", 0, 0, 0, 0, None, None)
        return Exchange(leases=[lease] if first else [])
