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
from mouso.worker.forks import Template
from mouso.worker.launch import Process, Spawned

log = logging.getLogger("mouso.worker")


class Nursery:
    """Starts the processes of a worker's children.

    Args:
        worker: The worker's id; it stands in their command lines.
    """

    def __init__(self, worker: str, options: WorkerOptions) -> None:
        self._worker = worker
        self._options = options
        self._template: Template | None = None
        self._unfit = not hasattr(os, "pidfd_open")
        self._making = asyncio.Lock()

    async def bear(self, sock: int, board: int, slots: int, limits: Limits | None) -> Process:
        """Starts a process.

        Args:
            sock, board: Descriptors that it inherits.

        Raises:
            OSError: The system does not let it.
        """
        options = self._options
        if options.preload or limits is not None:
            template = await self.prepare()
            if template is not None:
                return await template.fork(sock, board, slots, options.grace, limits)
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
            options.app,
            options.folder or os.getcwd(),
            msgspec.json.encode(limits).decode(),
        ]
        return Spawned(command, (sock, board))

    async def prepare(self) -> Template | None:
        """Makes sure that there is a template to copy; None if the app cannot be copied."""
        async with self._making:
            if self._unfit:
                return None
            if self._template is None or not self._template.alive:
                try:
                    self._template = await Template.start(self._worker, self._options)
                except ConfigError as error:
                    self._unfit = True
                    log.warning("processes start anew instead of being copied, which takes longer: %s", error)
                    return None
            return self._template

    def renew(self) -> None:
        """The app has changed: what is started from now on imports it anew."""
        self.close()
        self._unfit = not hasattr(os, "pidfd_open")

    def close(self) -> None:
        """Ends the template."""
        if self._template is not None:
            self._template.close()
            self._template = None
