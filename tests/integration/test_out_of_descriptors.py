"""Without file descriptors: one line says so and what to raise, and jobs run as soon as there are some."""

import itertools
import json
import os
import resource
import time

import pytest

from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import SOUND, still_sound
from tests.support import wait_until

ALONE = """
@app.task(isolated=True)
def alone(n: int) -> int:
    return n
"""


def leave(pid: int, left: int) -> tuple[int, int]:
    """Lets a process open so many descriptors more; returns its limits before."""
    limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = (number for number in itertools.count() if number not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (next(itertools.islice(free, left, None)), limit[1]))
    return limit


@pytest.mark.parametrize("left", range(6))
def test_a_template_that_may_open_too_little(bench: Bench, left: int) -> None:
    """Whatever it does not get: what is passed to it, a descriptor of the new process, or what its copy needs."""
    jobs = bench.app(ALONE)
    worker = bench.worker("--log-format", "json")
    assert jobs.alone.delay(1).get(timeout=WAIT) == 1
    [template] = worker.templates()
    wait_until(lambda: len(worker.children()) == 1, message="its copy has ended")
    limit = leave(template, left)
    handle = jobs.alone.delay(2)
    wait_until(lambda: handle.refresh().state.final or "Too many open files" in worker.log, timeout=WAIT)
    resource.prlimit(template, resource.RLIMIT_NOFILE, limit)
    assert handle.get(timeout=WAIT) == 2
    assert (handle.record.attempts, handle.record.crashes) == (0, 0)
    assert worker.templates() == [template]
    assert worker.stop() == 0
    told = [json.loads(line)["message"] for line in worker.log.splitlines()]
    assert all("ulimit -n" in line for line in told if "open files" in line)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_without_descriptors_leaves_isolated_jobs_to_others(bench: Bench, processes: int) -> None:
    """What it cannot start it claims ever less often, nothing waits behind it, and it is parked no more than lost."""
    jobs = bench.app(ALONE + SOUND)
    worker = bench.worker(processes=processes, concurrency=2)
    assert jobs.alone.delay(0).get(timeout=WAIT) == 0
    wait_until(lambda: len(worker.children()) == processes, message="its copy has ended")
    limit = leave(worker.pid, 0)  # and what the copy held, which may be given back only now
    handles = jobs.alone.map([(n,) for n in range(5)])
    asked = time.monotonic()
    still_sound(jobs)
    wait_until(lambda: time.monotonic() - asked > 4, message="it has tried again and again")
    records = bench.records([handle.id for handle in handles])
    left = [r for r in records if r.state in ("available", "running")]
    assert len(left) >= 3, "one or two may have had what the first copy gave back after that"
    assert 0 < max(r.releases for r in records) < 12
    assert not any(r.parked for r in records)
    other = bench.worker(processes=1)
    records = bench.wait_final(handles)
    assert {(r.state, r.attempts, r.crashes) for r in records} == {("completed", 0, 0)}
    assert other.stop() == 0
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, limit)
    assert jobs.alone.delay(6).get(timeout=WAIT) == 6
    assert "parked" not in worker.log
