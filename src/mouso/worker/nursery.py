"""Where children come from: a new interpreter that imports the app, or a copy of one that has."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import msgspec

from mouso.errors import ConfigError
from mouso.isolation import Limits
from mouso.worker import WorkerOptions
from mouso.worker.cgroups import Group, open_groups
from mouso.worker.forks import Template, Uncopyable
from mouso.worker.launch import Process, Spawned

log = logging.getLogger("mouso.worker")


class Nursery:
    """Starts the processes of a worker's children.

    Args:
        worker: The worker's id; it stands in their command lines.

    Raises:
        ConfigError: ``$MOUSO_CGROUP`` names what cannot be used.
    """

    def __init__(self, worker: str, options: WorkerOptions) -> None:
        self._worker = worker
        self._options = options
        self._template: Template | None = None
        self._coming: Template | None = None
        self._former: Template | None = None
        self._retired: list[Template] = []
        self._unfit = not hasattr(os, "pidfd_open")
        self._making = asyncio.Lock()
        self._groups = open_groups(worker)

    async def bear(self, sock: int, board: int, slots: int, limits: Limits | None, *, copy: bool) -> Process:
        """Starts a process.

        Args:
            sock, board: Descriptors that it inherits.
            copy: It should be a copy of one that has imported the app, if there can be any.

        Raises:
            OSError: The system does not let it.
        """
        if limits is None or self._groups is None:
            return await self._bear(sock, board, slots, limits, None, copy)
        group = self._groups.make(limits.max_memory)
        try:
            return await self._bear(sock, board, slots, limits, group, copy)
        except BaseException:
            if group is not None:
                group.kill()
                group.remove()
            raise

    async def _bear(
        self, sock: int, board: int, slots: int, limits: Limits | None, group: Group | None, copy: bool
    ) -> Process:
        options = self._options
        if options.preload or copy:
            template = await self.prepare()
            if template is not None:
                return await template.fork(sock, board, slots, options.grace, limits, group)
        command = [
            sys.executable,
            "-P",  # or a file called random.py in the current directory would stand in for the library's
            "-m",
            "mouso.worker.child",
            self._worker,
            str(sock),
            str(board),
            str(slots),
            str(options.grace),
            options.log_level,
            options.log_format,
            options.output,
            options.app,
            options.folder,
            msgspec.json.encode(limits).decode(),
        ]
        return Spawned(command, (sock, board), alone=limits is not None, group=group)

    async def prepare(self) -> Template | None:
        """Makes sure that there is a template to copy; None if the app cannot be copied, or not be loaded.

        Raises:
            OSError: The system does not let it.
        """
        if self._template is not None and self._template.alive:  # also while a new one is being made
            return self._template
        async with self._making:
            if not self._unfit and (self._template is None or not self._template.alive):
                try:
                    self._template = await self._make()
                except ConfigError:
                    return None  # the child that starts anew meets with the same, and tells it
            return None if self._unfit else self._template

    async def _make(self) -> Template | None:
        template = self._coming = Template.start(self._worker, self._options)
        try:
            await template.ready()
        except Uncopyable as error:
            self._unfit = True
            log.warning("processes start anew instead of being copied, which takes longer: %s", error)
            return None
        finally:
            self._coming = None
        return template

    async def renew(self) -> None:
        """The app has changed: what is started from now on imports it anew. To be followed by ``keep`` or ``revert``.

        Raises:
            ConfigError: The app cannot be loaded; all stays as it was.
            OSError: The system does not let it; likewise.
        """
        async with self._making:
            former, unfit = self._template, self._unfit
            self._unfit = not hasattr(os, "pidfd_open")
            if self._unfit or (former is None and not self._options.preload):
                return
            try:
                self._template = await self._make()
            except BaseException:
                self._unfit = unfit
                raise
            self._former = former

    def keep(self) -> None:
        """The new app works."""
        self._retire(self._former)
        self._former = None

    def revert(self) -> None:
        """The new app does not work: copies are made of the old one, if there was any."""
        if self._former is not None:
            self._retire(self._template)
            self._template, self._former, self._unfit = self._former, None, False

    def _retire(self, template: Template | None) -> None:
        """Lets a template live for as long as its copies: it tells how they end."""
        if template is not None:
            template.retire()
            self._retired = [each for each in (*self._retired, template) if each.alive]

    def give_up(self) -> None:
        """Ends a process that still imports the app to be copied."""
        if self._coming is not None:
            self._coming.close()

    def close(self) -> None:
        """Ends the templates, and what isolated jobs have left."""
        for template in (*self._retired, self._coming, self._former, self._template):
            if template is not None:
                template.close()
        self._template = self._former = None
        if self._groups is not None:
            self._groups.close()
            self._groups = None
