"""The log or its index, which lie beside a SQLite file, are deleted or copied while it is in use: no job is lost."""

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest

from mouso.brokers import Broker, connect
from mouso.brokers.base import JobFilter, Retention
from mouso.errors import BrokerUnavailable, ConfigError
from mouso.job import Job
from tests.support import wait_until

ENDS = [["-wal"], ["-shm"], ["-wal", "-shm"]]
ENQUEUE = """
import sys
from mouso.brokers import connect
from mouso.job import Job
broker = connect(f"sqlite:///{sys.argv[1]}")
stored = []
for number in range(int(sys.argv[3])):
    id = f"{sys.argv[2]}{number}"
    try:
        broker.enqueue([Job(id=id, task="t")], timeout=float(sys.argv[4]))
        stored.append(id)
    except Exception as error:
        assert "nothing was stored" in str(error).lower(), error
print(*stored)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def broker(path: Path) -> Iterator[Broker]:
    with closing(connect(f"sqlite:///{path}")) as broker:
        broker.open()
        yield broker


def stored(broker: Broker, *ids: str) -> set[str]:
    """Those of the jobs that were accepted, the first time or the second."""
    accepted = set()
    for id in (id for id in ids for _ in range(2)):
        with suppress(BrokerUnavailable):
            broker.enqueue([Job(id=id, task="t")])
            accepted.add(id)
    return accepted


def elsewhere(path: Path, name: str, count: int = 3, timeout: float = 0.3) -> set[str]:
    """Those of so many jobs that another process could store."""
    command = [sys.executable, "-c", ENQUEUE, str(path), name, str(count), str(timeout)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def delete(path: Path, ends: Sequence[str]) -> None:
    for end in ends:
        Path(f"{path}{end}").unlink()


def found(path: Path) -> set[str]:
    """What the store holds; its pages are all in order."""
    with closing(sqlite3.connect(path)) as store:
        assert store.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {id for (id,) in store.execute("SELECT id FROM mouso_jobs WHERE id <> ''")}


@pytest.mark.parametrize("ends", ENDS, ids="".join)
def test_both_go_on(broker: Broker, path: Path, ends: list[str]) -> None:
    accepted = stored(broker, *[f"a{n}" for n in range(20)])
    delete(path, ends)
    accepted |= elsewhere(path, "b")
    mine = stored(broker, *[f"c{n}" for n in range(3)])
    assert len(mine) == 3
    theirs = elsewhere(path, "d")
    assert len(theirs) == 3
    assert {job.id for job in broker.find(JobFilter())} == accepted | mine | theirs
    broker.close()
    assert found(path) == accepted | mine | theirs


@pytest.mark.parametrize("ends", ENDS, ids="".join)
def test_who_only_reads_sees_what_others_store(broker: Broker, path: Path, ends: list[str]) -> None:
    accepted = stored(broker, *[f"a{n}" for n in range(20)])
    delete(path, ends)
    accepted |= elsewhere(path, "b")
    assert {job.id for job in broker.find(JobFilter())} == accepted
    accepted |= elsewhere(path, "c")
    assert {job.id for job in broker.find(JobFilter())} == accepted
    broker.close()
    assert found(path) == accepted


@pytest.mark.parametrize("ends", ENDS, ids="".join)
def test_who_closes_without_another_look_takes_nothing_along(broker: Broker, path: Path, ends: list[str]) -> None:
    """SQLite would move the log that it knows into the file, and delete the one that others use by now."""
    accepted = stored(broker, *[f"a{n}" for n in range(20)])
    delete(path, ends)
    accepted |= elsewhere(path, "b")
    broker.close()
    accepted |= elsewhere(path, "c")
    assert found(path) == accepted


@pytest.mark.parametrize("ends", [["-wal"], ["-wal", "-shm"]], ids="".join)
def test_who_comes_waits_until_the_log_is_saved(broker: Broker, path: Path, ends: list[str]) -> None:
    accepted = stored(broker, "a0")
    delete(path, ends)
    assert elsewhere(path, "b") == set()
    late: set[str] = set()
    thread = threading.Thread(target=lambda: late.update(elsewhere(path, "c", timeout=30)))
    thread.start()
    try:
        wait_until(lambda: users(path) > 0)
        accepted |= stored(broker, "a1")
    finally:
        thread.join()
    assert late == {"c0", "c1", "c2"}
    assert {job.id for job in broker.find(JobFilter())} == accepted | late


def users(path: Path) -> int:
    """How many programs beside this one have been started with this path."""
    return len(subprocess.run(["pgrep", "-f", f"{path} c 3"], capture_output=True, check=False).stdout.split())


def test_a_connection_of_one_s_own_that_uses_the_old_index(broker: Broker, path: Path) -> None:
    """SQLite shares the index among the connections of a process, so it cannot be renewed beside it."""
    accepted = stored(broker, "a")
    with closing(sqlite3.connect(path)) as mine:
        mine.execute("SELECT count(*) FROM mouso_jobs").fetchone()
        delete(path, ["-shm"])
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match=r"index of its log .* was deleted while it was in use"):
                broker.enqueue([Job(id="b", task="t")])
    accepted |= stored(broker, "c")
    assert {job.id for job in broker.find(JobFilter())} == accepted


LEFT = """
import os, sys
from mouso.brokers import connect
from mouso.job import Job
broker = connect(f"sqlite:///{sys.argv[1]}")
for number in range(20):
    broker.enqueue([Job(id=f"a{number}", task="t")])
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_a_log_whose_file_was_moved_away_is_not_thrown_away(path: Path, what: str) -> None:
    """SQLite would delete it beside an empty file; here everybody refuses, those who only look included."""
    subprocess.run([sys.executable, "-c", LEFT, str(path)], check=False, timeout=60)
    away, log = path.with_name("away"), Path(f"{path}-wal")
    path.rename(away)
    if what == "empty":
        path.touch()
    size = log.stat().st_size
    assert size > 0
    with closing(connect(f"sqlite:///{path}")) as broker:
        for _ in range(2):
            with pytest.raises(ConfigError, match="holds jobs of a file that is not there"):
                broker.enqueue([Job(id="b", task="t")])
        diagnosis = broker.diagnose(retention=Retention())
        if diagnosis.view is not None:
            diagnosis.view.close()
        assert any("holds jobs of a file that is not there" in finding.what for finding in diagnosis.findings)
    assert log.stat().st_size == size
    away.rename(path)
    with closing(connect(f"sqlite:///{path}")) as broker:
        assert len(broker.find(JobFilter())) == 20


def test_places_that_cannot_be(path: Path) -> None:
    os.mkfifo(path)
    odd = "is no regular file"
    for place, why in ((path, odd), ("/dev/null", odd), (f"{path}{'a' * 300}", "check its name")):
        with pytest.raises(ConfigError, match=why) as caught:
            connect(f"sqlite:///{place}").open()
        assert "\n" not in str(caught.value)


COPIES = """
import sys, threading, time
from mouso.brokers import connect
from mouso.job import Job
path, name, end = sys.argv[1], sys.argv[2], time.monotonic() + float(sys.argv[3])
broker, stored = connect(f"sqlite:///{path}"), []
def produce(thread):
    number = 0
    while time.monotonic() < end:
        broker.enqueue([Job(id=f"{name}{thread}-{number}", task="t", payload=b"x" * 200)], timeout=30)
        stored.append(number)
        number += 1
threads = [threading.Thread(target=produce, args=(thread,)) for thread in range(2)]
for thread in threads:
    thread.start()
while time.monotonic() < end:
    for beside in ("", "-wal", "-shm"):
        with open(path + beside, "rb") as file:
            file.read(100)
for thread in threads:
    thread.join()
print(len(stored))
broker.close()
"""


def test_jobs_that_copy_the_store_while_others_write(broker: Broker, path: Path) -> None:
    """A process loses its locks when it closes a file that it has opened anew; without the gate the store is ruined."""
    command = [sys.executable, "-c", COPIES, str(path)]
    running = [subprocess.Popen([*command, name, "2"], stdout=subprocess.PIPE, text=True) for name in "abc"]
    accepted = [int(one.communicate(timeout=60)[0]) for one in running]
    assert len(found(path)) == sum(accepted)
    broker.close()
    assert len(found(path)) == sum(accepted)
