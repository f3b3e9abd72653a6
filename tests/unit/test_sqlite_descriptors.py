"""A process that closes SQLite's file descriptors: nobody writes with what was opened in their place."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from mouso.brokers import connect
from mouso.brokers.base import EXIT_LOST, JobFilter
from mouso.brokers.sqlite import descriptors
from mouso.brokers.sqlite.broker import SQLiteBroker
from mouso.job import Job
from tests.support import wait_until

PLACES = ["jobs.db", "jobs.db-wal", "jobs.db-shm"]
PROGRAM = """
import os, sys
from mouso.brokers import connect
from mouso.brokers.base import JobFilter
from mouso.errors import ConfigError
from mouso.job import Job

def enqueue(id):
    broker.enqueue([Job(id=id, task="t")])

def leading_to(path):
    numbers = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    return [n for n in numbers if os.path.realpath(f"/proc/self/fd/{n}") == path]

def refused(call):
    try:
        call()
    except ConfigError as error:
        assert "this process has closed file descriptors that SQLite was using" in str(error), error
        assert "\\n" not in str(error)
    else:
        raise AssertionError("nobody complained")

folder = os.path.realpath(sys.argv[1])
url = f"sqlite:///{folder}/jobs.db"
broker = connect(url, create="joined" not in sys.argv)
enqueue("first")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def opened(path: Path) -> SQLiteBroker:
    broker = connect(f"sqlite:///{path}")
    assert isinstance(broker, SQLiteBroker)
    broker.open()
    return broker


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Another process, as this one must not lose what SQLite uses."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def ids(path: Path) -> list[str]:
    """What the store holds; its pages are all in order."""
    with closing(sqlite3.connect(path)) as store:
        assert store.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [id for (id,) in store.execute("SELECT id FROM mouso_jobs WHERE id <> '' ORDER BY seq")]


def test_a_connection_s_descriptors_are_known(path: Path) -> None:
    with closing(opened(path)) as broker:
        held = [broker._store._writes_with, broker._store._reads_with]
        for these in held:
            assert [os.path.basename(os.readlink(f"/proc/self/fd/{n}")) for n, _ in these][:3] == PLACES
        assert held[0][2] == held[1][2], "the index is shared"
        assert {n for n, _ in held[0][:2]}.isdisjoint(n for n, _ in held[1][:2])


LOSES = """
lost = leading_to(f"{folder}/{sys.argv[2]}")[int(sys.argv[3])]
os.close(lost)
if "reused" in sys.argv:
    assert os.open(f"{folder}/other", os.O_RDWR | os.O_CREAT) == lost
if int(sys.argv[3]) == 0:
    refused(lambda: enqueue("second"))
    refused(lambda: enqueue("third"))
refused(lambda: broker.find(JobFilter()))
broker.close()
refused(lambda: enqueue("fourth"))
refused(lambda: connect(url).open())
if "reused" in sys.argv:
    os.fstat(lost)
print("done")
"""


@pytest.mark.parametrize("reused", ["closed", "reused"])
@pytest.mark.parametrize(("place", "which"), [*[(place, 0) for place in PLACES], *[(p, -1) for p in PLACES[:2]]])
def test_nothing_is_stored_with_it_any_more(path: Path, place: str, which: int, reused: str) -> None:
    done = run(PROGRAM + LOSES, path.parent, place, which, reused)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert reused == "closed" or path.with_name("other").read_bytes() == b""
    assert ids(path) == ["first"]


def test_connections_of_others_may_come_and_go(path: Path) -> None:
    """They lead to the same file; SQLite keeps what they close, and opens the next with it."""
    with closing(sqlite3.connect(path)) as before:
        before.execute("PRAGMA journal_mode = wal")
        before.execute("CREATE TABLE mine (x)")
        with closing(opened(path)) as broker:
            broker.enqueue([Job(id="first", task="t")])
            before.close()
            for n in range(5):
                with closing(sqlite3.connect(path)) as another:
                    another.execute("INSERT INTO mine VALUES (1)")
                    another.commit()
                broker.enqueue([Job(id=f"job {n}", task="t")])
            assert len(broker.find(JobFilter())) == 6
            broker.close()
            broker.enqueue([Job(id="last", task="t")])
            assert len(broker.find(JobFilter())) == 7


def test_where_the_system_does_not_tell(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "_HERE", "/nowhere")
    with closing(opened(path)) as broker:
        assert [number for number, _ in broker._store._writes_with] == [broker._store._gate.held[0]]
        assert broker._store._reads_with == ()
        broker.enqueue([Job(id="first", task="t")])
        assert len(broker.find(JobFilter())) == 1


CLOSES = """
os.closerange(3, 100)
files = [open(f"{folder}/other-{n}", "w+b") for n in range(8)]
if "looked" in sys.argv:
    refused(lambda: enqueue("second"))
for file in files:
    os.fstat(file.fileno())
"""


@pytest.mark.parametrize("how", ["looked", "not looked"])
def test_a_process_that_ends(path: Path, how: str) -> None:
    """Python closes the connections then, and SQLite would write into what has the numbers of their descriptors."""
    done = run(PROGRAM + CLOSES, path.parent, how)
    assert (done.returncode, done.stderr) == (0, "")
    assert [found.read_bytes() for found in path.parent.glob("other-*")] == [b""] * 8
    assert ids(path) == ["first"]


DAEMON = """
if os.fork() == 0:
    os.closerange(3, 100)
    files = [open(f"{folder}/other-{n}", "w+b") for n in range(8)]
    refused(lambda: enqueue("second"))
    refused(lambda: enqueue("third"))
    sys.exit(0)
assert os.wait()[1] == 0
enqueue("fourth")
"""


def test_a_fork_that_becomes_a_daemon(path: Path) -> None:
    """SQLite takes its parent's index of the log for open."""
    done = run(PROGRAM + DAEMON, path.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert [found.read_bytes() for found in path.parent.glob("other-*")] == [b""] * 8
    assert ids(path) == ["first", "fourth"]


DAEMON_THAT_CLOSED = """
broker.close()
if os.fork() == 0:
    os.closerange(3, 100)
    enqueue("second")
    sys.exit(0)
assert os.wait()[1] == 0
enqueue("third")
"""


def test_a_fork_of_one_that_has_nothing_open(path: Path) -> None:
    done = run(PROGRAM + DAEMON_THAT_CLOSED, path.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert ids(path) == ["first", "second", "third"]


def test_a_worker_s_process_ends_by_itself(path: Path) -> None:
    """It is of no use to its jobs any more, and replaced."""
    opened(path).close()
    done = run(PROGRAM + CLOSES + "print('alive')", path.parent, "looked", "joined")
    assert (done.returncode, done.stdout) == (EXIT_LOST, "")
    assert "this process has closed file descriptors that SQLite was using" in done.stderr
    assert ids(path) == ["first"]


ENQUEUES = """
import os, sys, threading, time
from mouso.brokers import connect
from mouso.job import Job
from mouso.worker.tripwire import stretch
def produce(n):
    for i in range(1 << 30):
        broker.enqueue([Job(id=f"{os.getpid()}-{n}-{i}", task="t", payload=b"x" * (i % 300))])
broker = connect(f"sqlite:///{sys.argv[1]}")
broker.open()
stretch()
for n in range(3):
    threading.Thread(target=produce, args=(n,), daemon=True).start()
time.sleep(float(sys.argv[2]))
os.closerange(3, 4096)
time.sleep(10)
"""


def test_closing_all_in_the_middle_of_transactions(path: Path) -> None:
    """Without the wire this loses the store within some hundred rounds; here it is a matter of seconds."""
    opened(path).close()
    ends: list[int] = []

    def lose(number: int) -> None:
        for step in range(6):
            ends.append(run(ENQUEUES, path, 0.02 + 0.003 * ((7 * step + number) % 12)).returncode)

    threads = [threading.Thread(target=lose, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: not any(thread.is_alive() for thread in threads), timeout=120)
    assert ends == [-signal.SIGIO] * 24
    assert len(ids(path)) > 24


IN_A_TRANSACTION = """
import subprocess
OTHER = '''
import sys
from mouso.brokers import connect
from mouso.errors import BrokerUnavailable
from mouso.job import Job
broker = connect(sys.argv[1])
try:
    broker.enqueue([Job(id=sys.argv[2], task="t")], timeout=float(sys.argv[3]))
except BrokerUnavailable as error:
    assert "stayed locked by another transaction" in str(error), error
    sys.exit(75)
'''
def another(id, timeout):
    return subprocess.run([sys.executable, "-c", OTHER, url, id, str(timeout)]).returncode

store = broker._store
try:
    with store.write() as connection:
        connection.execute("INSERT INTO mouso_meta (key, value) VALUES ('lost', 1)")
        lost = [n for end in ("", "-wal", "-shm") for n in leading_to(f"{folder}/jobs.db{end}")]
        for number in lost:
            os.close(number)
        if "reused" in sys.argv:
            files = [os.open(f"{folder}/other", os.O_RDWR | os.O_CREAT) for _ in lost]
        if "reopened" in sys.argv:
            files = [os.open(f"{folder}/jobs.db", os.O_RDWR) for _ in lost]
        assert another("meanwhile", 0.5) == 75
        if "raises" in sys.argv:
            raise KeyError
except Exception as error:
    print(type(error).__name__)
assert another("after", 30) == 0
refused(lambda: enqueue("second"))
"""


@pytest.mark.parametrize("how", ["commits", "raises", "reused", "reopened"])
def test_nobody_else_writes_until_a_transaction_is_over_that_has_lost_its_descriptors(path: Path, how: str) -> None:
    """SQLite's locks are gone with them, and so is what the gate was taken with, but for its copy that is under way."""
    done = run(PROGRAM + IN_A_TRANSACTION, path.parent, how)
    assert (done.returncode, done.stderr) == (0, "")
    told = {"raises": "KeyError", "commits": "BrokerUnavailable"}
    assert done.stdout.strip() == told.get(how, "OutcomeUnknown")
    assert ids(path) == ["first", "after"]


GATE_ALONE = """
store = broker._store
number = store._gate.number
with store.write() as connection:
    connection.execute("INSERT INTO mouso_meta (key, value) VALUES ('written', 1)")
    os.close(number)
    assert os.open(f"{folder}/jobs.db", os.O_RDWR) == number  # SQLite's locks are gone, but not what it has open
assert another("after", 30) == 0
"""


def test_a_gate_that_is_the_same_file_opened_again(path: Path) -> None:
    """It is unlocked by nobody who does not hold it: so what holds it is given up, or all would wait for ever."""
    done = run(PROGRAM + IN_A_TRANSACTION.partition("store = ")[0] + GATE_ALONE, path.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert ids(path) == ["first", "after"]


ALL_AT_ONCE = """
import threading, time
from mouso.errors import BrokerError
said = []
def produce(n):
    for i in range(1 << 30):
        try:
            enqueue(f"{n}-{i}")
        except (BrokerError, ConfigError) as error:
            said.append(error)
            return
threads = [threading.Thread(target=produce, args=(n,), daemon=True) for n in range(3)]
for thread in threads:
    thread.start()
time.sleep(float(sys.argv[2]))
os.closerange(3, 4096)
files = [open(f"{folder}/other-{n}", "w+b") for n in range(40)]
for thread in threads:
    thread.join(4)
    assert not thread.is_alive()
began = time.monotonic()
refused(lambda: enqueue("last"))
broker.close()
assert time.monotonic() - began < 3, "nobody holds a lock"
for file in files:
    os.fstat(file.fileno())
written = [file.name for file in files if file.read()]
assert len(written) <= 1, written  # SQLite may be amid its commit
"""


@pytest.mark.parametrize("after", [0.02, 0.05, 0.11])
def test_a_program_that_closes_all_while_its_threads_enqueue(path: Path, after: float) -> None:
    """Each is told; nobody waits, and nothing is closed that the program opened afterwards. Nor is anything written to,
    but by the one commit that was under way.
    """
    done = run(PROGRAM + ALL_AT_ONCE, path.parent, after)
    assert (done.returncode, done.stderr) == (0, "")
