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
        rig.fill(10)
        with rig.worker() as worker:
            rig.wait_for(worker, 10)
            time.sleep(_SETTLE)
            pids = worker.pids()
            before, began = cpu_seconds(pids), time.monotonic()
            time.sleep(idle)
            measured[f"{name} idle"].append((cpu_seconds(pids) - before) / (time.monotonic() - began) * 100)
            answer = rig.client("latency", starts, results)
        for what, samples in answer.items():
            measured[f"{name} {what} p50"].append(percentile(samples, 0.5))
            measured[f"{name} {what} p99"].append(percentile(samples, 0.99))
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
