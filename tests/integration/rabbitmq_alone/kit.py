"""What the tests of RabbitMQ without a store share."""

from typing import Any

from mouso.brokers.rabbitmq.alone import LoneRabbitBroker
from mouso.job import JobState, Lease
from mouso.testing.conformance.kit import claim
from tests.integration.harness import Bench
from tests.support import wait_until

SLOW = 4.0
"""Seconds that a call with a deadline of one may take on a slow machine."""


def texts(bench: Bench, event: str) -> list[str]:
    return [line.text for line in bench.history(event)]


def claimed(broker: LoneRabbitBroker, count: int = 1, **options: Any) -> list[Lease]:
    """So many claims, which may take a moment to be delivered."""
    leases: list[Lease] = []

    def enough() -> bool:
        leases.extend(claim(broker, count - len(leases), **options))
        if len(leases) < count:
            broker.wait(0.1)
        return len(leases) >= count

    wait_until(enough, message=f"{count} claims")
    return leases


def waiting(broker: LoneRabbitBroker, queue: str = "default") -> int:
    """How many messages of a queue are with nobody."""
    return sum(info.counts[JobState.AVAILABLE] for info in broker.queues() if info.name == queue)
