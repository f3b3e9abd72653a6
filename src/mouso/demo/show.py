"""Directs the demo: servers and worker up, jobs in, progress shown, report made, everything down again.

1. The licence service and the SMTP server start in this process, the worker in its own (``worker``).
2. One job per file is enqueued. A job's id is made of its path, so files of an interrupted demo are not enqueued again.
3. When no analysis job is live any more, the report job is enqueued, likewise with a fixed id.
4. However it ends, the worker is stopped first, then the servers. A signal cancels the main task, nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar

from mouso import JobRejected, JobState
from mouso.clock import SYSTEM
from mouso.demo.jobs import FILES, REPORT_ID, REPORTS, Report, analyse_file, app, report
from mouso.demo.licences import LicenceService
from mouso.demo.screen import Screen, Tally
from mouso.demo.smtp_sink import SmtpSink
from mouso.demo.store import Store
from mouso.demo.worker import Worker
from mouso.job import FINAL

T = TypeVar("T")

APP = "mouso.demo.jobs:app"

_POLL = 0.1


class Interrupted(Exception):
    """A signal asked the demo to stop, and it did.

    Attributes:
        number: The signal's.
    """

    def __init__(self, number: int, done: int, total: int) -> None:
        super().__init__(f"stopped after {done:,} of {total:,} files")
        self.number = number


class Ended(NamedTuple):
    """How a complete demo went: the report, jobs ended in this run, seconds that they took, files left out."""

    report: Report
    jobs: int
    seconds: float
    skipped: int


def job_id(path: str) -> str:
    """The id of a file's job, the same in every demo."""
    return f"demo-{hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()}"


def perform(root: Path, files: Sequence[str], store: Store, processes: int, screen: Screen) -> Ended:
    """Runs the demo to its end.

    Raises:
        Interrupted: By SIGINT, SIGTERM or SIGHUP; nothing is left running.
        WorkerFailed: No worker can be kept running.
        JobFailed: The report job did not succeed.
    """
    return asyncio.run(_Show(root, files, store, processes, screen).run())


class _Show:
    def __init__(self, root: Path, files: Sequence[str], store: Store, processes: int, screen: Screen) -> None:
        self._root = root
        self._files = files
        self._store = store
        self._processes = processes
        self._screen = screen
        self._tally = Tally()
        self._signal = 0
        self._over = False
        self._paused = False

    async def run(self) -> Ended:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            # Once is enough (make passes on what the terminal has sent already), and cleaning up is not disturbed.
            if not self._signal and not self._over:
                self._signal = number
                task.cancel()

        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            numbers.append(signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, stop, number)
        try:
            return await self._perform()
        except asyncio.CancelledError:
            if not self._signal:
                raise
            total = self._tally.total or len(self._files)
            raise Interrupted(self._signal, self._tally.done, total) from None
        finally:
            await asyncio.to_thread(app.close)
            for number in numbers:
                loop.remove_signal_handler(number)

    async def _perform(self) -> Ended:
        async with AsyncExitStack() as stack:
            licences = await stack.enter_async_context(LicenceService(self._root))
            smtp = await stack.enter_async_context(SmtpSink(self._store.mails))
            addresses = {"MOUSO_DEMO_LICENCES": licences.address, "MOUSO_DEMO_SMTP": smtp.address}
            await asyncio.to_thread(self._look)
            before = self._tally.done
            worker = Worker(APP, (FILES, REPORTS), self._processes, addresses, self._store.log, self._screen.say)
            await stack.enter_async_context(worker)
            try:
                with self._screen:
                    skipped, seconds = await _unless(worker, self._analyse())
                    made = await _unless(worker, self._report())
            finally:
                self._over = True
            return Ended(made, self._tally.done - before, seconds, skipped)

    async def _analyse(self) -> tuple[int, float]:
        """Enqueues the jobs and waits for them; returns how many files were left out, and the seconds it took."""
        began = SYSTEM.monotonic()
        skipped = await asyncio.to_thread(self._enqueue)
        await self._follow()
        return skipped, SYSTEM.monotonic() - began

    def _enqueue(self) -> int:
        """Enqueues a job for each file that has none; returns how many have a name that cannot be stored."""
        jobs, skipped = [], 0
        for path in self._files:
            try:
                jobs.append(analyse_file.options(id=job_id(path)).job(path))
            except (JobRejected, UnicodeError):
                skipped += 1
        app.enqueue_many(jobs)
        return skipped

    async def _follow(self) -> None:
        """Shows the jobs' progress until none is live."""
        while not await asyncio.to_thread(self._look):
            self._screen.show(self._tally, "queue paused" if self._paused else "")
            await asyncio.sleep(_POLL)
        self._screen.show(self._tally, "")

    def _look(self) -> bool:
        queue = next((queue for queue in app.queues() if queue.name == FILES), None)
        if queue is None:  # every name was skipped
            return True
        self._tally.update(queue.counts)
        self._paused = queue.paused
        return self._tally.done == self._tally.total

    async def _report(self) -> Report:
        """Has the report made, or made again if the one of an interrupted demo had failed."""
        job = await report.options(id=REPORT_ID).adelay(str(self._root))
        if await asyncio.to_thread(lambda: job.state) in FINAL - {JobState.COMPLETED}:
            await asyncio.to_thread(job.retry)
        async for update in job.awatch():
            self._screen.show(self._tally, update.progress.message if update.progress else "")
        self._screen.show(self._tally, "")
        return await job.aget()


async def _unless(worker: Worker, step: Awaitable[T]) -> T:
    """Waits for a step, but no longer than there is a worker."""
    task = asyncio.ensure_future(step)
    failure = asyncio.ensure_future(worker.failed())
    try:
        await asyncio.wait({task, failure}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            await failure
        return await task
    finally:
        for waiting in (task, failure):
            waiting.cancel()
        await asyncio.gather(task, failure, return_exceptions=True)
