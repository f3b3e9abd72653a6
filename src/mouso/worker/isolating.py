"""Isolated jobs: each waits for a slot, and then gets a process of its own."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial

from mouso.clock import SYSTEM
from mouso.isolation import Limits
from mouso.job import Lease
from mouso.worker.brood import Brood, Inbox, Owner
from mouso.worker.frames import TaskInfo
from mouso.worker.outcomes import release
from mouso.worker.process import ChildProcess

_GIVE_BACK = 0.25
_SCARCE = 1.0


class Isolated:
    """The isolated jobs of a worker.

    Attributes:
        tasks: The tasks whose jobs are isolated, and their limits.
        barred: Whether none is to be claimed, because lately one could not get its process.
    """

    def __init__(self, brood: Brood, inbox: Inbox, owner: Owner) -> None:
        self._brood = brood
        self._inbox = inbox
        self._owner = owner
        self.tasks: dict[str, Limits] = {}
        self._waiting: deque[tuple[Lease, float]] = deque()
        self._scarce_until = 0.0
        self.barred = False

    def learn(self, tasks: Mapping[str, TaskInfo]) -> None:
        """Takes over which tasks are isolated."""
        self.tasks = {name: info.limits for name, info in tasks.items() if info.limits is not None}

    def prepare(self) -> None:
        """Makes the template before it is needed, so that the first isolated job starts as fast as the others."""
        if self.tasks:
            self._owner.start(self._prepare)

    async def _prepare(self) -> None:
        with contextlib.suppress(OSError):
            await self._brood.nursery.prepare()

    @property
    def waiting(self) -> list[Lease]:
        """Jobs that have no process yet."""
        return [lease for lease, _ in self._waiting]

    @property
    def scarce(self) -> bool:
        """Whether some found no slot lately: then nothing is claimed ahead."""
        return SYSTEM.monotonic() < self._scarce_until

    def take(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        """Takes those of the jobs that are isolated; returns the others."""
        now = SYSTEM.monotonic()
        self._waiting.extend((lease, now) for lease in leases if lease.task in self.tasks)
        self.start_next()
        return [lease for lease in leases if lease.task not in self.tasks]

    def start_next(self) -> None:
        """Starts processes, as many as there are slots."""
        if self._brood.brake.holds:
            return
        for _ in range(min(len(self._waiting), self._brood.slots - self._brood.alone)):
            lease, _ = self._waiting.popleft()
            child = self._brood.conceive(1, spare=True, limits=self.tasks.get(lease.task, Limits()))
            if child is None:
                self._inbox.settle([release(lease)])
                self._bar()
                return
            child.leases[lease.key] = lease  # now, so that its slot is taken
            self._owner.start(partial(self._bear, child))

    async def _bear(self, child: ChildProcess) -> None:
        with contextlib.suppress(MemoryError):  # once is enough: if even that cannot be told, the store learns it later
            if not await self._brood.bear(child):
                self._bar()

    def _bar(self) -> None:
        """Leaves them to other workers until the next birth is worth a try: else this one claimed them again and again,
        and what waits behind them would wait with them."""
        if not (self.barred or self._brood.draining):
            self.barred = True
            self.drain()
            self._owner.learn()
            self._owner.start(self._unbar)

    async def _unbar(self) -> None:
        await self._brood.brake.wait()
        self.barred = False
        self._owner.learn()

    def look(self) -> None:
        """Gives back jobs that found no slot in time, and goes on with those that have."""
        if not self._waiting:
            return
        now = SYSTEM.monotonic()
        while self._waiting and now - self._waiting[0][1] > _GIVE_BACK:
            self._scarce_until = now + _SCARCE
            self._inbox.settle([release(self._waiting.popleft()[0])])
        if self._waiting and self._brood.brake.holds:  # children die, or cannot be started, for other reasons
            self._bar()
        self.start_next()

    def drain(self) -> None:
        """Gives back all that have no process."""
        self._inbox.settle([release(lease) for lease in self.waiting])
        self._waiting.clear()
