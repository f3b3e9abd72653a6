"""Jobs, queues and workers as JSON documents: named as in the library, instants in ms since the epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from mouso import reveal
from mouso.brokers.base import QueueInfo, WorkerInfo
from mouso.errors import ErrorInfo
from mouso.job import Job, JobState, RunInfo

if TYPE_CHECKING:
    from mouso.app import Mouso

_OWN_FORM = {"payload", "result", "options", "errors", "parked", "delay", "ttl"}


def job_document(app: Mouso, job: Job, *, full: bool) -> dict[str, Any]:
    """A job with its arguments decoded.

    Args:
        full: With result, options, errors and signature, which a list leaves out.
    """
    document: dict[str, Any] = {
        name: value for name, value in msgspec.structs.asdict(job).items() if name not in _OWN_FORM
    }
    document["parked"] = job.parked
    document["progress"] = None if job.progress is None else msgspec.structs.asdict(job.progress)
    document["arguments"] = reveal.arguments(app, job)
    if full:
        document["result"] = reveal.result(app, job)
        document["options"] = reveal.options(app, job) or {}
        document["errors"] = [error_document(error) for error in job.errors]
        document["signature"] = reveal.signature(app, job)
    return document


def error_document(error: ErrorInfo | None) -> dict[str, Any] | None:
    """A failed attempt, with every field."""
    return None if error is None else msgspec.structs.asdict(error)


def run_document(run: RunInfo) -> dict[str, Any]:
    """A run, with its log and the stack that was last taken."""
    document: dict[str, Any] = msgspec.structs.asdict(run)
    document["lines"] = [msgspec.structs.asdict(line) for line in run.lines]
    document["stack"] = None if run.stack is None else msgspec.structs.asdict(run.stack)
    return document


def queue_document(queue: QueueInfo) -> dict[str, Any]:
    """A queue, with a count for every state."""
    return {
        "name": queue.name,
        "paused": queue.paused,
        "paused_until": queue.paused_until,
        "oldest": queue.oldest,
        "counts": {state.value: queue.counts.get(state, 0) for state in JobState},
    }


def worker_document(worker: WorkerInfo) -> dict[str, Any]:
    """A worker that is alive."""
    return msgspec.structs.asdict(worker)
