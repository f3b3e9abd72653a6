"""JSON from the command line, made into the arguments of a task."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mouso.app import Mouso
from mouso.config import closest
from mouso.errors import ArgumentError, BadPayload, BadSignature, JobRejected, JobUnknown
from mouso.job import Job
from mouso.keys import VARIABLE
from mouso.redaction import MASK
from mouso.reveal import encoded_arguments, plain
from mouso.signing import is_enveloped
from mouso.task import Task


def json_value(text: str, what: str) -> Any:
    """Decodes one JSON value.

    Raises:
        ArgumentError: It is no JSON; for a bare word, tells how to quote it.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        if text[:1] in ("{", "[", '"'):
            raise ArgumentError(f"{what} is no JSON: {error}") from None
        quoted = msgspec.json.encode(text.encode(errors="replace").decode()).decode()
        raise ArgumentError(f"{what} {text!r:.80} is no JSON; for a text write '{quoted:.80}'") from None


def json_object(text: str, what: str) -> dict[str, Any]:
    """Decodes a JSON object.

    Raises:
        ArgumentError: It is none.
    """
    value = json_value(text, what)
    if not isinstance(value, dict):
        raise ArgumentError(f"{what} must be a JSON object by parameter name, such as '{{\"x\": 1}}'")
    return value


def restore(
    task: Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Turns plain JSON values into the task's own types: a text for a ``datetime`` becomes one.

    Raises:
        ArgumentError: They do not fit the task's signature.
    """
    signature = inspect.signature(task.function)
    injected = task.context_parameter[0] if task.context_parameter else None
    signature = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != injected])
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise ArgumentError(f"task {task.name}: {error}; it takes {signature}") from None
    return _decode(task, msgspec.json.encode(bound))


def _decode(task: Task[..., Any], payload: bytes) -> tuple[Sequence[Any], Mapping[str, Any]]:
    try:
        return task.signature.decode(payload, "json")
    except BadPayload as error:
        text = str(error).removeprefix("the payload does not fit ").rpartition(" (starts ")[0]
        raise ArgumentError(text or str(error)) from None


def replacement(app: Mouso, job_id: str, text: str) -> bytes:
    """The payload that replaces a stored job's arguments, checked against its task, and signed if the app has keys.

    Args:
        text: A JSON object; where it has kept the ``***`` of a listing, the stored value stays.

    Raises:
        ArgumentError: It does not fit.
        ConfigError: The app does not know the job's task.
        JobRejected: The job is signed, and the app cannot sign it.
        JobUnknown: No job has this id.
    """
    arguments = json_object(text, "--payload")
    (job,) = app.broker.get([job_id])
    if job is None:
        raise JobUnknown(f"no job has the id {job_id}; it was deleted, or its retention is over", job_id)
    if app.trust is not None:
        app.trust.replaceable(job)
    elif is_enveloped(job.payload):
        raise JobRejected(
            f"job {job_id} is signed, and new arguments take a new signature; give the app keys=, or set ${VARIABLE}"
        )
    task = app.find_task(job.task)
    if MASK in text:
        arguments = _kept(app, job, arguments)
    names = list(inspect.signature(task.function).parameters)
    for name in arguments:
        if name not in names:
            raise ArgumentError(f"task {task.name} has no parameter {name!r:.80}; {closest(name, names)}".rstrip("; "))
    args, kwargs = _decode(task, msgspec.json.encode(arguments))
    payload = task.signature.encode(args, kwargs, job.codec, app.payload_limit)
    return payload if app.trust is None else app.trust.replace(job, payload)


def _kept(app: Mouso, job: Job, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with stored values in place of what a listing had hidden."""
    try:
        stored = plain(encoded_arguments(app, job), job.codec)
    except (BadPayload, BadSignature):
        stored = None
    try:
        restored: dict[str, Any] = app.redaction.restore(arguments, stored)
    except KeyError as missing:
        raise ArgumentError(f"the job has no {missing.args[0]!r:.80} to keep; give one in place of {MASK}") from None
    return restored
