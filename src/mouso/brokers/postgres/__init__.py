"""The PostgreSQL broker: a function in the database for each verb, which is one atomic step and one round trip."""

from mouso.brokers.postgres.broker import PostgresBroker

__all__ = ["PostgresBroker"]
