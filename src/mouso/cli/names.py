"""Names that a person may have mistyped: each is checked against those that are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mouso.cli.report import Failed, note
from mouso.config import closest
from mouso.errors import ConfigError

if TYPE_CHECKING:
    from mouso.app import Mouso


def full_task_name(app: Mouso, name: str | None) -> str | None:
    """The full name of a task that a person named, ``add`` for ``shop.add``; as it is if the app knows none."""
    try:
        return None if name is None else app.find_task(name).name
    except ConfigError:
        return name


def require_known(app: Mouso, *, queue: str | None, task: str | None) -> None:
    """Tells a name that fits no job because it is mistyped from one that only has no job now.

    Raises:
        Failed: No task of the app and no stored job is of this queue, or of this task.
    """
    if queue is not None and queue not in {known.default_queue for known in app.tasks.values()}:
        require_queue(app, queue)
    if task is not None and task not in app.tasks and not app.jobs(task=task, limit=1):
        try:
            app.find_task(task)
        except ConfigError as error:
            raise Failed(str(error)) from None


def known_queue(app: Mouso, name: str) -> None:
    """Writes a note if no queue has this name."""
    if text := _unknown_queue(app, name):
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
