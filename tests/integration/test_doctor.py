"""``mouso doctor`` beside real workers: at work, killed, frozen, of another version, of another queue."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from mouso.handle import JobHandle
from mouso.job import JobState
from tests.integration.harness import WAIT, Bench, Worker
from tests.integration.snippets import PAUSES, SOUND
from tests.support import wait_until

HARMLESS = {"engine", "place", "disk"}
"""What depends on the machine that runs the test."""


def doctor(bench: Bench, *args: str, app: str = "jobs:app") -> tuple[int, list[dict[str, Any]]]:
    """Exit code and findings of a doctor in a process of its own, from its one JSON document."""
    command = [sys.executable, "-m", "mouso", "doctor", app, "--json", *args]
    done = subprocess.run(
        command, cwd=bench.folder, env=bench.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    found: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    return done.returncode, found


def wrong(found: list[dict[str, Any]]) -> list[str]:
    """Warnings and errors that do not depend on the machine."""
    shown = [f for f in found if f["level"] in ("warning", "error") and f["check"] not in HARMLESS]
    return [f"{f['level']} {f['check']}: {f['what']}; {f['remedy']}" for f in shown]


def freeze(bench: Bench, worker: Worker) -> None:
    """Stops a worker and lets its lease end now."""
    worker.send(signal.SIGSTOP)
    bench.sql("UPDATE mouso_workers SET lease_until = lease_until - 20000")


def test_a_worker_at_work(bench: Bench) -> None:
    jobs = bench.app(SOUND + PAUSES)
    bench.worker("-Q", "default,mail", "--grace", "0", processes=2)
    [handle.get(timeout=WAIT) for handle in jobs.sound.map([(n,) for n in range(20)])]
    jobs.pause.delay(1, 3600.0)
    bench.wait_for("start")
    code, found = doctor(bench, "--full")
    assert (code, wrong(found)) == (0, [])
    texts = {f["check"]: f["what"] for f in found}
    assert texts["workers"].startswith("1 worker with 8 slots: ")
    assert texts["stuck"] == "1 running job, none of them stuck"
    assert texts["tasks"] == "the app has 4 tasks"


def test_jobs_run_once_each_while_a_doctor_looks(bench: Bench) -> None:
    jobs = bench.app("@app.task\ndef work(n: int) -> None:\n    note('ran', str(n))\n    time.sleep(0.002)\n")
    bench.worker(processes=2)

    def waiting() -> bool:
        return any(info.counts.get(JobState.AVAILABLE) for info in bench.producer.queues())

    handles: list[JobHandle[None]] = []
    looked, many = 0, 3000
    while looked < 3:
        if not waiting():
            assert many < 200_000, "a doctor looks from beginning to end while jobs run"
            handles += jobs.work.map([(len(handles) + n,) for n in range(many)])
            many *= 2  # one that takes longer to look finds more
        code, found = doctor(bench, "--full")
        assert code == 0, wrong(found)
        looked += waiting()
    bench.wait_final(handles, timeout=90)
    ran = Counter(line.text for line in bench.history("ran"))
    assert set(ran.values()) == {1}
    assert len(ran) == len(handles)
    assert bench.states() == {"completed": len(handles)}
    assert bench.sql("PRAGMA integrity_check") == [("ok",)]


def test_a_worker_that_was_killed(bench: Bench) -> None:
    jobs = bench.app(PAUSES)
    worker = bench.worker()
    handle = jobs.pause.delay(1, 3600.0)
    bench.wait_for("start")
    worker.send(signal.SIGKILL)
    worker.wait()
    code, found = doctor(bench)
    assert code == 0
    texts = wrong(found)
    died = f"warning workers: worker {os.uname().nodename}:{worker.pid} (process {worker.pid} on {os.uname().nodename})"
    assert any(text.startswith(f"{died} died and was last heard of ") for text in texts), texts
    stuck = f"warning stuck: 1 job running under workers that are gone, such as {handle.id}; start a worker, which"
    assert any(text.startswith(stuck) for text in texts), texts
    bench.worker("--grace", "0")  # which takes the job back
    wait_until(lambda: wrong(doctor(bench)[1]) == [], timeout=WAIT, message="all is well again")


def test_a_worker_that_is_frozen(bench: Bench) -> None:
    bench.app(SOUND)
    worker = bench.worker()
    freeze(bench, worker)
    try:
        code, found = doctor(bench)
    finally:
        worker.send(signal.SIGCONT)
    assert code == 1
    assert any("is alive, but its lease has ended" in text for text in wrong(found))
    wait_until(lambda: doctor(bench)[0] == 0, timeout=WAIT, message="the worker has renewed its lease")


def test_a_worker_with_older_code(bench: Bench) -> None:
    jobs = bench.app(SOUND)
    bench.worker()
    assert jobs.sound.delay(1).get(timeout=WAIT) == 1
    newer = bench.app(SOUND + "\n@app.task\ndef fresh() -> None: ...\n")
    handle = newer.fresh.delay()
    wait_until(lambda: bench.records([handle.id])[0].parked, timeout=WAIT, message="the job is parked")
    code, found = doctor(bench)
    assert code == 0
    assert wrong(found) == [
        "warning tasks: no worker knows the tasks jobs.fresh, which the app has here; restart the workers with this"
        " code",
        "warning parked: 1 job of the task jobs.fresh cannot run: no worker knows it; restart the workers with this"
        " code, which knows it",
    ]
    bench.app(SOUND + "\n@app.task\ndef fresh_name() -> None: ...\n")
    code, found = doctor(bench)
    assert code == 1
    (text,) = [text for text in wrong(found) if text.startswith("error")]
    assert "did you mean 'jobs.fresh_name'?" in text


def test_a_queue_that_nobody_serves(bench: Bench) -> None:
    jobs = bench.app(SOUND)
    bench.worker("-Q", "mail")
    jobs.sound.options(queue="mial").delay(1)
    code, found = doctor(bench)
    (text,) = wrong(found)
    assert (code, text.partition(", the oldest")[0]) == (
        0,
        "warning queues: no worker serves queue mial, which has 1 waiting job",
    )
    assert text.endswith("did you mean 'mail'? start a worker with -Q mial, or without -Q")
    bench.sql("UPDATE mouso_jobs SET enqueued_at = enqueued_at - 3600000 WHERE id <> ''")
    code, found = doctor(bench)
    assert code == 1
    assert wrong(found)[0].startswith("error queues: no worker serves queue mial")


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process can be set on Linux only")
def test_limits_of_a_running_worker(bench: Bench) -> None:
    bench.app(SOUND)
    worker = bench.worker()
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (1 << 40, resource.RLIM_INFINITY))
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (30, 30))
    code, found = doctor(bench)
    assert code == 0
    texts = [f["what"] for f in found if f["check"] == "limits"]
    assert "cannot write files of more than 1,099,511,627,776 bytes" in texts[0]
    assert texts[1].endswith("of 30 files open")


def test_what_is_wrong_with_the_app_a_worker_would_say_too(bench: Bench) -> None:
    bench.write("import nothing_of_that_name\n", name="broken")
    worker = bench.start(app="broken:app")
    assert worker.wait() == 2
    code, found = doctor(bench, app="broken:app")
    (finding,) = [f for f in found if f["check"] == "app" and f["level"] == "error"]
    assert code == 1
    assert finding["what"] in worker.log
