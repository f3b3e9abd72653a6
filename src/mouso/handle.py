"""What the caller holds of a job."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mouso.brokers.base import CancelResult, DeleteResult, JobUpdate, RetryResult
from mouso.clock import SYSTEM, Duration, seconds
from mouso.context import CURRENT
from mouso.editing import replacement
from mouso.errors import (
    BrokerUnavailable,
    ErrorInfo,
    JobCancelled,
    JobError,
    JobExpired,
    JobFailed,
    JobUnknown,
    OptionError,
    ResultError,
    ResultTimeout,
)
from mouso.job import Job, JobState, LogLine, Progress, RunInfo
from mouso.signing import is_enveloped
from mouso.waiting import remaining
from mouso.wire import decode_plain

if TYPE_CHECKING:
    from mouso.app import Mouso
    from mouso.task import Task

R = TypeVar("R")
T = TypeVar("T")
_LOOK = 0.05
_warned: set[str] = set()
"""Tasks whose jobs were told, in this process, what it means to wait for another job."""


class JobHandle(Generic[R]):
    """A job, by its id. Reading ``state`` or ``progress`` asks the broker.

    Attributes:
        id: The job's id.
    """

    __slots__ = ("_app", "_record", "_task", "id")

    def __init__(self, app: Mouso, id: str, task: Task[Any, R] | None = None) -> None:
        self.id = id
        self._app = app
        self._task = task
        self._record: Job | None = None

    def __repr__(self) -> str:
        return f"<JobHandle {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobHandle) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def record(self) -> Job:
        """Everything known of the job when it was last read; reads it the first time.

        Raises:
            JobUnknown: No job has this id.
        """
        if self._record is None:
            self.refresh()
        assert self._record is not None
        return self._record

    def refresh(self) -> JobHandle[R]:
        """Reads the job again and returns this handle.

        Raises:
            JobUnknown: No job has this id.
        """
        (record,) = self._app.broker.get([self.id])
        if record is None:
            raise JobUnknown.of(self.id)
        self._record = record
        return self

    @property
    def state(self) -> JobState:
        """Where the job is in its life, now."""
        return self.refresh().record.state

    @property
    def progress(self) -> Progress | None:
        """What the job last reported, now."""
        return self.refresh().record.progress

    @property
    def errors(self) -> tuple[ErrorInfo, ...]:
        """Its failed attempts, oldest first, now."""
        return self.refresh().record.errors

    # -- its runs

    def runs(self) -> list[RunInfo]:
        """What is known of the job's runs, oldest first: how they ended, what they took and what they logged."""
        return self._app.broker.runs(self.id)

    def logs(self) -> list[LogLine]:
        """The last lines that each run has logged with ``ctx.log``, oldest first."""
        return [line for run in self.runs() for line in run.lines]

    def stack(self, timeout: Duration = 10.0) -> str:
        """Where the job is now: the calls of its thread or coroutine, the innermost last. Its worker is asked, which
        takes about a second.

        Raises:
            JobUnknown: No job has this id.
            JobError: It does not run, it ended before its worker answered, or the worker did not answer in time.
        """
        deadline = _deadline(timeout)
        asked = self._app.broker.ask_stack(self.id)
        job = self.refresh().record
        if not asked:
            raise JobError(f"job {self.id} is {job.state}; only a job that runs has a stack", self.id)
        while SYSTEM.monotonic() < deadline:
            run = next((run for run in self.runs() if run.token == job.claims), None)
            if run is not None and run.stack is not None:
                return run.stack.text
            if self.state is not JobState.RUNNING:
                raise JobError(f"job {self.id} ended before its worker could tell where it was", self.id)
            time.sleep(_LOOK)
        raise JobError(
            f"the worker of job {self.id} did not answer within {seconds(timeout, 'timeout'):g} s; is it alive?",
            self.id,
        )

    # -- waiting

    def get(self, timeout: Duration | None = None, *, propagate: bool = True) -> R:
        """Waits for the job to end and returns the task's return value.

        Args:
            timeout: How long to wait at most; None for as long as it takes.
            propagate: False returns the exception in place of raising it, as in Celery.

        Raises:
            JobFailed: It is dead; ``.error`` tells why.
            JobCancelled, JobExpired: It will not run.
            JobUnknown: No job has this id.
            ResultTimeout: (a ``TimeoutError``) It was not final in time. A job that waits for another holds its slot
                meanwhile; where all slots do so, only a timeout ends it.
            ResultError: What is stored does not fit the annotation, or no key of the app vouches for it.
        """
        for _ in self.watch(timeout):
            pass
        return self._value(propagate=propagate)

    async def aget(self, timeout: Duration | None = None, *, propagate: bool = True) -> R:
        """``get`` for coroutines."""
        import asyncio  # 18 ms that programs without a loop are spared

        async with contextlib.aclosing(self.awatch(timeout)) as updates:
            async for _ in updates:
                pass
        return await asyncio.to_thread(self._value, propagate=propagate)

    def watch(self, timeout: Duration | None = None) -> Iterator[JobUpdate]:
        """Yields the job's state and progress: as they are, at every change, and last when it is final.

        Raises:
            JobUnknown: No job has this id.
            OptionError: The timeout is no duration.
            ResultTimeout: It was not final in time.
        """
        self._app.require_results("waiting for a job")
        deadline = None if timeout is None else _deadline(timeout)
        updates: queue.SimpleQueue[JobUpdate | None] = queue.SimpleQueue()
        subscription = self._app.listener.subscribe(self.id, updates.put)
        try:
            while True:
                try:
                    update = updates.get(timeout=remaining(deadline))
                except queue.Empty:
                    update = self._last_look(timeout)
                known = self._known(update)
                yield known
                if known.state is not None and known.state.final:
                    return
                _warn_who_holds_a_slot(self.id)
        finally:
            self._app.listener.unsubscribe(subscription)

    async def awatch(self, timeout: Duration | None = None) -> AsyncGenerator[JobUpdate, None]:
        """``watch`` for coroutines."""
        import asyncio

        self._app.require_results("waiting for a job")
        deadline = None if timeout is None else _deadline(timeout)
        loop = asyncio.get_running_loop()
        updates: asyncio.Queue[JobUpdate | None] = asyncio.Queue()
        subscription = self._app.listener.subscribe(
            self.id, lambda update: loop.call_soon_threadsafe(updates.put_nowait, update)
        )
        try:
            while True:
                try:
                    update = await asyncio.wait_for(updates.get(), remaining(deadline))
                except TimeoutError:
                    update = await asyncio.to_thread(self._last_look, timeout)
                known = self._known(update)
                yield known
                if known.state is not None and known.state.final:
                    return
                _warn_who_holds_a_slot(self.id)
        finally:
            self._app.listener.unsubscribe(subscription)

    def _known(self, update: JobUpdate | None) -> JobUpdate:
        if update is None:
            raise BrokerUnavailable(f"the app was closed while it waited for job {self.id}")
        if update.state is None:
            raise JobUnknown.of(self.id)
        return update

    def _last_look(self, timeout: Duration | None) -> JobUpdate:
        """The job's final update, or the error that it is not final when the time is over."""
        for update in self._app.broker.watch({self.id: None}, 0):
            if update.state is None or update.state.final:
                return update
        within = "" if timeout is None else f" within {seconds(timeout, 'timeout'):g} s"
        raise ResultTimeout(f"job {self.id} was not final{within}; is a worker running?", self.id)

    def _value(self, *, propagate: bool) -> R:
        job = self.refresh().record
        error = _error_of(job)
        if error is not None:
            if propagate:
                raise error
            return error  # type: ignore[return-value]  # asked for
        task = self._task
        if task is None or task.name != job.task:  # the called task's id or unique key may be held by another's job
            task = self._app.tasks.get(job.task)
        result, trust = job.result, self._app.trust
        if trust is not None:
            result = trust.open_result(job)
        elif is_enveloped(result):
            raise ResultError(
                f"the result of job {job.id} is signed or encrypted; give the app keys= to read it", job.id
            )
        if task is not None:
            return task.signature.decode_result(result, job.codec)  # type: ignore[no-any-return]  # R by annotation
        return decode_plain(result, job.codec)  # type: ignore[no-any-return]  # R is Any here

    # -- acting

    def cancel(self) -> CancelResult:
        """Cancels the job; returns ``cancelled``, ``requested`` (it runs), ``done`` or ``unknown``."""
        return self._app.broker.cancel([self.id])[0]

    async def acancel(self) -> CancelResult:
        """``cancel`` for coroutines."""
        return await _in_thread(self.cancel)

    def retry(self, arguments: Mapping[str, Any] | None = None) -> RetryResult:
        """Makes a dead, cancelled or expired job available again, a waiting one due now.

        Args:
            arguments: New ones in place of all that it has, by parameter name; None leaves it those.

        Returns:
            ``retried``, or why nothing was done: ``live`` (it runs, or waits and is due), ``done`` (it is completed),
            ``conflict`` (another job holds its unique key) or ``unknown``.

        Raises:
            ArgumentError: The arguments do not fit the task.
            ConfigError: The app does not know the task, so new arguments cannot be checked.
            JobRejected: The job is signed, and no key of the app may sign it anew.
            JobUnknown: There are new arguments, and no job has this id.
        """
        payload = None if arguments is None else replacement(self._app, self.id, arguments)
        return retry_jobs(self._app, [self.id], payload)[0]

    async def aretry(self, arguments: Mapping[str, Any] | None = None) -> RetryResult:
        """``retry`` for coroutines."""
        return await _in_thread(self.retry, arguments)

    def delete(self) -> DeleteResult:
        """Deletes the job and all that is kept of it.

        Returns:
            ``deleted``, ``running`` (it is left alone; cancel it first) or ``unknown``.
        """
        return self._app.broker.delete([self.id])[0]

    async def adelete(self) -> DeleteResult:
        """``delete`` for coroutines."""
        return await _in_thread(self.delete)

    # -- Celery's spellings

    @property
    def task_id(self) -> str:
        """``id``."""
        return self.id

    @property
    def status(self) -> str:
        """``state`` as text."""
        return self.state.value

    @property
    def result(self) -> Any:
        """The value or the exception if the job is final, else None."""
        return self._value(propagate=False) if self.state.final else None

    @property
    def traceback(self) -> str | None:
        """The traceback of the last failed attempt."""
        errors = self.errors
        return errors[-1].traceback if errors else None

    def ready(self) -> bool:
        """Whether the job is final."""
        return self.state.final

    def successful(self) -> bool:
        """Whether the job is completed."""
        return self.state is JobState.COMPLETED

    def failed(self) -> bool:
        """Whether the job is dead."""
        return self.state is JobState.DEAD


def retry_jobs(app: Mouso, ids: Sequence[str], payload: bytes | None = None) -> list[RetryResult]:
    """Retries up to 1,000 jobs; those whose signature would not let them run now are signed anew, one by one.

    Args:
        payload: Replaces the arguments; signed already, if the app has keys.
    """
    if payload is not None:
        return app.broker.retry(ids, payload=payload)
    results = {}
    if app.trust is not None:
        for job in app.broker.get(ids):
            if job is not None and (renewed := app.trust.renew(job)) is not None:
                results[job.id] = app.broker.retry([job.id], payload=renewed)[0]
    rest = [id for id in ids if id not in results]
    results.update(zip(rest, app.broker.retry(rest), strict=True))
    return [results[id] for id in ids]


def _deadline(timeout: Duration) -> float:
    """When a wait is over, on the monotonic clock.

    Raises:
        OptionError: The timeout is no duration.
    """
    try:
        return SYSTEM.monotonic() + seconds(timeout, "timeout")
    except ValueError as error:
        raise OptionError(str(error)) from None


async def _in_thread(call: Callable[..., T], *args: Any) -> T:
    import asyncio

    return await asyncio.to_thread(call, *args)


def _warn_who_holds_a_slot(id: str) -> None:
    """Tells a job that waits for the job ``id``, once for each task of a process."""
    context = CURRENT.get()
    if context is not None and context.task not in _warned:
        _warned.add(context.task)
        context.log.warning(
            "waits for job %s and holds its slot meanwhile; where all slots do so, nothing runs any more: give it a"
            " timeout, or let that job enqueue what comes next",
            id,
        )


def _error_of(job: Job) -> Exception | None:
    match job.state:
        case JobState.COMPLETED:
            return None
        case JobState.DEAD:
            error = job.errors[-1] if job.errors else ErrorInfo(type="", message=job.reason, reason=job.reason)
            return JobFailed(
                f"job {job.id} ({job.task}) is dead ({job.reason}): {error.type}: {error.message}", job.id, error
            )
        case JobState.EXPIRED:
            return JobExpired(f"job {job.id} ({job.task}) expired while it waited to run", job.id)
        case JobState.CANCELLED:
            return JobCancelled(f"job {job.id} ({job.task}) was cancelled: {job.reason}", job.id)
        case _:
            return ResultTimeout(f"job {job.id} ({job.task}) is {job.state}, not final", job.id)
