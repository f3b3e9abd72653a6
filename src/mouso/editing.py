"""New arguments for a job that is stored."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from mouso.config import closest
from mouso.errors import ArgumentError, BadPayload, BadSignature, JobRejected, JobUnknown
from mouso.job import Job
from mouso.keys import VARIABLE
from mouso.redaction import MASK
from mouso.reveal import encoded_arguments, plain
from mouso.signing import is_enveloped
from mouso.wire import ENCODERS, first_line, has_nan

if TYPE_CHECKING:
    from mouso.app import Mouso
    from mouso.task import Task


def replacement(app: Mouso, job_id: str, arguments: Mapping[str, Any]) -> bytes:
    """The payload that replaces a stored job's arguments, checked against its task, and signed if the app has keys.

    Args:
        arguments: All of them, by parameter name; plain JSON values are restored by the annotations, so a text for a
            ``date`` is one. Where they have kept the ``***`` of a listing, the stored value stays.

    Raises:
        ArgumentError: They do not fit.
        ConfigError: The app does not know the job's task.
        JobRejected: The job is signed, and the app cannot sign it.
        JobUnknown: No job has this id.
    """
    given = _json(arguments)
    (job,) = app.broker.get([job_id])
    if job is None:
        raise JobUnknown.of(job_id)
    if app.trust is not None:
        app.trust.replaceable(job)
    elif is_enveloped(job.payload):
        raise JobRejected(
            f"job {job_id} is signed, and new arguments take a new signature; give the app keys=, or set ${VARIABLE}"
        )
    task = app.find_task(job.task)
    if MASK.encode() in given:
        given = _json(_kept(app, job, msgspec.json.decode(given)))
    names = list(inspect.signature(task.function).parameters)
    for name in arguments:
        if name not in names:
            raise ArgumentError(f"task {task.name} has no parameter {name!r:.80}; {closest(name, names)}".rstrip("; "))
    args, kwargs = from_json(task, given)
    payload = task.signature.encode(args, kwargs, job.codec, app.payload_limit)
    if job.unique is not None:
        _keep_key(app, task, job, payload)
    return payload if app.trust is None else app.trust.replace(job, payload)


def _keep_key(app: Mouso, task: Task[..., Any], job: Job, payload: bytes) -> None:
    """Refuses arguments that would belong to another key, where the key is made of them: it would lock out others."""
    try:
        made_of_them = job.unique == task.key_of(encoded_arguments(app, job), job.codec)
    except (BadPayload, BadSignature, msgspec.MsgspecError):
        return
    if made_of_them and job.unique != task.key_of(payload, job.codec):
        raise ArgumentError(
            f"job {job.id} is unique by its arguments; enqueue {task.name} with the new ones and delete this job"
        )


_PLACE = re.compile(r"^(task \S+: )(.*) - at `\$\.(\w+)(\S*)`$")
"""How msgspec says where in the arguments something does not fit."""


def from_json(task: Task[..., Any], encoded: bytes) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """A JSON object of arguments in the task's own types.

    Raises:
        ArgumentError: They do not fit the task's signature.
    """
    try:
        return task.signature.decode(encoded, "json")
    except BadPayload as error:
        text = str(error).removeprefix("the payload does not fit ")
        before, found, _ = text.rpartition(" (starts ")  # where no value is hidden
        raise ArgumentError(_PLACE.sub(r"\1argument '\3'\4: \2", before if found else text)) from None


def _json(arguments: Mapping[str, Any]) -> bytes:
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise ArgumentError("new arguments are a mapping by parameter name, such as {'x': 1}")
    try:
        lost = has_nan(arguments)
        encoded = ENCODERS["json"].encode(arguments)
    except Exception as error:
        raise ArgumentError(f"the new arguments cannot be encoded: {first_line(error)}") from None
    if lost:
        raise ArgumentError("the new arguments hold NaN or Infinity, which JSON cannot; enqueue a new job with them")
    return encoded


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
