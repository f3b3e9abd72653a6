"""Who made a job, and who can read it: signatures and encryption, for apps that have keys.

A signed job carries an *envelope* in place of its payload, with the arguments inside. So a signature goes wherever the
payload goes, brokers need not know of it, and apps without keys pay nothing. Its form::

    MARK | length of the signature (1 byte) | signature | MessagePack array of the fields of Envelope

No codec's content begins like ``MARK``: one look tells the two apart. The signature is that of a MessagePack array
``["mouso job 1", id, task, queue, codec, priority, options]`` and the bytes of the envelope's array, so it covers all
that a producer decides. What brokers count and note (state, attempts, claims, when it was enqueued) is not covered.

An envelope has an end, because the store's writers can bring back a job that was done and deleted: until then such a
replay is not told from the first run, afterwards it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mouso.clock import SYSTEM, Clock, moment
from mouso.errors import BadPayload, BadSignature, ConfigError, JobRejected, ResultError, shown
from mouso.job import Job, Lease
from mouso.keys import VARIABLE, Key

MARK = b"\xc1mouso1"
"""0xC1 begins neither UTF-8 nor anything in MessagePack."""
SKEW = 300_000
"""ms by which the clocks of producers and workers may differ."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """What a signed job has in place of its payload. Instants are ms since the epoch, by the producer's clock.

    Attributes:
        key: Id of the key that signed.
        signed_at: When.
        due: Not to be started before; None for at once.
        until: Not to be started after.
        sealed: Id of the key that encrypted the body; None if it is plain.
        body: The payload, encrypted or not.
    """

    key: str
    signed_at: int
    due: int | None
    until: int
    sealed: str | None
    body: bytes


class ResultEnvelope(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """What a result is stored in by a worker that has a secret key; in the same form as a job's envelope.

    Attributes:
        key: Id of the key that encrypted or signed.
        sealed: Whether the body is encrypted, which proves as much as a signature, and leaves that empty.
        body: The encoded result, encrypted or not.
    """

    key: str
    sealed: bool
    body: bytes


class NotDue(Exception):
    """A signed job was handed out ``ms`` before the instant that its producer named."""

    def __init__(self, ms: int) -> None:
        super().__init__(f"it is due in {ms} ms")
        self.ms = ms


_encode = msgspec.msgpack.Encoder().encode
_envelope = msgspec.msgpack.Decoder(Envelope)
_result = msgspec.msgpack.Decoder(ResultEnvelope)


def is_enveloped(content: bytes | None) -> bool:
    """Whether a payload or a result is in an envelope."""
    return content is not None and content.startswith(MARK)


def envelope_of(job: Job | Lease) -> Envelope | None:
    """A job's envelope, not checked; None if it has none.

    Raises:
        BadSignature: It cannot be read.
    """
    if not is_enveloped(job.payload):
        return None
    try:
        return _envelope.decode(_parts(job.payload)[1])
    except (msgspec.MsgspecError, UnicodeDecodeError, IndexError):
        raise BadSignature("the job's envelope cannot be read: it was altered, or a newer Mouso signed it") from None


def result_envelope_of(job: Job) -> ResultEnvelope:
    """The envelope of a job's result, which has one, not checked.

    Raises:
        ResultError: It cannot be read.
    """
    assert job.result is not None
    try:
        return _result.decode(_parts(job.result)[1])
    except (msgspec.MsgspecError, UnicodeDecodeError, IndexError):
        raise ResultError(f"the envelope of the result of job {job.id} cannot be read", job.id) from None


class Trust:
    """An app's keys at work. Each step takes the first key of the list that can do it.

    Args:
        keys: At least one that can check signatures.
        encrypt: Encrypt payloads and results.
        accept_unsigned: Also run jobs without a signature, and read results without one.
        signed_for: ms for which a signature holds, from when it is made or the job is due.

    Raises:
        ConfigError: The keys cannot do what is asked for.

    Attributes:
        clock: Tells when a signature is made and whether it still holds.
    """

    def __init__(
        self, keys: Sequence[Key], *, encrypt: bool, accept_unsigned: bool, signed_for: int, clock: Clock = SYSTEM
    ) -> None:
        if not any(key.can_check for key in keys):
            raise ConfigError("keys= holds aes keys only, which sign nothing; add a Key.hmac or Key.ed25519")
        if signed_for <= 0:
            raise ConfigError('signed_for= leaves no time to run; use a positive duration, such as "30d"')
        self.clock = clock
        self.accept_unsigned = accept_unsigned
        self._keys = {key.id: key for key in keys}
        self._signed_for = signed_for
        self._secrets = [key for key in keys if key.can_seal]
        self._encrypts = encrypt
        if encrypt:
            if not self._secrets:
                raise ConfigError("encrypt=True needs a secret among keys=; add a Key.aes or Key.hmac")
            self._secrets[0].sealer.digest(b"")  # says now that the package is missing

    # -- jobs, by producers

    def sign(self, job: Job) -> Job:
        """The job in its envelope, encrypted if the app says so.

        Raises:
            JobRejected: No key may sign it, or it is in an envelope already.
        """
        if is_enveloped(job.payload):
            raise JobRejected(f"job {job.id}: its payload is that of a signed job; give the arguments as they were")
        now = self.clock.now()
        due = job.due if job.delay is None else now + job.delay
        until = job.expires_at if job.ttl is None else now + job.ttl
        if until is None:
            until = max(now, due or 0) + self._signed_for
        return msgspec.structs.replace(job, payload=self._envelop(job, job.payload, now, due, until, self._encrypts))

    def _envelop(self, job: Job, body: bytes, now: int, due: int | None, until: int, seal: bool) -> bytes:
        key = self._signer(job)
        if key is None:
            raise JobRejected(f"task {job.task}, queue {job.queue}: {self._why_unsigned()}")
        sealing = self._secrets[0] if seal else None
        if sealing is not None:
            body = sealing.sealer.seal(body, _bound("payload", job))
        envelope = Envelope(
            key=key.id,
            signed_at=now,
            due=due,
            until=until,
            sealed=None if sealing is None else sealing.id,
            body=body,
        )
        content = _encode(envelope)
        return _joined(key.sign(_labels(job) + content), content)

    def _signer(self, job: Job) -> Key | None:
        return next((k for k in self._keys.values() if k.can_sign and k.may_sign(job.task, job.queue)), None)

    def _why_unsigned(self) -> str:
        limited = ", ".join(repr(key) for key in self._keys.values() if key.can_sign)
        if limited:
            return f"no key of this app may sign it; it has {limited}"
        return "no key of this app can sign, they only check; add a private or secret one to enqueue"

    def digest(self, payload: bytes) -> str | None:
        """What stands for a payload in a unique key; None if it need not be kept secret."""
        return self._secrets[0].sealer.digest(payload) if self._encrypts else None

    # -- jobs, by workers and tools

    def open(self, job: Job | Lease) -> bytes:
        """The payload of a job that may run now.

        Raises:
            BadSignature: No key vouches for it, or not any more.
            NotDue: It is too early.
            BadPayload: It is signed, and cannot be decrypted.
        """
        envelope = self.check(job)
        if envelope is None:
            return job.payload
        now = self.clock.now()
        if now > envelope.until + SKEW:
            raise BadSignature(
                f"its signature held until {moment(envelope.until):%Y-%m-%d %H:%M} UTC: it waited too long, or is a "
                "replay of one that was done; an app that can sign may retry it"
            )
        if envelope.due is not None and now < envelope.due - SKEW:
            raise NotDue(envelope.due - now)
        return self.unseal(job, envelope)

    def check(self, job: Job | Lease) -> Envelope | None:
        """A job's envelope if its signature is right; None if it has none and needs none.

        Raises:
            BadSignature: No key vouches for it.
        """
        envelope = envelope_of(job)
        if envelope is None:
            if not self.accept_unsigned:
                raise BadSignature("the job is not signed, and this app takes signed jobs only")
            if job.codec == "pickle":
                raise BadSignature("the job is pickled and not signed")
            return None
        key = self._keys.get(envelope.key)
        if key is None or not key.can_check:
            known = ", ".join(key.id for key in self._keys.values() if key.can_check)
            raise BadSignature(
                f"the job is signed with key {shown(envelope.key)}, which this app lacks; it has {known}"
            )
        signature, content = _parts(job.payload)
        if not key.signed(_labels(job) + content, signature):
            raise BadSignature(f"the signature with key {key.id!r} does not fit the job: one of the two was altered")
        if not key.may_sign(job.task, job.queue):
            raise BadSignature(f"{key!r} may not sign jobs of task {job.task!r} in queue {job.queue!r}")
        return envelope

    def unseal(self, job: Job | Lease, envelope: Envelope) -> bytes:
        """What is in a job's envelope, decrypted.

        Raises:
            BadPayload: It is encrypted, and this app cannot decrypt it.
        """
        if envelope.sealed is None:
            return envelope.body
        key = self._keys.get(envelope.sealed)
        if key is None or not key.can_seal:
            raise BadPayload(f"the job is encrypted with key {shown(envelope.sealed)}, which this app lacks")
        try:
            return key.sealer.open(envelope.body, _bound("payload", job))
        except (ValueError, ConfigError) as error:
            raise BadPayload(f"the job is encrypted with key {key.id!r}: {error}") from None

    # -- jobs, by operators

    def renew(self, job: Job) -> bytes | None:
        """The payload with which a job can be retried now; None if its own will do, or if that is for workers to judge.

        What no key vouches for is never signed: whoever has a key could be made to vouch for a forgery.
        """
        try:
            envelope, now = self.check(job), self.clock.now()
            if envelope is None or ((envelope.due or 0) <= now and envelope.until - now > self._signed_for // 2):
                return None
            return self._envelop_again(job, envelope, self.unseal(job, envelope))
        except (BadSignature, BadPayload, JobRejected):
            return None

    def replaceable(self, job: Job) -> Envelope | None:
        """The envelope of a job whose arguments may be replaced.

        Raises:
            JobRejected: No key vouches for it, or none can sign it anew.
        """
        try:
            envelope = self.check(job)
        except BadSignature as error:
            raise JobRejected(f"job {job.id}: its arguments cannot be replaced: {error}; enqueue it anew") from None
        if envelope is None:
            return None
        why = "" if self._signer(job) else self._why_unsigned()
        if envelope.sealed is not None and not self.has_secret(envelope.sealed):
            why = f"the job is encrypted with key {shown(envelope.sealed)}, which this app lacks"
        if why:
            raise JobRejected(f"job {job.id}: its arguments cannot be replaced: {why}")
        return envelope

    def replace(self, job: Job, payload: bytes) -> bytes:
        """New arguments for a job, in the form in which they are stored.

        Raises:
            JobRejected: As ``replaceable``.
        """
        envelope = self.replaceable(job)
        return payload if envelope is None else self._envelop_again(job, envelope, payload)

    def _envelop_again(self, job: Job, old: Envelope, body: bytes) -> bytes:
        now = self.clock.now()
        return self._envelop(job, body, now, None, now + self._signed_for, self._encrypts or old.sealed is not None)

    def has_secret(self, id: str) -> bool:
        """Whether there is a key of this id that decrypts."""
        return any(key.id == id for key in self._secrets)

    # -- results

    def close_result(self, lease: Lease, result: bytes) -> bytes:
        """A result as it is stored: encrypted if the app says so or the arguments were, else signed if there is a
        secret to sign it with, else as it is.

        Raises:
            ResultError: It is pickled, and there is no secret to vouch for it.
        """
        envelope, bound, key = envelope_of(lease), _bound("result", lease), self._result_key()
        was_sealed = envelope is not None and envelope.sealed is not None
        if self._secrets and (self._encrypts or was_sealed or (key is None and lease.codec == "pickle")):
            sealing = self._secrets[0]
            content = _encode(ResultEnvelope(key=sealing.id, sealed=True, body=sealing.sealer.seal(result, bound)))
            return _joined(b"", content)
        if key is not None:
            content = _encode(ResultEnvelope(key=key.id, sealed=False, body=result))
            return _joined(key.sign(bound + content), content)
        if lease.codec == "pickle":
            raise ResultError("a pickled result must be signed, which takes a Key.hmac or Key.aes among keys=")
        return result

    def open_result(self, job: Job) -> bytes | None:
        """The encoded result of a completed job.

        Raises:
            ResultError: It is not what a worker of this app stored.
        """
        if job.result is None:
            return None
        if not is_enveloped(job.result):
            required = self._encrypts or self._result_key() is not None
            if job.codec == "pickle" or (required and not self.accept_unsigned):
                raise ResultError(f"the result of job {job.id} is not signed: no worker of this app stored it", job.id)
            return job.result
        envelope = result_envelope_of(job)
        key = self._keys.get(envelope.key)
        if key is None or not key.can_seal:
            raise ResultError(
                f"the result of job {job.id} needs key {shown(envelope.key)}, which this app lacks", job.id
            )
        bound = _bound("result", job)
        try:
            if envelope.sealed:
                return key.sealer.open(envelope.body, bound)
            signature, content = _parts(job.result)
            if not key.signed(bound + content, signature):
                raise ValueError("its signature does not fit")
        except (ValueError, ConfigError) as error:
            raise ResultError(f"the result of job {job.id} cannot be trusted: {error}", job.id) from None
        return envelope.body

    def _result_key(self) -> Key | None:
        return next((key for key in self._secrets if key.can_sign), None)


def trusting(
    keys: Sequence[Key], *, encrypt: bool | None, accept_unsigned: bool, signed_for: int, pickle: bool
) -> Trust | None:
    """An app's trust; None for an app without keys. Who gives a key that does nothing but encrypt wants that.

    Raises:
        ConfigError: What is asked for takes keys, or other ones.
    """
    if keys:
        encrypt = any(key.kind == "aes" for key in keys) if encrypt is None else encrypt
        return Trust(keys, encrypt=encrypt, accept_unsigned=accept_unsigned, signed_for=signed_for)
    for name, wanted in (("encrypt", encrypt), ("accept_unsigned", accept_unsigned), ("allow_pickle", pickle)):
        if wanted:
            raise ConfigError(f"{name}=True takes keys: give keys=[Key.hmac(…)], or set ${VARIABLE}")
    return None


def _joined(signature: bytes, content: bytes) -> bytes:
    return b"%b%c%b%b" % (MARK, len(signature), signature, content)


def _parts(enveloped: bytes) -> tuple[bytes, bytes]:
    """The signature, and the content that it covers."""
    start = len(MARK) + 1
    end = start + enveloped[start - 1]
    return enveloped[start:end], enveloped[end:]


def _labels(job: Job | Lease) -> bytes:
    """What a signature covers beside the envelope."""
    try:
        return _encode(("mouso job 1", job.id, job.task, job.queue, job.codec, job.priority, job.options))
    except (UnicodeEncodeError, OverflowError, TypeError):
        raise BadSignature("the job holds text or numbers that no producer can have signed") from None


def _bound(what: str, job: Job | Lease) -> bytes:
    """What a ciphertext, and the signature of a result, belong to."""
    return _encode((f"mouso {what} 1", job.id, job.task, job.queue, job.codec))
