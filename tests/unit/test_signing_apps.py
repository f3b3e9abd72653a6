"""Apps with keys, in one process: what is stored, what comes back, what is refused, and what an operator can do."""

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mouso import Job, JobRejected, Key, Mouso
from mouso.errors import BadPayload, ConfigError, JobFailed, OptionError, ResultError
from mouso.job import JobState, new_id
from mouso.keys import new_secret
from mouso.signing import is_enveloped
from mouso.testing.inline import fake_time, run_until_idle

SECRET, OTHER = "s" * 32, "o" * 32
PRIVATE = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
PUBLIC = "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"
RAN: list[Any] = []


class Side:
    """One side of a store: an app with its own settings, and the same tasks as any other side."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.app = app = Mouso("shop", broker=url, **settings)

        @app.task(name="add", attempts=1)
        def add(x: int, y: int = 0) -> int:
            RAN.append((x, y))
            return x + y

        @app.task(name="login", attempts=1)
        async def login(user: str, password: str) -> dict[str, str]:
            RAN.append(user)
            return {"user": user, "token": password}

        self.add, self.login = add, login
        if app.allow_pickle:
            self.any = app.task(name="any", attempts=1, codec="pickle")(echo)


def echo(value: Any) -> Any:
    RAN.append(value)
    return value


@pytest.fixture
def url(tmp_path: Path) -> str:
    RAN.clear()
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def side(url: str) -> Any:
    made: list[Side] = []

    def make(*keys: Key, **settings: Any) -> Side:
        made.append(Side(url, **({"keys": list(keys)} if keys else {}), **settings))
        return made[-1]

    yield make
    for one in made:
        one.app.close()


Make = Callable[..., Side]


def refused(worker: Side, id: str, reason: str, message: str) -> None:
    """The worker refuses a job, without running it."""
    RAN.clear()
    run_until_idle(worker.app)
    job = worker.app.job(id).record
    assert (job.state, job.reason) == (JobState.DEAD, reason)
    assert (job.attempts, job.crashes, job.result) == (0, 0, None)
    assert job.errors[-1].traceback == ""
    assert message in job.errors[-1].message
    assert RAN == []


# -- enqueuing


@pytest.mark.parametrize("encrypt", [False, True])
def test_every_way_to_enqueue_signs_once(side: Make, encrypt: bool) -> None:
    own = side(Key.hmac("k", SECRET), encrypt=encrypt)
    handles = [
        own.add.delay(1, 2),
        asyncio.run(awaited(own)),
        own.add.apply_async((1, 2)),
        *own.add.map([(1, 2)] * 2),
        *asyncio.run(own.add.amap([(1, 2)] * 2)),
        *own.app.enqueue_many([own.add.job(1, 2), Job(id="raw", task="add", payload=b'{"x":1,"y":2}')]),
    ]
    assert all(is_enveloped(handle.record.payload) for handle in handles)
    assert run_until_idle(own.app) == len(handles)
    assert [handle.get(timeout=5) for handle in handles] == [3] * len(handles)


async def awaited(own: Side) -> Any:
    return await own.add.adelay(1, 2)


@pytest.mark.parametrize(("settings", "encrypted"), [({}, True), ({"encrypt": False}, False)])
def test_a_key_that_only_encrypts_is_used(side: Make, settings: dict[str, bool], encrypted: bool) -> None:
    own = side(Key.hmac("k", SECRET), Key.aes("a", OTHER), **settings)
    handle = own.login.delay("ann", "correct horse")
    assert (b"correct horse" in handle.record.payload) is not encrypted
    run_until_idle(own.app)
    assert handle.get(timeout=5) == {"user": "ann", "token": "correct horse"}
    assert (b"correct horse" in (own.app.job(handle.id).record.result or b"")) is not encrypted


def test_a_long_list_is_signed_once(side: Make) -> None:
    own = side(Key.hmac("k", SECRET))
    handles = own.app.enqueue_many(own.add.job(n) for n in range(1500))
    stored = own.app.producer.submit([own.add.job(n) for n in range(1500)])
    assert run_until_idle(own.app) == 3000
    assert handles[1499].get(timeout=5) == own.app.job(stored[1499].id).get(timeout=5) == 1499


def test_what_is_signed_is_not_signed_again(side: Make) -> None:
    own = side(Key.hmac("k", SECRET))
    record = own.add.delay(1, 2).record
    with pytest.raises(JobRejected, match="its payload is that of a signed job"):
        own.app.enqueue_many([record])


def test_jobs_of_a_transaction_are_signed(side: Make, url: str) -> None:
    import sqlite3

    own = side(Key.hmac("k", SECRET))
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection, own.app.enqueue_in(connection):
        handle = own.add.delay(1, 2)
        other = asyncio.run(awaited(own))
    connection.close()
    run_until_idle(own.app)
    assert handle.get(timeout=5) == other.get(timeout=5) == 3


def test_one_that_cannot_be_signed_does_not_harm_its_siblings(side: Make) -> None:
    own = side(Key.hmac("k", SECRET, tasks=["add"]))

    async def both() -> list[Any]:
        calls = [own.add.adelay(1, 1), own.login.adelay("u", "p"), own.add.adelay(2, 2)]
        return list(await asyncio.gather(*calls, return_exceptions=True))

    first, second, third = asyncio.run(both())
    assert isinstance(second, JobRejected)
    assert "no key of this app may sign it" in str(second)
    run_until_idle(own.app)
    assert (first.get(timeout=5), third.get(timeout=5)) == (2, 4)


def test_nothing_is_stored_of_what_cannot_be_signed(side: Make) -> None:
    own = side(Key.ed25519("k", public=PUBLIC))
    with pytest.raises(JobRejected, match="they only check"):
        own.add.delay(1)
    assert own.app.jobs() == []


def test_a_job_runs_again_while_its_signature_holds(side: Make) -> None:
    own = side(Key.hmac("k", SECRET))
    clock = fake_time(own.app)
    tries: list[int] = []

    @own.app.task(name="flaky", attempts=5)
    def flaky() -> int:
        tries.append(1)
        if len(tries) < 4:
            raise ValueError
        return len(tries)

    handle = flaky.options(delay="20d").delay()
    run_until_idle(own.app, clock)
    assert handle.get(timeout=5) == 4


def test_unique_keys_of_arguments_tell_nothing_when_encrypted(side: Make) -> None:
    plain, secret, other = (
        side(Key.hmac("k", SECRET)),
        side(Key.hmac("k", SECRET), encrypt=True),
        side(Key.hmac("k", OTHER), encrypt=True),
    )
    keys = [one.add.options(unique=True).job(1, 2).unique for one in (plain, secret, other)]
    assert len(set(keys)) == 3
    first, second = (secret.add.options(unique=True).delay(5) for _ in range(2))
    assert first == second


# -- what workers refuse


def test_a_worker_with_keys_refuses_unsigned_jobs(side: Make) -> None:
    job = side().add.delay(1, 2)
    refused(side(Key.hmac("k", SECRET)), job.id, "bad_signature", "the job is not signed")


def test_a_worker_without_keys_refuses_signed_jobs(side: Make) -> None:
    worker, producer = side(), side(Key.hmac("k", SECRET))
    for task in (producer.add, producer.add.options(attempts=2)):
        refused(worker, task.delay(1, 2).id, "bad_signature", "the job is signed, and this app has no keys")
    # With keys and a retry it runs.
    job = producer.add.delay(1, 2)
    run_until_idle(worker.app)
    assert job.retry() == "retried"
    run_until_idle(producer.app)
    assert job.get(timeout=5) == 3


def test_a_worker_without_the_key_that_encrypted(side: Make) -> None:
    producer = side(Key.ed25519("e", private=PRIVATE), Key.aes("seal", OTHER), encrypt=True)
    worker = side(Key.ed25519("e", public=PUBLIC))
    refused(worker, producer.add.delay(1).id, "bad_payload", "encrypted with key 'seal', which this app lacks")


@pytest.mark.parametrize("column", ["options", "payload"])
def test_nothing_of_a_forged_job_is_decoded(side: Make, url: str, column: str) -> None:
    """Else it would be dead for what it holds."""
    job = side().add.options(attempts=2).delay(1, 2)
    store(url, f"UPDATE mouso_jobs SET {column} = x'ff'")
    refused(side(), job.id, "bad_payload", "")
    job.retry()
    refused(side(Key.hmac("k", SECRET)), job.id, "bad_signature", "not signed")


def test_errors_of_enveloped_arguments_tell_no_values(side: Make) -> None:
    """They are stored and logged in the clear."""
    from typing import Literal

    producer, worker = side(Key.hmac("k", SECRET), encrypt=True), side(Key.hmac("k", SECRET), encrypt=True)

    @producer.app.task(name="pick")
    def pick(way: str) -> None: ...

    @worker.app.task(name="pick")
    def pick_one(way: Literal["up", "down"]) -> None: ...

    job = pick.delay("hunter2")
    refused(worker, job.id, "bad_payload", "Invalid enum value '…'")
    (error,) = job.errors
    assert "hunter2" not in str(error)
    assert "68 75 6e" not in str(error)


# -- results


@pytest.mark.parametrize(
    ("keys", "settings", "kind"),
    [
        ([Key.hmac("k", SECRET)], {}, "signed"),
        ([Key.hmac("k", SECRET)], {"encrypt": True}, "sealed"),
        ([Key.ed25519("e", private=PRIVATE), Key.aes("a", SECRET)], {}, "sealed"),
        ([Key.ed25519("e", private=PRIVATE), Key.aes("a", SECRET)], {"encrypt": False}, "plain"),
        ([Key.ed25519("e", private=PRIVATE), Key.hmac("k", SECRET)], {}, "signed"),
    ],
)
def test_results(side: Make, keys: list[Key], settings: dict[str, Any], kind: str) -> None:
    own = side(*keys, **settings)
    job = own.login.delay("u", "hunter2")
    run_until_idle(own.app)
    stored = job.record.result
    assert stored is not None
    assert is_enveloped(stored) is (kind != "plain")
    assert (b"hunter2" in stored) is (kind != "sealed")
    assert job.get(timeout=5) == own.app.job(job.id).get(timeout=5) == {"user": "u", "token": "hunter2"}


def test_results_of_encrypted_arguments_are_encrypted(side: Make) -> None:
    producer, worker = side(Key.hmac("k", SECRET), encrypt=True), side(Key.hmac("k", SECRET))
    job = producer.login.delay("u", "hunter2")
    run_until_idle(worker.app)
    assert b"hunter2" not in (job.refresh().record.result or b"hunter2")
    assert job.get(timeout=5)["token"] == "hunter2"


@pytest.mark.parametrize("encrypt", [False, True])
def test_forged_results_are_refused(side: Make, encrypt: bool, url: str) -> None:
    own = side(Key.hmac("k", SECRET), encrypt=encrypt)
    job, other = own.add.delay(1, 2), own.add.delay(40, 2)
    run_until_idle(own.app)
    good, stolen = job.refresh().record.result, other.refresh().record.result
    assert good is not None
    assert job.get(timeout=5) == 3
    swap = "UPDATE mouso_history SET result = ? WHERE seq = (SELECT seq FROM mouso_jobs WHERE id = ?)"
    forged = [b"99", b"", stolen, good[:-1], good[:-1] + bytes([good[-1] ^ 1]), good + b"x", good[:9], b"\xc1mouso1"]
    for content in forged:
        store(url, swap, content, job.id)
        with pytest.raises(ResultError) as caught:
            job.get(timeout=5)
        assert caught.value.job_id == job.id
    assert other.get(timeout=5) == 42


def test_results_without_a_signature_while_a_system_is_moved(side: Make) -> None:
    before, moving, after = side(), side(Key.hmac("k", SECRET), accept_unsigned=True), side(Key.hmac("k", SECRET))
    job = before.add.delay(1, 2)
    run_until_idle(before.app)
    assert moving.app.job(job.id).get(timeout=5) == 3
    with pytest.raises(ResultError, match=f"the result of job {job.id} is not signed"):
        after.app.job(job.id).get(timeout=5)


def test_results_for_who_has_no_keys(side: Make) -> None:
    own, without, wrong = side(Key.hmac("k", SECRET), encrypt=True), side(), side(Key.hmac("other", OTHER))
    job = own.add.delay(1, 2)
    run_until_idle(own.app)
    with pytest.raises(ResultError, match="is signed or encrypted; give the app keys="):
        without.app.job(job.id).get(timeout=5)
    with pytest.raises(ResultError, match="needs key 'k', which this app lacks"):
        wrong.app.job(job.id).get(timeout=5)


# -- pickle


class Canary:
    """Unpickling it is noticed."""

    def __reduce__(self) -> Any:
        return note, ("unpickled",)


def note(what: str) -> str:
    RAN.append(what)
    return what


def test_pickle_carries_anything(side: Make) -> None:
    own = side(Key.hmac("k", SECRET), allow_pickle=True)
    value = {1: {2, 3}, (4,): complex(5, 6)}
    job = own.any.delay(value)
    run_until_idle(own.app)
    assert RAN[0] == value
    assert job.get(timeout=5) == value


@pytest.mark.parametrize("settings", [{}, {"accept_unsigned": True}, {"allow_pickle": True}, {"encrypt": True}])
def test_pickle_of_nobody_knows_whom_is_never_loaded(side: Make, url: str, settings: dict[str, Any]) -> None:
    worker = side(Key.hmac("k", SECRET), **settings)
    jobs = side().add.map([(1, 2)] * 3)
    payload = pickle.dumps(((Canary(),), {}))
    for codec, job in zip(("pickle", "json", "msgpack"), jobs, strict=True):
        store(url, "UPDATE mouso_jobs SET payload = ?, codec = ? WHERE id = ?", payload, codec, job.id)
    run_until_idle(worker.app)
    run_until_idle(side().app)
    assert RAN == []
    assert {job.refresh().record.state for job in jobs} == {JobState.DEAD}


def test_pickle_is_never_loaded_by_an_app_that_does_not_allow_it(side: Make, url: str) -> None:
    for worker, reason in ((side(), "bad_payload"), (side(Key.hmac("k", SECRET)), "bad_signature")):
        job = side().add.delay(1, 2)
        store(url, "UPDATE mouso_jobs SET payload = ?, codec = 'pickle'", pickle.dumps(((Canary(),), {})))
        refused(worker, job.id, reason, "")
    # Not even with a signature.
    producer, worker = side(Key.hmac("k", SECRET), allow_pickle=True), side(Key.hmac("k", SECRET))
    worker.app.task(name="any")(echo)
    refused(
        worker, producer.any.delay(5).id, "bad_payload", "the payload's codec 'pickle' is unknown to an app without"
    )


def test_pickle_with_a_broken_signature_is_never_loaded(side: Make, url: str) -> None:
    own = side(Key.hmac("k", SECRET), allow_pickle=True)
    job = own.any.delay("x" * 100)
    signed = job.record.payload
    good, evil = (pickle.dumps(((value,), {}), protocol=5) for value in ("x" * 100, Canary()))
    assert good in signed
    assert pickle.loads(evil)
    assert RAN == ["unpickled"]  # the canary sings
    store(url, "UPDATE mouso_jobs SET payload = ?", signed.replace(good, evil + bytes(len(good) - len(evil))))
    refused(own, job.id, "bad_signature", "the signature with key 'k' does not fit the job")


@pytest.mark.parametrize("result", [pickle.dumps(Canary()), b"1"])
def test_pickled_results_of_nobody_knows_whom_are_never_loaded(side: Make, url: str, result: bytes) -> None:
    for settings in ({}, {"accept_unsigned": True}):
        own = side(Key.hmac("k", SECRET), allow_pickle=True, **settings)
        job = own.any.delay(1)
        run_until_idle(own.app)
        RAN.clear()
        store(url, "UPDATE mouso_history SET result = ?", result)
        for reader in (job, own.app.job(job.id)):
            with pytest.raises(ResultError, match="is not signed"):
                reader.get(timeout=5)
        with pytest.raises(BadPayload, match="not unpickled to be shown"):
            side().app.job(job.id).get(timeout=5)
        assert RAN == []


def test_what_cannot_be_pickled(side: Make) -> None:
    own = side(Key.hmac("k", SECRET), allow_pickle=True)
    with pytest.raises(JobRejected, match="task any: the arguments cannot be pickled"):
        own.any.delay(lambda: None)
    with pytest.raises(JobRejected, match="missing a required argument"):
        own.any.delay()
    with pytest.raises(JobRejected, match=r"the arguments take .* bytes, the limit is"):
        own.any.delay("x" * (1 << 20))


def test_results_that_cannot_be_pickled(side: Make) -> None:
    own = side(Key.hmac("k", SECRET), allow_pickle=True)

    @own.app.task(name="bad", codec="pickle")
    def bad(size: int) -> Any:
        return "x" * size if size else (lambda: None)

    jobs = [bad.delay(0), bad.delay(1 << 20)]
    run_until_idle(own.app)
    for job, message in zip(jobs, ("cannot be pickled", "the limit is"), strict=True):
        with pytest.raises(JobFailed, match=message):
            job.get(timeout=5)
        assert job.record.reason == "bad_result"


def test_pickled_results_need_a_secret(side: Make) -> None:
    signer = Key.ed25519("e", private=PRIVATE)
    own = side(signer, allow_pickle=True)
    job = own.any.delay(1)
    run_until_idle(own.app)
    with pytest.raises(JobFailed, match=r"a pickled result must be signed, which takes a Key.hmac or Key.aes"):
        job.get(timeout=5)
    sealing = side(signer, Key.aes("a", SECRET), allow_pickle=True)
    job = sealing.any.delay({1})
    run_until_idle(sealing.app)
    assert job.get(timeout=5) == {1}


def test_pickle_is_asked_for_twice(side: Make) -> None:
    own = side(Key.hmac("k", SECRET))
    with pytest.raises(OptionError, match=r"task any: codec='pickle' takes Mouso\(…, allow_pickle=True\) and keys="):
        own.app.task(name="any", codec="pickle")(echo)
    with pytest.raises(OptionError, match="codec='pickle' takes"):
        own.add.options(codec="pickle")
    with pytest.raises(ConfigError, match="allow_pickle=True takes keys"):
        side(allow_pickle=True)


# -- operators


def test_a_retry_signs_what_has_ended_anew(side: Make) -> None:
    own = side(Key.hmac("k", SECRET), signed_for="1h")
    clock = fake_time(own.app)
    job = own.add.delay(1, 2)
    clock.advance(7200)
    run_until_idle(own.app)
    assert job.refresh().record.reason == "bad_signature"
    assert job.retry() == "retried"
    run_until_idle(own.app)
    assert job.get(timeout=5) == 3


def test_a_retry_by_who_cannot_sign_is_for_the_worker_to_judge(side: Make) -> None:
    own = side(Key.ed25519("e", private=PRIVATE), signed_for="1h")
    clock = fake_time(own.app)
    operator = side(Key.ed25519("e", public=PUBLIC), signed_for="1h")
    operator.app.broker, operator.app.trust.clock = own.app.broker, clock  # type: ignore[union-attr]  # it has keys
    job = own.add.delay(1, 2)
    own.app.broker.cancel([job.id])
    assert operator.app.job(job.id).retry() == "retried"
    run_until_idle(operator.app)
    assert job.get(timeout=5) == 3
    job = own.add.delay(1, 2)
    clock.advance(7200)
    refused(operator, job.id, "bad_signature", "its signature held until")
    assert operator.app.job(job.id).retry() == "retried"
    refused(operator, job.id, "bad_signature", "its signature held until")


def test_a_retry_makes_a_scheduled_job_due_now(side: Make) -> None:
    own = side(Key.hmac("k", SECRET), encrypt=True)
    clock = fake_time(own.app)
    job = own.add.options(delay="5d", expires="6d").delay(1, 2)
    assert job.retry() == "retried"
    assert run_until_idle(own.app) == 1
    assert job.get(timeout=5) == 3
    assert clock.now() == job.record.enqueued_at


def test_what_is_encrypted_stays_so_when_it_is_signed_anew(side: Make) -> None:
    producer, operator = side(Key.hmac("k", SECRET), encrypt=True), side(Key.hmac("k", SECRET))
    job = producer.login.options(delay="5d").delay("ann", "hunter2")
    before = job.record.payload
    assert operator.app.job(job.id).retry() == "retried"
    after = job.refresh().record.payload
    assert before != after
    assert b"hunter2" not in after
    run_until_idle(operator.app)
    assert job.get(timeout=5)["token"] == "hunter2"


def test_a_job_that_is_moved_forward_in_the_store_goes_back(side: Make, url: str) -> None:
    own = side(Key.hmac("k", SECRET))
    clock = fake_time(own.app)
    job = own.add.options(delay="5d").delay(1, 2)
    due = job.record.due
    store(url, "UPDATE mouso_live SET state = 'available', due = NULL")
    assert run_until_idle(own.app) == 1
    assert (job.state, job.record.due, job.record.attempts, RAN) == (JobState.SCHEDULED, due, 0, [])
    run_until_idle(own.app, clock)
    assert job.get(timeout=5) == 3


def test_a_retry_never_signs_what_nobody_signed(side: Make, url: str) -> None:
    """Or whoever has keys could be made to vouch for a forgery."""
    own = side(Key.hmac("k", SECRET))
    jobs = [side().add.delay(1, 2), own.add.delay(1, 2)]
    store(url, "UPDATE mouso_jobs SET priority = 7 WHERE id = ?", jobs[1].id)
    store(url, "UPDATE mouso_live SET priority = 7")
    for _ in range(2):
        for job in jobs:
            refused(own, job.id, "bad_signature", "")
        for job in jobs:
            assert own.app.job(job.id).retry() == "retried"
    assert RAN == []


def test_expired_jobs_are_retried_with_a_new_signature(side: Make) -> None:
    own = side(Key.hmac("k", SECRET))
    clock = fake_time(own.app)
    job = own.add.options(expires="1h").delay(1, 2)
    clock.advance(86_400)
    run_until_idle(own.app)
    assert job.state is JobState.EXPIRED
    assert job.retry() == "retried"
    run_until_idle(own.app)
    assert job.get(timeout=5) == 3


def test_new_secrets_work_end_to_end() -> None:
    own = Side(f"memory://{new_id()}", keys=[Key.hmac("k", new_secret())], encrypt=True)
    job = own.add.delay(1, 2)
    run_until_idle(own.app)
    assert job.get(timeout=5) == 3


def store(url: str, statement: str, *values: object) -> None:
    """Does to the store what another program can do."""
    import sqlite3

    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    with connection:
        connection.execute(statement, values)
    connection.close()
