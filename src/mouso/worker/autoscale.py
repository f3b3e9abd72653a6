"""How many children a worker has, with ``--autoscale MIN,MAX``: one more or one less at a time.

* One more when all slots have been taken for a while, jobs have waited for as long, the CPUs are not short, and there
  is memory for it.
* One less when for a longer while so few slots were taken that the others would do with room to spare.

``decide`` is the whole policy, without a clock or a system; ``autoscale`` looks and carries out.
"""

from __future__ import annotations

import logging
from asyncio import sleep
from typing import NamedTuple

from mouso.clock import SYSTEM
from mouso.worker import Scaling, WorkerOptions
from mouso.worker.cpus import pressure
from mouso.worker.fleet import Fleet
from mouso.worker.memory import available, resident
from mouso.worker.pump import Broken, Line

_GROWN = 1.2
"""What another child may come to need, in sizes of the largest that there is."""
_COST = 20
"""Asking for the queues takes at most one part in so many of the time: with a million jobs waiting it takes a while."""
_MIB = 1 << 20

log = logging.getLogger("mouso.worker")


class View(NamedTuple):
    """What a decision is made from.

    Attributes:
        size: Children now.
        least, most: How many there may be.
        starting: Whether one of them does not take jobs yet.
        full: Seconds for which all slots have been taken; 0 if they are not.
        waited: Seconds that the oldest available job has waited; 0 if there is none.
        calm: Seconds for which one child less would have done; 0 if it would not.
        settled: Seconds since the size was changed.
        pressure: How short the CPUs are, 0..1.
        largest: Bytes resident of the largest child.
        memory: Bytes that are available, and bytes in all; zeros if nobody can tell.
    """

    size: int
    least: int
    most: int
    starting: bool = False
    full: float = 0.0
    waited: float = 0.0
    calm: float = 0.0
    settled: float = 0.0
    pressure: float = 0.0
    largest: int = 0
    memory: tuple[int, int] = (0, 0)


class Decision(NamedTuple):
    """How many children there are to be, and why; no reason if there is nothing to say."""

    size: int
    why: str = ""


def decide(view: View, scaling: Scaling) -> Decision:
    """The number of children, at most one off what it is."""
    if view.size < view.least:
        return Decision(view.size + 1, f"there are to be {view.least} or more")
    if view.size > view.most:
        return Decision(view.size - 1, f"there are to be {view.most} or fewer")
    if view.starting or view.settled < scaling.step:
        return Decision(view.size)
    if min(view.full, view.waited) >= scaling.wait and view.size < view.most:
        if short := _short(view, scaling):
            return Decision(view.size, short)
        return Decision(view.size + 1, f"all slots are taken, and the oldest job has waited {view.waited:.1f} s")
    if view.calm >= scaling.quiet and view.size > view.least:
        return Decision(view.size - 1, f"one less has been enough for {view.calm:.0f} s")
    return Decision(view.size)


def _short(view: View, scaling: Scaling) -> str:
    """What there is too little of for another child; empty if nothing."""
    if view.pressure > scaling.pressure:
        return f"jobs wait, but so they do for CPUs: {view.pressure:.0%} of the time"
    free, total = view.memory
    need = view.largest * _GROWN
    if total and free - need < total * scaling.reserve:
        return f"jobs wait, but {free / _MIB:,.0f} MiB of memory are too few for one more of {need / _MIB:,.0f} MiB"
    return ""


async def autoscale(fleet: Fleet, line: Line, options: WorkerOptions) -> None:
    """Looks again and again, and gives the fleet the size that it should have; runs until it is cancelled."""
    assert options.autoscale is not None
    scaling, told = options.scaling, False
    full = calm = changed = ask_again = SYSTEM.monotonic()
    while not fleet.draining:
        await sleep(scaling.look)
        now = SYSTEM.monotonic()
        if fleet.taken < fleet.slots:
            full = now
        if not _roomy(fleet, scaling):
            calm = now
        view = View(
            fleet.size, *options.autoscale, fleet.starting,
            full=now - full, calm=now - calm, settled=now - changed,
        )  # fmt: skip
        if view.full >= scaling.wait and view.size < view.most and now >= ask_again:
            view = view._replace(
                waited=await _oldest(line, options),
                pressure=pressure(),
                largest=max(map(resident, fleet.census().pids), default=0),
                memory=available(),
            )
            ask_again = now + (SYSTEM.monotonic() - now) * _COST
        decision = decide(view, scaling)
        if decision.size != view.size and not fleet.draining:
            log.info("autoscale: %d → %d processes: %s", view.size, decision.size, decision.why)
            fleet.resize(decision.size)
            full = calm = changed = SYSTEM.monotonic()
            told = False
        elif decision.why and not told:
            log.info("autoscale: still %d processes: %s", view.size, decision.why)
            told = True


def _roomy(fleet: Fleet, scaling: Scaling) -> bool:
    """Whether one child less would do."""
    left = fleet.slots // fleet.size * (fleet.size - 1)
    return fleet.taken <= left * scaling.fill


async def _oldest(line: Line, options: WorkerOptions) -> float:
    """Seconds that the oldest job that could be claimed has waited; 0 if there is none, or nobody can tell."""
    served = None if options.queues is None else {name for name, _ in options.queues}
    try:
        queues = await line.call(line.broker.queues)
    except Broken:
        return 0.0
    ages = [q.oldest for q in queues if not q.paused and (served is None or q.name in served)]
    return max((age for age in ages if age is not None), default=0) / 1000
