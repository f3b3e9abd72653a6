"""``mouso cancel``, ``mouso retry`` and ``mouso delete``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from mouso.brokers.base import CancelResult, DeleteResult, RetryResult
from mouso.cli.base import Target, app_command
from mouso.cli.bulk import act, tell
from mouso.cli.payload import json_object
from mouso.editing import replacement
from mouso.handle import retry_jobs
from mouso.job import check_id


@app_command("ID...", example="mouso cancel shop:app 019a2f3e-7c40-7c1d-9d5e-3f1f6c0f8a11")
def cancel(target: Target, as_json: bool) -> None:
    """Cancel jobs. One that is waiting never starts; one that is running is asked to stop."""
    ids = checked(target.values)
    with target.open() as app:
        results = act(ids, app.broker.cancel, "cancelling")
    tell(results, {CancelResult.CANCELLED, CancelResult.REQUESTED}, as_json=as_json)


@app_command("ID...", example="""mouso retry shop:app 019a2f3e-7c40-7c1d-9d5e-3f1f6c0f8a11 --payload '{"x": 3}'""")
@click.option("--payload", metavar="JSON", help="New arguments for the one job: a JSON object; masked values stay.")
def retry(target: Target, payload: str | None, as_json: bool) -> None:
    """Run dead, cancelled or expired jobs again, and make waiting ones due now.

    Their attempts and crashes count from 0 again.
    """
    ids = checked(target.values)
    if payload is not None and len(ids) != 1:
        raise click.UsageError("--payload goes with exactly one ID")
    with target.open() as app:
        content = None if payload is None else replacement(app, ids[0], json_object(payload, "--payload"))
        results = act(ids, lambda batch: retry_jobs(app, batch, content), "retrying")
    tell(results, {RetryResult.RETRIED, RetryResult.LIVE}, as_json=as_json)


@app_command("ID...", example="mouso delete shop:app 019a2f3e-7c40-7c1d-9d5e-3f1f6c0f8a11")
def delete(target: Target, as_json: bool) -> None:
    """Delete jobs and all that is kept of them, for good. A running job is left alone: cancel it first."""
    ids = checked(target.values)
    with target.open() as app:
        results = act(ids, app.broker.delete, "deleting")
    tell(results, {DeleteResult.DELETED}, as_json=as_json)


def checked(ids: Sequence[str]) -> list[str]:
    """The ids, each once.

    Raises:
        OptionError: One of them can be no job's id.
    """
    return list(dict.fromkeys(map(check_id, ids)))
