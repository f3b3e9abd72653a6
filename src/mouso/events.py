"""Read-only events: what happened, told to whoever asked, without any power to break a job."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable

import msgspec

from mouso.config import closest
from mouso.errors import ConfigError, ErrorInfo

EVENTS = (
    "job.completed",
    "job.failed",
    "job.dead",
    "job.cancelled",
    "job.expired",
    "job.snoozed",
    "job.released",
    "worker.lost",
)

_log = logging.getLogger("mouso.events")


class Event(msgspec.Struct, frozen=True, array_like=True):
    """Something that has happened and is stored.

    Attributes:
        name: One of ``EVENTS``. ``job.failed`` is every failed attempt, ``job.dead`` the last.
        worker: Who it happened to.
    """

    name: str
    worker: str
    job_id: str = ""
    task: str = ""
    queue: str = ""
    run_seconds: float = 0.0
    reason: str = ""
    error: ErrorInfo | None = None


Handler = Callable[[Event], object]


class EventBus:
    """The handlers of one app."""

    def __init__(self) -> None:
        self._handlers: dict[str, list[Handler]] = {}

    @property
    def names(self) -> frozenset[str]:
        """Events that somebody wants to hear of."""
        return frozenset(self._handlers)

    def add(self, name: str, handler: Handler) -> None:
        """Registers a handler.

        Raises:
            ConfigError: No event has this name, or the handler is a coroutine function.
        """
        if name not in EVENTS:
            raise ConfigError(
                f"no event is called {name!r}; {closest(name, EVENTS) or 'there are ' + ', '.join(EVENTS)}"
            )
        if inspect.iscoroutinefunction(handler):
            raise ConfigError(
                f"the handler {handler.__qualname__} of {name} is a coroutine function; write a plain one"
            )
        self._handlers.setdefault(name, []).append(handler)

    def emit(self, event: Event) -> None:
        """Calls the handlers; one that raises is logged and changes nothing."""
        for handler in self._handlers.get(event.name, ()):
            try:
                handler(event)
            except Exception:
                _log.exception("the handler %r of %s failed", handler, event.name)
