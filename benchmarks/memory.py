"""Start-up, the memory of an idle worker, and whether it grows."""

import time
from collections import defaultdict

from benchmarks.plan import Plan
from benchmarks.processes import pss_mib
from benchmarks.results import Row
from benchmarks.rig import Rig, in_turn

_SETTLE = 1.5
_WARM = 500_000  # by then SQLite's page cache and the allocator's arenas are full
_MANY = 1_000_000
_GROWTH = 2.0


def run(plan: Plan) -> list[Row]:
    """From `mouso worker` to its first job; PSS of all its processes, idle; how that grows with jobs."""
    measured: dict[str, list[float]] = defaultdict(list)

    def measure(rig: Rig, name: str) -> None:
        rig.fill(1)
        with rig.worker() as worker:
            count = rig.wait_for(worker, 1)
            measured[f"{name} start"].append((count.first - worker.started) / 1e9)
            time.sleep(_SETTLE)
            measured[f"{name} memory"].append(pss_mib(worker.pids()))
            measured[f"{name} processes"].append(len(worker.pids()))
        rig.discard()

    in_turn(plan.runs, lambda: measure(plan.mouso(), "mouso"), lambda: measure(plan.huey(fsync=False), "huey"))
    warm, end = _growth(plan)

    def row(what: str, name: str, unit: str, target: float | None = None, note: str = "") -> Row:
        return Row(what=what, runs=measured[name], unit=unit, target=target, better="less", note=note)

    return [
        row("`mouso worker` to its first job", "mouso start", "s", 0.5, "a job waits; -p 2 -c 8"),
        row("… Huey", "huey start", "s"),
        row("PSS of an idle worker with 2 children: Mouso", "mouso memory", "MiB", 60, "3 processes"),
        row("… Huey", "huey memory", "MiB", note=f"{measured['huey processes'][-1]:.0f} processes"),
        Row(what=f"anonymous memory after {plan.jobs(_WARM):,} jobs", runs=[warm], unit="MiB", note="one run"),
        Row(
            what=f"… grown by {plan.jobs(_MANY):,} more jobs",
            runs=[end - warm],
            unit="MiB",
            target=_GROWTH,
            better="less",
            note=f"one run; {_GROWTH:g} MiB are taken for no growth",
        ),
    ]


def _growth(plan: Plan) -> tuple[float, float]:
    """MiB after the first jobs and after all, from one worker that works while jobs are enqueued.

    Anonymous memory, because PSS also changes with who else maps the same libraries.
    """
    rig = plan.mouso("normal")
    after, jobs = [], 0
    with rig.worker() as worker:
        for more in (plan.jobs(_WARM), plan.jobs(_MANY)):
            rig.fill(more)
            jobs += more
            rig.wait_for(worker, jobs)
            time.sleep(_SETTLE)
            after.append(pss_mib(worker.pids(), "Pss_Anon"))
    rig.discard()
    return after[0], after[1]
