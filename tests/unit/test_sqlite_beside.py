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
from mouso.brokers.sqlite import locks
from mouso.brokers.sqlite.store import Store
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

BLIND = """
import os
def refuse(folder, listdir=os.listdir):
    if folder.startswith("/proc/") and "self" not in folder:
        raise PermissionError(13, "another user's process")
    return listdir(folder)
os.listdir = refuse
"""
LOOKS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM mouso_jobs").fetchone()
print("looks", flush=True)
sys.stdin.read()
"""
READS = """
import sys
from mouso.brokers import connect
from mouso.brokers.base import JobFilter
print(*[job.id for job in connect(f"sqlite:///{sys.argv[1]}").find(JobFilter())])
"""
SERVES = """
import sys
from mouso.brokers import connect
from mouso.job import Job
broker = connect(f"sqlite:///{sys.argv[1]}")
for line in sys.stdin:
    try:
        if line == "(reads its files)\\n":
            for end in ("", "-shm"):
                open(sys.argv[1] + end, "rb").close()
            print("read", flush=True)
            continue
        broker.enqueue([Job(id=line.strip(), task="t")], timeout=5)
        print("stored", flush=True)
    except Exception as error:
        print(repr(error), flush=True)
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


def elsewhere(path: Path, name: str, count: int = 3, timeout: float = 0.3, script: str = ENQUEUE) -> set[str]:
    """Those of so many jobs that another process could store."""
    command = [sys.executable, "-c", script, str(path), name, str(count), str(timeout)]
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


class Other:
    """Another process, which has the store open and stores what it is told to, until the block ends or it is killed."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", SERVES, str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def stores(self, id: str) -> str:
        """What it has to say: ``"stored"``, or the error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{id}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def __enter__(self) -> "Other":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=30)


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


LOGS = pytest.mark.parametrize("ends", [["-wal"], ["-wal", "-shm"]], ids="".join)


@LOGS
def test_who_comes_brings_the_log_back(broker: Broker, path: Path, ends: list[str]) -> None:
    """From who has it open, and may have nothing to write for hours."""
    accepted = stored(broker, "a0")
    delete(path, ends)
    theirs = elsewhere(path, "b", timeout=5)
    assert len(theirs) == 3
    assert {job.id for job in broker.find(JobFilter())} == accepted | theirs
    accepted |= stored(broker, "a1")
    broker.close()
    assert found(path) == accepted | theirs
    assert sorted(path.parent.iterdir()) == [path], "no copy is left"


@LOGS
def test_who_comes_waits_for_those_that_cannot_be_asked(broker: Broker, path: Path, ends: list[str]) -> None:
    accepted = stored(broker, "a0")
    delete(path, ends)
    assert elsewhere(path, "b", script=BLIND + ENQUEUE) == set()
    late: set[str] = set()
    thread = threading.Thread(target=lambda: late.update(elsewhere(path, "c", timeout=30, script=BLIND + ENQUEUE)))
    thread.start()
    try:
        wait_until(lambda: users(path) > 0)
        accepted |= stored(broker, "a1")
    finally:
        thread.join()
    assert late == {"c0", "c1", "c2"}
    assert {job.id for job in broker.find(JobFilter())} == accepted | late


@LOGS
def test_deleted_again_before_all_have_the_new_one(broker: Broker, path: Path, ends: list[str]) -> None:
    """Who has the newest has nothing to write; who would write has an older one, of which nothing is left to save."""
    ids = [f"j{number}" for number in range(8)]
    with Other(path) as first, Other(path) as second:
        assert [first.stores(ids[0]), second.stores(ids[1])] == ["stored"] * 2
        assert stored(broker, ids[2])
        delete(path, ends)
        assert first.stores(ids[3]) == "stored"
        delete(path, ends)
        assert second.stores(ids[4]) == "stored"
        delete(path, ends)
        assert stored(broker, ids[5])
        assert [second.stores(ids[6]), first.stores(ids[7])] == ["stored"] * 2
    assert {job.id for job in broker.find(JobFilter())} == set(ids)
    broker.close()
    assert found(path) == set(ids)


def test_deleted_again_while_another_app_of_the_process_has_the_new_one(path: Path) -> None:
    with closing(connect(f"sqlite:///{path}")) as one, closing(connect(f"sqlite:///{path}")) as other:
        accepted = stored(one, "a0") | stored(other, "b0")
        delete(path, ["-wal"])
        accepted |= stored(one, "a1")
        delete(path, ["-wal"])
        accepted |= stored(other, "b1") | stored(one, "a2")
        assert accepted == {"a0", "a1", "a2", "b0", "b1"}
        assert {job.id for job in other.find(JobFilter())} == accepted
    assert found(path) == accepted


def test_who_has_read_the_files_by_itself_is_asked_too(broker: Broker, path: Path) -> None:
    """The system took its locks for it, by which those who use the store are known."""
    with Other(path) as other:
        assert stored(broker, "a")
        delete(path, ["-wal"])
        assert other.stores("b") == "stored"
        assert other.stores("(reads its files)") == "read"
        delete(path, ["-wal"])
        assert stored(broker, "c")
        assert other.stores("d") == "stored"
    assert {job.id for job in broker.find(JobFilter())} == set("abcd")
    broker.close()
    assert found(path) == set("abcd")


def test_what_nobody_has_any_more_is_given_up_and_said(
    broker: Broker, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The index knows of a log that nobody has: all would wait for it, if they did not begin anew."""
    if not locks.sees_all():
        pytest.skip("the kernel hides the programs of other pid namespaces, which may have it")
    with Other(path) as first, Other(path) as second:
        assert [first.stores("a"), second.stores("b")] == ["stored"] * 2
        assert stored(broker, "c")
        delete(path, ["-wal"])
        assert first.stores("d") == "stored"
        delete(path, ["-wal"])
        first.process.kill()
        first.process.wait()
        assert stored(broker, "e")
        assert second.stores("f") == "stored"
    assert {job.id for job in broker.find(JobFilter())} == set("abcef")
    assert "then all programs that used it were killed: what it held is lost" in caplog.text
    broker.close()
    assert found(path) == set("abcef")


@LOGS
def test_a_log_of_another_file_does_not_come_back(path: Path, ends: list[str]) -> None:
    """A process has it open that has another file of this name open as well; it would ruin the new one."""
    with closing(connect(f"sqlite:///{path}")) as old:
        old.enqueue([Job(id="old", task="t")])
        delete(path, ["", *ends, *(["-shm"] if "-shm" not in ends else [])])
        with closing(connect(f"sqlite:///{path}")) as new:
            new.open()
            delete(path, ["-wal"])
            theirs = elsewhere(path, "b", timeout=0.3)
            with suppress(ConfigError):
                old.find(JobFilter())
            mine = stored(new, "a0", "a1")
            assert {job.id for job in new.find(JobFilter())} == mine | theirs
    assert found(path) == mine | theirs


def test_readers_of_a_lost_log_finish(broker: Broker, path: Path) -> None:
    """Who brings it back leaves them what they read."""
    accepted = stored(broker, *[f"a{n}" for n in range(5)])
    store = Store(str(path), "full")
    with closing(store), store.read() as connection:
        rows = connection.execute("SELECT id FROM mouso_jobs WHERE id <> ''")
        first = rows.fetchone()
        delete(path, ["-wal", "-shm"])
        theirs = elsewhere(path, "b", timeout=5)
        assert {id for (id,) in [first, *rows]} == accepted
        assert len(connection.execute("SELECT * FROM mouso_jobs WHERE id <> ''").fetchall()) == 5
    assert len(theirs) == 3
    assert {job.id for job in broker.find(JobFilter())} == accepted | theirs


def test_a_log_does_not_come_back_beside_another_index(broker: Broker, path: Path) -> None:
    """Who only looks makes a new index, of which SQLite believes that the log is empty: it would be written over."""
    accepted = stored(broker, "a0")
    broker.close()  # the tables are in the file
    accepted |= stored(broker, "a1")
    delete(path, ["-wal", "-shm"])
    look = [sys.executable, "-c", LOOKS, str(path)]
    with subprocess.Popen(look, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as looker:
        assert looker.stdout is not None
        assert looker.stdout.readline() == "looks\n"
        theirs = elsewhere(path, "b")
        accepted |= stored(broker, "a2")
        looker.communicate()
    assert "a2" in accepted
    theirs |= elsewhere(path, "c", timeout=5)
    assert {job.id for job in broker.find(JobFilter())} == accepted | theirs
    broker.close()
    assert found(path) == accepted | theirs


def test_an_empty_log_is_no_reason_to_wait(path: Path) -> None:
    """While somebody writes for long, others open the store and read."""
    with closing(connect(f"sqlite:///{path}")) as broker:
        assert stored(broker, "a")
    with closing(Store(str(path), "full")) as store:
        store.open()
        assert Path(f"{path}-wal").stat().st_size == 0
        with store.write():
            read = subprocess.run([sys.executable, "-c", READS, str(path)], capture_output=True, text=True, timeout=60)
    assert read.stdout.split() == ["a"], read.stderr


def test_a_file_that_was_away_locks_nobody_out(broker: Broker, path: Path) -> None:
    """An app that let go of it while it wrote leaves the gate open, though its process has the file open elsewhere."""
    with closing(connect(f"sqlite:///{path}")) as other:
        accepted = stored(broker, "a0") | stored(other, "b0")
        path.rename(path.with_name("away"))
        with pytest.raises(ConfigError, match="was deleted or moved"):
            broker.enqueue([Job(id="a1", task="t")])
        path.with_name("away").rename(path)
        theirs = elsewhere(path, "c", timeout=5)
        assert len(theirs) == 3
        again = stored(broker, "a2") | stored(other, "b2")
        assert again == {"a2", "b2"}
        assert {job.id for job in other.find(JobFilter())} == accepted | theirs | again


FORKS = """
import os, sys
from mouso.brokers import connect
from mouso.job import Job
broker = connect(f"sqlite:///{sys.argv[1]}")
broker.enqueue([Job(id="parent", task="t")])
ask, answer = os.pipe(), os.pipe()
if not os.fork():
    try:
        for name in ("fork", "after"):
            broker.enqueue([Job(id=name, task="t")])
            os.write(answer[1], b".")
            os.read(ask[0], 1)
        broker.close()
        os._exit(0)
    finally:
        os._exit(1)
os.close(answer[1])
os.read(answer[0], 1)
broker.close()
print("closed", flush=True)
sys.stdin.readline()
os.write(ask[1], b".")
os.read(answer[0], 1)
os.write(ask[1], b".")
print(os.wait()[1], flush=True)
"""


def test_a_fork_uses_the_store_as_any_process(path: Path) -> None:
    """SQLite believes of it that it holds the locks of its parent: whoever closed the store last would take it away."""
    command = [sys.executable, "-c", FORKS, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as forking:
        assert forking.stdout is not None
        assert forking.stdout.readline() == "closed\n"
        assert Path(f"{path}-wal").exists()
        assert len(elsewhere(path, "other", timeout=5)) == 3
        assert forking.communicate("\n", timeout=30)[0] == "0\n"
    assert found(path) == {"parent", "fork", "after", "other0", "other1", "other2"}


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
