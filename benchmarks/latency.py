"""Latency on an idle worker, and what the idle worker costs."""

import time
from collections import defaultdict

from benchmarks.plan import Plan
from benchmarks.processes import cpu_seconds
from benchmarks.results import Row, percentile
from benchmarks.rig import Rig, in_turn

_SETTLE = 1.0


def run(plan: Plan) -> list[Row]:
    """The client and the worker are processes of their own; samples are about 20 ms apart."""
    measured: dict[str, list[float]] = defaultdict(list)

    def measure(rig: Rig, name: str, starts: int, results: int, idle: float) -> None:
        for what, value in sample(rig, starts, results, idle).items():
            measured[f"{name} {what}"].append(value)
        rig.discard()

    idle = 1.0 if plan.quick else 5.0
    in_turn(
        plan.runs,
        lambda: measure(plan.mouso(), "mouso", plan.jobs(300), plan.jobs(100), idle),
        lambda: measure(plan.huey(fsync=False), "huey", plan.jobs(200), plan.jobs(60), idle / 2),
    )

    def row(what: str, name: str, unit: str = "ms", target: float | None = None, note: str = "") -> Row:
        return Row(what=what, runs=measured[name], unit=unit, target=target, better="less", note=note)

    return [
        row(
            "delay() to the job's start, idle worker, p50: Mouso, FULL", "mouso start p50", target=1.5, note="-p 2 -c 8"
        ),
        row("… p99", "mouso start p99", target=5),
        row("… Huey, OFF, p50", "huey start p50", note="-k process -w 2, its default polling of 0.1 to 10 s"),
        row("… Huey, OFF, p99", "huey start p99"),
        row("delay() to its result in the caller, p50: Mouso, FULL", "mouso result p50", target=3),
        row("… p99", "mouso result p99"),
        row("… Huey, OFF, p50", "huey result p50", note="the caller looks every 10 ms"),
        row("the call of delay() itself, p50: Mouso, FULL", "mouso call p50"),
        row("… Huey, OFF", "huey call p50"),
        row("CPU of an idle worker: Mouso", "mouso idle", "% of a CPU", 0.5),
        row("… Huey", "huey idle", "% of a CPU"),
    ]


def sample(rig: Rig, starts: int, results: int, idle: float) -> dict[str, float]:
    """Looks at an idle worker for a while, then at how soon it starts jobs and answers.

    Returns:
        ``idle``, percent of a CPU, ``operations`` that its server carries out in a second meanwhile, and ms: ``start``,
        ``call`` and ``result``, each ``p50`` and ``p99``.
    """
    rig.fill(10)
    with rig.worker() as worker:
        rig.wait_for(worker, 10)
        time.sleep(_SETTLE)
        pids = worker.pids()
        operations = rig.server.operations() if rig.server else 0
        before, began = cpu_seconds(pids), time.monotonic()
        time.sleep(idle)
        took = time.monotonic() - began
        found = {"idle": (cpu_seconds(pids) - before) / took * 100}
        found["operations"] = (rig.server.operations() - operations if rig.server else 0) / took
        answer = rig.client("latency", starts, results)
    for what, samples in answer.items():
        if samples:
            found[f"{what} p50"] = percentile(samples, 0.5)
            found[f"{what} p99"] = percentile(samples, 0.99)
    return found
