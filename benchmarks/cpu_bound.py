"""CPU-bound jobs on two processes, against the same work in two bare processes."""

import subprocess
import sys
from collections import defaultdict

from benchmarks.plan import Plan
from benchmarks.results import Row, ratios
from benchmarks.rig import ROOT, in_turn
from benchmarks.spin import calibrate

_JOB = 0.05


def bare(jobs: int, iterations: int) -> float:
    """Seconds that two processes need for half of the work each, from the first start to the last end."""
    command = [sys.executable, "-m", "benchmarks.spin", str(jobs // 2), str(iterations)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    spans = [process.communicate()[0].split() for process in processes]
    return max(float(end) for _, end in spans) - min(float(began) for began, _ in spans)


def run(plan: Plan) -> list[Row]:
    """200 jobs of 50 ms; one slot a process, as is right for such jobs, and eight, as is the default."""
    jobs, iterations = plan.jobs(200), calibrate(_JOB)
    seconds: dict[str, list[float]] = defaultdict(list)

    def measure(concurrency: int) -> None:
        rig = plan.mouso()
        rig.client("works", jobs, iterations)
        answer = rig.drain(jobs, concurrency)
        seconds[f"-c {concurrency}"].append((jobs - 1) / answer["rate"])
        rig.discard()

    in_turn(plan.runs, lambda: seconds["bare"].append(bare(jobs, iterations)), lambda: measure(1), lambda: measure(8))
    note = f"{jobs} jobs of 50 ms each"
    return [
        Row(what="CPU-bound jobs: two bare processes", runs=seconds["bare"], unit="s", note=note),
        Row(what="… Mouso, -p 2 -c 1", runs=seconds["-c 1"], unit="s", note=note),
        Row(
            what="… Mouso -c 1 : bare", runs=ratios(seconds["-c 1"], seconds["bare"]), unit="×", target=1.05,
            better="less",
        ),
        Row(what="… Mouso -c 8 : bare", runs=ratios(seconds["-c 8"], seconds["bare"]), unit="×"),
    ]  # fmt: skip
