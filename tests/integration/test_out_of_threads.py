"""A child that can start no thread runs what needs none, and goes on when it can."""

from tests.integration.harness import WAIT, Bench
from tests.support import wait_until

SOURCE = """
import resource

_, MOST = resource.getrlimit(resource.RLIMIT_AS)

def used() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

@app.task
async def scarce() -> int:
    threading.stack_size(1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (used() + (256 << 20), MOST))
    return os.getpid()

@app.task
async def plenty() -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MOST, MOST))
    threading.stack_size(0)
    return os.getpid()

@app.task
def function() -> int:
    return os.getpid()
"""


def test_without_threads_for_a_while(bench: Bench) -> None:
    jobs = bench.app(SOURCE)
    worker = bench.worker(processes=1, concurrency=4)
    child = jobs.scarce.delay().get(timeout=WAIT)
    handles = [jobs.function.delay() for _ in range(3)]
    wait_until(lambda: "more cannot be started" in worker.log, timeout=WAIT, message="the log says so")
    wait_until(
        lambda: handles[0].refresh().record.releases > 1, timeout=WAIT, message="its job goes back and comes again"
    )
    assert jobs.plenty.options(priority=1).delay().get(timeout=WAIT) == child
    assert [handle.get(timeout=WAIT) for handle in handles] == [child] * 3
    assert [(h.record.attempts, h.record.crashes) for h in handles] == [(0, 0)] * 3
    assert worker.log.count("more cannot be started") == 1
    assert "Traceback" not in worker.log


NO_THREAD = """
import sys, threading
if "mouso" in sys.orig_argv:
    import resource
    threading.stack_size(1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (768 << 20, resource.getrlimit(resource.RLIMIT_AS)[1]))
"""


def test_a_worker_without_threads_from_the_start(bench: Bench) -> None:
    bench.app(SOURCE)
    (bench.folder / "sitecustomize.py").write_text(NO_THREAD)
    worker = bench.start("-p", "1")
    assert worker.wait() == 75
    [line] = [line for line in worker.log.splitlines() if line.startswith("mouso: error: ")]
    assert "no thread" in line
    assert "ulimit -u" in line
