"""The brokers, and the one function that finds the right one for a URL."""

from __future__ import annotations

from mouso.brokers.base import Broker
from mouso.clock import SYSTEM, Clock
from mouso.config import BrokerURL

__all__ = ["Broker", "connect"]


def connect(url: str, *, clock: Clock = SYSTEM, create: bool = True) -> Broker:
    """Makes the broker that a URL names; nothing is opened yet.

    Args:
        url: ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``memory://name``.
        clock: For tests.
        create: Whether a SQLite file that is not there is made at the first use.

    Raises:
        ConfigError: The URL is malformed or names no broker.
    """
    parsed = BrokerURL.parse(url)
    if parsed.scheme == "memory":
        from mouso.brokers.memory import MemoryBroker

        return MemoryBroker.shared(parsed, clock)
    from mouso.brokers.sqlite import SQLiteBroker

    return SQLiteBroker(parsed, clock=clock, create=create)
