"""The log of a worker's processes. Libraries only log; the command line decides where to and how, here.

Text is for people. JSON is for programs: one object per line, in ASCII, with

* ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, ``pid``;
* ``job_id``, ``task``, ``queue``, ``attempt`` where the record is about a job (``about``);
* ``exception`` and ``stack``, formatted, where it has them.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from mouso.config import printable
from mouso.errors import shown
from mouso.job import Lease
from mouso.observe.outlet import Outlet

FORMATS = ("text", "json")
_TEXT = "%(asctime)s %(levelname)-8s %(message)s"
_LONGEST = 16 << 10
"""Characters of a message, and of a traceback: what jobs say has no end of its own."""
_OF_JOBS = ("job_id", "task", "queue", "attempt")


def about(lease: Lease) -> dict[str, Any]:
    """What a record about a job carries, for ``log.error(…, extra=about(lease))``."""
    return {"job_id": lease.id, "task": lease.task, "queue": lease.queue, "attempt": lease.attempts + 1}


class _OneLine(logging.Formatter):
    """Escapes control characters in messages and tracebacks: they quote what jobs say."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(_cut(record.message))
        job = str(getattr(record, "job_id", ""))
        if job and job not in record.message:
            record.message = f"[{printable(job)}] {record.message}"
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(printable, _cut(super().formatException(ei)).split("\n")))


class Json(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            "pid": record.process,
        }
        for name in _OF_JOBS:
            value = getattr(record, name, None)
            if isinstance(value, (str, int)):
                entry[name] = value
        if record.exc_info and record.exc_info[0] is not None:
            entry["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = record.stack_info
        entry = {name: _whole(value) if isinstance(value, str) else value for name, value in entry.items()}
        # In ASCII, so that no locale can spoil it, on either side. DEL is a control character to all but JSON.
        return json.dumps(entry).replace("\x7f", "\\u007f")


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # a call with wrong arguments; its line must still be one of JSON
        return f"{shown(record.msg)} {shown(record.args)}"


def _cut(text: str) -> str:
    """The text, without its middle if it is too long."""
    left_out = len(text) - _LONGEST
    return text if left_out <= 0 else f"{text[: _LONGEST // 2]} … {left_out:,} characters … {text[-_LONGEST // 2 :]}"


def _whole(text: str) -> str:
    """The text with lone surrogates written out: other languages' readers of JSON refuse them."""
    return _cut(text).encode("utf-8", "backslashreplace").decode()


class _Lines(logging.StreamHandler[TextIO]):
    """Hands each record to the system in one piece: several processes write to the same place.

    Lines that nobody reads are left out, and their number is told to who reads again.
    """

    _left_out = 0
    _outlet: Outlet | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._left_out:
                text = f"{self._left_out:,} lines of the log were left out here: nobody read them"
                if not self._put(logging.LogRecord(__name__, logging.WARNING, "", 0, text, None, None)):
                    self._left_out += 1
                    return
                self._left_out = 0
            self._left_out = 0 if self._put(record) else 1
        except Exception:  # as every handler: a line that cannot be written stops nobody
            self.handleError(record)

    def _put(self, record: logging.LogRecord) -> bool:
        """Writes one; False if nobody reads."""
        line = self.format(record) + self.terminator
        try:
            descriptor = self.stream.fileno()
        except (OSError, ValueError, AttributeError):  # something that stands in for a file
            self.stream.write(line)
            return True
        self.stream.flush()
        if self._outlet is None or self._outlet.descriptor != descriptor:
            self._outlet = Outlet(descriptor)
        return self._outlet.put(line.encode(self.stream.encoding or "utf-8", "backslashreplace"))


def log_to_stderr(level: str, form: str = "text") -> None:
    """Writes the ``mouso`` loggers to standard error; the root logger and the app's own loggers are left alone.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        form: One of ``FORMATS``.
    """
    logger = logging.getLogger("mouso")
    handler = _Lines(sys.stderr)
    handler.setFormatter(Json() if form == "json" else _OneLine(_TEXT))
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
