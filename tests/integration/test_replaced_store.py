"""A store that is deleted or replaced under a running worker."""

import pytest

from tests.integration.harness import Bench
from tests.integration.snippets import SOUND, still_sound
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
    assert {job.task for job in jobs.app.jobs(state="completed")} == {"jobs.parent", "jobs.sound"}
    assert worker.quiet
