"""``mouso job``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mouso import reveal
from mouso.cli.base import Target, app_command
from mouso.cli.output import ago, compact, span, stamp, write_fields, write_json
from mouso.cli.records import job_document
from mouso.cli.show import progress_text
from mouso.clock import SYSTEM
from mouso.errors import ErrorInfo
from mouso.job import Job, JobState, check_id

if TYPE_CHECKING:
    from mouso.app import Mouso


@app_command("ID", example="mouso job shop:app 019a2f3e-7c40-7c1d-9d5e-3f1f6c0f8a11")
def job(target: Target, as_json: bool) -> None:
    """Show everything about one job: arguments, result, failures, timings."""
    with target.open() as app:
        found = app.job(check_id(target.values[0])).record
    if as_json:
        write_json(job_document(app, found, full=True))
        return
    now = SYSTEM.now()
    write_fields([*_life(found, now), *_options(app, found), *_values(app, found)])
    for number, error in enumerate(found.errors, 1):
        write_fields([("", ""), *_failure(number, len(found.errors), error, now)])


def _life(job: Job, now: int) -> Iterator[tuple[str, str]]:
    yield "job", job.id
    yield "task", job.task + (" (no worker knows it)" if job.parked else "")
    wish = ", cancel requested" if job.cancel_requested else ""
    yield "state", f"{job.state}{f' ({job.reason})' if job.reason else ''}{wish}"
    yield "queue", f"{job.queue}, priority {job.priority}"
    yield "enqueued", stamp(job.enqueued_at, now)
    yield "due", stamp(job.due, now)
    yield "expires", stamp(job.expires_at, now)
    yield "finished", stamp(job.finished_at, now)
    yield "ran for", "" if job.run_seconds is None else span(job.run_seconds * 1000)
    yield "worker", job.worker or ""
    yield "progress", progress_text(job)
    yield (
        "counters",
        f"{job.claims} claims, {job.attempts} failed attempts, {job.crashes} crashes, {job.releases} releases",
    )


def _options(app: Mouso, job: Job) -> Iterator[tuple[str, str]]:
    if job.unique is not None:
        period = f" {span(job.unique_period)}" if job.unique_period else ""
        yield "unique", f"{job.unique} ({job.unique_scope}{period})"
    if job.options is not None:
        yield "options", compact(reveal.options(app, job))
    if job.codec != "json":
        yield "codec", job.codec
    yield "signature", reveal.signature_text(app, job)


def _values(app: Mouso, job: Job) -> Iterator[tuple[str, str]]:
    arguments: Any = reveal.arguments(app, job)
    if isinstance(arguments, dict) and not isinstance(arguments, reveal.Unshown):
        yield "arguments", "\n".join(f"{name} = {compact(value)}" for name, value in arguments.items())
    else:
        yield "arguments", _shown(arguments)
    if job.state is JobState.COMPLETED:
        yield "result", _shown(reveal.result(app, job))


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, reveal.Unshown) else compact(value)


def _failure(number: int, count: int, error: ErrorInfo, now: int) -> Iterator[tuple[str, str]]:
    attempt = f"attempt {error.attempt}" if error.attempt else f"{number} of {count}"
    parts = [attempt, ago(error.at or None, now), f"on {error.worker}" if error.worker else "", error.reason]
    yield "failure", ", ".join(part for part in parts if part)
    yield "error", f"{error.type}: {error.message}"
    yield "traceback", error.traceback.rstrip()
