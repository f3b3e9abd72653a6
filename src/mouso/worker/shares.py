"""Whose turn it is among a worker's queues."""

from __future__ import annotations

from collections.abc import Sequence


class Turns:
    """Divides claims among queues by weight, evenly over time.

    Each claim adds to every queue's credit its part of what is asked for; whole parts are its share, fractions are kept
    for the next time. So with one slot and the weights 3 and 1 the turns go 3 to 1.

    Args:
        queues: Names and weights.
        strict: Serve them in this order, the next only when the one before is empty.
    """

    def __init__(self, queues: Sequence[tuple[str, int]], *, strict: bool = False) -> None:
        self._queues = queues
        self._strict = strict
        self._credits = dict.fromkeys((name for name, _ in queues), 0.0)

    def shares(self, limit: int) -> list[tuple[str, int]]:
        """How many of ``limit`` jobs each queue may take first, in the order to ask."""
        if self._strict:
            return [(name, limit) for name, _ in self._queues]
        total = sum(weight for _, weight in self._queues)
        for name, weight in self._queues:
            self._credits[name] += limit * weight / total
        order = sorted(self._credits, key=lambda name: -self._credits[name])
        shares = {name: max(int(self._credits[name]), 0) for name in order}
        for name in order[: max(limit - sum(shares.values()), 0)]:
            shares[name] += 1
        for name, share in shares.items():
            self._credits[name] -= share
        return list(shares.items())


def deal(count: int, rooms: Sequence[int]) -> list[int]:
    """Spreads ``count`` jobs over children with so much room each, the emptiest first, as evenly as the rooms allow.

    Returns:
        How many each child gets; the sum is ``min(count, sum(rooms))``.
    """
    dealt = [0] * len(rooms)
    left = min(count, sum(rooms))
    while left:
        open_ = [i for i, room in enumerate(rooms) if dealt[i] < room]
        open_.sort(key=lambda i: dealt[i] - rooms[i])
        each = max(left // len(open_), 1)
        for i in open_:
            given = min(each, rooms[i] - dealt[i], left)
            dealt[i] += given
            left -= given
    return dealt
