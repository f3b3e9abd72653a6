"""Jobs, queues and workers as JSON documents: named as in the library, instants in ms since the epoch."""

from __future__ import annotations

from typing import Any

import msgspec

from mouso.brokers.base import QueueInfo, WorkerInfo
from mouso.codec import decode_plain
from mouso.config import one_line
from mouso.errors import BadPayload
from mouso.job import Job, JobState

_OWN_FORM = {"payload", "result", "options", "errors", "parked", "delay", "ttl"}


def job_document(job: Job, *, full: bool) -> dict[str, Any]:
    """A job with its arguments decoded.

    Args:
        full: With result, options and errors, which a list leaves out.
    """
    document: dict[str, Any] = {
        name: value for name, value in msgspec.structs.asdict(job).items() if name not in _OWN_FORM
    }
    document["parked"] = job.parked
    document["progress"] = None if job.progress is None else msgspec.structs.asdict(job.progress)
    document["arguments"] = decoded(job.payload, job.codec)
    if full:
        document["result"] = decoded(job.result, job.codec)
        document["options"] = decoded(job.options, "json") or {}
        document["errors"] = job.errors
    return document


def decoded(content: bytes | None, codec: str) -> Any:
    """Decodes stored bytes to plain JSON types; what cannot be shown becomes ``{"undecodable": reason}``."""
    try:
        return msgspec.to_builtins(decode_plain(content, codec), enc_hook=repr, str_keys=True)
    except (BadPayload, TypeError, ValueError, RecursionError) as error:
        return {"undecodable": one_line(error)}


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
