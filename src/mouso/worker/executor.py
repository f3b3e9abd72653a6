"""Runs one claim and decides what becomes of it. No I/O: the decision is an ``Outcome``, others carry it out.

Steps: the task is looked up by name → the arguments are decoded into its types → the context is made → middleware and
function run → the value is encoded, or the exception is judged by the job's retry policy.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from mouso.app import Mouso
from mouso.clock import MAX_SECONDS, SYSTEM, seconds
from mouso.context import CURRENT, Context, StopRequested
from mouso.errors import BadPayload, Cancel, Discard, ErrorInfo, JobControl, ResultError, Retry, Snooze
from mouso.job import Charge, JobState, Lease, Outcome, Progress
from mouso.middleware import Middleware, compose
from mouso.options import RunSettings
from mouso.retry import Backoff, Decision, class_name
from mouso.task import Task
from mouso.worker.outcomes import failure, outcome_of

_MESSAGE = 4 << 10
_TRACEBACK = 16 << 10
_MANY = 1 << 53

log = logging.getLogger("mouso.job")


class Run:
    """One claim while it runs.

    Attributes:
        timeout: Seconds, or None.
        stop: Makes a coroutine stop; None for a plain function.
    """

    __slots__ = ("args", "context", "kwargs", "lease", "settings", "started", "stop", "task", "timeout")

    def __init__(
        self, lease: Lease, task: Task[..., Any], settings: RunSettings, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        self.lease = lease
        self.task = task
        self.settings = settings
        self.timeout = settings.timeout
        self.args = args
        self.kwargs = kwargs
        self.started = 0.0
        self.context: Context
        self.stop: Callable[[], object] | None = None


class Executor:
    """Runs claims of one app.

    Args:
        report: Takes a running job's progress.
    """

    def __init__(self, app: Mouso, report: Callable[[Context, Progress], None]) -> None:
        self._app = app
        self._report = report
        self._around_functions = [m for m in app.middlewares if not asyncio.iscoroutinefunction(m)]
        self._around_coroutines = [m for m in app.middlewares if asyncio.iscoroutinefunction(m)]

    def prepare(self, lease: Lease, waited: float = 0.0) -> Run | Outcome:
        """Everything before the function is called.

        Args:
            waited: Seconds since the claim.

        Returns:
            The run, or its outcome if it cannot start.
        """
        if lease.ttl is not None and waited * 1000 >= lease.ttl:
            return outcome_of(lease, JobState.EXPIRED, reason="expired")
        task = self._app.tasks.get(lease.task)
        try:
            if task is None:
                raise BadPayload(f"task {lease.task!r} is not registered in this worker's app")
            settings = task.settings if lease.options is None else _checked(task.run_settings(lease.options))
            if not (0 <= lease.attempts < _MANY and 0 <= lease.crashes < _MANY and 0 <= lease.releases < _MANY):
                raise BadPayload("a stored counter is out of range: attempts, crashes or releases")
            args, kwargs = task.signature.decode(lease.payload, lease.codec)
        except BaseException as error:  # a type of the app's own may raise anything when it is made
            return _bad_payload(lease, error)
        run = Run(lease, task, settings, args, kwargs)
        run.started = SYSTEM.monotonic()
        run.context = Context(
            job_id=lease.id,
            task=lease.task,
            queue=lease.queue,
            attempt=lease.attempts + 1,
            token=lease.token,
            enqueued_at=lease.enqueued_at,
            deadline=None if settings.timeout is None else run.started + settings.timeout,
            headers=settings.headers,
            report=self._report,
            key=lease.key,
        )
        return run

    def run_function(self, run: Run) -> Outcome:
        """Runs a plain function in this thread."""
        token = CURRENT.set(run.context)
        try:
            if self._around_functions:
                value = self._around(self._around_functions, run)()
            elif run.task.context_parameter is None:
                value = run.task.function(*run.args, **run.kwargs)
            else:
                value = run.task.invoke(run.context, run.args, run.kwargs)
            return self._completed(run, value)
        except BaseException as error:
            return self.ended(run, error)
        finally:
            CURRENT.reset(token)

    async def run_coroutine(self, run: Run) -> Outcome:
        """Runs a coroutine function on this loop; its task's cancellation ends the job."""
        CURRENT.set(run.context)
        try:
            if self._around_coroutines:
                value = await self._around(self._around_coroutines, run)()
            elif run.task.context_parameter is None:
                value = await run.task.function(*run.args, **run.kwargs)
            else:
                value = await run.task.invoke(run.context, run.args, run.kwargs)
            return self._completed(run, value)
        except BaseException as error:
            return self.ended(run, error)

    def _around(self, layers: Sequence[Middleware], run: Run) -> Callable[[], Any]:
        return compose(layers, run.context, lambda: run.task.invoke(run.context, run.args, run.kwargs))

    def _completed(self, run: Run, value: Any) -> Outcome:
        lease, keep = run.lease, run.settings.keep_result
        result = None
        if keep is not False:
            result = run.task.signature.encode_result(value, lease.codec, self._app.payload_limit)
        return Outcome(
            lease.key,
            lease.token,
            lease.id,
            lease.task,
            lease.queue,
            JobState.COMPLETED,
            SYSTEM.monotonic() - run.started,
            result,
            keep=int(keep * 1000) if not isinstance(keep, bool) else None,
        )

    def ended(self, run: Run, error: BaseException) -> Outcome:
        """What an exception makes of the job."""
        seconds_run = SYSTEM.monotonic() - run.started
        try:
            outcome = self._judge(run, error)
        except BaseException:  # not even its class can be asked for
            outcome = self._failed(run, RuntimeError(f"a {class_name(type(error))} that cannot be looked at"))
        outcome.run_seconds = seconds_run
        return outcome

    def _judge(self, run: Run, error: BaseException) -> Outcome:
        if isinstance(error, JobControl) and not isinstance(error, Retry):
            return _controlled(run.lease, error)
        if run.context.stop_reason in ("shutdown", "fenced") and not isinstance(error, Retry):
            # Whatever a task makes of its interruption, such as an error of the client that it was waiting for.
            return outcome_of(run.lease, JobState.AVAILABLE, charge=Charge.RELEASE)
        if isinstance(error, (StopRequested, asyncio.CancelledError)) and run.context.should_stop:
            return self._stopped(run, error)
        return self._failed(run, error)

    def _stopped(self, run: Run, error: BaseException) -> Outcome:
        """A job that did as it was asked."""
        reason = run.context.stop_reason
        if reason == "timeout":
            timed_out = TimeoutError(f"the attempt took longer than its timeout of {run.timeout:g} s")
            timed_out.__cause__ = error
            return self._failed(run, timed_out, timed_out=True)
        return outcome_of(run.lease, JobState.CANCELLED, reason=reason)

    def _failed(self, run: Run, error: BaseException, *, timed_out: bool = False) -> Outcome:
        attempt = run.lease.attempts + 1
        try:
            decision = run.settings.policy.decide(error, attempt, timed_out=timed_out)
            if isinstance(error, Retry) and error.delay is not None and decision.delay is not None:
                decision = Decision(seconds(error.delay, "Retry delay"), "")
        except Exception as broken:
            log.exception("the retry policy of task %s failed", run.lease.task)
            error, decision = broken, Decision(None, "discarded")
        if isinstance(error, ResultError):
            decision = Decision(None, "bad_result")
        return failure(
            run.lease, decision, describe(error, attempt, decision.reason or ("timeout" if timed_out else ""))
        )


def _checked(settings: RunSettings) -> RunSettings:
    """The settings of a job that brought options of its own.

    Raises:
        BadPayload: They are none that ``Task.options`` lets through.
    """
    backoff, keep = settings.policy.backoff, settings.keep_result
    if isinstance(backoff, Backoff) and not (
        0 <= backoff.jitter <= 1 and min(backoff.base, backoff.factor, backoff.cap) >= 0
    ):
        raise BadPayload(f"the stored back-off is out of range: {backoff}")
    if settings.timeout is not None and not 0 < settings.timeout <= MAX_SECONDS:
        raise BadPayload(f"the stored timeout, {settings.timeout:g} s, is out of range")
    if not isinstance(keep, bool) and not 0 <= keep <= MAX_SECONDS:
        raise BadPayload(f"the stored keep_result, {keep:g} s, is out of range")
    return settings


def _bad_payload(lease: Lease, error: BaseException) -> Outcome:
    info = describe(error, max(lease.attempts, 0) + 1, "bad_payload")
    if isinstance(error, (BadPayload, msgspec.MsgspecError)):
        info = msgspec.structs.replace(info, type="BadPayload", traceback="")
    log.error("job %s (%s) is dead (bad_payload): %s", lease.id, lease.task, info.message)
    return outcome_of(lease, JobState.DEAD, reason="bad_payload", error=info)


def describe(error: BaseException, attempt: int, reason: str) -> ErrorInfo:
    """An exception as it is stored; whatever its own methods do, this does not raise."""
    try:
        message = f"the task called sys.exit({error.code!r})" if isinstance(error, SystemExit) else str(error)
    except BaseException as broken:
        message = f"<str() of the exception raised {type(broken).__name__}>"
    try:
        text = "".join(traceback.format_exception(error, limit=-50))
    except BaseException:
        text = ""
    if len(text) > _TRACEBACK:
        text = text[: _TRACEBACK // 2] + "\n…\n" + text[-_TRACEBACK // 2 :]
    return ErrorInfo(
        type=class_name(type(error)),
        message=_clean(message[:_MESSAGE]),
        traceback=_clean(text),
        attempt=attempt,
        reason=reason,
    )


def _clean(text: str) -> str:
    """The text without lone surrogates, which no store takes."""
    return text.encode("utf-8", "replace").decode()


def _controlled(lease: Lease, error: JobControl) -> Outcome:
    match error:
        case Snooze():
            try:
                delay = seconds(error.delay, "Snooze delay")
            except ValueError as wrong:
                return failure(lease, Decision(None, "discarded"), describe(wrong, lease.attempts + 1, "discarded"))
            return outcome_of(lease, JobState.SCHEDULED, delay=int(delay * 1000))
        case Cancel():
            return outcome_of(lease, JobState.CANCELLED, reason=describe(error, 0, "").message[:1000])
        case _:
            reason = "discarded" if isinstance(error, Discard) else type(error).__name__
            return failure(lease, Decision(None, reason), describe(error, lease.attempts + 1, reason))
