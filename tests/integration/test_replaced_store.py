"""A store that is deleted or replaced under a running worker."""

import pytest

from tests.integration.harness import Bench
from tests.integration.snippets import SOUND, still_sound
from tests.support import wait_until


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
