"""Where a claim begins to look while rows that vacuum may not remove lie before what is available.

A transaction that stays open for long keeps every claimed job's row in the index, and each claim would step over all of
them. Only then, and where all jobs of a queue have one priority, a worker goes on where its last claim began, and looks
at all once a second.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mouso.clock import SYSTEM
from mouso.job import Lease

_HOLDS = 1.0
_ANY = -1000
"""The priority of a floor that is only just to be found."""


class Floors:
    """The lowest job to look at in each queue; empty as long as claims are fast."""

    def __init__(self) -> None:
        self._floors: dict[str, tuple[int, int]] = {}
        self._until = 0.0

    def current(self) -> dict[str, int]:
        """What holds now, by queue."""
        if self._floors and SYSTEM.monotonic() >= self._until:
            self._floors = {}
        return {queue: key for queue, (_, key) in self._floors.items()}

    def claimed(self, leases: Sequence[Lease], *, slow: Collection[str]) -> None:
        """Goes on from what an exchange has claimed, in queues of which it was slow or that have a floor already."""
        if slow:
            self._floors, self._until = dict.fromkeys(slow, (_ANY, 0)), SYSTEM.monotonic() + _HOLDS
        if not self._floors:
            return
        lowest: dict[str, tuple[int, int]] = {}
        for lease in leases:
            if lease.queue in self._floors:
                place = lease.priority, int(lease.key)
                lowest[lease.queue] = min(place, lowest.get(lease.queue, place))
        floors = self._floors | lowest
        for queue, (priority, key) in self._floors.items():
            if priority != _ANY and floors[queue][0] > priority:  # its own priority has not been reached
                floors[queue] = priority, key
            elif priority != _ANY and floors[queue][0] < priority:  # older jobs may be lower still
                del floors[queue]
        self._floors = {queue: place for queue, place in floors.items() if place[0] != _ANY}

    def forget(self) -> None:
        """To be called when jobs have come back: they keep their place."""
        self._floors = {}
