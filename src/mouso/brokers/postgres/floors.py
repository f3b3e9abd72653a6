"""Where a claim begins to look while rows that vacuum may not remove lie before what is available.

A transaction that stays open for long keeps every claimed job's row in the index, and each claim would step over all of
them. Only then, a worker goes on where its last claim began, and looks at all once a second.
"""

from __future__ import annotations

from collections.abc import Sequence

from mouso.clock import SYSTEM
from mouso.job import Lease

_HOLDS = 1.0


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

    def claimed(self, leases: Sequence[Lease], *, slow: bool) -> None:
        """Goes on from what an exchange has claimed, if it was slow or there are floors already."""
        if slow:
            self._floors, self._until = {}, SYSTEM.monotonic() + _HOLDS
        if slow or self._floors:
            lowest: dict[str, tuple[int, int]] = {}
            for lease in leases:
                place = lease.priority, int(lease.key)
                lowest[lease.queue] = min(place, lowest.get(lease.queue, place))
            for queue, place in lowest.items():
                if place[0] <= self._floors.get(queue, place)[0]:  # else the lower priorities have not been reached
                    self._floors = self._floors | {queue: place}

    def forget(self) -> None:
        """To be called when jobs have come back: they keep their place."""
        self._floors = {}
