"""Which worker is which: two of one name, and one whose process id has been given to another process."""

import json
import os
import signal

from tests.integration.harness import WAIT, Bench
from tests.stalls import elapsed
from tests.support import wait_until

LEASE = 15
"""Seconds after which a job comes back anyway, whether its worker's death was proven or not."""

SOURCE = """
@app.task
def stay() -> int:
    '''Stays for ever the first time; returns the process id of its worker.'''
    again = os.path.exists("stayed")
    open("stayed", "w").close()
    note("start")
    if not again:
        time.sleep(600)
    return os.getppid()

@app.task
def sound(n: int) -> int:
    return n
"""


def test_two_workers_of_one_name_both_work_and_are_not_taken_for_each_other(bench: Bench) -> None:
    jobs = bench.app(SOURCE)
    first = bench.worker("--name", "twin")
    handle = jobs.stay.delay()
    bench.wait_for("start")
    second = bench.worker("--name", "twin")
    infos = {info.pid: info for info in bench.producer.workers()}
    assert set(infos) == {first.pid, second.pid}
    assert [infos[worker.pid].name for worker in (first, second)] == ["twin", "twin-2"]
    assert "worker twin-2 serves" in second.log
    assert len({info.id for info in infos.values()}) == 2
    assert [jobs.sound.delay(n).get(timeout=WAIT) for n in range(10)] == list(range(10))
    assert handle.state == "running", "nobody has taken it from the worker that runs it"
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert handle.get(timeout=WAIT) == second.pid
    wait_until(lambda: [info.pid for info in bench.producer.workers()] == [second.pid], timeout=WAIT)
    assert jobs.sound.delay(1).get(timeout=WAIT) == 1


def test_workers_of_one_name_that_start_at_the_same_moment_are_told_apart(bench: Bench) -> None:
    jobs = bench.app(SOURCE)
    workers = [bench.start("--name", "twin", "-p", "1") for _ in range(4)]
    for worker in workers:
        bench.wait_ready(worker)

    def names() -> list[str]:
        return sorted(info.name for info in bench.producer.workers())

    apart = ["twin", "twin-2", "twin-3", "twin-4"]
    wait_until(lambda: names() == apart, timeout=WAIT, message="each has a name of its own")
    assert jobs.sound.delay(1).get(timeout=WAIT) == 1


def test_a_process_id_that_was_given_to_another_process(bench: Bench) -> None:
    """The worker is dead all the same: its jobs come back before its lease ends, and the other lives on."""
    jobs = bench.app(SOURCE)
    worker = bench.worker()
    handle = jobs.stay.delay()
    bench.wait_for("start")
    worker.send(signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    [(id, text)] = bench.sql("SELECT id, info FROM mouso_workers")
    info = json.loads(text)
    assert info["pid"] == worker.pid
    bench.sql("UPDATE mouso_workers SET info = ? WHERE id = ?", json.dumps({**info, "pid": os.getpid()}), id)
    successor = bench.worker()
    assert handle.get(timeout=WAIT) == successor.pid
    first, second = bench.history("start")
    assert elapsed(first.at, second.at) < LEASE - 2
    assert (handle.record.crashes, handle.record.attempts) == (0, 0)
