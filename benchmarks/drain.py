"""Draining: no-op jobs wait, then a worker is started; start-up is not counted."""

from benchmarks.plan import Plan
from benchmarks.results import Row, ratios
from benchmarks.rig import Rig, in_turn

CONCURRENCY = 8


def run(plan: Plan) -> list[Row]:
    """Mouso (at least once, FULL, results stored), Huey without and with fsync, in turn."""
    mouso: list[dict[str, float]] = []
    off: list[dict[str, float]] = []
    full: list[dict[str, float]] = []

    def measure(rig: Rig, jobs: int, into: list[dict[str, float]]) -> None:
        rig.fill(jobs)
        into.append(rig.drain(jobs, CONCURRENCY))
        rig.discard()

    in_turn(
        plan.runs,
        lambda: measure(plan.mouso(), plan.jobs(200_000), mouso),
        lambda: measure(plan.huey(fsync=False), plan.jobs(50_000), off),
        lambda: measure(plan.huey(fsync=True), plan.jobs(15_000), full),
    )
    rate, cpu = ([run[name] for run in mouso] for name in ("rate", "cpu"))
    rate_off, rate_full = [run["rate"] for run in off], [run["rate"] for run in full]
    return [
        Row(what="no-op jobs drained: Mouso, FULL", runs=rate, unit="jobs/s", note="-p 2 -c 8, results stored"),
        Row(what="… Huey, OFF", runs=rate_off, unit="jobs/s", note="-k process -w 2, no result to store"),
        Row(what="… Huey, FULL", runs=rate_full, unit="jobs/s", note="-k process -w 2, no result to store"),
        Row(what="Mouso FULL : Huey OFF", runs=ratios(rate, rate_off), unit="×", target=3),
        Row(what="Mouso FULL : Huey FULL", runs=ratios(rate, rate_full), unit="×", target=10),
        Row(
            what="worker CPU a job: Mouso, FULL", runs=cpu, unit="µs", target=20, better="less",
            note="supervisor and both children",
        ),
        Row(what="… Huey, OFF", runs=[run["cpu"] for run in off], unit="µs"),
        Row(what="… Huey, FULL", runs=[run["cpu"] for run in full], unit="µs"),
    ]  # fmt: skip
