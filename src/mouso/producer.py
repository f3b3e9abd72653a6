"""Enqueues that meet at the same moment share one round trip (group commit).

Whoever comes first leads: it enqueues for all who came by then, and passes the lead on to the first of those who came
meanwhile. Coroutines of one event loop share a flush in a thread.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from mouso.brokers.base import BATCH, Broker, Enqueued
from mouso.clock import SYSTEM
from mouso.errors import BrokerError, BrokerUnavailable, JobRejected, MousoError, OutcomeUnknown
from mouso.job import Job

if TYPE_CHECKING:
    import asyncio

_NOTHING = "; nothing was stored, try again"
_REENTERED = (
    "this thread is in the middle of another enqueue, which a signal handler has interrupted; nothing was stored, let"
    " the handler set a flag, or enqueue in a thread"
)
_MOMENT = 0.25
"""Seconds that an enqueue which is under way in another thread is waited for beyond the deadline."""


@contextmanager
def after(stored: Sequence[object]) -> Iterator[None]:
    """Lets a call that goes in batches say, when one of them fails, how many jobs the ones before have stored."""
    try:
        yield
    except (JobRejected, BrokerError) as error:
        if not stored:
            raise
        why = str(error).removesuffix(_NOTHING)
        words = f"{why}; the first {len(stored):,} jobs of this call are stored, do not repeat those"
        if isinstance(error, BrokerError):  # others who shared the round trip may have the same one
            raise OutcomeUnknown(words) from error
        error.args = (words,)
        raise
    except BaseException as error:  # the caller's own, from where its jobs come from
        if stored:
            error.add_note(f"the first {len(stored):,} jobs of this call are stored, do not repeat those")
        raise


class _Entry:
    """One caller's jobs. ``turn`` is released when they are stored, or when it is its thread's turn to lead."""

    __slots__ = ("enqueued", "error", "jobs", "turn")

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.turn = threading.Lock()
        self.turn.acquire()
        self.enqueued: list[Enqueued] | None = None
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.enqueued is not None or self.error is not None

    def result(self) -> list[Enqueued]:
        if self.error is not None:
            raise self.error
        assert self.enqueued is not None
        return self.enqueued


class _Aside:
    """A call in a thread of its own; in the caller's, where no thread can be started."""

    def __init__(self, submit: Callable[[Sequence[Job]], list[Enqueued]], jobs: Sequence[Job]) -> None:
        self._entry = _Entry(jobs)
        self._submit = submit
        try:
            threading.Thread(target=self._run, name="mouso-enqueue", daemon=True).start()
        except RuntimeError:
            self._run()

    def _run(self) -> None:
        try:
            self._entry.enqueued = self._submit(self._entry.jobs)
        except Exception as error:
            self._entry.error = error
        finally:
            self._entry.turn.release()

    def result(self) -> list[Enqueued]:
        """Waits for what it returns, or raises."""
        with self._entry.turn:
            return self._entry.result()


class _Joined:
    """A transaction that enqueues are part of. Tasks that were started meanwhile hold it too, and learn of its end.

    Attributes:
        connection: Its connection; None when it is over.
    """

    __slots__ = ("connection",)

    def __init__(self, connection: object) -> None:
        self.connection: object | None = connection


_NOT_JOINED = _Joined(None)


class Producer:
    """Hands jobs to a broker.

    Args:
        broker: Finds the broker to use.
        timeout: Total deadline of an enqueue, in seconds.
        sign: Makes a job into its signed form, once, before it is stored; None stores jobs as they are.

    Attributes:
        broker: The broker, once it is found.
    """

    def __init__(
        self, broker: Callable[[], Broker], timeout: float = 5.0, *, sign: Callable[[Job], Job] | None = None
    ) -> None:
        self._find_broker = broker
        self._sign = sign
        self.broker: Broker | None = None
        self.timeout = timeout
        self._joined: ContextVar[_Joined] = ContextVar("mouso_joined", default=_NOT_JOINED)
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._waiting: deque[_Entry] = deque()
        self._led = False
        self._inside: set[int] = set()
        self._flushers: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopFlusher] = WeakKeyDictionary()

    def join(self, connection: object) -> None:
        """Makes this producer's enqueues in this context part of a transaction, until it is called with None."""
        self._joined.get().connection = None
        self._joined.set(_NOT_JOINED if connection is None else _Joined(connection))

    @contextmanager
    def joined(self, connection: object) -> Iterator[None]:
        """Makes this producer's enqueues of the block part of the caller's transaction.

        Raises:
            MousoError: The block was left in another task than it was entered in.
        """
        joined = _Joined(connection)
        token = self._joined.set(joined)
        try:
            yield
        finally:
            joined.connection = None
            elsewhere = self._joined.get() is not joined
            if not elsewhere:
                self._joined.reset(token)
        if elsewhere:
            raise MousoError(
                "enqueue_in() was entered in one task and left in another: what was enqueued in between is not part of"
                " the transaction; use it in the function that enqueues"
            )

    def submit(self, jobs: Sequence[Job], *, signed: bool = False, deadline: float | None = None) -> list[Enqueued]:
        """Enqueues jobs, all or none of each call to it up to 1,000; a longer list goes in batches of that size.

        Args:
            signed: They are in their signed form already.
            deadline: On the monotonic clock, if it is earlier than after the usual time.

        Raises:
            JobRejected: No key may sign one of them; nothing was stored.
            BrokerUnavailable: Nothing of the batch was stored; at once if its thread is in here already: a signal's
                handler would wait for what it has interrupted.
            OutcomeUnknown: Repeat it with the same ids.
        """
        if self._sign is not None and not signed:
            jobs = [self._sign(job) for job in jobs]
        connection = self._joined.get().connection
        if connection is None and len(jobs) > BATCH:
            stored: list[Enqueued] = []
            for start in range(0, len(jobs), BATCH):
                with after(stored):
                    stored += self.submit(jobs[start : start + BATCH], signed=True)
            return stored
        if self._pid != os.getpid():
            self._reset()
        inside, me = self._inside, threading.get_ident()
        if me in inside:
            raise BrokerUnavailable(_REENTERED)
        leads = False
        timeout = self.timeout if deadline is None else max(deadline - SYSTEM.monotonic(), 0.01)
        try:
            inside.add(me)
            if connection is not None:
                return (self.broker or self._find_broker()).enqueue(jobs, connection=connection, timeout=timeout)
            try:
                with self._mutex:
                    if self._led:
                        entry = _Entry(jobs)
                        self._waiting.append(entry)
                    else:
                        leads = self._led = True
                if leads:  # nobody else is there
                    return (self.broker or self._find_broker()).enqueue(jobs, timeout=timeout)
            finally:
                if leads:
                    self._pass_on()
            return self._wait(entry, timeout)
        finally:
            inside.discard(me)

    def submit_each(self, batches: Iterable[Sequence[Job]], stored: Callable[[list[Enqueued]], None]) -> None:
        """``submit`` for batches of up to 1,000, in order; calls ``stored`` after each.

        While a server stores one, the next one is taken from ``batches``, which makes it meanwhile.
        """
        under_way: _Aside | None = None
        try:
            for batch in batches:
                if under_way is not None:
                    stored(under_way.result())
                    under_way = None
                if len(batch) == BATCH and self._may_go_aside():
                    under_way = _Aside(self.submit, batch)
                else:
                    stored(self.submit(batch))
        finally:
            if under_way is not None:
                stored(under_way.result())

    def _may_go_aside(self) -> bool:
        """Whether it helps to enqueue in another thread; a caller's transaction belongs to this one."""
        if self._joined.get().connection is not None:
            return False
        return (self.broker or self._find_broker()).capabilities.remote

    def _wait(self, entry: _Entry, timeout: float) -> list[Enqueued]:
        """Waits until the entry is stored by another thread, or it is its turn to lead."""
        deadline = SYSTEM.monotonic() + timeout
        if not entry.turn.acquire(timeout=timeout):
            return self._give_up(entry)
        if not entry.done:
            try:
                self._flush(deadline)
            finally:
                self._pass_on()
        return entry.result()

    def _flush(self, deadline: float) -> None:
        """Enqueues for everybody who waits, up to a batch; the leader itself is the first."""
        with self._mutex:
            entries = [self._waiting.popleft()]
            size = len(entries[0].jobs)
            while self._waiting and size + len(self._waiting[0].jobs) <= BATCH:
                entries.append(self._waiting.popleft())
                size += len(entries[-1].jobs)
        jobs = entries[0].jobs if len(entries) == 1 else [job for entry in entries for job in entry.jobs]
        try:
            enqueued = (self.broker or self._find_broker()).enqueue(
                jobs, timeout=max(deadline - SYSTEM.monotonic(), 0.01)
            )
            start = 0
            for entry in entries:
                entry.enqueued = enqueued[start : start + len(entry.jobs)]
                start += len(entry.jobs)
        except BaseException as error:
            for entry in entries:
                entry.error = error if isinstance(error, Exception) else _interrupted()
            if not isinstance(error, Exception):
                raise
        finally:
            for entry in entries[1:]:
                entry.turn.release()

    def _pass_on(self) -> None:
        """Lets the first of those who wait lead."""
        with self._mutex:
            self._led = bool(self._waiting)
            if self._waiting:
                self._waiting[0].turn.release()

    def _give_up(self, entry: _Entry) -> list[Enqueued]:
        """What to say when the deadline has passed before the entry's turn came."""
        with self._mutex:
            waits = entry in self._waiting
            if waits:
                self._waiting.remove(entry)
        if waits:
            if entry.turn.acquire(blocking=False):
                self._pass_on()  # the lead had just come
            raise self.too_late()
        # It is under way in another thread, whose deadline is about the same: its answer is worth a moment.
        entry.turn.acquire(timeout=_MOMENT)
        if entry.done:
            return entry.result()
        raise OutcomeUnknown(f"the broker did not answer within {self.timeout:g} s; repeat the call with the same id")

    def too_late(self) -> BrokerUnavailable:
        """The error of jobs the time of which is over before they were tried."""
        return BrokerUnavailable(f"the broker did not answer within {self.timeout:g} s{_NOTHING}")

    async def asubmit(self, jobs: Sequence[Job]) -> list[Enqueued]:
        """``submit`` for coroutines: does not block the loop, and shares round trips with its siblings."""
        if self._sign is not None:
            jobs = [self._sign(job) for job in jobs]  # here, or one that cannot be signed would fail its siblings
        if self._joined.get().connection is not None:
            return self.submit(jobs, signed=True)  # the caller's connection belongs to this thread
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


class _Pending(NamedTuple):
    """One coroutine's jobs, and until when they are to be stored, on the monotonic clock."""

    jobs: Sequence[Job]
    future: asyncio.Future[list[Enqueued]]
    deadline: float


class _LoopFlusher:
    """Gathers the enqueues of one event loop while a flush is under way in a thread.

    It holds no reference to its loop, which would keep every loop of the process alive.
    """

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._pending: deque[_Pending] = deque()
        self._task: asyncio.Task[None] | None = None

    async def submit(self, jobs: Sequence[Job]) -> list[Enqueued]:
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Enqueued]] = loop.create_future()
        self._pending.append(_Pending(jobs, future, SYSTEM.monotonic() + self._producer.timeout))
        if self._task is None:
            self._task = loop.create_task(self._flush(loop))
        return await future

    async def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while self._pending:
                first = self._pending.popleft()
                batch, jobs = [first], list(first.jobs)
                while self._pending and len(jobs) + len(self._pending[0].jobs) <= BATCH:
                    batch.append(self._pending.popleft())
                    jobs += batch[-1].jobs
                try:
                    if SYSTEM.monotonic() >= first.deadline:  # the flush before has taken all of its time
                        raise self._producer.too_late()
                    enqueued = await self._in_thread(loop, jobs, first.deadline)
                except Exception as error:
                    for pending in batch:
                        if not pending.future.done():
                            pending.future.set_exception(error)
                    continue
                start = 0
                for pending in batch:
                    if not pending.future.done():
                        pending.future.set_result(enqueued[start : start + len(pending.jobs)])
                    start += len(pending.jobs)
        finally:
            self._task = None

    async def _in_thread(self, loop: asyncio.AbstractEventLoop, jobs: Sequence[Job], deadline: float) -> list[Enqueued]:
        """``submit`` in a thread of its own: the loop's executor may be full of the caller's work."""
        answer: asyncio.Future[list[Enqueued]] = loop.create_future()

        def run() -> None:
            entry = _Entry(jobs)
            try:
                entry.enqueued = self._producer.submit(jobs, signed=True, deadline=deadline)
            except Exception as error:
                entry.error = error
            loop.call_soon_threadsafe(_answer, answer, entry)

        threading.Thread(target=run, name="mouso-enqueue", daemon=True).start()
        return await answer


def _answer(future: asyncio.Future[list[Enqueued]], entry: _Entry) -> None:
    if future.done():
        return
    if entry.error is not None:
        future.set_exception(entry.error)
    else:
        future.set_result(entry.result())
