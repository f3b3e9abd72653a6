"""Whether a long queue, or many scheduled jobs, slow anything down."""

import time
from collections import defaultdict
from collections.abc import Callable

from benchmarks.plan import Plan
from benchmarks.processes import Worker
from benchmarks.results import Row, ratios
from benchmarks.rig import MousoRig

_FEW = 10_000
_FROM = 2000
_MANY = 1_000_000


def run(plan: Plan) -> list[Row]:
    """On SQLite."""
    return compare(plan, lambda: plan.mouso("normal"), "NORMAL")


def compare(plan: Plan, new: Callable[[], MousoRig], where: str) -> list[Row]:
    """The rate from the 2,000th to the 10,000th job, and enqueues, with ten thousand or a million jobs there.

    Args:
        new: Makes a rig with nothing in it.
        where: What it works on, for the reader.
    """
    measured: dict[str, list[float]] = defaultdict(list)
    many, bulk, single = plan.jobs(_MANY), 20_000, plan.jobs(5000)
    waiting, scheduled, few_scheduled = new(), new(), new()
    waiting.fill(many)
    scheduled.client("schedule", many)
    scheduled.settle()
    few_scheduled.client("schedule", _FEW)

    def drain(rig: MousoRig, name: str, rest: int = 0) -> None:
        with rig.worker() as worker:
            measured[f"{name} drain"].append(_rate(rig, worker))
            rig.wait_for(worker, rest)

    def enqueue(rig: MousoRig, name: str) -> None:
        measured[f"{name} map"].append(rig.client("bulk", bulk)["rate"])
        measured[f"{name} delay"].append(rig.client("single", single)["rate"])

    for _ in range(plan.runs):
        few_waiting = new()
        few_waiting.fill(_FEW)
        drain(few_waiting, "few waiting")
        few_waiting.fill(_FEW)
        enqueue(few_waiting, "few waiting")
        few_waiting.discard()
        drain(waiting, "many waiting")
        enqueue(waiting, "many waiting")
        for rig, name in ((few_scheduled, "few scheduled"), (scheduled, "many scheduled")):
            enqueue(rig, name)
            drain(rig, name, bulk + single)
    for rig in (waiting, scheduled, few_scheduled):
        rig.discard()

    rows = []
    for kind in ("waiting", "scheduled"):
        for verb, what in (("drain", "drain rate"), ("map", "map()"), ("delay", "delay()")):
            few, much = measured[f"few {kind} {verb}"], measured[f"many {kind} {verb}"]
            rows.append(
                Row(
                    what=f"{what} with {many:,} {kind} : with {_FEW:,}", runs=ratios(much, few), unit="×", target=0.8,
                    note=f"{_rounded(much):,} : {_rounded(few):,} jobs/s, -p 2 -c 8, {where}",
                )
            )  # fmt: skip
    return rows


def _rate(rig: MousoRig, worker: Worker) -> float:
    """Jobs per second from the first look at 2,000 to the first look at 10,000 or, if there are fewer, at the last."""
    began = rig.wait_for(worker, _FROM)
    at = time.monotonic()
    ended = rig.wait_for(worker, _FEW)
    return (ended.jobs - began.jobs) / (time.monotonic() - at)


def _rounded(runs: list[float]) -> int:
    return int(float(f"{sorted(runs)[len(runs) // 2]:.3g}"))
