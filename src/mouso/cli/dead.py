"""``mouso dead``: the dead-letter queue."""

from __future__ import annotations

import click

from mouso.app import Mouso
from mouso.brokers.base import BATCH, DeleteResult, RetryResult
from mouso.cli.act import checked
from mouso.cli.base import Target, Whole, app_command
from mouso.cli.bulk import act, confirm, tell, tell_count
from mouso.cli.complete import complete_option
from mouso.cli.names import full_task_name, require_known
from mouso.cli.output import Column, ago, write_json, write_table
from mouso.cli.payload import json_object
from mouso.cli.records import error_document, job_document
from mouso.cli.report import Failed
from mouso.clock import SYSTEM
from mouso.config import closest, counted
from mouso.editing import replacement
from mouso.errors import ErrorInfo
from mouso.handle import retry_jobs
from mouso.job import Job, JobState

ACTIONS = ("list", "retry", "delete")
_DEAD = (
    Column("ID", whole=True),
    Column("DIED", right=True, whole=True, spare=True),
    Column("TASK"),
    Column("QUEUE", spare=True),
    Column("FAILED", right=True, spare=True),
    Column("REASON", spare=True),
    Column("ERROR", cut=True),
)


@app_command("[list|retry|delete] [ID]...", words=ACTIONS, example="mouso dead shop:app retry --all --task send_email")
@click.option("--all", "every", is_flag=True, help="All dead jobs (that match) instead of certain IDs.")
@click.option("--task", shell_complete=complete_option, help="Only of this task.")
@click.option("--queue", shell_complete=complete_option, help="Only of this queue.")
@click.option("--payload", metavar="JSON", help="retry: new arguments for the one job, as JSON; masked values stay.")
@click.option("--limit", type=Whole(1, 10_000), default=50, show_default=True, help="list: at most so many.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def dead(
    target: Target,
    every: bool,
    task: str | None,
    queue: str | None,
    payload: str | None,
    limit: int,
    yes: bool,
    as_json: bool,
) -> None:
    """List, retry or delete dead jobs: those that failed for good."""
    action, ids = _action(target, every=every, narrowed=task is not None or queue is not None)
    if payload is not None and (action != "retry" or len(ids) != 1):
        raise click.UsageError("--payload goes with 'retry' and exactly one ID")
    with target.open() as app:
        name = full_task_name(app, task)
        if action == "list":
            found = app.jobs(state=JobState.DEAD, task=name, queue=queue, limit=limit)
            if not found:
                require_known(app, queue=queue, task=name)
            _list(app, found, as_json=as_json)
        elif every:
            _act_on_all(app, action, name, queue, yes=yes, as_json=as_json)
        else:
            _require_dead(app, ids)
            content = None if payload is None else replacement(app, ids[0], json_object(payload, "--payload"))
            if action == "retry":
                retried = act(ids, lambda batch: retry_jobs(app, batch, content), "retrying")
                tell(retried, {RetryResult.RETRIED}, as_json=as_json)
            else:
                tell(act(ids, app.broker.delete, "deleting"), {DeleteResult.DELETED}, as_json=as_json)


def _action(target: Target, *, every: bool, narrowed: bool) -> tuple[str, list[str]]:
    """What to do, and to which ids."""
    action, *rest = target.values or ["list"]
    if action not in ACTIONS:
        hint = closest(action, ACTIONS) or f"there are {', '.join(ACTIONS)}"
        raise click.UsageError(f"'mouso dead' has no action {action!r:.80}; {hint}")
    ids = checked(rest)
    if action == "list":
        if ids:
            raise click.UsageError(f"'list' takes no IDs; for one job: mouso job {ids[0]}")
    elif every and ids:
        raise click.UsageError("give IDs or --all, not both")
    elif not every and not ids:
        raise click.UsageError(f"name the IDs to {action}, or give --all")
    elif ids and narrowed:
        raise click.UsageError("--task and --queue go with --all, not with IDs")
    return action, ids


def _list(app: Mouso, found: list[Job], *, as_json: bool) -> None:
    """Writes dead jobs, each with what it failed with last."""
    errors = _last_errors(app, [job.id for job in found])
    if as_json:
        error_of = {job.id: error_document(errors.get(job.id)) for job in found}
        write_json([job_document(app, job, full=False) | {"error": error_of[job.id]} for job in found])
        return
    now = SYSTEM.now()
    rows = [
        (
            job.id,
            ago(job.finished_at, now),
            job.task,
            job.queue,
            str(job.attempts) if job.attempts else "",
            job.reason,
            _summary(errors.get(job.id)),
        )
        for job in found
    ]
    write_table(_DEAD, rows, "no job is dead")


def _last_errors(app: Mouso, ids: list[str]) -> dict[str, ErrorInfo]:
    batches = (app.broker.get(ids[start : start + BATCH]) for start in range(0, len(ids), BATCH))
    return {job.id: job.errors[-1] for batch in batches for job in batch if job is not None and job.errors}


def _summary(error: ErrorInfo | None) -> str:
    """An error's type and the first line of what it says."""
    if error is None:
        return ""
    first, *_ = error.message.strip().splitlines() or [""]
    return f"{error.type}: {first}" if first else error.type


def _act_on_all(app: Mouso, action: str, task: str | None, queue: str | None, *, yes: bool, as_json: bool) -> None:
    ids = _all_dead(app, task, queue)
    if not ids:
        require_known(app, queue=queue, task=task)
    if action == "retry":
        tell_count(act(ids, lambda batch: retry_jobs(app, batch), "retrying"), RetryResult.RETRIED, as_json=as_json)
        return
    if ids:
        confirm(f"delete {counted(len(ids), 'dead job')} for good?", yes=yes)
    tell_count(act(ids, app.broker.delete, "deleting"), DeleteResult.DELETED, as_json=as_json)


def _all_dead(app: Mouso, task: str | None, queue: str | None) -> list[str]:
    """Ids of all dead jobs that match, the oldest first, so that they are retried in the order they came."""
    ids: list[str] = []
    while page := app.jobs(
        state=JobState.DEAD, task=task, queue=queue, limit=BATCH // 4, after=ids[-1] if ids else None
    ):
        ids += [job.id for job in page]
    return ids[::-1]


def _require_dead(app: Mouso, ids: list[str]) -> None:
    """Refuses everything if one of the jobs is not dead."""
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        for id_, job in zip(batch, app.broker.get(batch), strict=True):
            if job is None:
                raise Failed(f"no job has the id {id_}; nothing was done")
            if job.state is not JobState.DEAD:
                raise Failed(f"job {id_} is {job.state}, not dead; nothing was done")
