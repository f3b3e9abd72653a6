"""The running job, as its own code sees it."""

from __future__ import annotations

import logging
import math
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from mouso.clock import SYSTEM, Duration, moment
from mouso.errors import MousoError, Retry
from mouso.job import LogLine, Progress, encode_log

if TYPE_CHECKING:
    from mouso.brokers.base import Transaction

C = TypeVar("C")
T = TypeVar("T")
F = TypeVar("F", float, None)

_EVERY = 0.1
"""Seconds between the progress reports of ``track``."""
_LINE = 4 << 10
"""The most characters of a kept line."""
_NO_HEADERS: Mapping[str, str] = {}
_log = logging.getLogger("mouso.job")


class StopRequested(MousoError):
    """Raised by ``Context.check`` when the job was cancelled, ran out of time, or its worker shuts down.

    Attributes:
        reason: ``cancelled``, ``timeout``, ``shutdown`` or ``fenced``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the job was asked to stop: {reason}")
        self.reason = reason


class Log:
    """The last lines that a run logged.

    Args:
        most: How many lines at most.
        size: How many bytes of text at most, in all.
    """

    def __init__(self, most: int, size: int) -> None:
        self._most = most
        self._size = size
        self._lines: deque[LogLine] = deque()
        self._used = 0
        self._left_out = 0
        self._lock = threading.Lock()

    def add(self, line: LogLine) -> None:
        """Takes a line, and lets go of the oldest if it is one too many."""
        with self._lock:
            self._lines.append(line)
            self._used += len(line.message.encode())
            while len(self._lines) > self._most or self._used > self._size:
                self._used -= len(self._lines.popleft().message.encode())
                self._left_out += 1

    def encoded(self) -> bytes:
        """The lines as they are stored."""
        with self._lock:
            return encode_log(list(self._lines), self._left_out)


class Printed(Protocol):
    """Lines that a run has begun to print."""

    def end(self) -> None:
        """The run is over: they have ended."""


class _JobLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs under ``mouso.job`` with what tells the job, and hands each line to who keeps it."""

    def __init__(self, context: Context, keep: Callable[[LogLine], None] | None) -> None:
        facts = {"job_id": context.job_id, "task": context.task, "queue": context.queue, "attempt": context.attempt}
        super().__init__(_log, facts)
        self._keep = keep

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Adds the job's facts to the caller's ``extra``."""
        return msg, {**kwargs, "extra": {**(kwargs.get("extra") or {}), **(self.extra or {})}}

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        enabled = self.isEnabledFor(level)
        if self._keep is not None and (enabled or level >= logging.INFO):
            self._keep(LogLine(SYSTEM.now(), logging.getLevelName(level), _line(msg, args, kwargs.get("exc_info"))))
        if enabled:
            super().log(level, msg, *args, **kwargs | {"stacklevel": kwargs.get("stacklevel", 1) + 1})


def _line(msg: object, args: tuple[object, ...], error: object) -> str:
    """The text of a call of a logger; a call that is wrong must not harm its job."""
    try:
        text = logging.LogRecord("", 0, "", 0, msg, args, None).getMessage()
        if error:
            found = error if isinstance(error, BaseException) else None
            text += "\n" + ("".join(traceback.format_exception(found)) if found else traceback.format_exc()).rstrip()
    except Exception as wrong:
        text = f"a line that cannot be written: {type(wrong).__name__}"
    if len(text) > _LINE:
        text = f"{text[: _LINE // 2]} … {text[-_LINE // 2 :]}"
    return text.encode("utf-8", "replace").decode()


class Context:
    """What a running job knows about itself, and how it reports progress.

    A task gets it as the parameter annotated ``Context``; code below it by ``Context.current()``. In a plain call
    of a task, outside any worker, it stands for a run that nobody watches.

    Attributes:
        job_id: The job's id.
        task: The task's name.
        queue: Its queue.
        attempt: Which run this is, from 1.
        token: The claim's fencing token: larger for every later claim. Hand it to stores that can fence.
        headers: What the producer passed as ``headers``.
        key: The broker's handle of the job; for workers.
        kept: Its last log lines; for workers.
        printed: What it has printed of lines that have not ended; for workers.
        reported: Its last progress; for workers.
        ending: The transaction in which it ends, if it has begun one; for workers.
    """

    __slots__ = (
        "_begin",
        "_deadline",
        "_enqueued_at",
        "_report",
        "_stop",
        "attempt",
        "ending",
        "headers",
        "job_id",
        "kept",
        "key",
        "printed",
        "queue",
        "reported",
        "task",
        "token",
    )

    def __init__(
        self,
        *,
        job_id: str = "",
        task: str = "",
        queue: str = "",
        attempt: int = 1,
        token: int = 0,
        enqueued_at: int = 0,
        deadline: float | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
        report: Callable[[Context, Progress | LogLine], None] | None = None,
        begin: Callable[[Context, object], Any] | None = None,
        key: int | str = 0,
    ) -> None:
        self.job_id = job_id
        self.task = task
        self.queue = queue
        self.attempt = attempt
        self.token = token
        self.headers = headers
        self._enqueued_at = enqueued_at
        self._deadline = deadline
        self._report = report
        self._begin = begin
        self.key = key
        self.kept: Log | None = None
        self.printed: Printed | None = None
        self.reported: Progress | None = None
        self.ending: Transaction | None = None
        self._stop = ""

    @staticmethod
    def current() -> Context:
        """The context of the job that runs here.

        Raises:
            MousoError: No job runs here.
        """
        context = CURRENT.get()
        if context is None:
            raise MousoError("no job runs here; Context.current() works inside a task only")
        return context

    @property
    def enqueued_at(self) -> datetime:
        """When the job was enqueued, by the broker's clock; now in a plain call."""
        return moment(self._enqueued_at or SYSTEM.now())

    @property
    def deadline(self) -> float | None:
        """When this attempt times out, on ``time.monotonic()``; None without a timeout."""
        return self._deadline

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry job id, task, queue and attempt; in a worker its last lines stay with the run.

        Kept are lines from INFO on, and those below that the worker's ``--log-level`` lets through. They are read with
        ``JobHandle.logs`` and ``mouso job ID --logs``.
        """
        report = self._report
        return _JobLogger(self, None if report is None else lambda line: report(self, line))

    @property
    def should_stop(self) -> bool:
        """Whether the job was cancelled, ran out of time, or its worker wants to shut down."""
        return bool(self._stop)

    @property
    def stop_reason(self) -> str:
        """Why it should stop: ``cancelled``, ``timeout``, ``shutdown``, ``fenced``, or empty."""
        return self._stop

    def request_stop(self, reason: str) -> None:
        """Asks the job to stop; the first reason stands. For workers."""
        self._stop = self._stop or reason

    def check(self) -> None:
        """Raises ``StopRequested`` if the job should stop; call it between steps of long work."""
        if self._stop:
            raise StopRequested(self._stop)

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Reports how far the job is; waiting callers and the CLI see it."""
        if self._report is not None:
            whole = None if total is None else _finite(total, None)
            self.reported = Progress(_finite(done, 0.0), whole, _clean(message))
            self._report(self, self.reported)

    def track(self, items: Iterable[T], total: float | None = None, message: str = "") -> Iterator[T]:
        """Yields the items, reporting progress at most ten times a second; each step is a point of cancellation.
        A loop that is left early has done the items before the one that it had last.

        Args:
            total: How many there are; ``len(items)`` if they have a length.
        """
        if total is None and isinstance(items, Sized):
            total = len(items)
        done, told, last = 0, -1, -_EVERY
        try:
            for item in items:
                self.check()
                now = SYSTEM.monotonic()
                if now - last >= _EVERY:
                    self.progress(done, total, message)
                    told, last = done, now
                yield item
                done += 1
            told, total = -1, total if total is not None else done
        finally:  # also where the loop is left early
            if told != done:
                self.progress(done, total, message)

    @overload
    def transaction(self) -> Any: ...
    @overload
    def transaction(self, connection: C) -> C: ...
    def transaction(self, connection: Any = None) -> Any:
        """Begins the transaction that the job ends in, on a SQLite or PostgreSQL broker.

        What goes through the connection that it returns, the jobs that are enqueued from here on, the job's completion
        and its result are committed together when the function returns. When it raises they are rolled back together,
        and the job is retried or dead as always. If the job was taken over by another worker meanwhile, because this
        one was thought lost, nothing of it is committed: its effects happen exactly once.

        Leave commit, rollback and close to Mouso. On SQLite begin late: the file has one writer at a time.

        Args:
            connection: To the broker's own database, in no transaction yet: what ``enqueue_in`` takes. It is handed
                over, and closed when the job ends. A coroutine may hand over an asynchronous one. None for a new
                ``sqlite3.Connection`` or ``psycopg.Connection``.

        Returns:
            The connection.

        Raises:
            CapabilityError: The broker has no transactions, or the connection does not fit.
            BrokerUnavailable: It cannot be begun now.
            MousoError: No worker runs this job, or it has a transaction already.
        """
        if self._begin is None:
            raise MousoError("ctx.transaction() needs a worker, which ends it; in a plain call there is none")
        return self._begin(self, connection)

    # -- Celery's spellings, for ``@app.task(bind=True)``

    @property
    def request(self) -> Context:
        """This context, where Celery has ``self.request``."""
        return self

    @property
    def id(self) -> str:
        """``job_id``, where Celery has ``self.request.id``."""
        return self.job_id

    @property
    def retries(self) -> int:
        """Failed runs so far."""
        return self.attempt - 1

    def retry(self, exc: BaseException | None = None, countdown: Duration | None = None, **_: Any) -> None:
        """Raises ``Retry``, as Celery's ``self.retry`` does; after the last attempt ``exc`` is the job's error."""
        asked = Retry(countdown, str(exc) if exc else "")
        asked.exc = exc
        raise asked from exc


def _finite(number: float, otherwise: F) -> float | F:
    """The number if it can be stored; a slip in a report must not harm its job."""
    try:
        number = float(number)
    except OverflowError:
        return otherwise
    return number if math.isfinite(number) else otherwise


def _clean(message: str) -> str:
    return str(message)[:1000].encode("utf-8", "replace").decode()


CURRENT: ContextVar[Context | None] = ContextVar("mouso_context", default=None)
