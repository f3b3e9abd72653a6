"""Real workers with keys: what they run and refuse, what lies in the store's files, and whose code never runs."""

import json
import os
import pickle
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mouso import Key, Mouso
from mouso.clock import SYSTEM
from mouso.errors import JobFailed, ResultError
from mouso.handle import JobHandle
from mouso.job import Job, new_id
from mouso.testing.clock import FakeClock
from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import SOUND, still_sound

SECRET, OTHER = "s3cr3t-" + "s" * 40, "s3cr3t-" + "o" * 40
PRIVATE = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
PUBLIC = "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"
PLANTED = "hunter2-planted-in-an-argument"
APP = """
app = Mouso("jobs", broker={broker!r}, {settings})
"""
TASKS = (
    SOUND
    + """
@app.task(attempts=1)
def plain(x: int = 0) -> int:
    note("ran", "plain")
    return x

@app.task(attempts=1)
async def coroutine(x: int = 0) -> int:
    note("ran", "coroutine")
    return x

@app.task(attempts=3, backoff=constant(0))
def flaky(ctx: Context) -> int:
    note("ran", "flaky")
    if ctx.attempt < 3:
        raise ValueError("again")
    return ctx.attempt

@app.task(attempts=1)
def login(user: str, password: str) -> dict[str, str]:
    return {"user": user, "token": password}
"""
)
INSERT = (
    "INSERT INTO mouso_jobs (seq, id, task, queue, priority, enqueued_at, codec, options, unique_key, unique_scope,"
    " unique_period, payload) SELECT max(seq) + 1, ?, ?, ?, ?, 1, ?, ?, NULL, NULL, 0, ? FROM mouso_jobs"
)
LIVE = (
    "INSERT INTO mouso_live (seq, state, queue, priority) SELECT seq, 'available', queue, priority FROM mouso_jobs"
    " WHERE id = ?"
)


def write_app(bench: Bench, settings: str, tasks: str = TASKS, name: str = "jobs") -> Any:
    """An app with these settings, as this process imports it."""
    return bench.app(APP.format(broker=bench.broker_url, settings=settings) + tasks, name)


def insert(bench: Bench, job: Job, **changes: Any) -> str:
    """A row written by somebody who has the store, and no Mouso; its id."""
    fields = {name: getattr(job, name) for name in ("id", "task", "queue", "priority", "codec", "options", "payload")}
    row = {**fields, **changes}
    with closing(sqlite3.connect(bench.store, timeout=10)) as connection, connection:
        connection.execute(INSERT, tuple(row.values()))
        connection.execute(LIVE, (row["id"],))
    return str(row["id"])


def refused(bench: Bench, ids: list[str], reason: str = "bad_signature") -> dict[str, str]:
    """Waits until jobs are dead, unrun and uncharged; their messages by id."""
    records = bench.wait_final([JobHandle(bench.producer, id) for id in ids])
    assert {(job.state, job.reason, job.attempts, job.crashes) for job in records} == {("dead", reason, 0, 0)}
    assert bench.history("ran") == []
    return {job.id: job.errors[-1].message for job in records}


@pytest.mark.parametrize("settings", ["", ", encrypt=True"])
def test_signed_jobs_run(bench: Bench, settings: str) -> None:
    jobs = write_app(bench, f'keys=[Key.hmac("k", {SECRET!r})]{settings}')
    bench.worker(processes=2)
    handles = [jobs.plain.delay(1), jobs.coroutine.delay(2), jobs.flaky.delay(), jobs.plain.options(delay=0.3).delay(4)]
    assert [handle.get(timeout=WAIT) for handle in handles] == [1, 2, 3, 4]
    assert [handle.get(timeout=WAIT) for handle in jobs.plain.map([(n,) for n in range(500)])] == list(range(500))
    still_sound(jobs)


def test_rows_that_somebody_wrote_are_refused(bench: Bench) -> None:
    """With the file alone, without a key: unsigned, altered, re-labelled and brought back under other ids."""
    jobs = write_app(bench, f'keys=[Key.hmac("k", {SECRET!r})]')
    signed = jobs.plain.options(attempts=2).job(1)
    signed = jobs.app.trust.sign(signed)
    jobs.app.broker.open()
    unsigned, other_payload = {"payload": b'{"x":1}'}, jobs.app.trust.sign(jobs.plain.job(2)).payload
    forgeries: list[dict[str, Any]] = [
        unsigned,
        {"payload": signed.payload[:-1]},
        {"payload": signed.payload[:-1] + b"?"},
        {"payload": other_payload},
        {"payload": b"\xc1mouso1"},
        {"task": "jobs.coroutine"},
        {"task": "jobs.sound"},
        {"queue": "high"},
        {"codec": "msgpack"},
        {"codec": "pickle"},
        {"priority": 100},
        {"options": None},
        {"options": b'{"attempts":1000}'},
        {"options": b'{"attempts":2,"timeout":1}'},
        {"options": b"\xff"},
        {},
    ]
    ids = [insert(bench, signed, **{"id": new_id(), **changes}) for changes in forgeries]
    worker = bench.worker()
    messages = refused(bench, ids)
    assert messages[ids[0]] == "the job is not signed, and this app takes signed jobs only"
    assert SECRET not in worker.log + "".join(messages.values())
    still_sound(jobs)


def test_a_replay_is_the_same_job_while_it_is_stored(bench: Bench) -> None:
    jobs = write_app(bench, f'keys=[Key.hmac("k", {SECRET!r})]')
    job = jobs.plain.delay(5)
    bench.worker()
    assert job.get(timeout=WAIT) == 5
    with pytest.raises(sqlite3.IntegrityError):
        insert(bench, job.record)
    assert len(bench.history("ran")) == 1


def test_a_replay_of_a_deleted_job_runs_while_its_signature_holds(bench: Bench) -> None:
    """As the documentation says: who writes to the store can have a signed job run again, and no other one."""
    jobs = write_app(bench, f'keys=[Key.hmac("k", {SECRET!r})]')
    job = jobs.plain.options(expires="1h").delay(5)
    record = job.record
    bench.worker()
    assert job.get(timeout=WAIT) == 5
    assert jobs.app.broker.delete([job.id]) == ["deleted"]
    insert(bench, record)
    assert job.get(timeout=WAIT) == 5
    assert len(bench.history("ran")) == 2


def test_a_replay_of_a_deleted_job_is_refused_when_its_signature_has_ended(bench: Bench) -> None:
    jobs = write_app(bench, f'keys=[Key.hmac("k", {SECRET!r})]')
    jobs.app.broker.open()
    trust = Mouso("old", broker="memory://", keys=[Key.hmac("k", SECRET)]).trust
    assert trust is not None
    trust.clock = FakeClock(SYSTEM.now() - 31 * 86_400_000)
    ids = [
        insert(bench, trust.sign(jobs.plain.job(1))),
        insert(bench, trust.sign(jobs.coroutine.options(expires="1h").job())),
    ]
    bench.worker()
    for message in refused(bench, ids).values():
        assert message.startswith("its signature held until 20")
    still_sound(jobs)


@pytest.mark.parametrize(
    ("producer", "worker", "reason"),
    [
        (None, f'Key.hmac("k", {SECRET!r})', "bad_signature"),
        (f'Key.hmac("k", {SECRET!r})', None, "bad_signature"),
        (f'Key.hmac("k", {SECRET!r})', f'Key.hmac("k", {OTHER!r})', "bad_signature"),
        (f'Key.hmac("k", {SECRET!r})', f'Key.hmac("l", {SECRET!r})', "bad_signature"),
        (f'Key.ed25519("e", private={PRIVATE!r})', f'Key.hmac("e", {SECRET!r})', "bad_signature"),
        (
            f'Key.ed25519("e", private={PRIVATE!r})',
            f'Key.ed25519("e", public={PUBLIC!r}, tasks=["jobs.coro*", "jobs.sound*"])',
            "bad_signature",
        ),
        (
            f'Key.ed25519("e", private={PRIVATE!r})',
            f'Key.ed25519("e", public={PUBLIC!r}, queues=["mail"])',
            "bad_signature",
        ),
    ],
)
def test_keys_that_do_not_match(bench: Bench, producer: str | None, worker: str | None, reason: str) -> None:
    write_app(bench, f"keys=[{worker}]" if worker else "keys=None")
    sender = write_app(bench, f"keys=[{producer}]" if producer else "keys=None", name="sender")
    handles = [
        sender.app.enqueue_many([Job(id=new_id(), task=f"jobs.{name}", queue="low")])[0] for name in ("plain", "plain")
    ]
    bench.worker()
    refused(bench, [handle.id for handle in handles], reason)


def test_rotation_without_a_gap(bench: Bench) -> None:
    old, new = f'Key.hmac("2026-10", {SECRET!r})', f'Key.hmac("2026-11", {OTHER!r})'
    jobs = write_app(bench, f"keys=[{old}, {new}]")
    steps = [write_app(bench, f"keys=[{keys}]", name=f"step{n}") for n, keys in enumerate((old, f"{new}, {old}", new))]
    bench.worker()
    for step in steps:
        (handle,) = step.app.enqueue_many([Job(id=new_id(), task="jobs.plain", payload=b'{"x":7}')])
        job = bench.wait_final([handle])[0]
        assert (job.state, job.reason) == ("completed", "")
        assert jobs.app.job(handle.id).get(timeout=WAIT) == 7


def test_a_worker_that_only_checks_cannot_enqueue(bench: Bench) -> None:
    jobs = write_app(
        bench,
        f'keys=os.environ.get("WORKER_KEYS", "ed25519-private:e:{PRIVATE};tasks=jobs.*")',
        TASKS
        + """
@app.task(attempts=1)
def breeds() -> str:
    plain.delay(1)
    return "enqueued"
""",
    )
    assert jobs.app.trust is not None
    bench.wait_ready(bench.start("-p", "1", WORKER_KEYS=f"ed25519-public:e:{PUBLIC};tasks=jobs.*"))
    assert jobs.plain.delay(3).get(timeout=WAIT) == 3
    with pytest.raises(JobFailed, match="no key of this app can sign, they only check"):
        jobs.breeds.delay().get(timeout=WAIT)
    assert len(bench.history("ran")) == 1


@pytest.mark.parametrize("settings", ["", ", encrypt=True"])
def test_isolated_jobs_are_checked_too(bench: Bench, settings: str) -> None:
    jobs = write_app(
        bench,
        f'keys=[Key.hmac("k", {SECRET!r})]{settings}',
        TASKS
        + """
@app.task(isolated=True, attempts=1)
def apart(x: int = 0) -> int:
    note("ran", "apart")
    return x
""",
    )
    job = jobs.app.trust.sign(jobs.apart.job(5))
    jobs.app.broker.open()
    ids = [insert(bench, job, id=new_id()), insert(bench, job, id=new_id(), payload=b'{"x":1}')]
    bench.start("-p", "1")
    refused(bench, ids)
    assert jobs.apart.delay(7).get(timeout=WAIT) == 7


def test_keys_from_the_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOUSO_KEYS", f"hmac:k:{SECRET} aes:seal:{OTHER}")
    jobs = bench.app(TASKS)
    worker = bench.worker()
    assert jobs.plain.delay(3).get(timeout=WAIT) == 3
    monkeypatch.setenv("MOUSO_KEYS", f"hmac:k:{OTHER}")
    forged = write_app(bench, "keys=None", name="forger")
    (handle,) = forged.app.enqueue_many([Job(id=new_id(), task="jobs.coroutine")])
    assert bench.wait_final([handle])[0].reason == "bad_signature"
    assert len(bench.history("ran")) == 1
    assert "s3cr3t" not in worker.log


def test_a_worker_with_a_broken_key_does_not_start(bench: Bench) -> None:
    bench.write(TASKS)
    for keys, message in (
        (f"hmac:{SECRET}", "$MOUSO_KEYS cannot be read; write hmac:ID:SECRET"),
        (f"hmac:{SECRET}:k", "a key's secret has 1 bytes, at least 32 are needed"),
        ("", "$MOUSO_KEYS is not set or empty"),
    ):
        worker = bench.start("-p", "1", MOUSO_KEYS=keys)
        assert worker.wait() == 2
        assert message in worker.log
        assert "s3cr3t" not in worker.log


# -- what lies in the files


def files(bench: Bench) -> bytes:
    """All that the store's files hold, the write-ahead log included."""
    connection = sqlite3.connect(bench.store)
    contents = [path.read_bytes() for path in bench.folder.glob("jobs.db*") if path.is_file()]
    connection.close()
    return b"".join(contents)


@pytest.mark.parametrize(
    "keys", [f'Key.hmac("k", {SECRET!r})', f'Key.ed25519("e", private={PRIVATE!r}), Key.aes("a", {OTHER!r})']
)
def test_nothing_encrypted_lies_in_the_clear(bench: Bench, keys: str) -> None:
    jobs = write_app(bench, f"keys=[{keys}], encrypt=True")
    worker = bench.worker()
    handles = [jobs.login.delay("ann", PLANTED), jobs.login.options(unique=True, codec="msgpack").delay("bob", PLANTED)]
    dead = jobs.login.options(attempts=1).delay("eve", PLANTED)
    waiting = jobs.login.options(delay="1h").delay("dan", PLANTED)
    for handle in handles:
        assert handle.get(timeout=WAIT)["token"] == PLANTED
    bench.wait_final([dead])
    content = files(bench)
    assert dead.id.encode() in content
    assert waiting.id.encode() in content
    for text in (PLANTED.encode(), b"hunter2", b'"ann"', SECRET.encode(), OTHER.encode(), PRIVATE.encode()):
        assert text not in content
    assert PLANTED not in worker.log


def test_without_encryption_it_does(bench: Bench) -> None:
    """The search above would find it."""
    jobs = write_app(bench, f'keys=[Key.hmac("k", {SECRET!r})]')
    jobs.login.delay("ann", PLANTED)
    assert PLANTED.encode() in files(bench)


def test_ciphertexts_cannot_be_swapped_between_jobs(bench: Bench) -> None:
    jobs = write_app(bench, f'keys=[Key.hmac("k", {SECRET!r})], encrypt=True')
    one, two = jobs.plain.delay(1), jobs.plain.delay(2)
    for row, other in ((one, two.record.payload), (two, one.record.payload)):
        bench.sql("UPDATE mouso_jobs SET payload = ? WHERE id = ?", other, row.id)
    worker = bench.worker()
    refused(bench, [one.id, two.id])
    good, bad = jobs.sound.delay(1), jobs.sound.delay(2)
    assert (good.get(timeout=WAIT), bad.get(timeout=WAIT)) == (1, 2)
    swap = "UPDATE mouso_history SET result = ? WHERE seq = (SELECT seq FROM mouso_jobs WHERE id = ?)"
    bench.sql(swap, good.record.result, bad.id)
    with pytest.raises(ResultError, match="cannot be trusted: it cannot be decrypted"):
        bad.get(timeout=WAIT)
    assert worker.alive


# -- code that the store names


def canary(path: Path) -> bytes:
    """A pickle that makes a folder when it is loaded."""

    class Canary:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(path),)

    return pickle.dumps(((Canary(),), {}))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("keys=None", "bad_payload"),
        (f'keys=[Key.hmac("k", {SECRET!r})]', "bad_signature"),
        (f'keys=[Key.hmac("k", {SECRET!r})], accept_unsigned=True', "bad_signature"),
        (f'keys=[Key.hmac("k", {SECRET!r})], allow_pickle=True', "bad_signature"),
        (f'keys=[Key.hmac("k", {SECRET!r})], allow_pickle=True, accept_unsigned=True', "bad_signature"),
    ],
)
def test_pickle_in_the_store_is_never_loaded(bench: Bench, settings: str, reason: str) -> None:
    jobs = write_app(bench, settings)
    jobs.app.broker.open()
    path = bench.folder / "sang"
    content = canary(path)
    row = jobs.plain.job(1)
    ids = [
        insert(bench, row, id=new_id(), task=task, codec="pickle", payload=content)
        for task in ("jobs.plain", "jobs.coroutine")
    ]
    bench.worker()
    refused(bench, ids, reason)
    assert not path.exists()
    for command in (["job", ids[0]], ["jobs", "--json"]):
        assert cli(bench, *command)
    assert not path.exists()
    pickle.loads(content)
    assert path.exists()  # the canary sings
    still_sound(jobs)


def test_signed_pickle_is_loaded(bench: Bench) -> None:
    jobs = write_app(
        bench,
        f'keys=[Key.hmac("k", {SECRET!r})], allow_pickle=True',
        TASKS
        + """
@app.task(codec="pickle", attempts=1)
def turn(value):
    return {value: {1, 2}}
""",
    )
    bench.worker()
    assert jobs.turn.delay((1, complex(2))).get(timeout=WAIT) == {(1, complex(2)): {1, 2}}


ERRORS = [
    {"type": "os:system", "message": "touch sang"},
    {"type": "builtins.eval", "message": "__import__('os').mkdir('sang')"},
    {"type": "mouso.errors.JobCancelled", "message": "x", "traceback": "__import__('os').mkdir('sang')"},
    {"type": "evil.Error", "message": "\x1b[31m", "reason": "sang"},
    {"type": "SystemExit", "message": "0"},
    {"type": "", "message": ""},
]
BROKEN = ["garbage", "[]", "null", '{"type":5}', '{"type":"os:system","at":"now"}', ""]


def test_errors_of_the_store_come_back_as_job_failed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever class a row names, none is looked up, imported or made."""
    jobs = write_app(bench, "keys=None")
    bench.write("import os\nos.mkdir('sang')\nclass Error(Exception): ...\n", "evil", header=False)
    monkeypatch.chdir(bench.folder)
    monkeypatch.syspath_prepend(str(bench.folder))
    job = jobs.login.delay("a", "b")
    job.cancel()
    bench.sql("UPDATE mouso_history SET state = 'dead', reason = 'attempts'")
    for error in ERRORS:
        bench.sql("DELETE FROM mouso_errors")
        bench.sql("INSERT INTO mouso_errors SELECT seq, 1, ? FROM mouso_jobs WHERE id <> ''", json.dumps(error))
        with pytest.raises(JobFailed) as caught:
            job.get(timeout=WAIT)
        assert type(caught.value) is JobFailed
        assert caught.value.error.type == error["type"]
        assert caught.value.__cause__ is None
        for command in (["job", job.id], ["job", job.id, "--json"], ["dead", "list"]):
            shown = cli(bench, *command)
            assert shown
            assert "\x1b" not in shown
    assert not (bench.folder / "sang").exists()


@pytest.mark.parametrize("text", BROKEN)
def test_errors_of_the_store_that_cannot_be_read(bench: Bench, text: str) -> None:
    jobs = write_app(bench, "keys=None")
    job = jobs.login.delay("a", "b")
    job.cancel()
    bench.sql("UPDATE mouso_history SET state = 'dead', reason = 'attempts', progress = ?", text)
    bench.sql("INSERT INTO mouso_errors SELECT seq, 1, ? FROM mouso_jobs WHERE id <> ''", text)
    with pytest.raises(JobFailed, match="the stored error cannot be read"):
        job.get(timeout=WAIT)
    assert "the stored error cannot be read" in cli(bench, "job", job.id)
    assert job.id in cli(bench, "dead", "list")


def cli(bench: Bench, *words: str) -> str:
    """What a command prints that must succeed."""
    import subprocess
    import sys

    command, *rest = words
    done = subprocess.run(
        [sys.executable, "-m", "mouso", command, "jobs:app", *rest],
        cwd=bench.folder,
        env=bench.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
