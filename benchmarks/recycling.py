"""Processes that jobs wear out or have for themselves: children that are replaced, and isolated jobs."""

import time
from collections import defaultdict

from benchmarks.plan import Plan
from benchmarks.processes import pss_mib
from benchmarks.results import Row, percentile
from benchmarks.rig import in_turn

_SETTLE = 1.5
_WARM = 100_000
_MANY = 1_000_000
_PER_CHILD = 6_000
_RECYCLES = 100


def run(plan: Plan) -> list[Row]:
    """The start of an isolated job on an idle worker; a million jobs with a hundred replaced children."""
    measured: dict[str, list[float]] = defaultdict(list)

    def isolated() -> None:
        rig = plan.mouso(app="benchmarks.isolated_jobs")
        rig.client("ordinary", 1)
        with rig.worker() as worker:
            rig.wait_for(worker, 1)
            time.sleep(_SETTLE)
            answer = rig.client("isolated", plan.jobs(200), plan.jobs(50))
        rig.discard()
        measured["p50"].append(percentile(answer["start"], 0.5))
        measured["p99"].append(percentile(answer["start"], 0.99))

    in_turn(plan.runs, isolated)
    growth, replaced = _recycled(plan)
    return [
        Row(what="delay() to the start of an isolated job, p50", runs=measured["p50"], unit="ms", target=10,
            better="less", note="-p 2 -c 8, idle worker; a fork of the template"),
        Row(what="… p99", runs=measured["p99"], unit="ms"),
        Row(what=f"children replaced during {plan.jobs(_MANY):,} jobs", runs=[replaced], unit="",
            target=_RECYCLES if not plan.quick else None, note=f"--max-jobs-per-child {_PER_CHILD:,}"),
        Row(what="… growth of the supervisor", runs=[growth], unit="MiB", target=10, better="less",
            note="anonymous memory; one run"),
    ]  # fmt: skip


def _recycled(plan: Plan) -> tuple[float, float]:
    """MiB by which the supervisor has grown, and how many children were replaced."""
    rig = plan.mouso("normal")
    sizes, jobs = [], 0
    with rig.worker(2, 8, "--max-jobs-per-child", str(_PER_CHILD), "--log-level", "info") as worker:
        for more in (plan.jobs(_WARM), plan.jobs(_MANY)):
            rig.fill(more)
            jobs += more
            rig.wait_for(worker, jobs)
            time.sleep(_SETTLE)
            sizes.append(pss_mib(worker.pids()[:1], "Pss_Anon"))
        replaced = worker.log().count(" is replaced: ")
    rig.discard()
    return sizes[1] - sizes[0], replaced
