"""Jobs in one SQLite file: the default broker, with nothing to install."""

from mouso.brokers.sqlite.broker import SQLiteBroker

__all__ = ["SQLiteBroker"]
