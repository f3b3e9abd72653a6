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
        url: ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``redis://host:6379/0``, ``postgresql://host/name``,
            ``amqp://host/vhost``, with ``?store=`` and another one or without, or ``memory://name``.
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
    extra = {"postgresql": "postgres", "amqp": "rabbitmq", "amqps": "rabbitmq"}.get(parsed.scheme, "redis")
    try:
        return _server(parsed, extra, clock, create)
    except ImportError as error:  # psycopg raises it itself where libpq is missing
        needed = error.name or "libpq"
        raise ConfigError(f"{parsed.shown} needs the package {needed!r}; pip install 'mouso[{extra}]'") from error


def _server(url: BrokerURL, extra: str, clock: Clock, create: bool) -> Broker:
    """The broker on a server, whose client is imported only here."""
    if extra == "postgres":
        from mouso.brokers.postgres import PostgresBroker

        return PostgresBroker(url, clock=clock)
    if extra == "rabbitmq":
        from mouso.brokers.rabbitmq import LoneRabbitBroker, RabbitBroker

        if "store" not in url.params:
            return LoneRabbitBroker(url, clock)
        return RabbitBroker(url, connect(url.params["store"], clock=clock, create=create))
    from mouso.brokers.redis import RedisBroker

    return RedisBroker(url, clock=clock)
