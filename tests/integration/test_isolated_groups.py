"""Processes that jobs start: they end with the job's process, and, in a cgroup of their own, wherever they went."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mouso.worker.cgroups import Group, own_folder
from tests.integration.harness import WAIT, Bench, Worker
from tests.support import wait_until

SOURCE = """
import subprocess

DAEMON = '''
import os, sys, time
if os.fork():
    os._exit(0)
if "session" in sys.argv:
    os.setsid()
if os.fork():
    os._exit(0)
with open("daemon.part", "w") as file:
    file.write(str(os.getpid()))
os.rename("daemon.part", "daemon")
time.sleep(300)
'''


def start(where: str = "group") -> None:
    "A program, and a daemon that has forked twice: in the job's process group, or in a session of its own."
    program = subprocess.Popen(["sleep", "300"])
    subprocess.run([sys.executable, "-S", "-c", DAEMON, where])
    while not Path("daemon").exists():
        time.sleep(0.01)
    Path("pids.part").write_text(f"{program.pid} {Path('daemon').read_text()}")
    os.rename("pids.part", "pids")


@app.task(isolated=True, attempts=1)
def ends(where: str) -> None:
    start(where)


@app.task(isolated=True, attempts=1)
def fails(where: str) -> None:
    start(where)
    raise ValueError


@app.task(isolated=True, attempts=1)
def waits(where: str) -> None:
    start(where)
    time.sleep(300)


@app.task(isolated=True, attempts=1, timeout=1)
def hangs(where: str) -> None:
    start(where)
    time.sleep(300)


@app.task(isolated=True, attempts=1, max_memory="150MiB")
def grows(where: str) -> None:
    start(where)
    kept = bytearray(400 << 20)
    time.sleep(300)


@app.task(isolated=True, attempts=1)
def crashes(where: str) -> None:
    start(where)
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(300)


@app.task(attempts=1, timeout=0.5)
def shared_hangs() -> None:
    start()
    time.sleep(300)


@app.task
def shared_ends() -> None:
    start()


@app.task
def harmless() -> str:
    return Path("/proc/self/cgroup").read_text()


@app.task(isolated=True)
def where() -> str:
    return Path("/proc/self/cgroup").read_text()
"""

THREAD = """
if "MOUSO_CGROUP" in os.environ:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def jobs(bench: Bench) -> Iterator[Any]:
    """The app; what its jobs have started and is left at the end of the test is killed."""
    yield bench.app(SOURCE)
    for pid in pids(bench):
        if alive(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def pids(bench: Bench) -> list[int]:
    file = bench.folder / "pids"
    return [int(word) for word in file.read_text().split()] if file.exists() else []


def started(bench: Bench) -> list[int]:
    """Waits until a job has started its programs; returns their pids."""
    found = wait_until(lambda: pids(bench), timeout=WAIT, message="the job has started its programs")
    assert len(found) == 2
    return found


def wait_gone(found: list[int]) -> None:
    wait_until(lambda: not any(map(alive, found)), timeout=5, message=f"{found} are gone")


def run(bench: Bench, *arguments: str, **environment: str) -> Worker:
    return joined(bench, bench.start("-p", "1", "-c", "4", *arguments, **environment))


def joined(bench: Bench, worker: Worker) -> Worker:
    """Waits until a worker takes jobs."""

    def there() -> bool:
        assert worker.alive, worker.log
        return any(info.pid == worker.pid for info in bench.producer.workers())

    wait_until(there, timeout=WAIT, message="the worker has joined")
    return worker


# -- process groups


@pytest.mark.parametrize(
    ("name", "state", "reason"),
    [
        ("ends", "completed", ""),
        ("fails", "dead", "attempts"),
        ("hangs", "dead", "timeout"),
        ("grows", "dead", "max_memory"),
    ],
)
def test_what_an_isolated_job_started_ends_with_it(bench: Bench, jobs: Any, name: str, state: str, reason: str) -> None:
    run(bench)
    handle = getattr(jobs, name).delay("group")
    record = bench.wait_final([handle])[0]
    assert (record.state, record.reason) == (state, reason), record.errors
    wait_gone(started(bench))


def test_what_a_cancelled_job_started_ends_with_it(bench: Bench, jobs: Any) -> None:
    run(bench)
    handle = jobs.waits.delay("group")
    found = started(bench)
    assert all(map(alive, found))
    handle.cancel()
    bench.wait_state(handle, "cancelled")
    wait_gone(found)


def test_what_a_job_started_ends_when_it_crashes(bench: Bench, jobs: Any) -> None:
    run(bench)
    handle = jobs.crashes.delay("group")
    wait_gone(started(bench))
    assert bench.wait_final([handle])[0].reason == "poison"


def test_what_a_job_started_ends_at_the_shutdown(bench: Bench, jobs: Any) -> None:
    worker = run(bench, "--grace", "0.2")
    handle = jobs.waits.delay("group")
    found = started(bench)
    assert worker.stop() == 0
    assert bench.records([handle.id])[0].state == "available"
    wait_gone(found)


def test_what_a_job_started_ends_when_its_worker_is_killed(bench: Bench, jobs: Any) -> None:
    worker = run(bench)
    jobs.waits.delay("group")
    found = started(bench)
    worker.send(signal.SIGKILL)
    wait_gone(found)


def test_a_shared_child_that_is_killed_takes_the_programs_of_its_jobs_along(bench: Bench, jobs: Any) -> None:
    run(bench)
    handle = jobs.shared_hangs.delay()
    found = started(bench)
    assert bench.wait_final([handle])[0].reason == "timeout"
    wait_gone(found)


def test_a_shared_child_that_ends_well_leaves_programs_alone(bench: Bench, jobs: Any) -> None:
    worker = run(bench)
    bench.wait_final([jobs.shared_ends.delay()])
    found = started(bench)
    assert worker.stop() == 0
    assert not worker.survivors()
    assert all(map(alive, found))


# -- cgroups


@pytest.fixture
def cgroup(bench: Bench) -> Iterator[Path]:
    """An empty cgroup that belongs to the test."""
    root = own_folder(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
    if root is None or not os.access(root, os.W_OK) or os.geteuid() != 0:
        pytest.skip("there is no cgroup v2 in which this user may make others")
    made = root / f"mouso-test-{os.getpid()}-{bench.folder.name}"
    made.mkdir()
    yield made
    for worker in bench.workers:
        worker.destroy()
    (made / "cgroup.kill").write_text("1")
    wait_until(Group(made).remove, timeout=5, message="the test's cgroup is empty")


def named(bench: Bench, cgroup: Path, *arguments: str) -> Worker:
    """A worker that was told to use the cgroup."""
    return run(bench, *arguments, MOUSO_CGROUP=str(cgroup))


def within(bench: Bench, cgroup: Path) -> Worker:
    """A worker that was started in the cgroup, as systemd starts a service, and told nothing."""
    home = own_folder(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
    assert home is not None
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    try:
        worker = bench.start("-p", "1", "-c", "4")
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))
    return joined(bench, worker)


def tree(cgroup: Path) -> list[str]:
    """The cgroups below one; os.walk, unlike rglob, does not mind that some go while it looks."""
    found = (os.path.join(folder, name) for folder, names, _ in os.walk(cgroup) for name in names)
    return sorted(os.path.relpath(path, cgroup) for path in found)


def of_jobs(cgroup: Path) -> list[str]:
    return [path for path in tree(cgroup) if os.path.basename(path).startswith("job-")]


def group_of(text: str) -> str:
    """The cgroup of version 2 in a /proc/PID/cgroup."""
    return next(line[3:] for line in text.splitlines() if line.startswith("0::"))


def test_a_worker_divides_the_cgroup_that_is_named(bench: Bench, jobs: Any, cgroup: Path) -> None:
    worker = named(bench, cgroup)
    (home,) = cgroup.glob("mouso-*")
    assert worker.pid in map(int, (home / "supervisor" / "cgroup.procs").read_text().split())
    assert group_of(jobs.harmless.delay().get(timeout=WAIT)).endswith(f"/{cgroup.name}/{home.name}/supervisor")
    assert group_of(jobs.where.delay().get(timeout=WAIT)).endswith(f"/{cgroup.name}/{home.name}/job-1")
    assert group_of(jobs.where.delay().get(timeout=WAIT)).endswith("/job-2")
    wait_until(lambda: tree(cgroup) == [home.name, f"{home.name}/supervisor"], message="the jobs' cgroups are gone")
    assert worker.stop() == 0
    assert tree(cgroup) == []


@pytest.mark.parametrize(
    ("name", "state", "reason"),
    [("ends", "completed", ""), ("hangs", "dead", "timeout"), ("grows", "dead", "max_memory")],
)
def test_nothing_escapes_from_a_cgroup(
    bench: Bench, jobs: Any, cgroup: Path, name: str, state: str, reason: str
) -> None:
    named(bench, cgroup)
    record = bench.wait_final([getattr(jobs, name).delay("session")])[0]
    assert (record.state, record.reason) == (state, reason), record.errors
    wait_gone(started(bench))
    wait_until(lambda: not of_jobs(cgroup), message="its cgroup is gone")


def test_without_a_cgroup_what_has_left_the_session_lives_on(bench: Bench, jobs: Any) -> None:
    run(bench)
    bench.wait_final([jobs.ends.delay("session")])
    program, daemon = started(bench)
    wait_gone([program])
    assert alive(daemon)


def test_the_shutdown_leaves_nothing(bench: Bench, jobs: Any, cgroup: Path) -> None:
    worker = named(bench, cgroup, "--grace", "0.2")
    jobs.waits.delay("session")
    found = started(bench)
    assert worker.stop() == 0
    wait_gone(found)
    assert tree(cgroup) == []


def test_the_next_worker_ends_what_a_killed_one_left(bench: Bench, jobs: Any, cgroup: Path) -> None:
    first = named(bench, cgroup)
    other = named(bench, cgroup)
    assert len(list(cgroup.glob("mouso-*"))) == 2
    other.stop()
    handle = jobs.waits.delay("session")
    found = started(bench)
    first.send(signal.SIGKILL)
    first.wait()
    (left,) = cgroup.glob("mouso-*")
    assert alive(found[1])
    handle.cancel()
    named(bench, cgroup)
    wait_gone(found)
    assert not (left / "job-1").exists()


def test_a_delegated_cgroup_is_divided(bench: Bench, jobs: Any, cgroup: Path) -> None:
    os.setxattr(cgroup, "user.delegate", b"1")
    worker = within(bench, cgroup)
    (home,) = cgroup.glob("mouso-*")
    assert not (cgroup / "cgroup.procs").read_text()
    assert group_of(jobs.where.delay().get(timeout=WAIT)).endswith(f"/{home.name}/job-1")
    assert "isolated jobs have cgroups of their own" in worker.log
    assert worker.stop() == 0
    assert tree(cgroup) == []


@pytest.mark.parametrize("mark", [None, b"0"])
def test_a_cgroup_that_is_not_delegated_is_left_alone(
    bench: Bench, jobs: Any, cgroup: Path, mark: bytes | None
) -> None:
    if mark is not None:
        os.setxattr(cgroup, "user.delegate", mark)
    worker = within(bench, cgroup)
    assert tree(cgroup) == []
    assert worker.pid in map(int, (cgroup / "cgroup.procs").read_text().split())
    assert group_of(jobs.where.delay().get(timeout=WAIT)).endswith(f"/{cgroup.name}")
    assert tree(cgroup) == []


def test_a_name_that_cannot_be_used_ends_the_worker(bench: Bench, jobs: Any) -> None:
    worker = bench.start(MOUSO_CGROUP=str(bench.folder))
    assert worker.wait() == 2
    assert "cannot be used" in worker.log
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("name", ["ends", "hangs"])
def test_an_app_that_cannot_be_copied_has_cgroups_too(bench: Bench, cgroup: Path, name: str) -> None:
    jobs = bench.app(SOURCE + THREAD)
    worker = named(bench, cgroup)
    bench.wait_final([getattr(jobs, name).delay("session")])
    wait_gone(started(bench))
    assert "start anew" in worker.log
    wait_until(lambda: not of_jobs(cgroup), message="its cgroup is gone")
