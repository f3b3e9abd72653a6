"""Mouso on a server of its own, next to the peers on the same kind of server."""

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import backlog, latency
from benchmarks.plan import Plan
from benchmarks.results import Row, ratios
from benchmarks.rig import MousoRig, Rig, in_turn
from benchmarks.stores import Postgres, Redis, Store
from tools.servers import PACKAGES, find

_PROGRAMS = {"redis": ("redis-server",), "postgres": ("postgres", "initdb"), "rabbitmq": ("rabbitmq-server",)}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another job system on the same kind of server.

    Attributes:
        modules: What its modules' names begin with.
        jobs: How many it drains.
        target: How many times as fast Mouso is to drain.
        note: How it is run.
        settings: Environment variables for it.
    """

    name: str
    modules: str
    jobs: int
    target: float | None
    note: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of server, and what is aimed at on it.

    Attributes:
        bare: What ``Store.bare`` does.
        cpu: µs of the worker's CPU a job.
        single: ``delay()`` one by one, as part of the bare rate.
        bulk: Jobs per second by ``map()``.
        p50: Milliseconds from ``delay()`` to the job's start, on an idle worker.
        p99: The same.
        operations: What an operation is.
    """

    name: str
    server: Callable[[Path], Store]
    bare: str
    cpu: float
    single: float
    bulk: float
    p50: float
    p99: float
    operations: str
    peers: Sequence[Peer]


_DRAMATIQ = {"dramatiq_queue_prefetch": "200"}
_REDIS = Kind(
    name="Redis", server=Redis, bare="bare Lua call", cpu=20, single=0.8, bulk=80_000, p50=0.8, p99=2,
    operations="commands that it sends; its scripts carry out more",
    peers=(
        Peer(
            name="Dramatiq", modules="dramatiq", jobs=30_000, target=4, settings={**_DRAMATIQ, "BENCH_RESULTS": "1"},
            note="-p 2 -t 4, prefetch 200, results stored, at least once",
        ),
        Peer(
            name="Dramatiq, no results", modules="dramatiq", jobs=50_000, target=None,
            settings={**_DRAMATIQ, "BENCH_RESULTS": "0"}, note="-p 2 -t 4, prefetch 200, at least once",
        ),
    ),
)  # fmt: skip
_POSTGRES = Kind(
    name="PostgreSQL", server=Postgres, bare="bare INSERT in its own transaction", cpu=25, single=0.8, bulk=60_000,
    p50=1.5, p99=4, operations="transactions",
    peers=(
        Peer(
            name="PgQueuer", modules="pgqueuer", jobs=100_000, target=1.3,
            note="2 processes, batch 500, uvloop, no result to store",
        ),
        Peer(
            name="Procrastinate", modules="procrastinate", jobs=4000, target=30,
            note="2 processes, concurrency 100, no result to store",
        ),
    ),
)  # fmt: skip
_IDLE_OPERATIONS = 2


def check(names: Sequence[str]) -> None:
    """Ends the program where a benchmark lacks its server."""
    for program in (program for name in names for program in _PROGRAMS.get(name, ())):
        if find(program) is None:
            sys.exit(f"benchmarks: error: {program} is not installed; it is in Debian's package {PACKAGES[program]}")


def redis(plan: Plan) -> list[Row]:
    """Mouso and Dramatiq on Redis."""
    return _run(plan, _REDIS)


def postgres(plan: Plan) -> list[Row]:
    """Mouso, PgQueuer and Procrastinate on PostgreSQL."""
    return _run(plan, _POSTGRES)


def _run(plan: Plan, kind: Kind) -> list[Row]:
    """Draining in turn with the peers; then enqueueing, an idle worker, and a backlog. Each has a new server."""
    measured: dict[str, list[float]] = defaultdict(list)

    def new() -> MousoRig:
        return plan.mouso(server=plan.start(kind.server))

    def keep(name: str, rig: Rig, answer: Mapping[str, float]) -> None:
        for what, value in answer.items():
            measured[f"{name} {what}"].append(value)
        rig.discard()

    def drain(name: str, rig: Rig, jobs: int) -> None:
        rig.fill(jobs)
        keep(name, rig, rig.drain(jobs))

    def drain_peer(peer: Peer) -> None:
        drain(peer.name, plan.peer(peer.modules, plan.start(kind.server), peer.settings), plan.jobs(peer.jobs))

    def enqueue() -> None:
        rig, jobs = new(), plan.jobs(20_000)
        assert rig.server is not None
        bare, single = rig.server.bare(jobs), rig.client("single", jobs)
        rig.settle()
        bulk = rig.client("bulk", plan.jobs(100_000))
        answer = {"bare": bare, "single": single["rate"], "single cpu": single["cpu"]}
        keep("mouso", rig, {**answer, "bulk": bulk["rate"], "bulk cpu": bulk["cpu"]})

    def idle() -> None:
        rig = new()
        keep("mouso", rig, latency.sample(rig, plan.jobs(300), plan.jobs(100), 3.0 if plan.quick else 20.0))

    in_turn(
        plan.runs,
        lambda: drain("mouso", new(), plan.jobs(200_000)),
        *(lambda peer=peer: drain_peer(peer) for peer in kind.peers),
        enqueue,
        idle,
    )
    return [*_rows(kind, measured, _about(plan, kind)), *backlog.compare(plan, new, kind.name)]


def _about(plan: Plan, kind: Kind) -> str:
    server = plan.start(kind.server)
    about = server.about()
    server.discard()
    return about


def _rows(kind: Kind, measured: Mapping[str, list[float]], about: str) -> list[Row]:
    def row(what: str, name: str, unit: str, target: float | None = None, note: str = "") -> Row:
        return Row(what=what, runs=measured[name], unit=unit, target=target, note=note)

    def less(what: str, name: str, unit: str, target: float | None = None, note: str = "") -> Row:
        return Row(what=what, runs=measured[name], unit=unit, target=target, better="less", note=note)

    def per_peer(what: str, unit: str) -> list[Row]:
        return [row(f"… {peer.name}", f"{peer.name} {what}", unit) for peer in kind.peers]

    return [
        row(f"no-op jobs drained: Mouso on {kind.name}", "mouso rate", "jobs/s", note=f"-p 2 -c 8, results; {about}"),
        *(row(f"… {peer.name}", f"{peer.name} rate", "jobs/s", note=peer.note) for peer in kind.peers),
        *(
            Row(
                what=f"Mouso : {peer.name}", runs=ratios(measured["mouso rate"], measured[f"{peer.name} rate"]),
                unit="×", target=peer.target,
            )
            for peer in kind.peers
        ),
        less("worker CPU a job: Mouso", "mouso cpu", "µs", kind.cpu, "supervisor and both children"),
        *per_peer("cpu", "µs"),
        less("server CPU a job: Mouso", "mouso server", "µs", note="all processes of the server that lived on"),
        *per_peer("server", "µs"),
        row(kind.bare, "mouso bare", "jobs/s", note="one client, the same server and run"),
        row("delay() one by one", "mouso single", "jobs/s"),
        Row(
            what=f"… as part of the {kind.bare}", runs=ratios(measured["mouso single"], measured["mouso bare"]),
            unit="×", target=kind.single,
        ),
        row("map() of 100,000 jobs", "mouso bulk", "jobs/s", kind.bulk),
        less("client CPU of a delay()", "mouso single cpu", "µs"),
        less("… of a job in map()", "mouso bulk cpu", "µs"),
        less("delay() to the job's start, idle worker, p50", "mouso start p50", "ms", kind.p50, "-p 2 -c 8"),
        less("… p99", "mouso start p99", "ms", kind.p99),
        less("delay() to its result in the caller, p50", "mouso result p50", "ms"),
        less("… p99", "mouso result p99", "ms"),
        less("the call of delay() itself, p50", "mouso call p50", "ms"),
        less("operations of an idle worker", "mouso operations", "a second", _IDLE_OPERATIONS, kind.operations),
        less("CPU of an idle worker", "mouso idle", "% of a CPU"),
    ]  # fmt: skip
