"""The Redis broker: a script for each verb, so that each is one atomic step and one round trip."""

from mouso.brokers.redis.broker import RedisBroker

__all__ = ["RedisBroker"]
