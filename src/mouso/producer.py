"""Enqueues that meet at the same moment share one round trip (group commit).

Whoever comes first enqueues for all who came while the one before was under way. Threads take turns on a lock,
coroutines of one event loop share a flush in a thread.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from mouso.brokers.base import BATCH, Broker, Enqueued
from mouso.clock import SYSTEM
from mouso.errors import BrokerUnavailable, OutcomeUnknown
from mouso.job import Job

if TYPE_CHECKING:
    import asyncio

CONNECTION: ContextVar[object | None] = ContextVar("mouso_connection", default=None)
"""The caller's transaction that enqueues join."""

_MOMENT = 0.25
"""Seconds."""


class _Entry:
    __slots__ = ("enqueued", "error", "jobs")

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.enqueued: list[Enqueued] | None = None
        self.error: Exception | None = None

    def result(self) -> list[Enqueued]:
        if self.error is not None:
            raise self.error
        assert self.enqueued is not None
        return self.enqueued


class Producer:
    """Hands jobs to a broker.

    Args:
        broker: Returns the broker to use.
        timeout: Total deadline of an enqueue, in seconds.
    """

    def __init__(self, broker: Callable[[], Broker], timeout: float = 5.0) -> None:
        self._broker = broker
        self.timeout = timeout
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._waiting: deque[_Entry] = deque()
        self._turn = threading.Lock()
        self._flushers: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopFlusher] = WeakKeyDictionary()

    def submit(self, jobs: Sequence[Job]) -> list[Enqueued]:
        """Enqueues jobs, all or none of each call to it up to 1,000; a longer list goes in batches of that size.

        Raises:
            BrokerUnavailable: Nothing of the batch was stored.
            OutcomeUnknown: Repeat it with the same ids.
        """
        connection = CONNECTION.get()
        if connection is not None:
            return self._broker().enqueue(jobs, connection=connection, timeout=self.timeout)
        if len(jobs) > BATCH:
            return [e for i in range(0, len(jobs), BATCH) for e in self.submit(jobs[i : i + BATCH])]
        if self._pid != os.getpid():
            self._reset()
        entry = _Entry(jobs)
        deadline = SYSTEM.monotonic() + self.timeout
        self._waiting.append(entry)
        if not self._turn.acquire(timeout=self.timeout):
            return self._give_up(entry)
        try:
            while entry.enqueued is None and entry.error is None:
                self._flush(deadline)
        finally:
            self._turn.release()
        return entry.result()

    def _flush(self, deadline: float) -> None:
        """Enqueues for everybody who waits, up to a batch."""
        entries = [self._waiting.popleft()]
        size = len(entries[0].jobs)
        while self._waiting and size + len(self._waiting[0].jobs) <= BATCH:
            entries.append(self._waiting.popleft())
            size += len(entries[-1].jobs)
        jobs = entries[0].jobs if len(entries) == 1 else [job for entry in entries for job in entry.jobs]
        try:
            enqueued = self._broker().enqueue(jobs, timeout=max(deadline - SYSTEM.monotonic(), 0.01))
        except BaseException as error:
            for entry in entries:
                entry.error = error if isinstance(error, Exception) else _interrupted()
            if isinstance(error, Exception):
                return
            raise
        start = 0
        for entry in entries:
            entry.enqueued = enqueued[start : start + len(entry.jobs)]
            start += len(entry.jobs)

    def _give_up(self, entry: _Entry) -> list[Enqueued]:
        try:
            self._waiting.remove(entry)
        except ValueError:
            # It is under way in another thread, whose deadline is about the same: its answer is worth a moment.
            if self._turn.acquire(timeout=_MOMENT):
                self._turn.release()
            if entry.enqueued is not None or entry.error is not None:
                return entry.result()
            raise OutcomeUnknown(
                f"the broker did not answer within {self.timeout:g} s; repeat the call with the same id"
            ) from None
        raise BrokerUnavailable(f"the broker did not answer within {self.timeout:g} s; nothing was stored, try again")

    async def asubmit(self, jobs: Sequence[Job]) -> list[Enqueued]:
        """``submit`` for coroutines: does not block the loop, and shares round trips with its siblings."""
        if CONNECTION.get() is not None:
            return self.submit(jobs)  # the caller's connection belongs to this thread
        if self._pid != os.getpid():
            self._reset()
        import asyncio  # 18 ms that programs without a loop are spared

        loop = asyncio.get_running_loop()
        flusher = self._flushers.get(loop)
        if flusher is None:
            flusher = self._flushers[loop] = _LoopFlusher(self)
        return await flusher.submit(jobs)


def _interrupted() -> OutcomeUnknown:
    return OutcomeUnknown("the enqueue was interrupted in another thread; repeat the call with the same id")


class _LoopFlusher:
    """Gathers the enqueues of one event loop while a flush is under way in a thread.

    It holds no reference to its loop, which would keep every loop of the process alive.
    """

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._pending: deque[tuple[Sequence[Job], asyncio.Future[list[Enqueued]]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def submit(self, jobs: Sequence[Job]) -> list[Enqueued]:
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Enqueued]] = loop.create_future()
        self._pending.append((jobs, future))
        if self._task is None:
            self._task = loop.create_task(self._flush(loop))
        return await future

    async def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while self._pending:
                batch = [self._pending.popleft()]
                jobs = list(batch[0][0])
                while self._pending and len(jobs) + len(self._pending[0][0]) <= BATCH:
                    batch.append(self._pending.popleft())
                    jobs += batch[-1][0]
                try:
                    enqueued = await loop.run_in_executor(None, self._producer.submit, jobs)
                except Exception as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                start = 0
                for jobs_, future in batch:
                    if not future.done():
                        future.set_result(enqueued[start : start + len(jobs_)])
                    start += len(jobs_)
        finally:
            self._task = None
