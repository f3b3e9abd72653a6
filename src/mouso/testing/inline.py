"""Runs an app's jobs in the calling process, for tests of tasks: no worker, no waiting.

app = Mouso("shop", broker="memory://")

def test_three_tries():
    clock = fake_time(app)
    job = fetch.delay("https://example.org")
    run_until_idle(app, clock)
    assert job.record.attempts == 2
"""

from __future__ import annotations

import asyncio

from mouso.app import Mouso
from mouso.brokers import connect
from mouso.brokers.base import Update, Want
from mouso.context import Context
from mouso.errors import MousoError
from mouso.job import Lease, LogLine, Outcome, Progress
from mouso.testing.clock import FakeClock
from mouso.worker.executor import Executor, Run

_WORKER = "0" * 16
_STEP = 1000


def fake_time(app: Mouso) -> FakeClock:
    """Gives the app's broker a clock that only the test moves; call it before the first job."""
    clock = FakeClock()
    app.close()
    app.broker = connect(app.broker_url, clock=clock)
    if app.trust is not None:
        app.trust.clock = clock
    return clock


def run_until_idle(app: Mouso, clock: FakeClock | None = None, *, most: int = 10_000) -> int:
    """Runs every job that is available, one after the other, with retries and whatever they enqueue.

    Args:
        clock: From ``fake_time``: it is moved on to when scheduled and retryable jobs are due, so that they run too.
        most: How many runs at most.

    Returns:
        How many runs it took.

    Raises:
        MousoError: ``most`` was reached: the jobs seem to go on for ever.
    """
    broker = app.broker
    executor = Executor(app, _WORKER, lambda context, what: _report(app, context, what))
    outcomes: list[Outcome] = []
    with asyncio.Runner() as runner:
        runs = 0
        while runs <= most:
            broker.promote(_STEP)
            unsettled = [outcome for outcome in outcomes if not outcome.stored]
            exchange = broker.exchange(_WORKER, unsettled, Want(limit=1, tasks=frozenset(app.tasks)))
            outcomes = [_run(executor, runner, lease) for lease in exchange.leases]
            runs += len(outcomes)
            if not outcomes:
                if clock is None or exchange.next_due is None:
                    broker.retire(_WORKER)
                    return runs
                clock.advance(exchange.next_due / 1000)
    raise MousoError(f"the jobs of {app.name} were not done after {most:,} runs; do they enqueue or retry for ever?")


def _run(executor: Executor, runner: asyncio.Runner, lease: Lease) -> Outcome:
    run = executor.prepare(lease)
    if not isinstance(run, Run):
        return run
    return runner.run(executor.run_coroutine(run)) if run.task.is_async else executor.run_function(run)


def _report(app: Mouso, context: Context, what: Progress | LogLine) -> None:
    if isinstance(what, Progress):
        app.broker.report(_WORKER, [Update(context.key, context.token, what)])
    elif context.kept is not None:
        app.broker.report(_WORKER, [Update(context.key, context.token, log=context.kept.encoded())])
