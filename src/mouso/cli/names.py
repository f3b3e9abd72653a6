"""Names that a person may have mistyped: each is checked against those that are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mouso.cli.report import Failed, note
from mouso.config import closest
from mouso.errors import ConfigError

if TYPE_CHECKING:
    from mouso.app import Mouso


def known_task(app: Mouso, name: str | None) -> str | None:
    """The full name of a task that a person named, ``add`` for ``shop.add``.

    A name that is not registered is kept, for its jobs may well be stored, but a note names the closest.
    """
    if name is None:
        return None
    try:
        return app.find_task(name).name
    except ConfigError as error:
        note(str(error))
        return name


def known_queue(app: Mouso, name: str | None) -> None:
    """Writes a note if no queue has this name."""
    if name is not None and (text := _unknown_queue(app, name)):
        note(text)


def require_queue(app: Mouso, name: str) -> None:
    """Raises ``Failed`` if no queue has this name."""
    if text := _unknown_queue(app, name):
        raise Failed(text)


def _unknown_queue(app: Mouso, name: str) -> str:
    names = [queue.name for queue in app.queues()]
    if name in names:
        return ""
    hint = closest(name, names) or (f"there are {', '.join(names[:20])}" if names else "none has had a job so far")
    return f"no queue is called {name!r:.80}; {hint}"
