"""``mouso job``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from mouso import reveal
from mouso.cli.base import Target, app_command
from mouso.cli.output import ago, compact, say, size, span, stamp, write_fields, write_json
from mouso.cli.records import job_document, run_document
from mouso.cli.report import note
from mouso.cli.show import progress_text
from mouso.clock import SYSTEM, moment
from mouso.config import printable
from mouso.errors import ErrorInfo
from mouso.job import Job, JobState, RunInfo, check_id

if TYPE_CHECKING:
    from mouso.app import Mouso


@app_command("ID", example="mouso job shop:app 019a2f3e-7c40-7c1d-9d5e-3f1f6c0f8a11")
@click.option("--logs", is_flag=True, help="Show what its runs have logged with ctx.log, the last lines of each.")
@click.option("--stack", is_flag=True, help="Ask the worker where the job is now, and show the calls, innermost last.")
def job(target: Target, logs: bool, stack: bool, as_json: bool) -> None:
    """Show everything about one job: arguments, result, runs, failures, timings."""
    if logs and stack:
        raise click.UsageError("choose one of --logs and --stack")
    with target.open() as app:
        handle = app.job(check_id(target.values[0]))
        if stack:
            _write_stack(handle.stack(), handle.id, as_json=as_json)
            return
        found, runs = handle.record, handle.runs()
    if logs:
        _write_logs(runs, as_json=as_json)
        return
    if as_json:
        write_json(job_document(app, found, full=True) | {"runs": [run_document(run) for run in runs]})
        return
    now = SYSTEM.now()
    write_fields([*_life(found, now), *_runs(found, runs), *_options(app, found), *_values(app, found)])
    for number, error in enumerate(found.errors, 1):
        write_fields([("", ""), *_failure(number, len(found.errors), error, now)])


def _write_stack(text: str, id: str, *, as_json: bool) -> None:
    if as_json:
        write_json({"id": id, "stack": text})
        return
    for line in text.splitlines():
        say(printable(line))


def _write_logs(runs: Sequence[RunInfo], *, as_json: bool) -> None:
    """The lines of each run; which run, if there are several."""
    if as_json:
        write_json([run_document(run) for run in runs])
        return
    logged = [run for run in runs if run.lines or run.left_out]
    if not logged:
        note("no run of this job has logged anything with ctx.log")
    for run in logged:
        if len(runs) > 1:
            say(f"-- attempt {run.attempt}, {run.end or 'running'}")
        if run.left_out:
            say(f"… {run.left_out:,} earlier lines are not kept")
        for line in run.lines:
            first, *more = line.message.splitlines() or [""]
            at = moment(line.at).isoformat(" ", "milliseconds")[:-6]
            say(f"{at} {printable(line.level):8} {printable(first)}")
            for text in more:
                say(f"    {printable(text)}")


def _life(job: Job, now: int) -> Iterator[tuple[str, str]]:
    yield "job", job.id
    yield "task", job.task + (" (no worker knows it)" if job.parked else "")
    wish = ", cancel requested" if job.cancel_requested else ""
    yield "state", f"{job.state}{f' ({job.reason})' if job.reason else ''}{wish}"
    yield "queue", f"{job.queue}, priority {job.priority}"
    yield "enqueued", stamp(job.enqueued_at, now)
    yield "due", stamp(job.due, now)
    yield "expires", stamp(job.expires_at, now)
    yield "started", stamp(job.started_at, now)
    yield "finished", stamp(job.finished_at, now)
    yield "ran for", _took(job.run_seconds, job.cpu_seconds)
    yield "memory", f"at most {size(job.peak_memory)} in its process" if job.peak_memory else ""
    yield "worker", (job.worker or "") + (f", process {job.pid}" if job.pid else "")
    yield "progress", progress_text(job)
    yield (
        "counters",
        f"{job.claims} claims, {job.attempts} failed attempts, {job.crashes} crashes, {job.releases} releases",
    )


def _took(run_seconds: float | None, cpu_seconds: float | None) -> str:
    if run_seconds is None:
        return ""
    return span(run_seconds * 1000) + (f", {span(cpu_seconds * 1000)} of CPU" if cpu_seconds is not None else "")


def _runs(job: Job, runs: Sequence[RunInfo]) -> Iterator[tuple[str, str]]:
    """The runs, unless there is only the one of which the job itself tells; and how much they logged."""
    if len(runs) > 1 or (runs and not job.state.final):
        yield "runs", "\n".join(_run(run) for run in runs)
    lines = sum(len(run.lines) for run in runs)
    yield "log", f"{lines:,} lines, see --logs" if lines else ""


def _run(run: RunInfo) -> str:
    parts = [
        f"attempt {run.attempt} {run.end or 'running'}",
        _took(run.run_seconds, run.cpu_seconds),
        size(run.peak_memory),
        f"process {run.pid}" if run.pid else "",
        f"on {run.worker}" if run.worker else "",
    ]
    return ", ".join(part for part in parts if part)


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
    parts = [
        attempt,
        ago(error.at or None, now),
        f"after {_took(error.run_seconds, error.cpu_seconds)}" if error.started_at else "",
        f"on {error.worker}" if error.worker else "",
        error.reason,
    ]
    yield "failure", ", ".join(part for part in parts if part)
    yield "error", f"{error.type}: {error.message}"
    yield "traceback", error.traceback.rstrip()
