"""Coroutine jobs that wait: how full the slots are kept."""

from benchmarks.plan import Plan
from benchmarks.results import Row
from benchmarks.rig import in_turn

CONCURRENCY = 100
_SLEEP = 0.01
_IDEAL = 2 * CONCURRENCY / _SLEEP


def run(plan: Plan) -> list[Row]:
    """10,000 jobs of 10 ms, 200 in flight."""
    rates: list[float] = []
    cpu: list[float] = []
    jobs = plan.jobs(10_000)

    def measure() -> None:
        rig = plan.mouso()
        rig.client("naps", jobs, _SLEEP)
        answer = rig.drain(jobs, CONCURRENCY)
        rates.append(answer["rate"])
        cpu.append(answer["cpu"])
        rig.discard()

    in_turn(plan.runs, measure)
    return [
        Row(what="coroutines that sleep 10 ms, 200 in flight", runs=rates, unit="jobs/s", note="-p 2 -c 100"),
        Row(
            what="… as part of the ideal 20,000/s", runs=[rate / _IDEAL for rate in rates], unit="×", target=0.9,
            note="from the first start to the last end, ramp-up included",
        ),
        Row(what="… worker CPU a job", runs=cpu, unit="µs"),
    ]  # fmt: skip
