"""The log of a worker's processes. Libraries only log; the command line decides where to, here."""

from __future__ import annotations

import logging

from mouso.config import printable

_FORMAT = "%(asctime)s %(levelname)-8s %(message)s"


class _OneLine(logging.Formatter):
    """Escapes control characters in messages: they quote what jobs say."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


def log_to_stderr(level: str) -> None:
    """Writes the ``mouso`` loggers to standard error; the root logger and the app's own loggers are left alone."""
    logger = logging.getLogger("mouso")
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine(_FORMAT))
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
