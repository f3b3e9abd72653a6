"""Runs one claim and decides what becomes of it. No I/O: the decision is an ``Outcome``, others carry it out.

Steps: the signature is checked, if the app has keys → the task is looked up by name → the arguments are decoded into
its types → the context is made → middleware and function run → the value is encoded, or the exception is judged by the
job's retry policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from mouso.app import Mouso
from mouso.brokers.base import Transaction
from mouso.clock import MAX_SECONDS, SYSTEM, seconds
from mouso.context import CURRENT, Context, Log, StopRequested
from mouso.errors import BadPayload, BadSignature, JobControl, MousoError, ResultError, Retry
from mouso.job import Charge, JobState, Lease, LogLine, Outcome, Progress
from mouso.middleware import Middleware, compose
from mouso.observe.logs import about
from mouso.options import RunSettings
from mouso.retry import Backoff, Decision, class_name
from mouso.signing import NotDue, is_enveloped
from mouso.task import Task
from mouso.worker.meter import FINE, NO_METER, Meter
from mouso.worker.outcomes import controlled, describe, failure, outcome_of, release

_MOST_WAITED = 5.0
"""Seconds after which a job that has not begun does not begin here: it waits a quarter of one at most, unless this
process stood still, and then another worker may run it by now."""
_MANY = 1 << 53
_STALE = 0.005

log = logging.getLogger("mouso.job")


class Run:
    """One claim while it runs. To await it is to await ``steps``, the task's coroutine, and to sum up its CPU.

    Attributes:
        timeout: Seconds, or None.
        stop: Makes a coroutine stop; None for a plain function.
        meter: Of the thread that it runs on, once it has started.
        cpu: Seconds that its steps have taken, but for the last; None for a plain function.
        began: When its last step began.
    """

    __slots__ = (
        "args",
        "began",
        "context",
        "cpu",
        "disturbed_by",
        "kwargs",
        "lease",
        "meter",
        "settings",
        "started",
        "steps",
        "stop",
        "task",
        "timeout",
    )

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
        self.disturbed_by = ""
        self.meter = NO_METER
        self.cpu: float | None = None
        self.began: float
        self.steps: Coroutine[Any, None, Any]

    def __await__(self) -> Generator[Any, None, Any]:
        return self  # type: ignore[return-value]  # an iterator with throw and close, which is all that is asked for

    def __iter__(self) -> Run:
        return self

    def __next__(self) -> Any:
        """One step of the coroutine; measuring it costs 0.3 µs."""
        self.began = began = SYSTEM.monotonic()
        meter = self.meter
        if began - meter.at > FINE:
            meter.at, meter.cpu = began, meter.clock()
        future = self.steps.send(None)
        took = SYSTEM.monotonic() - began
        self.cpu += took if took < FINE else meter.spent(took)  # type: ignore[operator]  # 0.0 before the first step
        return future

    def throw(self, kind: Any, value: Any = None, trace: Any = None) -> Any:
        """A step that begins with an exception where the coroutine waits."""
        self.began = SYSTEM.monotonic()
        future = self.steps.throw(kind if value is None else value)
        self.cpu = _cpu(self, SYSTEM.monotonic())
        return future

    def close(self) -> None:
        """Ends the coroutine where it waits."""
        self.steps.close()


class JobTask(asyncio.Task[Outcome]):
    """A run on the loop, which notes if another job cancels it: that one is to blame, not the one that it hits.

    Attributes:
        job: The run; to be set before it begins.
    """

    job: Run

    def cancel(self, msg: Any | None = None) -> bool:
        """As any task's."""
        caller = CURRENT.get()
        if caller is not None and caller is not self.job.context:
            self.job.disturbed_by = caller.task
        return super().cancel(msg)


class Executor:
    """Runs claims of one app.

    Args:
        worker: The id of the worker that claims.
        report: Takes a running job's progress, and the lines that it logs.

    Attributes:
        forked: This process is a fork that a job has made: what becomes of the job is none of its business.
    """

    def __init__(self, app: Mouso, worker: str, report: Callable[[Context, Progress | LogLine], None]) -> None:
        self._app = app
        self._worker = worker
        self._report = report
        self._logging = threading.Lock()
        self._loop_meter = Meter()
        self._pid = os.getpid()
        self.forked = False
        self._looked = -1.0
        self._peak: int | None = None
        self._ahead = 0
        self._trust = app.trust
        self._around_functions = [m for m in app.middlewares if not asyncio.iscoroutinefunction(m)]
        self._around_coroutines = [m for m in app.middlewares if asyncio.iscoroutinefunction(m)]

    def prepare(self, lease: Lease, waited: float = 0.0) -> Run | Outcome:
        """Everything before the function is called.

        Args:
            waited: Seconds since it came.

        Returns:
            The run, or its outcome if it cannot start.
        """
        if waited > _MOST_WAITED:
            return release(lease)
        if lease.ttl is not None and waited * 1000 >= lease.ttl:
            return outcome_of(lease, JobState.EXPIRED, reason="expired")
        task = self._app.tasks.get(lease.task)
        payload = lease.payload
        try:
            if self._trust is not None:
                payload = self._trust.open(lease)
            if task is None:  # claimed for another version of the app; that one may run it
                return release(lease)
            settings = task.settings if lease.options is None else _checked(task.run_settings(lease.options))
            if not (0 <= lease.attempts < _MANY and 0 <= lease.crashes < _MANY and 0 <= lease.releases < _MANY):
                raise BadPayload("a stored counter is out of range: attempts, crashes or releases")
            args, kwargs = task.signature.decode(payload, lease.codec, payload is not lease.payload)
        except NotDue as early:
            log.warning("job %s (%s) was handed out before it is due, and goes back", lease.id, lease.task)
            return outcome_of(lease, JobState.SCHEDULED, delay=early.ms)
        except BaseException as error:  # a type of the app's own may raise anything when it is made
            if self._trust is None and is_enveloped(lease.payload):
                return _refused(
                    lease, BadSignature("the job is signed, and this app has no keys to check it; give it some")
                )
            return _refused(lease, error)
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
            report=self._take,
            begin=self._begin,
            key=lease.key,
        )
        return run

    def run_function(self, run: Run, meter: Meter | None = None) -> Outcome:
        """Runs a plain function in this thread, whose meter this is."""
        run.meter = meter = meter or Meter()
        if run.started - meter.at > FINE:
            meter.at, meter.cpu = run.started, meter.clock()
        token = CURRENT.set(run.context)
        try:
            if self._around_functions:
                value = self._around(self._around_functions, run)()
            elif run.task.context_parameter is None:
                value = run.task.function(*run.args, **run.kwargs)
            else:
                value = run.task.invoke(run.context, run.args, run.kwargs)
            outcome = self._completed(run, value)
            if run.context.ending is not None:
                _now(self._commit(run.context, run.context.ending, outcome))
            return outcome
        except BaseException as error:
            if run.context.ending is not None:
                _now(self._roll_back(run.context, run.context.ending))
            return self.ended(run, error)
        finally:
            CURRENT.reset(token)

    async def run_coroutine(self, run: Run) -> Outcome:
        """Runs a coroutine function on this loop; its task's cancellation ends the job."""
        CURRENT.set(run.context)
        run.meter, run.cpu, run.began = self._loop_meter, 0.0, run.started
        try:
            if self._around_coroutines:
                run.steps = _waiting_for(self._around(self._around_coroutines, run)())
            elif run.task.context_parameter is None:
                run.steps = run.task.function(*run.args, **run.kwargs)
            else:
                run.steps = run.task.invoke(run.context, run.args, run.kwargs)
            outcome = self._completed(run, await run)
            if run.context.ending is not None:
                await self._commit(run.context, run.context.ending, outcome)
            return outcome
        except BaseException as error:
            if run.context.ending is not None:
                await self._roll_back(run.context, run.context.ending)
            return self.ended(run, error)

    def _begin(self, context: Context, connection: object) -> Any:
        if context.ending is not None:
            raise MousoError("this run has its transaction already; there is one for each")
        context.ending = ending = self._app.broker.transaction(connection)
        self._app.producer.join(ending.connection)
        return ending.connection

    async def _commit(self, context: Context, ending: Transaction, outcome: Outcome) -> None:
        """Ends the job in its own transaction; if that is fenced, the supervisor learns of it by the outcome."""
        if self.forked:  # the connection is that of the process that made it
            return
        if ending.settle(self._worker, outcome, context.reported):
            await ending.commit()
            outcome.stored = True
        else:
            await ending.roll_back()
        context.ending = None
        self._app.producer.join(None)

    async def _roll_back(self, context: Context, ending: Transaction) -> None:
        if self.forked:
            return
        context.ending = None
        self._app.producer.join(None)
        await ending.roll_back()

    def _around(self, layers: Sequence[Middleware], run: Run) -> Callable[[], Any]:
        return compose(layers, run.context, lambda: run.task.invoke(run.context, run.args, run.kwargs))

    def _completed(self, run: Run, value: Any) -> Outcome:
        lease, keep = run.lease, run.settings.keep_result
        result = None
        if keep is not False:
            result = run.task.signature.encode_result(value, lease.codec, self._app.payload_limit)
            if self._trust is not None and result is not None:
                result = self._trust.close_result(lease, result)
        now = SYSTEM.monotonic()
        took = now - run.started
        if now - self._looked > _STALE:
            self._look(now)
        outcome = Outcome(
            lease.key,
            lease.token,
            lease.id,
            lease.task,
            lease.queue,
            JobState.COMPLETED,
            took,
            result,
            Charge.NONE,
            0,
            int(keep * 1000) if not isinstance(keep, bool) else None,
            "",
            None,
            int(run.started * 1000) + self._ahead,
            took if took < FINE else _cpu(run, now),
            self._peak,
            self._pid,
        )
        if run.context.kept is not None or run.context.printed is not None:
            self._leave(run.context, outcome)
        return outcome

    def _look(self, now: float) -> None:
        """Learns what all runs of this process have in common: its peak memory, and how its clocks differ, in ms."""
        for _ in range(3):
            before = SYSTEM.monotonic()
            self._ahead = time.time_ns() // 1_000_000 - int(before * 1000)
            if SYSTEM.monotonic() - before < FINE:  # else another thread had its turn in between
                break
        try:  # not getrusage: what that tells begins with what the process that started this one had
            status = os.open("/proc/self/status", os.O_RDONLY)
            try:
                most = int(os.pread(status, 4096, 0).partition(b"\nVmHWM:")[2].split(None, 1)[0]) * 1024
                if most > (self._peak or 0):  # else another thread has read it later and was here first
                    self._peak = most
            finally:
                os.close(status)
        except (OSError, ValueError, IndexError):  # the system does not tell, or no descriptor is left
            pass
        self._looked = now  # last: who finds it fresh finds the others, too

    def _take(self, context: Context, what: Progress | LogLine) -> None:
        if isinstance(what, LogLine):
            if self._app.log_lines == 0:
                return
            with self._logging:
                if context.kept is None:
                    context.kept = Log(self._app.log_lines, self._app.log_bytes)
            context.kept.add(what)
        self._report(context, what)

    def _leave(self, context: Context, outcome: Outcome) -> None:
        """Takes along what the run has logged, and ends its last line of output."""
        if context.kept is not None:
            outcome.log = context.kept.encoded()
        if context.printed is not None:
            context.printed.end()

    def ended(self, run: Run, error: BaseException) -> Outcome:
        """What an exception makes of the job; a fork that the job has made ends with it."""
        if self.forked:
            _end_fork(error)
        now = SYSTEM.monotonic()
        took = now - run.started
        cpu = _cpu(run, now)
        self._look(now)
        try:
            outcome = self._judge(run, error)
        except BaseException:  # not even its class can be asked for
            outcome = self._failed(run, RuntimeError(f"a {class_name(type(error))} that cannot be looked at"))
        outcome.run_seconds, outcome.started_at = took, int(run.started * 1000) + self._ahead
        outcome.cpu_seconds, outcome.peak_memory, outcome.pid = cpu, self._peak, self._pid
        self._leave(run.context, outcome)
        return outcome

    def _judge(self, run: Run, error: BaseException) -> Outcome:
        if isinstance(error, JobControl) and not isinstance(error, Retry):
            try:
                return controlled(run.lease, error)
            except ValueError as wrong:
                wrong.__cause__ = error
                return self._failed(run, wrong)
        if run.context.stop_reason in ("shutdown", "fenced") and not isinstance(error, Retry):
            # Whatever a task makes of its interruption, such as an error of the client that it was waiting for.
            return outcome_of(run.lease, JobState.AVAILABLE, charge=Charge.RELEASE)
        if isinstance(error, (StopRequested, asyncio.CancelledError)) and run.context.should_stop:
            return self._stopped(run, error)
        if isinstance(error, asyncio.CancelledError) and run.disturbed_by:
            log.warning(
                "job %s (%s) was cancelled by another one of its process (%s), and goes back",
                run.lease.id, run.lease.task, run.disturbed_by, extra=about(run.lease),
            )  # fmt: skip
            return release(run.lease)
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
        asked = None
        if isinstance(error, Retry) and error.delay is not None:
            try:
                asked = seconds(error.delay, "Retry delay")
            except ValueError as wrong:
                wrong.__cause__ = error
                error = wrong
        try:
            decision = run.settings.policy.decide(error, attempt, timed_out=timed_out)
            if asked is not None and decision.delay is not None:
                decision = Decision(asked, "")
        except Exception as broken:
            log.exception("the retry policy of task %s failed", run.lease.task)
            error, decision = broken, Decision(None, "discarded")
        if isinstance(error, ResultError):
            decision = Decision(None, "bad_result")
        info = describe(error, attempt, decision.reason or ("timeout" if timed_out else ""))
        if decision.delay is None and isinstance(error, Retry) and error.exc is not None:
            last = describe(error.exc, attempt, "")
            info = msgspec.structs.replace(info, type=last.type, message=last.message)
        return failure(run.lease, decision, info)


def _cpu(run: Run, now: float) -> float | None:
    """Seconds of CPU that a run took that ends now; None if it was never begun."""
    if run.meter is NO_METER:
        return None
    took = now - (run.started if run.cpu is None else run.began)
    return (run.cpu or 0.0) + (took if took < FINE else run.meter.spent(took))


def _end_fork(error: BaseException) -> NoReturn:
    """Ends a fork by an exception that nobody has caught, as Python ends a program by it."""
    code: object = 1
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        code = error.code or 0
    elif isinstance(error, SystemExit):
        print(error.code, file=sys.stderr)
    else:
        traceback.print_exception(error)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code & 0xFF if isinstance(code, int) else 1)


def _now(step: Coroutine[Any, Any, None]) -> None:
    """Runs what has nothing to wait for, as it is with a connection that is not asynchronous."""
    try:
        step.send(None)
    except StopIteration:
        return
    step.close()
    raise AssertionError("there was something to wait for")


async def _waiting_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


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


def _refused(lease: Lease, error: BaseException) -> Outcome:
    """The outcome of a job that cannot be started: ``bad_signature`` or ``bad_payload``."""
    reason = "bad_signature" if isinstance(error, BadSignature) else "bad_payload"
    info = describe(error, max(lease.attempts, 0) + 1, reason)
    if isinstance(error, (BadPayload, BadSignature, msgspec.MsgspecError)):
        kind = "BadSignature" if isinstance(error, BadSignature) else "BadPayload"
        info = msgspec.structs.replace(info, type=kind, traceback="")
    log.error("job %s (%s) is dead (%s): %s", lease.id, lease.task, reason, info.message, extra=about(lease))
    return outcome_of(lease, JobState.DEAD, reason=reason, error=info)
