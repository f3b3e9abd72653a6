"""The store cannot be used for a while: it says why, once; jobs go on; nothing is half-written, and work resumes."""

import math
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from mouso import Mouso
from mouso.brokers.base import JobFilter
from mouso.errors import ConfigError
from mouso.job import Job, JobState
from tests.chaos.arena import Arena, pass_time
from tests.integration.harness import Worker
from tests.support import wait_until

RESUMED = 5.0
"""Seconds after the end of an outage within which work goes on."""
OUTAGE, OVER = "the broker does not answer", "the broker answers again after"
DISK = 32 << 20
TABLES = ("jobs", "live", "history", "workers")


its_file = pytest.mark.only_sqlite("the trouble is that of its file")

PATIENT = """
@app.task
def patient(ctx: Context) -> int:
    with run() as token:
        while not Path("jobs.db-flag").exists():
            ctx.check()
            time.sleep(0.01)
        return token
"""


@its_file
def test_locked_by_another_program(arena: Arena) -> None:
    """For ten seconds, less than a lease: no job is taken over, and none is stopped."""
    arena.begin(mean=0.03, troubled=True)
    arena.going(300)
    with locked(arena.store):
        pass_time(10.0)
    resumes(arena)
    arena.finish()
    for worker in arena.pair:
        assert worker.log.count(OUTAGE) == worker.log.count(OVER) == 1, "an outage is two lines"


@its_file
def test_locked_for_longer_than_a_lease(arena: Arena) -> None:
    """A worker that cannot renew stops its jobs before others may run them; all go on together afterwards."""
    arena.begin(PATIENT, mean=0.03, troubled=True)
    arena.load.accept([arena.jobs.patient.options(priority=50).delay() for _ in range(4)])
    arena.going(300)
    with locked(arena.store) as since:
        wait_until(lambda: len(arena.lines("stop")) >= 4, timeout=17, message="patients are told to stop")
        assert max(line.at for line in arena.lines("stop")) < since + 15, "before the lease has ended"
        pass_time(since + 17 - time.monotonic())
    supervisors = frozenset(worker.pid for worker in arena.pair)
    # Nobody can settle while it is locked: what was told to stop may run again.
    arena.fault("a long lock", at=since, until=time.monotonic() + 1, supervisors=supervisors, lease=True)
    (arena.folder / "jobs.db-flag").touch()
    ended = {line.job for line in arena.lines("end") if since < line.at < since + 10}
    resumes(arena)
    arena.finish()
    assert ended
    assert not [line for line in arena.lines("start") if line.job in ended and line.at > since + 17], "none runs again"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB; to be asked for before the arena, so that it lasts longer."""
    point = tmp_path / "disk"
    point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "chaos", str(point)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip(reason="it takes the right to mount a file system")
    yield point
    subprocess.run(["umount", str(point)], check=True)


@its_file
def test_a_full_disk(disk: Path, arena: Arena) -> None:
    arena.store = disk / "jobs.db"
    arena.broker_url = f"sqlite:///{arena.store}"
    arena.begin(mean=0.03, troubled=True)
    arena.going(300)
    with filled(disk):
        wait_until(lambda: any(OUTAGE in worker.log for worker in arena.pair), message="somebody noticed")
        pass_time(3.0)
    resumes(arena)
    arena.finish()
    assert "no space is left on its disk" in "".join(worker.log for worker in arena.pair)


@its_file
def test_a_limit_of_file_size(arena: Arena) -> None:
    arena.begin(mean=0.03, troubled=True)
    arena.going(300)
    log = Path(f"{arena.store}-wal")
    with limited(arena, resource.RLIMIT_FSIZE, lambda worker: log.stat().st_size):
        wait_until(lambda: any(OUTAGE in worker.log for worker in arena.pair), message="somebody noticed")
        pass_time(3.0)
    resumes(arena)
    arena.finish()
    assert "file size limit" in "".join(worker.log for worker in arena.pair)


@pytest.mark.parametrize("what", ["descriptors", "memory"])
def test_a_supervisor_that_has_none_left(arena: Arena, what: str) -> None:
    """It cannot start a child in the place of one that dies, says so, goes on, and does it as soon as it can.

    Of memory it may have got some back just then, and find enough.
    """
    arena.begin(mean=0.03, troubled=True)
    arena.going(300)
    kind, least = {
        "descriptors": (resource.RLIMIT_NOFILE, highest_descriptor),
        "memory": (resource.RLIMIT_AS, address_space),
    }[what]
    with limited(arena, kind, least):
        for worker in arena.pair:
            arena.kill_child(worker, limit=None)
        if what == "descriptors":
            wait_until(lambda: all("cannot be started" in w.log for w in arena.pair), message="they say so")
        before = arena.ended
        wait_until(lambda: arena.ended > before + 20, message="the other children go on")
    resumes(arena)
    arena.finish()
    for worker in arena.pair:
        assert "the supervisor failed" not in worker.log
        worker.quiet = False  # a child that inherited the limit may say what it lacks


@its_file
def test_moved_away_and_put_back(arena: Arena) -> None:
    """While it is away nothing is written, neither to the file that has no name nor to a new one."""
    arena.begin(mean=0.03, troubled=True)
    arena.going(300)
    away = arena.folder / "jobs.db-away"
    arena.store.rename(away)
    wait_until(lambda: all(OUTAGE in worker.log for worker in arena.pair), message="both noticed")
    with pytest.raises(ConfigError, match="was deleted or moved"):
        arena.jobs.plain.delay(0.0)
    started = runs(arena, "start")
    wait_until(lambda: started <= runs(arena, "end", "fail"), timeout=20, message="who might still write has ended")
    before = contents(away, arena.store)
    pass_time(2.0)
    assert contents(away, arena.store) == before, "ghost writes"
    assert not arena.store.exists()
    away.rename(arena.store)
    resumes(arena)
    arena.finish()
    assert "was deleted or moved while it was open" in arena.pair[0].log


@its_file
def test_replaced_by_another_file(arena: Arena) -> None:
    """Nothing of the new file is touched, the workers end with 75, and new ones serve it."""
    arena.begin(mean=0.03, troubled=True)
    arena.going(300)
    arena.load.stop()
    other = arena.folder / "jobs.db-other"
    fresh = [Job(id=f"new-{n}", task="jobs.plain", payload=b'{"seconds": 0.001}') for n in range(100)]
    with Mouso("other", broker=f"sqlite:///{other}") as app:
        app.broker.enqueue(fresh)
    for end in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.rename(f"{arena.store}{end}", f"{arena.store}-old{end}")
    other.rename(arena.store)
    codes = [worker.wait(40) for worker in arena.pair]
    assert codes == [75, 75], "temporary: start me again"
    for worker in arena.pair:  # it may have looked between the two renamings
        assert re.search("was (replaced by another file|deleted or moved) while it was open", worker.log)
        assert "Traceback" not in worker.log
    with Mouso("other", broker=arena.broker_url) as app:
        assert {(job.state, job.claims) for job in app.broker.find(JobFilter(limit=1000))} == {("available", 0)}
        arena.pair = [arena.start(*arena.options) for _ in range(2)]
        done, new = JobFilter(states=frozenset({JobState.COMPLETED}), limit=1000), {job.id for job in fresh}
        # Beside them there may be jobs that a child enqueued which had not opened the old file before.
        wait_until(
            lambda: {job.id for job in app.broker.find(done)} >= new, timeout=20, message="the new jobs are done"
        )
    with closing(sqlite3.connect(f"{arena.store}-old")) as old:
        assert old.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        stored = {id_ for (id_,) in old.execute("SELECT id FROM mouso_jobs WHERE id <> ''")}
    assert stored >= {id_ for id_ in arena.load.accepted if "." not in id_}, "and nothing of the old one is lost"


@its_file
@pytest.mark.parametrize("ends", [["-wal"], ["-shm"], ["-wal", "-shm"]], ids="".join)
def test_what_lies_beside_it_is_deleted(arena: Arena, ends: list[str]) -> None:
    """Who has the old log or index in use saves it and goes over to the new one; who comes later waits for that."""
    arena.begin(mean=0.03, troubled=True)
    for round_ in range(1, 7):
        arena.going(150 * round_)
        for end in ends:
            Path(f"{arena.store}{end}").unlink(missing_ok=True)  # who renews it may be about to
        still = arena.start(*arena.options) if round_ == 3 else None
        if still is not None:
            arena.wait_ready(still, 2)
    arena.finish()


# -- what is done to the store and to supervisors


@contextmanager
def locked(store: Path) -> Iterator[float]:
    """Another program writes for as long as the block lasts; gives the instant from which on."""
    with closing(sqlite3.connect(store, timeout=5, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        try:
            yield time.monotonic()
        finally:
            other.execute("ROLLBACK")


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leaves no byte free on a disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def limited(arena: Arena, kind: int, least: Callable[[Worker], int]) -> Iterator[None]:
    """Takes from both supervisors all but what they have. Children that are born meanwhile inherit it."""
    before = {worker.pid: resource.prlimit(worker.pid, kind) for worker in arena.pair}
    elders = {pid for worker in arena.pair for pid in worker.children()}
    at = time.monotonic()
    for worker in arena.pair:
        resource.prlimit(worker.pid, kind, (least(worker), before[worker.pid][1]))
    try:
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, kind, limits)
        born = frozenset(pid for worker in arena.pair for pid in worker.children()) - elders
        arena.fault("a limit", at=at, until=math.inf, pids=born, kills=True)


def contents(store: Path, name: Path) -> list[object]:
    """The jobs of a store that was moved, whose log has stayed where it was; reads copies."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy.db")
        shutil.copy(store, copy)
        with suppress(FileNotFoundError):
            shutil.copy(f"{name}-wal", f"{copy}-wal")
        with closing(sqlite3.connect(copy)) as read:
            return [read.execute(f"SELECT * FROM mouso_{table} ORDER BY 1").fetchall() for table in TABLES]


def highest_descriptor(worker: Worker) -> int:
    return max(int(name) for name in os.listdir(f"/proc/{worker.pid}/fd")) + 1


def address_space(worker: Worker) -> int:
    return int(Path(f"/proc/{worker.pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")


def runs(arena: Arena, *events: str) -> set[tuple[str, int]]:
    """The runs of which jobs wrote this."""
    return {(line.job, line.token) for event in events for line in arena.lines(event)}


def resumes(arena: Arena) -> None:
    """New jobs start within five seconds of now."""
    since = time.monotonic()

    def started() -> bool:
        return sum(line.at > since for line in arena.lines("start")) >= 10

    wait_until(started, timeout=RESUMED + arena.slack, interval=0.05, message="work goes on")
