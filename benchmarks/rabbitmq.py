"""Mouso on RabbitMQ without a store, next to Dramatiq and Celery on the same kind of server.

Nobody remembers results there, neither here nor with the peers. All of them publish with confirms, as Mouso always
does.
"""

from collections import defaultdict
from collections.abc import Mapping

from benchmarks import latency
from benchmarks.plan import Plan
from benchmarks.results import Row, ratios
from benchmarks.rig import MousoRig, Rig, in_turn
from benchmarks.stores import RabbitMQ

_DRAMATIQ = {"dramatiq_queue_prefetch": "200"}
_PEERS = {"Dramatiq": ("dramatiq_rabbit", 30_000, _DRAMATIQ), "Celery": ("celery_rabbit", 20_000, {})}
_NOTES = {
    "Dramatiq": "-p 2 -t 4, prefetch 200, confirms, classic queue, at least once",
    "Celery": "prefork -c 2, prefetch 4 × 64, acks_late, confirms, classic queue, no results",
}


def run(plan: Plan) -> list[Row]:
    """Draining in turn with the peers; then enqueueing, and an idle worker. Each has a new server."""
    measured: dict[str, list[float]] = defaultdict(list)

    def new() -> MousoRig:
        return plan.mouso(server=plan.start(RabbitMQ))

    def keep(name: str, rig: Rig, answer: Mapping[str, float]) -> None:
        for what, value in answer.items():
            measured[f"{name} {what}"].append(value)
        rig.discard()

    def drain() -> None:
        rig, jobs = new(), plan.jobs(100_000)
        rig.fill(jobs)
        keep("mouso", rig, rig.drain(jobs))

    def peer(name: str) -> None:
        modules, count, settings = _PEERS[name]
        rig, jobs = plan.peer(modules, plan.start(RabbitMQ), settings), plan.jobs(count)
        single = rig.client("fill", jobs)
        keep(name, rig, {**rig.drain(jobs), "single": single["rate"], "single cpu": single["cpu"]})

    def enqueue() -> None:
        rig, jobs = new(), plan.jobs(10_000)
        assert rig.server is not None
        bare, single = rig.server.bare(jobs), rig.client("single", jobs)
        bulk = rig.client("bulk", plan.jobs(100_000))
        keep("mouso", rig, {"bare": bare, "single": single["rate"], "single cpu": single["cpu"], "bulk": bulk["rate"]})

    def idle() -> None:
        rig = new()
        keep("mouso", rig, latency.sample(rig, plan.jobs(300), 0, 3.0 if plan.quick else 20.0))

    in_turn(plan.runs, drain, *(lambda name=name: peer(name) for name in _PEERS), enqueue, idle)
    server = plan.start(RabbitMQ)
    about = server.about()
    server.discard()
    return _rows(measured, about)


def _rows(measured: Mapping[str, list[float]], about: str) -> list[Row]:
    def row(what: str, name: str, unit: str, target: float | None = None, note: str = "") -> Row:
        return Row(what=what, runs=measured[name], unit=unit, target=target, note=note)

    def less(what: str, name: str, unit: str, target: float | None = None, note: str = "") -> Row:
        return Row(what=what, runs=measured[name], unit=unit, target=target, better="less", note=note)

    return [
        row("no-op jobs drained: Mouso on RabbitMQ alone", "mouso rate", "jobs/s", 13_500, f"-p 2 -c 8; {about}"),
        *(row(f"… {name}", f"{name} rate", "jobs/s", note=_NOTES[name]) for name in _PEERS),
        *(
            Row(
                what=f"Mouso : {name}", runs=ratios(measured["mouso rate"], measured[f"{name} rate"]), unit="×",
                target=2,
            )
            for name in _PEERS
        ),
        less("worker CPU a job: Mouso", "mouso cpu", "µs", 40, "supervisor and both children"),
        *(less(f"… {name}", f"{name} cpu", "µs") for name in _PEERS),
        less("server CPU a job: Mouso", "mouso server", "µs"),
        *(less(f"… {name}", f"{name} server", "µs") for name in _PEERS),
        row("bare confirmed publish to a quorum queue", "mouso bare", "jobs/s", note="pika, blocking, one by one"),
        row("delay() one by one", "mouso single", "jobs/s"),
        *(row(f"… {name}", f"{name} single", "jobs/s", note="with confirms") for name in _PEERS),
        Row(
            what="Mouso : Dramatiq", runs=ratios(measured["mouso single"], measured["Dramatiq single"]), unit="×",
            target=1,
        ),
        less("client CPU of a delay()", "mouso single cpu", "µs"),
        row("map() of 100,000 jobs", "mouso bulk", "jobs/s", 25_000),
        less("delay() to the job's start, idle worker, p50", "mouso start p50", "ms", 1.2, "-p 2 -c 8"),
        less("… p99", "mouso start p99", "ms"),
        less("the call of delay() itself, p50", "mouso call p50", "ms"),
        less("CPU of an idle worker", "mouso idle", "% of a CPU"),
    ]  # fmt: skip
