"""What jobs write, in a child: printed lines and log records carry the id of their job.

``sys.stdout`` and ``sys.stderr`` are replaced by taps. What a job writes to one is passed on to the same descriptor
line by line, with ``[id]`` in front or, where logs are JSON, as such an object; what no job writes goes through
untouched. A job that prints without end harms nobody:

* a line that does not end is broken after 2,000 characters, so that is all that is held;
* beyond 256 KiB a second of one child (after the first MiB) lines are left out, and how many is told;
* a reader that does not read is not waited for (``mouso.observe.outlet``).

What is written past the taps, by C code or a program that a job starts, comes out as it is.

``logging.Logger.makeRecord`` is wrapped, so that each record made below a job has ``job_id``, ``task``, ``queue`` and
``attempt``. A record factory would come too early: the ``extra=`` of a call with one of these names would be an error.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from mouso.clock import SYSTEM
from mouso.context import CURRENT, Context
from mouso.observe.logs import Json, log_to_stderr
from mouso.observe.outlet import Outlet

RATE = 256 << 10
"""Bytes a second."""
BURST = 1 << 20
LONGEST = 2000
"""Characters of a line."""
_FACTS = ("job_id", "task", "queue", "attempt")
_JSON = Json()
_CHUNK = 64 << 10


class Allowance:
    """How much may be written now: ``BURST`` bytes, and ``RATE`` more each second."""

    def __init__(self) -> None:
        self._left = float(BURST)
        self._at = SYSTEM.monotonic()

    def take(self, size: int) -> bool:
        """Whether so many bytes may be written."""
        now = SYSTEM.monotonic()
        self._left = min(self._left + (now - self._at) * RATE, BURST)
        self._at = now
        if self._left < size:
            return False
        self._left -= size
        return True


class _Lines:
    """What one run has printed of lines that have not ended, and how many of its lines were left out."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.rests: dict[Tap, str] = {}
        self.left_out = 0

    def end(self) -> None:
        """Writes the rests."""
        for tap in list(self.rests):
            tap.end(self)


def tagged(context: Context, line: str, stream: str) -> str:
    """A line as people read it."""
    return line if context.job_id in line else f"[{context.job_id}] {line}"


def as_json(context: Context, line: str, stream: str) -> str:
    """A line as programs read it: an object, whose ``logger`` is the stream."""
    record = logging.LogRecord(stream, logging.INFO, "", 0, "%s", (line,), None)
    record.__dict__.update({name: getattr(context, name) for name in _FACTS})
    return _JSON.format(record)


class Tap(io.TextIOBase):
    """Stands for a text stream; see the module's text.

    Args:
        stream: Where everything goes in the end; has a descriptor.
        allowance: Shared by all taps of a process.
        name: What the stream is called.
        dress: Makes a line of a job what is written.
    """

    def __init__(
        self,
        stream: TextIO,
        allowance: Allowance,
        name: str = "stdout",
        dress: Callable[[Context, str, str], str] = tagged,
    ) -> None:
        self._called = name
        self._dress = dress
        self._stream = stream
        self._outlet = Outlet(stream.fileno())
        self._allowance = allowance
        self.forked()

    def forked(self) -> None:
        """Forgets who held the lock."""
        self._lock = threading.RLock()  # a signal handler or destructor may print in the middle of a print

    # -- writing

    def write(self, text: str, /) -> int:
        context = CURRENT.get()
        if not isinstance(text, str):
            return self._stream.write(text)  # which says what is wrong
        if context is None:
            self.put(text.encode(self.encoding, self.errors or "strict"))
            return len(text)
        with self._lock:
            if context.printed is None:
                context.printed = _Lines(context)
            assert isinstance(context.printed, _Lines)
            for start in range(0, len(text), _CHUNK):
                self._add(context.printed, text[start : start + _CHUNK])
        return len(text)

    def _add(self, lines: _Lines, text: str) -> None:
        *whole, rest = (lines.rests.get(self, "") + text).split("\n")
        for line in whole:
            self._line(lines, line)
        rest = rest[rest.rfind("\r", 0, -1) + 1 :]  # a progress bar that overwrites itself
        while len(rest) > LONGEST:
            self._pass_on(lines, rest[:LONGEST])
            rest = rest[LONGEST:]
        lines.rests[self] = rest

    def _line(self, lines: _Lines, line: str) -> None:
        line = line.rstrip("\r")
        line = line[line.rfind("\r") + 1 :]
        for start in range(0, len(line) or 1, LONGEST):
            self._pass_on(lines, line[start : start + LONGEST])

    def _pass_on(self, lines: _Lines, line: str) -> None:
        data = self._encoded(lines, line)
        if not self._allowance.take(len(data)):
            lines.left_out += 1
            return
        if lines.left_out:
            self._tell(lines)
        if not self._outlet.put(data):
            lines.left_out += 1

    def _tell(self, lines: _Lines) -> None:
        if self._outlet.put(self._encoded(lines, f"{lines.left_out:,} lines of output were left out here")):
            lines.left_out = 0

    def _encoded(self, lines: _Lines, line: str) -> bytes:
        text = self._dress(lines.context, line, self._called)
        return f"{text}\n".encode(self.encoding, "backslashreplace")

    def put(self, data: bytes) -> None:
        """Writes what no job writes, as it is."""
        self._stream.flush()
        self._outlet.put(data)

    def end(self, lines: _Lines) -> None:
        """Ends the line that a run has begun."""
        with self._lock:
            rest = lines.rests.pop(self, "")
            if rest:
                self._line(lines, rest)
            if lines.left_out:
                self._tell(lines)

    # -- everything else is the stream's

    @property
    def buffer(self) -> _Bytes:
        """The binary stream below."""
        return _Bytes(self, self._stream)

    @property
    def encoding(self) -> str:  # type: ignore[override]  # why: typed as an attribute that can be set
        return self._stream.encoding or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]  # why: see encoding above
        return self._stream.errors

    @property
    def newlines(self) -> Any:  # type: ignore[override]  # why: see encoding above
        return self._stream.newlines

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Does nothing: other jobs print as well."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Bytes(io.BufferedIOBase):
    """Stands for the binary stream below a tap."""

    def __init__(self, tap: Tap, stream: TextIO) -> None:
        self._tap = tap
        self._stream = stream

    def write(self, data: Any, /) -> int:
        if CURRENT.get() is None:
            whole = bytes(data)
            self._tap.put(whole)
            return len(whole)
        with memoryview(data) as view, view.cast("B") as flat:
            for start in range(0, len(flat), _CHUNK):
                self._tap.write(bytes(flat[start : start + _CHUNK]).decode(self._tap.encoding, "replace"))
            return len(flat)

    def flush(self) -> None:
        self._stream.buffer.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Does nothing, as in the tap."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream.buffer, name)


OUTPUTS = ("tagged", "raw")


def open_output(level: str, form: str, output: str) -> None:
    """Says where a process that runs jobs writes to: its logs, its log records' facts, and what jobs print.

    Args:
        level, form: As in ``log_to_stderr``.
        output: One of ``OUTPUTS``; ``raw`` leaves alone what jobs print.
    """
    log_to_stderr(level, form)
    tag_records()
    if output == "tagged":
        tap_output(as_json if form == "json" else tagged)
    else:
        _by_line()


def tap_output(dress: Callable[[Context, str, str], str] = tagged) -> None:
    """Puts taps in place of ``sys.stdout`` and ``sys.stderr``, those that have a descriptor."""
    allowance = Allowance()
    for name, stream in _by_line():
        tap = Tap(stream, allowance, name, dress)
        os.register_at_fork(after_in_child=tap.forked)
        setattr(sys, name, tap)


def _by_line() -> list[tuple[str, TextIO]]:
    """Makes stdout and stderr write line by line, and returns those that have a descriptor.

    Else what is printed into a file or a pipe would show when the process ends.
    """
    written = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            stream.fileno()
            stream.reconfigure(line_buffering=True)
        except (AttributeError, OSError, ValueError):  # None, closed, or something that stands in for a file
            continue
        written.append((name, stream))
    return written


def tag_records() -> None:
    """Lets every log record that is made below a job tell which."""
    make = logging.Logger.makeRecord

    def telling(self: logging.Logger, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(self, *args, **kwargs)
        context = CURRENT.get()
        if context is not None:
            for name in _FACTS:
                record.__dict__.setdefault(name, getattr(context, name))
        return record

    logging.Logger.makeRecord = telling  # type: ignore[method-assign]  # why: see the module's text
