"""Enqueueing from one process, with no worker running."""

import json
import secrets
import sqlite3
import time
from collections import defaultdict

from benchmarks.plan import Plan
from benchmarks.results import Row, ratios
from benchmarks.rig import Rig, in_turn

_TABLE = "CREATE TABLE jobs (seq INTEGER PRIMARY KEY, id TEXT, task TEXT, queue TEXT, at INTEGER, payload BLOB)"
_INSERT = "INSERT INTO jobs (id, task, queue, at, payload) VALUES (?, ?, ?, ?, ?)"


def bare(plan: Plan, jobs: int) -> float:
    """The floor, per second: one INSERT a transaction into one table with no index, WAL and FULL."""
    file = plan.folders.disk / f"bare-{time.monotonic_ns()}.db"
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("PRAGMA synchronous = full")
    connection.execute(_TABLE)
    began = time.perf_counter()
    for i in range(jobs):
        payload = json.dumps([i]).encode()
        connection.execute(_INSERT, (secrets.token_hex(16), "benchmarks.jobs.noop", "default", time.time_ns(), payload))
    rate = jobs / (time.perf_counter() - began)
    connection.close()
    for path in plan.folders.disk.glob(file.name + "*"):
        path.unlink()
    return rate


def run(plan: Plan) -> list[Row]:
    """Mouso one by one, in bulk and concurrently; a bare INSERT; Huey, which has one by one only."""
    rates: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)

    def measure(rig: Rig, command: str, jobs: int, name: str) -> None:
        answer = rig.client(command, jobs)
        rates[name].append(answer["rate"])
        cpu[name].append(answer["cpu"])
        rig.discard()

    in_turn(
        plan.runs,
        lambda: rates["bare"].append(bare(plan, plan.jobs(8000))),
        lambda: measure(plan.mouso(), "single", plan.jobs(8000), "single"),
        lambda: measure(plan.huey(fsync=True), "single", plan.jobs(6000), "huey full"),
        lambda: measure(plan.mouso("normal"), "single", plan.jobs(30_000), "normal"),
        lambda: measure(plan.huey(fsync=False), "single", plan.jobs(30_000), "huey off"),
        lambda: measure(plan.mouso(), "bulk", plan.jobs(100_000), "bulk"),
        lambda: measure(plan.mouso(), "concurrent", plan.jobs(20_000), "concurrent"),
    )
    single = ratios(rates["single"], rates["bare"])

    def rate(what: str, name: str, target: float | None = None, note: str = "") -> Row:
        return Row(what=what, runs=rates[name], unit="jobs/s", target=target, note=note)

    return [
        rate("bare INSERT in its own transaction, FULL", "bare", note="one table, no index, standard library"),
        rate("delay() one by one, FULL", "single"),
        Row(what="… as part of the bare INSERT", runs=single, unit="×", target=0.8),
        rate("… Huey, FULL", "huey full"),
        rate("delay() one by one, NORMAL", "normal", 20_000),
        rate("… Huey, OFF", "huey off", note="its file may be damaged by a power loss"),
        rate("map() of 100,000 jobs, FULL", "bulk", 80_000, "1,000 to a transaction"),
        rate("1,000 concurrent adelay(), FULL", "concurrent", 20_000, "20 times, one event loop"),
        Row(what="client CPU of a delay(), FULL", runs=cpu["single"], unit="µs"),
        Row(what="… NORMAL", runs=cpu["normal"], unit="µs"),
        Row(what="… of a job in map()", runs=cpu["bulk"], unit="µs"),
    ]
