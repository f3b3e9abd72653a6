"""A store that is deleted or replaced under a running worker."""

from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import pytest

from mouso import Mouso
from mouso.errors import BrokerUnavailable
from tests.integration.harness import Bench
from tests.integration.snippets import PAUSES, SOUND, still_sound
from tests.support import wait_until

PARENT = """
@app.task(attempts=20, backoff=constant("200ms"))
def parent() -> None:
    note("waits")
    while not Path("go").exists():
        time.sleep(0.01)
    try:
        sound.delay(1)
    except Exception as error:
        note(type(error).__name__)
        raise
"""


@pytest.mark.parametrize("what", ["deleted", "replaced"])
def test_a_worker_whose_store_does_not_come_back_ends_to_be_started_anew(bench: Bench, what: str) -> None:
    jobs = bench.app(SOUND)
    worker = bench.worker(processes=2)
    still_sound(jobs)
    away = bench.folder / "away"
    away.mkdir()
    for path in bench.folder.glob("jobs.db*"):
        if path.is_file():
            path.rename(away / path.name)
    jobs.app.close()
    if what == "replaced":
        jobs.sound.delay(1)
    assert worker.wait(60) == 75
    assert worker.log.count("the broker does not answer") == 1
    assert "ends with exit code 75" in worker.log
    assert not worker.survivors()
    bench.worker(processes=2)
    still_sound(jobs)


def test_a_store_that_comes_back_is_used_again(bench: Bench) -> None:
    jobs = bench.app(SOUND)
    worker = bench.worker(processes=2)
    still_sound(jobs)
    away = bench.folder / "jobs.db.away"
    bench.store.rename(away)
    wait_until(lambda: "the broker does not answer" in worker.log, timeout=20)
    away.rename(bench.store)
    wait_until(lambda: "the broker answers again" in worker.log, timeout=20)
    still_sound(jobs)
    assert bench.sql("PRAGMA integrity_check") == [("ok",)]


def test_a_job_makes_no_new_store_in_place_of_one_that_is_away(bench: Bench) -> None:
    """Even if it is the first to enqueue in its process: what it put into a new one would be lost with it."""
    jobs = bench.app(PARENT + SOUND)
    worker = bench.worker(processes=1)
    parent = jobs.parent.delay()
    bench.wait_for("waits")
    away = bench.folder / "jobs.db.away"
    bench.store.rename(away)
    (bench.folder / "go").touch()
    bench.wait_for("ConfigError")
    assert not bench.store.exists()
    away.rename(bench.store)
    bench.wait_final([parent])
    wait_until(lambda: bench.states() == {"completed": 2}, message="and the job that it enqueued")
    assert {job.task for job in jobs.app.jobs()} == {"jobs.parent", "jobs.sound"}
    assert worker.quiet


def test_a_log_that_is_deleted_under_load_is_saved(bench: Bench) -> None:
    """In it lies what was stored last, by all processes; whoever notices first moves it into the file."""
    jobs = bench.app(SOUND)
    for _ in range(2):
        bench.worker(processes=1)
    log = bench.folder / "jobs.db-wal"
    accepted = []
    for _ in range(3):
        accepted += enqueue(lambda: jobs.sound.map([(1,)] * 300))
        wait_until(lambda: sum(bench.states().values()) > 0, message="the reader of this process has it open as well")
        log.unlink()
        accepted += enqueue(lambda: jobs.sound.map([(1,)] * 300))
    kept = enqueue(lambda: jobs.sound.options(delay=3600).map([(1,)] * 50))
    for record in bench.wait_final(accepted, timeout=60):
        assert (record.state, record.claims - record.releases) == ("completed", 1)
    log.unlink()
    kept += enqueue(lambda: jobs.sound.options(delay=3600).map([(1,)] * 50))
    for worker in bench.workers:
        worker.destroy()
    assert len(jobs.app.jobs(state="scheduled")) == len(kept) == 100
    assert bench.sql("PRAGMA integrity_check") == [("ok",)]


def test_who_only_reads_goes_on_when_the_log_was_deleted(bench: Bench) -> None:
    """A caller that waits, a listing: it need not write to find the new log, whether or not somebody else has."""
    jobs = bench.app(PAUSES)
    bench.worker(processes=1)
    log = bench.folder / "jobs.db-wal"
    handle = jobs.pause.delay(1, 2.0)
    bench.wait_for("start")
    reader = Mouso("reader", broker=bench.broker_url)
    with closing(reader):
        assert len(reader.jobs()) == 1
        log.unlink()
        assert handle.get(timeout=20) == 1
        assert [str(job.state) for job in reader.jobs()] == ["completed"]
        log.unlink()
        assert [str(job.state) for job in reader.jobs()] == ["completed"], "nobody else has noticed it before"


def enqueue(store: Callable[[], list[Any]]) -> list[Any]:
    """Tries until it is stored, as a caller does."""
    handles: list[Any] = []

    def stored() -> bool:
        with suppress(BrokerUnavailable):
            handles.extend(store())
        return bool(handles)

    wait_until(stored, message="it is stored")
    return handles
