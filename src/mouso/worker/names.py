"""Names of workers: people tell workers apart by them, so no two that are alive keep the same one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from mouso.brokers.base import WorkerInfo


def name_apart(own: WorkerInfo, wanted: str, others: Sequence[WorkerInfo], *, registered: bool) -> str:
    """The name that a worker keeps, or the one that it takes because another one has it already.

    Args:
        wanted: What it was to be called. Who comes later has a number behind that.
        others: The other workers that are alive.
        registered: Whether the others can see it. Until then it comes after all of them; from then on, who has started
            later does, on which all agree.
    """
    namesakes = [other for other in others if other.name == own.name]
    late = any(not registered or _place(other) < _place(own) for other in namesakes)
    if not late:
        return own.name
    taken = {other.name for other in others}
    numbered = (f"{wanted}-{number}" for number in count(2))
    return next(name for name in numbered if name not in taken)


def _place(worker: WorkerInfo) -> tuple[int, str]:
    return worker.started_at, worker.id
