"""Whatever else a row of the store holds, only its job is affected: options, names, numbers and broken text."""

import msgspec
import pytest

from mouso.errors import JobFailed
from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import ARGUMENTS, SOUND, still_sound
from tests.support import wait_until

FAILS = """
@app.task(backoff=constant(0))
def fails():
    raise ValueError
"""

EVIL = """
import os
os.system("touch imported")
class Error(ValueError): ...
def run(): ...
"""

OPTIONS: list[bytes] = [
    b"",
    b"garbage",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"attempts": "three"}',
    b'{"attempts": 1e999}',
    b'{"timeout": -1}',
    b'{"timeout": 1e300}',
    b'{"keep_result": 1e16}',
    b'{"keep_result": 1e300}',
    b'{"keep_result": -5}',
    b'{"backoff": [1, 2]}',
    b'{"backoff": [1, 2, 3, 1e308]}',
    b'{"backoff": [-1, 2, 3, 1]}',
    b'{"headers": [1]}',
    b'{"headers": {"a": 1}}',
    b'{"retry_on": "ValueError"}',
    b'{"retry_on": ["os.system", "__import__", "builtins.eval"], "discard_on": [null]}',
]


def test_options_that_do_not_decode_are_dead(bench: Bench) -> None:
    jobs = bench.app(SOUND + ARGUMENTS + FAILS)
    handles = []
    for options in OPTIONS:
        for task in (jobs.nothing, jobs.fails):
            handles.append(task.delay())
            bench.sql("UPDATE mouso_jobs SET options = ? WHERE id = ?", options, handles[-1].id)
    worker = bench.worker()
    children = worker.children()
    records = bench.wait_final(handles)
    for options, record in zip([o for o in OPTIONS for _ in range(2)], records, strict=True):
        assert (record.state, record.reason) == ("dead", "bad_payload"), options
        message = record.errors[-1].message
        assert "the job's options cannot be read: " in message or message.startswith("the stored "), options
    assert bench.history("ran") == []
    still_sound(jobs)
    assert worker.children() == children


def test_unknown_names_in_the_policy_are_compared_and_never_imported(bench: Bench) -> None:
    jobs = bench.app(SOUND + FAILS)
    bench.write(EVIL, "evil", header=False)
    handle = jobs.fails.delay()
    bench.sql("""UPDATE mouso_jobs SET options = CAST('{"retry_on": ["evil.Error", "os:system"]}' AS BLOB)""")
    bench.worker()
    assert bench.wait_final([handle])[0].reason == "not_retryable"
    assert not (bench.folder / "imported").exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "__import__",
        "jobs.__import__",
        "jobs.app",
        "builtins.eval",
        "jobs.Mouso",
        "evil.run",
        "",
        "../jobs",
        "\0",
    ],
)
def test_task_names_are_looked_up_and_never_imported(bench: Bench, name: str) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    bench.write(EVIL, "evil", header=False)
    handle = jobs.nothing.delay()
    bench.sql("UPDATE mouso_jobs SET task = ?", name)
    bench.worker()
    still_sound(jobs)
    wait_until(lambda: jobs.app.jobs(parked=True), timeout=WAIT, message="parked")
    record = handle.refresh().record
    assert (record.state, record.parked, record.task) == ("available", True, name)
    assert bench.history("ran") == []
    assert not (bench.folder / "imported").exists()
    assert handle.cancel() == "cancelled"


NUMBERS = (-1, -(2**63), 2**62, 2**63 - 1)


@pytest.mark.parametrize("column", ["attempts", "crashes", "releases"])
def test_counters_that_cannot_be(bench: Bench, column: str) -> None:
    """The job is dead before it runs, its counters as they were found, and the worker goes on."""
    jobs = bench.app(SOUND + ARGUMENTS + FAILS)
    handles = []
    for number in NUMBERS:
        for task in (jobs.nothing, jobs.fails):
            handles.append(task.delay())
            bench.sql(
                f"UPDATE mouso_live SET {column} = ? WHERE seq = (SELECT seq FROM mouso_jobs WHERE id = ?)",
                number,
                handles[-1].id,
            )
    worker = bench.worker()
    still_sound(jobs)
    records = bench.wait_final(handles)
    for number, record in zip([n for n in NUMBERS for _ in range(2)], records, strict=True):
        assert (record.state, record.reason, record.claims) == ("dead", "bad_payload", 1)
        counters = {"attempts": record.attempts, "crashes": record.crashes, "releases": record.releases}
        assert counters == {"attempts": 0, "crashes": 0, "releases": 0} | {column: number}
        assert "a stored counter is out of range" in record.errors[0].message
    assert bench.history("ran") == []
    still_sound(jobs)
    assert worker.alive


@pytest.mark.parametrize("column", ["crashes", "releases"])
def test_counters_that_cannot_go_up(bench: Bench, column: str) -> None:
    """An outcome that the store would refuse for ever holds up nobody."""
    jobs = bench.app(
        SOUND
        + """
@app.task
def crashes() -> None:
    os._exit(1)

@app.task
def releases(ctx: Context) -> None:
    note("start")
    raise Snooze(60)
"""
    )
    handle = getattr(jobs, column).delay()
    bench.sql(f"UPDATE mouso_live SET {column} = ?", 2**63 - 1)
    bench.worker("--grace", "0.2")
    still_sound(jobs)
    record = bench.wait_final([handle])[0]
    assert (record.state, record.reason) == ("dead", "bad_payload")


def test_a_count_of_claims_that_cannot_go_up(bench: Bench) -> None:
    """The claim that fails takes nobody along who is claimed with it."""
    jobs = bench.app(SOUND + ARGUMENTS)
    handle = jobs.nothing.delay()
    bench.sql("UPDATE mouso_live SET claims = ?", 2**63 - 1)
    worker = bench.worker()
    still_sound(jobs)
    record = bench.wait_final([handle])[0]
    assert (record.state, record.reason, record.claims) == ("dead", "bad_payload", 2**63 - 1)
    assert bench.history("ran") == []
    wait_until(lambda: f"job {handle.id} cannot be claimed, it is dead: " in worker.log, timeout=WAIT)


@pytest.mark.parametrize("state", ["bogus", "", "completed", "RUNNING"])
def test_states_that_nobody_wrote(bench: Bench, state: str) -> None:
    """Such a job counts as dead: it is listed, whoever waits for it is told, and it can be retried."""
    jobs = bench.app(SOUND + ARGUMENTS)
    live, final = jobs.nothing.delay(), jobs.sound.delay(5)
    forged = "UPDATE {} SET state = ? WHERE seq = (SELECT seq FROM mouso_jobs WHERE id = ?)"
    bench.sql(forged.format("mouso_live"), state, live.id)
    bench.worker()
    assert final.get(timeout=WAIT) == 5
    bench.sql(forged.format("mouso_history"), "available" if state == "completed" else state, final.id)
    still_sound(jobs)
    for handle in (live, final):
        with pytest.raises(JobFailed, match="BadState: the store holds the state '"):
            handle.get(timeout=WAIT)
        assert (handle.state, handle.record.reason, handle.cancel()) == ("dead", "bad_state", "done")
    assert {job.id for job in jobs.app.jobs(state="dead")} == {live.id, final.id}
    assert sum(queue.counts.get("dead", 0) for queue in jobs.app.queues()) >= 1
    assert [handle.retry() for handle in (live, final)] == ["retried", "retried"]
    assert [handle.get(timeout=WAIT) for handle in (live, final)] == [None, 5]


def test_a_unique_scope_that_nobody_wrote(bench: Bench) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    handle = jobs.nothing.options(unique="k").delay()
    bench.sql("UPDATE mouso_jobs SET unique_scope = 'bogus'")
    assert [job.id for job in jobs.app.jobs()] == [handle.id]
    bench.worker()
    assert handle.get(timeout=WAIT) is None


def test_a_worker_that_another_program_describes(bench: Bench) -> None:
    """Workers ask what others can run before they set jobs aside."""
    jobs = bench.app(SOUND + ARGUMENTS)
    bench.worker()
    bench.sql(
        "INSERT INTO mouso_workers (id, boot, lease_until, beat, info)"
        " SELECT 'forged', boot, lease_until + 60000, beat, 'no JSON' FROM mouso_workers"
    )
    jobs.app.pause("default")
    unknown = jobs.nothing.delay()
    bench.sql("UPDATE mouso_jobs SET task = 'gone' WHERE id = ?", unknown.id)
    jobs.app.resume("default")
    wait_until(lambda: unknown.refresh().record.parked, timeout=WAIT, message="parked")
    still_sound(jobs)
    assert "forged" in {info.name for info in jobs.app.workers()}


def test_a_queue_that_is_not_utf8(bench: Bench) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    handle = jobs.nothing.delay()
    for table in ("mouso_jobs", "mouso_live"):
        bench.sql(f"UPDATE {table} SET queue = CAST(x'71ff' AS TEXT) WHERE seq > 0")
    bench.worker()
    still_sound(jobs)
    assert (handle.state, handle.record.queue) == ("available", "q\N{REPLACEMENT CHARACTER}")
    assert "q\N{REPLACEMENT CHARACTER}" in {queue.name for queue in jobs.app.queues()}
    assert handle.cancel() == "cancelled"


def test_columns_that_somebody_added(bench: Bench) -> None:
    jobs = bench.app(SOUND + FAILS)
    jobs.app.queues()
    for (table,) in bench.sql("SELECT name FROM sqlite_schema WHERE name LIKE 'mouso%' AND type = 'table'"):
        bench.sql(f"ALTER TABLE {table} ADD COLUMN mine TEXT")
    bench.worker()
    still_sound(jobs)
    assert bench.wait_final([jobs.fails.options(attempts=2, queue="other", unique="k").delay()])[0].attempts == 2
    jobs.app.pause("other")
    jobs.app.resume("other")
    unknown = jobs.sound.options(delay="200ms", unique="p", unique_scope="1h").delay(1)
    bench.sql("UPDATE mouso_jobs SET task = 'gone' WHERE id = ?", unknown.id)
    wait_until(lambda: unknown.refresh().record.parked, timeout=WAIT, message="parked")


def test_a_trigger_that_refuses_a_claim(bench: Bench) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    handle = jobs.nothing.delay()
    bench.sql(
        "CREATE TRIGGER mine BEFORE UPDATE ON mouso_live WHEN new.state = 'running' AND new.seq = 1"
        " BEGIN SELECT raise(ABORT, 'not this one'); END"
    )
    bench.worker()
    still_sound(jobs)
    record = bench.wait_final([handle])[0]
    assert (record.state, record.reason) == ("dead", "bad_payload")


def test_numbers_that_cannot_be_in_other_columns(bench: Bench) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    handles = [jobs.nothing.delay() for _ in range(4)]
    for handle, (table, column, number) in zip(
        handles,
        (
            ("mouso_jobs", "enqueued_at", 2**63 - 1),
            ("mouso_jobs", "enqueued_at", -(2**63)),
            ("mouso_live", "priority", 2**63 - 1),
            ("mouso_live", "expires_at", 2**63 - 1),
        ),
        strict=True,
    ):
        where = "id = ?" if table == "mouso_jobs" else "seq = (SELECT seq FROM mouso_jobs WHERE id = ?)"
        bench.sql(f"UPDATE {table} SET {column} = ? WHERE {where}", number, handle.id)
    worker = bench.worker()
    bench.wait_final(handles)
    still_sound(jobs)
    assert worker.alive


def test_text_that_is_not_utf8(bench: Bench) -> None:
    """A row that SQLite itself hands out as broken text affects that job only."""
    jobs = bench.app(SOUND + ARGUMENTS)
    name, codec = broken = [jobs.nothing.delay(), jobs.nothing.delay()]
    bench.sql("UPDATE mouso_jobs SET task = CAST(x'6a6f62ff' AS TEXT) WHERE id = ?", name.id)
    bench.sql("UPDATE mouso_jobs SET codec = CAST(x'ff' AS TEXT) WHERE id = ?", codec.id)
    bench.worker()
    still_sound(jobs)
    record = bench.wait_final([codec])[0]
    assert (record.state, record.reason) == ("dead", "bad_payload")
    assert "codec '\N{REPLACEMENT CHARACTER}' is unknown" in record.errors[0].message
    wait_until(lambda: name.refresh().record.parked, timeout=WAIT, message="parked")
    assert (name.state, name.record.task) == ("available", "job\N{REPLACEMENT CHARACTER}")
    assert {job.id for job in jobs.app.jobs()} >= {handle.id for handle in broken}, "both can be listed"
    assert name.cancel() == "cancelled"
    assert bench.history("ran") == []


@pytest.mark.parametrize("task", ["sound", "fails"])
def test_a_job_that_has_ended_and_was_made_live_again(bench: Bench, task: str) -> None:
    """It runs, and its first end stays; it does not stay running for ever, and nobody beside it is held up."""
    jobs = bench.app(
        SOUND
        + """
@app.task(attempts=1)
def fails(n: int) -> None:
    note("failed")
    raise ValueError(n)
"""
    )
    worker = bench.worker()
    handle = getattr(jobs, task).delay(1)
    [before] = bench.wait_final([handle])
    made = "INSERT INTO mouso_live (seq, state, queue, priority)"
    bench.sql(f"{made} SELECT seq, 'available', queue, priority FROM mouso_jobs WHERE id = ?", handle.id)
    others = jobs.sound.map([(n,) for n in range(50)])
    bench.wait_final(others)
    wait_until(lambda: not bench.sql("SELECT 1 FROM mouso_live"), timeout=WAIT, message="it has ended again")
    after = handle.refresh().record
    assert after.errors[: len(before.errors)] == before.errors  # a claim that took too long goes back, and counts
    assert msgspec.structs.replace(after, errors=before.errors) == before
    wait_until(lambda: f"job {handle.id} had ended" in worker.log, timeout=WAIT, message="it is told")
    assert worker.log.count(f"job {handle.id} had ended") == 1
    assert "does not answer" not in worker.log
    still_sound(jobs)
