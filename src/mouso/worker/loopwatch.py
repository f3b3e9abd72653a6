"""Tells when a coroutine holds up the event loop of a child: which job, and where."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from mouso.clock import SYSTEM
from mouso.job import Lease
from mouso.worker.watchdog import place

_LOOK = 0.5
_BLOCKED = 1.0

log = logging.getLogger("mouso.worker")


class LoopWatch:
    """A thread that asks the loop for a sign of life twice a second while jobs run on it.

    Must be made in the loop's thread.

    Args:
        busy: Whether coroutine jobs run now.
        job: The job whose coroutine a task of asyncio runs, if it does.

    Attributes:
        awake: Whether it watches; if not, who puts a job on the loop has to call ``wake``.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        busy: Callable[[], bool],
        job: Callable[[asyncio.Task[object]], Lease | None],
    ) -> None:
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._busy = busy
        self._job = job
        self.awake = False
        self._work = threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """A job has been put on the loop."""
        if self._thread is None:
            thread = threading.Thread(target=self._watch, name="mouso-loop-watch", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has none left: the job runs unwatched, and the next one tries again
                return
            self._thread = thread
        self.awake = True
        self._work.set()

    def _watch(self) -> None:
        pause = threading.Event()
        while True:
            self._work.wait()
            if not self._busy():
                self._work.clear()
                self.awake = False
                if not self._busy():  # or one was put on it in between
                    continue
                self.awake = True
                self._work.set()
            pause.wait(_LOOK)
            answered = threading.Event()
            asked = SYSTEM.monotonic()
            try:
                self._loop.call_soon_threadsafe(answered.set)
            except RuntimeError:  # the loop is closed: the process ends
                return
            if not answered.wait(_BLOCKED):
                blocked = self._who()
                log.warning(
                    "%s blocks the event loop, and every coroutine beside it; use a plain function, or await"
                    " asyncio.to_thread(…)", blocked,
                )  # fmt: skip
                answered.wait()
                log.warning("the event loop moves again after %.1f s", SYSTEM.monotonic() - asked)

    def _who(self) -> str:
        """The job that the loop is stuck in, and the line; the line of the app's own code where there is one."""
        task = asyncio.current_task(self._loop)
        lease = None if task is None else self._job(task)
        name = "something" if lease is None else f"job {lease.id} ({lease.task})"
        frame = sys._current_frames().get(self._loop_thread)
        library = str(Path(asyncio.__file__).parents[1])
        innermost = frame
        while frame is not None and frame.f_code.co_filename.startswith(library):
            frame = frame.f_back
        found = frame or innermost
        return name if found is None else f"{name} at {place(found)}"
