"""Asks a worker's health address, as probes and Prometheus do."""

import http.client
import json
import re
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.harness import WAIT, Bench, Worker
from tests.support import wait_until

ANY = ("--health", "127.0.0.1:0")
"""Options of a worker that answers at any free port, which `Probe.of` finds."""


class Probe:
    """One worker's address."""

    def __init__(self, port: int) -> None:
        self.port = port

    @classmethod
    def of(cls, worker: Worker) -> "Probe":
        """The address that the worker has logged."""

        def told() -> int:
            found = re.search(r"health is answered at http://127\.0\.0\.1:(\d+)", worker.log)
            assert worker.alive, f"the worker ended: {worker.log}"
            return int(found[1]) if found else 0

        return cls(wait_until(told, timeout=WAIT, message="the worker tells its port"))

    def get(self, path: str, timeout: float = WAIT) -> tuple[int, str]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def live(self) -> bool:
        return self.get("/live")[0] == 200

    def unready(self) -> str:
        """Why the worker is not ready; empty if it is."""
        status, body = self.get("/ready")
        said = json.loads(body)
        assert status == (200 if said["ready"] else 503)
        return str(said.get("reason", ""))

    def wait_ready(self) -> None:
        wait_until(lambda: not self.unready(), timeout=WAIT, interval=0.05, message="the worker is ready")

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """All samples, by name and labels, as Prometheus's own parser reads them."""
        status, text = self.get("/metrics")
        assert status == 200
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, /, **labels: str) -> float:
        """One sample, 0 if it is not there."""
        return self.metrics().get((name, frozenset(labels.items())), 0.0)

    def wait_for(self, name: str, wanted: Callable[[float], bool], /, **labels: str) -> float:
        """Waits until a sample is as wanted; returns its value."""
        seen: list[float] = []

        def right() -> bool:
            seen.append(self.value(name, **labels))
            return wanted(seen[-1])

        wait_until(right, timeout=WAIT, interval=0.1, message=f"{name} {labels}")
        return seen[-1]


def probed(bench: Bench, *arguments: str, processes: int = 1, concurrency: int = 4) -> tuple[Worker, Probe]:
    """A worker that serves, and its address."""
    worker = bench.worker(*ANY, *arguments, processes=processes, concurrency=concurrency)
    probe = Probe.of(worker)
    probe.wait_ready()
    return worker, probe
