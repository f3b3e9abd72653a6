"""What tools show of a job: its arguments and result as plain JSON types, decrypted where there is a key, redacted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from mouso.clock import moment
from mouso.config import one_line
from mouso.errors import BadPayload, BadSignature, ResultError
from mouso.job import Job
from mouso.signing import envelope_of, is_enveloped, result_envelope_of
from mouso.wire import decode_plain

if TYPE_CHECKING:
    from mouso.app import Mouso


class Unshown(dict[str, str]):
    """Stands for a value that cannot be shown: ``{"encrypted": key}`` or ``{"undecodable": reason}``."""

    def __str__(self) -> str:
        return ", ".join(f"{what} ({why})" for what, why in self.items())


class Sealed(BadPayload):
    """It is encrypted, and the app lacks the key ``key``."""

    def __init__(self, key: str) -> None:
        super().__init__(f"encrypted with key {key}")
        self.key = key


def arguments(app: Mouso, job: Job) -> Any:
    """A job's arguments by name, or ``Unshown``."""
    return _shown(app, lambda: plain(encoded_arguments(app, job), job.codec))


def result(app: Mouso, job: Job, *, redact: bool = True) -> Any:
    """A job's result, or ``Unshown``."""
    return _shown(app, lambda: plain(encoded_result(app, job), job.codec), redact=redact)


def options(app: Mouso, job: Job) -> Any:
    """What a job overrides of its task's settings; None for nothing."""
    return _shown(app, lambda: plain(job.options, "json"))


def signature(app: Mouso, job: Job) -> dict[str, Any] | None:
    """What there is to say about a job's signature; None for an unsigned job of an app without keys.

    Returns:
        ``key`` that signed and ``until`` (ms since the epoch), None for an unsigned job; ``valid``, None if there are
        no keys to tell; ``problem``, why it is not; ``encrypted``, the key that encrypted the arguments, or None.
    """
    found: dict[str, Any] = {"key": None, "until": None, "valid": None, "problem": "", "encrypted": None}
    try:
        envelope = envelope_of(job)
        if envelope is not None:
            found |= {"key": envelope.key, "until": envelope.until, "encrypted": envelope.sealed}
        if app.trust is not None:
            app.trust.check(job)
            found["valid"] = envelope is not None
        elif envelope is None:
            return None
    except BadSignature as error:
        found |= {"valid": False, "problem": one_line(error)}
    return found


def signature_text(app: Mouso, job: Job) -> str:
    """``signature`` in one line; empty if there is nothing to say."""
    found = signature(app, job)
    if found is None:
        return ""
    if found["problem"]:
        return f"bad: {found['problem']}"
    if found["key"] is None:
        return "none"
    checked = "" if found["valid"] else " (not checked: this app has no keys)"
    try:
        until = f"{moment(found['until']):%Y-%m-%d %H:%M:%S} UTC"
    except OverflowError:  # nobody has checked it
        until = "an instant that cannot be"
    return f"by key {found['key']} until {until}{checked}"


def encoded_arguments(app: Mouso, job: Job) -> bytes:
    """A job's encoded arguments, whoever signed them.

    Raises:
        Sealed: They are encrypted, and the app lacks the key.
        BadPayload, BadSignature: They cannot be read.
    """
    envelope = envelope_of(job)
    if envelope is None:
        return job.payload
    if envelope.sealed is not None and (app.trust is None or not app.trust.has_secret(envelope.sealed)):
        raise Sealed(envelope.sealed)
    return envelope.body if app.trust is None else app.trust.unseal(job, envelope)


def encoded_result(app: Mouso, job: Job) -> bytes | None:
    """A job's encoded result, checked if the app has the key.

    Raises:
        Sealed: It is encrypted, and the app lacks the key.
        ResultError: It cannot be read, or no worker of this app stored it.
    """
    envelope = result_envelope_of(job) if is_enveloped(job.result) else None
    if app.trust is not None and (envelope is None or app.trust.has_secret(envelope.key)):
        return app.trust.open_result(job)
    if envelope is None:
        return job.result
    if envelope.sealed:
        raise Sealed(envelope.key)
    return envelope.body


def plain(content: bytes | None, codec: str) -> Any:
    """Decodes stored bytes to plain JSON types.

    Raises:
        BadPayload: They do not decode.
    """
    try:
        return msgspec.to_builtins(decode_plain(content, codec), enc_hook=repr, str_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadPayload(one_line(error)) from None


def _shown(app: Mouso, read: Callable[[], Any], *, redact: bool = True) -> Any:
    try:
        value = read()
    except Sealed as sealed:
        return Unshown(encrypted=sealed.key)
    except (BadPayload, BadSignature, ResultError) as error:
        return Unshown(undecodable=one_line(error))
    return app.redaction.apply(value) if redact else value
