"""The demo's worker: a ``mouso worker`` process, watched, and started again if somebody kills it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_CONCURRENCY = 4
_GRACE = 5
_PATIENCE = 12.0
_MOST_DEATHS = 5
_USAGE = 2


class WorkerFailed(Exception):
    """No worker can be kept running; the text says what happened."""


class Worker:
    """A worker, while the ``async with`` block lasts.

    Args:
        app: ``module:attribute``.
        environment: Variables to set for it.
        log: The file that takes its output.
        say: Shows a line to the user.
    """

    def __init__(
        self,
        app: str,
        queues: Sequence[str],
        processes: int,
        environment: Mapping[str, str],
        log: Path,
        say: Callable[[str], None],
    ) -> None:
        # All is given, so that no [tool.mouso] of the current directory has a say.
        limits = f"--processes {processes} --concurrency {_CONCURRENCY} --grace {_GRACE}"
        self._command = ("worker", app, "--queues", ",".join(queues), *limits.split(), "--name", "demo")
        self._environment = {**os.environ, **environment}
        self._log = log
        self._say = say
        self._process: asyncio.subprocess.Process
        self._watch: asyncio.Task[None]
        self._stopping = False

    async def __aenter__(self) -> Self:
        await self._start()
        self._watch = asyncio.create_task(self._keep_running())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), _PATIENCE)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def failed(self) -> None:
        """Never returns; raises ``WorkerFailed`` if no worker can be kept running."""
        await asyncio.shield(self._watch)

    async def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # a module of the current directory must not stand in for one of Python's own
                "-m",
                "mouso.demo.tether",
                *self._command,
                stdin=asyncio.subprocess.PIPE,  # held open as long as the demo lives
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the demo alone, which stops the worker in its own time
            )

    async def _keep_running(self) -> None:
        for _ in range(_MOST_DEATHS):
            code = await self._process.wait()
            how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
            if code == _USAGE:
                raise WorkerFailed(f"the worker could not start ({how}): {self._last_words()}")
            self._say(f"the worker ended ({how}); starting another, which takes over its jobs")
            await self._start()
        raise WorkerFailed(f"the worker ended again and again; {self._log} tells why")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")[:300]
