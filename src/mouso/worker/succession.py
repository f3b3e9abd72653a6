"""Children that take the place of others, without a gap in service: of those that have run enough, or an old app."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial

from mouso.config import one_line
from mouso.errors import ConfigError
from mouso.worker import WorkerOptions
from mouso.worker.brood import Brood, Owner
from mouso.worker.launch import Exit, describe
from mouso.worker.memory import resident
from mouso.worker.process import ChildProcess

log = logging.getLogger("mouso.worker")


class Succession:
    """Replaces children.

    Args:
        restarts: How many were replaced, by cause.
        changed: Called when others serve than before.
    """

    def __init__(
        self,
        brood: Brood,
        options: WorkerOptions,
        owner: Owner,
        restarts: Counter[str],
        changed: Callable[[], None],
    ) -> None:
        self.recycles = options.max_jobs_per_child is not None
        self._brood = brood
        self._most_jobs = options.max_jobs_per_child
        self._most_memory = options.max_memory_per_child
        self._owner = owner
        self._restarts = restarts
        self._changed = changed
        self._succeeding = False

    # -- recycling

    def after_jobs(self, child: ChildProcess) -> None:
        """Replaces a child that has run as many jobs as it may."""
        if self._most_jobs is not None and child.jobs >= self._most_jobs:
            self._succeed(child, f"it has run {child.jobs:,} jobs")

    def look(self) -> None:
        """Replaces a child that has more memory than it may, once it has run a job."""
        if self._most_memory is None:
            return
        for child in self._brood.regular():
            if child.jobs and resident(child.pid) > self._most_memory:
                self._succeed(child, f"it has more than {self._most_memory / (1 << 20):,.0f} MiB resident")

    def _succeed(self, child: ChildProcess, why: str) -> None:
        """Replaces a child between jobs. One after the other."""
        if not (self._succeeding or self._brood.draining or child.heir):
            self._succeeding = True
            log.info("child %d is replaced: %s", child.pid, why)
            self._owner.start(partial(self._succeed_now, child))

    async def _succeed_now(self, child: ChildProcess) -> None:
        try:
            why = await self._replace(child)
            if why and not self._brood.draining:  # else the successor was told to end
                log.error("child %d stays, its successor cannot start: %s", child.pid, why)
                self._brood.brake.tighten()
                await self._brood.brake.wait()
        finally:
            self._succeeding = False

    async def _replace(self, child: ChildProcess) -> str:
        """Starts a successor; when that can work, the child takes nothing more and ends after its jobs.

        Returns:
            Why it cannot; empty if it is done.
        """
        heir = await self._brood.spawn(heir=True)
        if heir is None:
            return "the system lets no process start"
        await heir.arrived.wait()
        if not heir.ready:
            return heir.failure or f"its process ended ({describe(heir.exit or Exit(None))})"
        heir.heir = False
        if not (child.gone or child.leaving):
            self._restarts["recycled"] += 1
            child.leave()
        elif len(self._brood.regular()) > self._brood.size:
            heir.leave()
        self._changed()
        return ""

    # -- a new version of the app

    async def renew(self) -> str:
        """Replaces all children, one after the other, by such as import the app anew.

        Returns:
            Why one of them cannot start, and then those that are left stay; empty if all is done.
        """
        brood = self._brood
        brood.brake.release()
        try:
            await brood.nursery.renew()
        except (ConfigError, OSError) as error:
            return one_line(error)
        brood.version += 1
        for child in brood.regular():
            if why := await self._replace(child):
                brood.nursery.revert()
                return why
            brood.nursery.keep()
        brood.nursery.keep()
        self._owner.start(brood.fill)
        return ""

    def give_up(self) -> None:
        """Ends children that are to replace others and cannot work yet."""
        self._brood.nursery.give_up()
        for child in self._brood.children:
            if child.heir:
                child.kill()
