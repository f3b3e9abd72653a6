"""Signatures: what one covers, how long it holds, which key may give it, and what workers make of all else."""

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mouso import Job, JobRejected, Key, Mouso
from mouso.errors import BadPayload, BadSignature, ConfigError
from mouso.job import Lease, UniqueScope
from mouso.keys import new_ed25519
from mouso.signing import MARK, SKEW, Envelope, NotDue, Trust, envelope_of
from mouso.testing.clock import FakeClock

SECRET, OTHER = "s" * 32, "o" * 32
PRIVATE, PUBLIC = new_ed25519()
HOUR, DAY = 3_600_000, 86_400_000
JOB = Job(
    id="job-1",
    task="mail.send",
    queue="mail",
    payload=b'{"to":"a@b.c"}',
    codec="json",
    priority=5,
    options=b'{"attempts":3}',
    unique="key",
    unique_scope=UniqueScope.PERIOD,
    unique_period=1000,
)


def trust(*keys: Key, clock: FakeClock | None = None, **settings: Any) -> Trust:
    given = {"encrypt": False, "accept_unsigned": False, "signed_for": 30 * DAY, **settings}
    return Trust(keys or (Key.hmac("k", SECRET),), clock=clock or FakeClock(), **given)


def lease(job: Job, **changes: Any) -> Lease:
    """The job as a worker gets it."""
    fields = {
        "key": 7, "token": 1, "id": job.id, "task": job.task, "queue": job.queue, "payload": job.payload,
        "codec": job.codec, "attempts": 0, "crashes": 0, "releases": 0, "enqueued_at": 1, "ttl": None,
        "options": job.options, "priority": job.priority,
    }  # fmt: skip
    return Lease(**{**fields, **changes})


def enveloped(job: Job, **changes: Any) -> bytes:
    """The job's payload with changes to its envelope."""
    envelope = envelope_of(job)
    assert envelope is not None
    content = msgspec.msgpack.encode(envelope)
    assert job.payload.endswith(content)
    return job.payload.removesuffix(content) + msgspec.msgpack.encode(msgspec.structs.replace(envelope, **changes))


# -- what it covers


@pytest.mark.parametrize("key", [Key.hmac("k", SECRET), Key.ed25519("k", private=PRIVATE)])
@pytest.mark.parametrize("encrypt", [False, True])
def test_a_signed_job_opens_as_it_was(key: Key, encrypt: bool) -> None:
    own = trust(key, Key.aes("seal", SECRET), encrypt=encrypt)
    signed = own.sign(JOB)
    assert msgspec.structs.replace(signed, payload=JOB.payload) == JOB
    assert own.open(signed) == own.open(lease(signed)) == JOB.payload
    assert (JOB.payload in signed.payload) is not encrypt


CHANGES = {
    "id": "job-2",
    "task": "mail.sent",
    "queue": "nail",
    "codec": "msgpack",
    "priority": 6,
    "options": b'{"attempts":4}',
}


@pytest.mark.parametrize("key", [Key.hmac("k", SECRET), Key.ed25519("k", private=PRIVATE)])
@pytest.mark.parametrize("field", CHANGES)
def test_a_job_that_was_altered_is_refused(key: Key, field: str) -> None:
    own = trust(key)
    signed = own.sign(JOB)
    with pytest.raises(BadSignature, match="does not fit the job"):
        own.open(lease(signed, **{field: CHANGES[field]}))
    with pytest.raises(BadSignature):
        own.open(msgspec.structs.replace(signed, **{field: CHANGES[field]}))


@pytest.mark.parametrize(
    ("field", "value"), [("options", None), ("options", b""), ("task", ""), ("priority", -(2**63))]
)
def test_what_is_taken_away_is_missed(field: str, value: Any) -> None:
    own = trust()
    with pytest.raises(BadSignature):
        own.open(lease(own.sign(JOB), **{field: value}))


ENVELOPE = {
    "key": "l",
    "signed_at": 1,
    "due": 1,
    "until": 2**62,
    "sealed": "k",
    "body": b'{"to":"x@y.z"}',
}


def test_every_field_of_the_envelope_is_tried() -> None:
    assert tuple(ENVELOPE) == Envelope.__struct_fields__


@pytest.mark.parametrize("key", [Key.hmac("k", SECRET), Key.ed25519("k", private=PRIVATE)])
@pytest.mark.parametrize("field", ENVELOPE)
def test_an_envelope_that_was_altered_is_refused(key: Key, field: str) -> None:
    own = trust(key, Key.hmac("l", OTHER))
    signed = own.sign(JOB)
    with pytest.raises(BadSignature):
        own.open(lease(signed, payload=enveloped(signed, **{field: ENVELOPE[field]})))


def test_brokers_may_count() -> None:
    own = trust()
    counted = {"attempts": 3, "crashes": 2, "releases": 9, "token": 77, "key": 12, "enqueued_at": 99, "ttl": 5}
    assert own.open(lease(own.sign(JOB), **counted)) == JOB.payload


@pytest.mark.parametrize("encrypt", [False, True])
def test_no_byte_can_be_changed(encrypt: bool) -> None:
    own = trust(encrypt=encrypt)
    payload = own.sign(JOB).payload
    for place, flip in itertools.product(range(len(payload)), range(1, 256)):
        changed = payload[:place] + bytes([payload[place] ^ flip]) + payload[place + 1 :]
        try:
            own.open(lease(JOB, payload=changed))
        except BadSignature:
            continue
        pytest.fail(f"byte {place} of {payload!r} was changed by {flip}")


@given(st.data())
def test_nothing_can_be_cut_off_or_added(data: st.DataObject) -> None:
    own = trust()
    payload = own.sign(JOB).payload
    start = data.draw(st.integers(0, len(payload)))
    end = data.draw(st.integers(start, len(payload)))
    extra = data.draw(st.binary(max_size=3))
    changed = payload[start:end] + extra
    if changed != payload:
        with pytest.raises(BadSignature):
            own.open(lease(JOB, payload=changed))


@given(st.binary(max_size=200))
def test_anything_in_an_envelope_is_refused(content: bytes) -> None:
    with pytest.raises(BadSignature):
        trust().open(lease(JOB, payload=MARK + content))


@given(a=st.tuples(st.text(), st.text(), st.text()), b=st.tuples(st.text(), st.text(), st.text()))
def test_no_two_jobs_look_the_same_to_a_signature(a: tuple[str, str, str], b: tuple[str, str, str]) -> None:
    """Text cannot move from one field to the next."""
    own = trust(Key.hmac("k", SECRET))
    try:
        signed = own.sign(msgspec.structs.replace(JOB, id=a[0], task=a[1], queue=a[2]))
    except BadSignature:
        return  # half a surrogate pair, which names cannot hold
    other = lease(signed, id=b[0], task=b[1], queue=b[2])
    if a == b:
        assert own.open(other) == JOB.payload
    else:
        with pytest.raises(BadSignature):
            own.open(other)


def test_a_signature_of_a_result_is_none_of_a_job() -> None:
    own = trust()
    result = own.close_result(lease(JOB), b"{}")
    with pytest.raises(BadSignature):
        own.open(lease(JOB, payload=result))


def test_a_unique_key_is_the_store_s_and_nobody_vouches_for_it() -> None:
    """Who looks at a job and the worker that runs it come to the same verdict."""
    own = trust()
    altered = msgspec.structs.replace(own.sign(JOB), unique="other")
    assert own.check(altered) is not None
    assert own.open(lease(altered)) == JOB.payload


# -- unsigned jobs, other keys


def test_an_unsigned_job_is_refused() -> None:
    with pytest.raises(BadSignature, match="not signed, and this app takes signed jobs only"):
        trust().open(lease(JOB))


def test_unsigned_jobs_can_be_let_through_for_a_while() -> None:
    own = trust(accept_unsigned=True)
    assert own.open(lease(JOB)) == JOB.payload
    with pytest.raises(BadSignature):  # but not altered ones
        own.open(lease(own.sign(JOB), priority=9))
    with pytest.raises(BadSignature, match="pickled and not signed"):
        own.open(lease(JOB, codec="pickle"))


def test_rotation() -> None:
    old, new = Key.hmac("2026-10", SECRET), Key.hmac("2026-11", OTHER)
    before, during, after = trust(old), trust(new, old), trust(new)
    for own, signer in ((before, "2026-10"), (during, "2026-11"), (after, "2026-11")):
        envelope = envelope_of(own.sign(JOB))
        assert envelope is not None
        assert envelope.key == signer
    assert during.open(lease(before.sign(JOB))) == during.open(lease(after.sign(JOB))) == JOB.payload
    with pytest.raises(BadSignature, match="signed with key '2026-10', which this app lacks; it has 2026-11"):
        after.open(lease(before.sign(JOB)))


def test_the_same_id_with_another_secret_or_kind_is_another_key() -> None:
    signed = trust(Key.hmac("k", SECRET)).sign(JOB)
    for other in (Key.hmac("k", OTHER), Key.ed25519("k", public=PUBLIC)):
        with pytest.raises(BadSignature, match="the signature with key 'k' does not fit"):
            trust(other).open(lease(signed))


def test_an_aes_key_vouches_for_nothing() -> None:
    signed = trust(Key.hmac("k", SECRET)).sign(JOB)
    with pytest.raises(BadSignature, match="lacks; it has other"):
        trust(Key.aes("k", SECRET), Key.hmac("other", OTHER)).open(lease(signed))


def test_who_only_checks_cannot_sign() -> None:
    with pytest.raises(JobRejected, match=r"task mail.send, queue mail: no key of this app can sign, they only check"):
        trust(Key.ed25519("k", public=PUBLIC)).sign(JOB)


def test_the_worker_decides_what_a_key_may_sign() -> None:
    limited: list[dict[str, Any]] = [
        {"tasks": ["report.*"]},
        {"queues": ["low"]},
        {"tasks": ["mail.*"], "queues": ["x"]},
    ]
    for limits in limited:
        signed = trust(Key.ed25519("k", private=PRIVATE)).sign(JOB)
        with pytest.raises(BadSignature, match=r"may not sign jobs of task 'mail\.send' in queue"):
            trust(Key.ed25519("k", public=PUBLIC, **limits)).open(lease(signed))
    allowed = trust(Key.ed25519("k", public=PUBLIC, tasks=["mail.*"], queues=["mail"]))
    assert allowed.open(lease(signed)) == JOB.payload


def test_a_producer_takes_the_first_key_that_may() -> None:
    own = trust(Key.hmac("reports", SECRET, tasks=["report.*"]), Key.hmac("all", OTHER))
    signed = [own.sign(msgspec.structs.replace(JOB, task=task)) for task in ("mail.send", "report.daily")]
    assert [getattr(envelope_of(job), "key", None) for job in signed] == ["all", "reports"]
    with pytest.raises(JobRejected, match=r"no key of this app may sign it; it has <Key 'r', hmac, tasks="):
        trust(Key.hmac("r", SECRET, tasks=["report.*"])).sign(JOB)


# -- times


def held(own: Trust, job: Job, clock: FakeClock, seconds: float) -> bool:
    """Whether a signature still holds after some time."""
    clock.advance(seconds)
    try:
        own.open(lease(job))
    except BadSignature:
        return False
    return True


@pytest.mark.parametrize(
    ("times", "until"),
    [
        ({}, 30 * DAY),
        ({"ttl": HOUR}, HOUR),
        ({"expires_at": 1_750_000_000_000 + 2 * HOUR}, 2 * HOUR),
        ({"due": 1_750_000_000_000 + 10 * DAY}, 40 * DAY),
        ({"delay": 365 * DAY}, 395 * DAY),
        ({"delay": 10 * DAY, "ttl": 11 * DAY}, 11 * DAY),
    ],
)
def test_a_replay_is_refused_when_the_signature_has_ended(times: dict[str, int], until: int) -> None:
    clock = FakeClock()
    own = trust(clock=clock)
    signed = own.sign(msgspec.structs.replace(JOB, **times))
    assert held(own, signed, clock, (until + SKEW) / 1000)
    assert not held(own, signed, clock, 0.001)


def test_a_shorter_time_for_replays() -> None:
    clock = FakeClock()
    own = trust(clock=clock, signed_for=HOUR)
    signed = own.sign(JOB)
    assert held(own, signed, clock, 3600)
    assert not held(own, signed, clock, 301)


@pytest.mark.parametrize("times", [{"delay": DAY}, {"due": 1_750_000_000_000 + DAY}])
def test_a_job_that_comes_too_early_waits_for_its_time(times: dict[str, int]) -> None:
    """Who moves it forward in the store gains nothing."""
    clock = FakeClock()
    own = trust(clock=clock)
    signed = own.sign(msgspec.structs.replace(JOB, **times))
    clock.advance(HOUR / 1000)
    with pytest.raises(NotDue) as early:
        own.open(lease(signed))
    assert early.value.ms == DAY - HOUR
    clock.advance((DAY - HOUR - SKEW) / 1000)
    assert own.open(lease(signed)) == JOB.payload


def test_clocks_may_differ_a_little() -> None:
    signed = trust().sign(msgspec.structs.replace(JOB, delay=1000, ttl=2000))
    for jump in (-SKEW + 1000, SKEW, SKEW + 2000):
        assert trust(clock=FakeClock(1_750_000_000_000 + jump)).open(lease(signed)) == JOB.payload


# -- encryption


def test_ciphertexts_cannot_be_swapped() -> None:
    own = trust(encrypt=True)
    one, two = own.sign(JOB), own.sign(msgspec.structs.replace(JOB, id="job-2"))
    stolen, envelope = envelope_of(one), envelope_of(two)
    assert stolen is not None
    assert envelope is not None
    with pytest.raises(BadPayload, match="encrypted with key 'k': it cannot be decrypted"):
        own.unseal(two, msgspec.structs.replace(envelope, body=stolen.body))


@pytest.mark.parametrize("field", ["id", "task", "queue", "codec"])
def test_what_a_ciphertext_is_bound_to(field: str) -> None:
    own = trust(encrypt=True)
    signed = own.sign(JOB)
    envelope = envelope_of(signed)
    assert envelope is not None
    assert own.unseal(signed, envelope) == JOB.payload
    with pytest.raises(BadPayload):
        own.unseal(msgspec.structs.replace(signed, **{field: CHANGES[field]}), envelope)


def test_every_message_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a nonce that comes twice tells nothing."""
    sealer, nonce = Key.aes("k", SECRET).sealer, bytes(12)
    heads = [bytes(16) + nonce, b"\1" + bytes(15) + nonce]
    monkeypatch.setattr("mouso.sealing.os.urandom", lambda count: heads.pop(0))
    one, two = sealer.seal(b"content", b""), sealer.seal(b"content", b"")
    assert one[16:28] == two[16:28] == nonce
    assert one[28:] != two[28:]
    assert sealer.open(one, b"") == sealer.open(two, b"") == b"content"


def test_equal_jobs_have_nothing_in_common_when_encrypted() -> None:
    own = trust(encrypt=True)
    bodies = [getattr(envelope_of(own.sign(JOB)), "body", b"") for _ in range(100)]
    assert len({body[:16] for body in bodies}) == len({body[28:] for body in bodies}) == 100


def test_rotation_of_what_encrypts() -> None:
    old, new, sign = Key.aes("old", SECRET), Key.aes("new", OTHER), Key.ed25519("e", private=PRIVATE)
    sealed = trust(sign, old, encrypt=True).sign(JOB)
    during = trust(sign, new, old, encrypt=True)
    assert during.open(lease(sealed)) == JOB.payload
    assert getattr(envelope_of(during.sign(JOB)), "sealed", None) == "new"
    with pytest.raises(BadPayload, match="encrypted with key 'old', which this app lacks"):
        trust(sign, new, encrypt=True).open(lease(sealed))


def test_a_worker_decrypts_without_being_told_to() -> None:
    sealed = trust(encrypt=True).sign(JOB)
    assert trust(encrypt=False).open(lease(sealed)) == JOB.payload


@pytest.mark.parametrize("length", [0, 1, 15, 16, 28, 43, 44, 100])
def test_bodies_that_were_never_encrypted(length: int) -> None:
    sealer = Key.aes("k", SECRET).sealer
    with pytest.raises(ValueError, match="it cannot be decrypted"):
        sealer.open(bytes(length), b"")


# -- settings


def test_settings_that_need_keys() -> None:
    for setting in ("encrypt", "accept_unsigned", "allow_pickle"):
        given: dict[str, Any] = {setting: True}
        with pytest.raises(ConfigError, match=rf"^{setting}=True takes keys"):
            Mouso("t", broker="memory://", **given)


def test_settings_that_need_other_keys() -> None:
    with pytest.raises(ConfigError, match="holds aes keys only, which sign nothing"):
        Mouso("t", broker="memory://", keys=[Key.aes("a", SECRET)])
    with pytest.raises(ConfigError, match="encrypt=True needs a secret among keys="):
        Mouso("t", broker="memory://", keys=[Key.ed25519("e", private=PRIVATE)], encrypt=True)
    with pytest.raises(ConfigError, match="signed_for= leaves no time to run"):
        Mouso("t", broker="memory://", keys=[Key.hmac("k", SECRET)], signed_for=0)
    with pytest.raises(ConfigError, match="signed_for='soon' is no duration"):
        Mouso("t", broker="memory://", keys=[Key.hmac("k", SECRET)], signed_for="soon")


def test_keys_of_the_environment_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Mouso("t", broker="memory://").trust is None
    monkeypatch.setenv("MOUSO_KEYS", f"hmac:k:{SECRET}")
    app = Mouso("t", broker="memory://")
    assert app.trust is not None
    assert SECRET not in f"{app!r} {vars(app)} {vars(app.trust)}"
