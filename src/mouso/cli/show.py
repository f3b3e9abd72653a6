"""``mouso jobs``, ``mouso queues`` and ``mouso workers``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mouso.brokers.base import QueueInfo
from mouso.cli.base import Target, Whole, app_command
from mouso.cli.complete import complete_option
from mouso.cli.names import full_task_name, require_known
from mouso.cli.output import STATE_STYLES, Column, ago, span, write_json, write_table
from mouso.cli.records import job_document, queue_document, worker_document
from mouso.clock import SYSTEM
from mouso.job import Job, JobState

if TYPE_CHECKING:
    from mouso.app import Mouso
    from mouso.brokers.base import WorkerInfo

_JOBS = (
    Column("ID", whole=True),
    Column("TASK"),
    Column("QUEUE", spare=True),
    Column("STATE", whole=True, styles=STATE_STYLES),
    Column("FAILED", right=True, spare=True),
    Column("ENQUEUED", right=True, whole=True),
    Column("RAN", right=True, whole=True, spare=True),
    Column("REMARK"),
)


@app_command(example="mouso jobs shop:app --state dead --queue mail")
@click.option("--state", multiple=True, shell_complete=complete_option, help="Only in this state; repeatable.")
@click.option("--queue", shell_complete=complete_option, help="Only of this queue.")
@click.option("--task", shell_complete=complete_option, help="Only of this task.")
@click.option("--parked", is_flag=True, help="Only those whose task no worker knows.")
@click.option("--limit", type=Whole(1, 10_000), default=50, show_default=True, help="At most so many.")
@click.option("--after", metavar="ID", help="Go on after this job, the last one shown before.")
def jobs(
    target: Target,
    state: tuple[str, ...],
    queue: str | None,
    task: str | None,
    parked: bool,
    limit: int,
    after: str | None,
    as_json: bool,
) -> None:
    """List jobs, the last enqueued first."""
    with target.open() as app:
        states = [one for text in state for one in text.split(",")]
        name = full_task_name(app, task)
        found = app.jobs(state=states or None, queue=queue, task=name, parked=parked or None, limit=limit, after=after)
        if not found:
            require_known(app, queue=queue, task=name)
            if after is not None:
                app.job(after).refresh()  # says so if there is no such job
        _write_jobs(app, found, as_json=as_json)


def _write_jobs(app: Mouso, found: list[Job], *, as_json: bool) -> None:
    if as_json:
        write_json([job_document(app, job, full=False) for job in found])
        return
    now = SYSTEM.now()
    rows = [
        (
            job.id,
            job.task,
            job.queue,
            job.state.value,
            str(job.attempts) if job.attempts else "",
            ago(job.enqueued_at, now),
            "" if job.run_seconds is None else span(job.run_seconds * 1000),
            _remark(job, now),
        )
        for job in found
    ]
    write_table(_JOBS, rows, "no job matches")


def _remark(job: Job, now: int) -> str:
    """What else matters about a job in its state."""
    if job.parked:
        return "no worker knows its task"
    if job.state in (JobState.SCHEDULED, JobState.RETRYABLE):
        return ago(job.due, now)
    if job.state is JobState.RUNNING and job.cancel_requested:
        return "cancel requested"
    if job.state is JobState.RUNNING and job.progress is not None:
        return progress_text(job)
    return job.reason if job.state.final and job.reason != job.state else ""


def progress_text(job: Job) -> str:
    """How far a job says it is, such as ``3/10 rendering``."""
    if job.progress is None:
        return ""
    total = "" if job.progress.total is None else f"/{job.progress.total:g}"
    return f"{job.progress.done:g}{total} {job.progress.message}".rstrip()


@app_command(example="mouso queues shop:app")
def queues(target: Target, as_json: bool) -> None:
    """Count the jobs of every queue by state."""
    with target.open() as app:
        found = app.queues()
    if as_json:
        write_json([queue_document(queue) for queue in found])
        return
    states = [
        state
        for state in JobState
        if state in (JobState.AVAILABLE, JobState.RUNNING, JobState.DEAD) or any(q.counts.get(state) for q in found)
    ]
    columns = [
        Column("QUEUE"),
        *(Column(state.value.upper(), right=True) for state in states),
        Column("OLDEST", right=True),
        Column("", styles=STATE_STYLES),
    ]
    now = SYSTEM.now()
    rows = [
        (
            queue.name,
            *(f"{queue.counts.get(state, 0):,}" for state in states),
            "" if queue.oldest is None else span(queue.oldest),
            _pause_text(queue, now),
        )
        for queue in found
    ]
    write_table(columns, rows, "no queue has had a job so far")


def _pause_text(queue: QueueInfo, now: int) -> str:
    if not queue.paused:
        return ""
    return "paused" if queue.paused_until is None else f"paused, goes on {ago(queue.paused_until, now)}"


@app_command(example="mouso workers shop:app")
def workers(target: Target, as_json: bool) -> None:
    """List the workers that are alive."""
    with target.open() as app:
        found = app.workers()
    if as_json:
        write_json([worker_document(worker) for worker in found])
        return
    now = SYSTEM.now()
    columns = (
        Column("NAME"),
        Column("HOST"),
        Column("PID", right=True),
        Column("RUNNING", right=True),
        Column("QUEUES"),
        Column("STARTED", right=True),
        Column("SEEN", right=True),
        Column("VERSION"),
    )
    write_table(columns, [_worker_row(worker, now) for worker in found], "no worker is alive")


def _worker_row(worker: WorkerInfo, now: int) -> tuple[str, ...]:
    return (
        worker.name,
        worker.host,
        str(worker.pid),
        f"{worker.running}/{worker.slots}",
        ", ".join(worker.queues) or "all",
        ago(worker.started_at, now) if worker.started_at else "",
        ago(worker.beat, now),
        worker.version,
    )
