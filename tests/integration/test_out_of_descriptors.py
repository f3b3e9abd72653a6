"""A template without file descriptors: one line says so and what to raise, and jobs run as soon as there are some."""

import itertools
import json
import os
import resource

import pytest

from tests.integration.harness import WAIT, Bench
from tests.support import wait_until

ALONE = """
@app.task(isolated=True)
def alone(n: int) -> int:
    return n
"""


@pytest.mark.parametrize("left", range(6))
def test_a_template_that_may_open_too_little(bench: Bench, left: int) -> None:
    """Whatever it does not get: what is passed to it, a descriptor of the new process, or what its copy needs."""
    jobs = bench.app(ALONE)
    worker = bench.worker("--log-format", "json")
    assert jobs.alone.delay(1).get(timeout=WAIT) == 1
    [template] = worker.templates()
    wait_until(lambda: len(worker.children()) == 1, message="its copy has ended")
    limit = resource.prlimit(template, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{template}/fd")}
    free = (number for number in itertools.count() if number not in used)
    resource.prlimit(template, resource.RLIMIT_NOFILE, (next(itertools.islice(free, left, None)), limit[1]))
    handle = jobs.alone.delay(2)
    wait_until(lambda: handle.refresh().state.final or "Too many open files" in worker.log, timeout=WAIT)
    resource.prlimit(template, resource.RLIMIT_NOFILE, limit)
    assert handle.get(timeout=WAIT) == 2
    assert (handle.record.attempts, handle.record.crashes) == (0, 0)
    assert worker.templates() == [template]
    assert worker.stop() == 0
    told = [json.loads(line)["message"] for line in worker.log.splitlines()]
    assert all("ulimit -n" in line for line in told if "open files" in line)
