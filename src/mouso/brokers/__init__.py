"""The brokers, and the one function that finds the right one for a URL."""

from __future__ import annotations

from mouso.brokers.base import Broker
from mouso.clock import SYSTEM, Clock
from mouso.errors import ConfigError
from mouso.urls import BrokerURL

__all__ = ["Broker", "connect"]


def connect(url: str, *, clock: Clock = SYSTEM, create: bool = True) -> Broker:
    """Makes the broker that a URL names; nothing is opened yet.

    Args:
        url: ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``redis://host:6379/0``, ``postgresql://host/name``
            or ``memory://name``.
        clock: For tests.
        create: Whether a SQLite file that is not there is made at the first use.

    Raises:
        ConfigError: The URL is malformed or names no broker, or what speaks to its server is not installed.
    """
    parsed = BrokerURL.parse(url)
    if parsed.scheme == "memory":
        from mouso.brokers.memory import MemoryBroker

        return MemoryBroker.shared(parsed, clock)
    if parsed.scheme == "sqlite":
        from mouso.brokers.sqlite import SQLiteBroker

        return SQLiteBroker(parsed, clock=clock, create=create)
    extra = "postgres" if parsed.scheme == "postgresql" else "redis"
    try:
        if extra == "postgres":
            from mouso.brokers.postgres import PostgresBroker

            return PostgresBroker(parsed, clock=clock)
        from mouso.brokers.redis import RedisBroker
    except ImportError as error:  # psycopg raises it itself where libpq is missing
        needed = error.name or "libpq"
        raise ConfigError(f"{parsed.shown} needs the package {needed!r}; pip install 'mouso[{extra}]'") from error
    return RedisBroker(parsed, clock=clock)
