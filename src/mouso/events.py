"""Read-only events: what happened, told to whoever asked, without any power to break a job."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable

import msgspec

from mouso.config import closest
from mouso.errors import ConfigError, ErrorInfo, shown
from mouso.retry import takes

EVENTS = {
    "job.completed": "Its run has returned; the result is stored.",
    "job.failed": "A run has failed: every one, the last included. The reason is empty if another follows.",
    "job.dead": "It was given up; ``job.failed`` was told before.",
    "job.cancelled": "It was cancelled while it ran, or has raised ``Cancel``.",
    "job.expired": "A worker took it when it was too late to start.",
    "job.snoozed": "It has raised ``Snooze`` and runs again later.",
    "job.released": "It was given back to run again: the worker stops, or the process died that the job was in.",
    "worker.lost": "The lease of a worker ended without it; others run its jobs.",
}
"""The events, and what each means."""

_log = logging.getLogger("mouso.events")


class Event(msgspec.Struct, frozen=True, array_like=True):
    """Something that has happened and is stored.

    Attributes:
        name: One of ``EVENTS``.
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
            ConfigError: No event has this name, or the handler is no plain function that takes an event.
        """
        check_event(name)
        _check_handler(name, handler)
        self._handlers.setdefault(name, []).append(handler)

    def emit(self, event: Event) -> None:
        """Calls the handlers; one that raises or exits is logged and changes nothing."""
        for handler in self._handlers.get(event.name, ()):
            try:
                handler(event)
            except (Exception, SystemExit):
                _log.exception("the handler %r of %s failed", handler, event.name)


def check_event(name: object) -> None:
    """Refuses a name that no event has.

    Raises:
        ConfigError: Names the closest.
    """
    if not isinstance(name, str):
        raise ConfigError(f'{shown(name)} is no name of an event; write @app.on("job.dead")')
    if name not in EVENTS:
        raise ConfigError(f"no event is called {name!r}; {closest(name, EVENTS) or 'there are ' + ', '.join(EVENTS)}")


def _check_handler(event: str, handler: object) -> None:
    name = getattr(handler, "__qualname__", None) or shown(handler)
    if not callable(handler):
        raise ConfigError(f"the handler {name:.80} of {event} is no function; write def name(event)")
    if inspect.iscoroutinefunction(handler):
        raise ConfigError(f"the handler {name:.80} of {event} is a coroutine function; write a plain one")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise ConfigError(f"the handler {name:.80} of {event} is a generator, whose body never runs; write a plain one")
    if not takes(handler, Event(event, "")):
        raise ConfigError(f"the handler {name:.80} of {event} does not take (event); write def name(event)")
