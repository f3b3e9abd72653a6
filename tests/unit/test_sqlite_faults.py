"""What goes wrong with a SQLite file in use: each is one clear error, stores nothing, and work goes on afterwards."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mouso.brokers import Broker, connect
from mouso.brokers.base import Want
from mouso.brokers.sqlite import faults
from mouso.errors import BrokerUnavailable, ConfigError, MousoError, OutcomeUnknown
from mouso.job import Job, JobState, Lease, Outcome
from tests.stalls import elapsed
from tests.unit.nobody import as_nobody, visible_folder

PAYLOAD = b'"' + b"x" * 7000 + b'"'
NO_SPACE = "no space is left on its disk; nothing was stored, free some and try again"
Making = Callable[[Path], Broker]


@pytest.fixture
def make() -> Iterator[Making]:
    """Connects brokers, which are closed in the end."""
    made: list[Broker] = []

    def connected(path: Path) -> Broker:
        made.append(connect(f"sqlite:///{path}"))
        return made[-1]

    yield connected
    for broker in made:
        broker.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def broker(path: Path, make: Making) -> Broker:
    return make(path)


class Disk:
    """A file system of its own, of 1 MiB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)

    def fill(self) -> None:
        """Leaves no room at all."""
        with (self.folder / "ballast").open("wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError:
                pass


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here, which only root may: {mounted.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


def job(id_: str, payload: bytes = b"{}") -> Job:
    return Job(id=id_, task="t", payload=payload)


def stored(broker: Broker, id_: str) -> bool:
    """Whether there was room for another job."""
    try:
        (enqueued,) = broker.enqueue([job(id_, PAYLOAD)])
    except BrokerUnavailable:
        return False
    assert enqueued.created
    return True


def exists(broker: Broker, id_: str) -> bool:
    return broker.get([id_]) != [None]


def error_of(call: Callable[[], object], kind: type[MousoError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_intact(path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def done(lease: Lease) -> Outcome:
    return Outcome(
        key=lease.key, token=lease.token, id=lease.id, task=lease.task, queue=lease.queue, state=JobState.COMPLETED,
        result=PAYLOAD,
    )  # fmt: skip


# -- a full disk -----------------------------------------------------------------------------------------------------


def test_a_full_disk(disk: Disk, make: Making) -> None:
    path = disk.folder / "jobs.db"
    broker = make(path)
    ids = [f"j{number}" for number in range(200)]
    kept = [id_ for id_ in ids if stored(broker, id_)]
    assert 0 < len(kept) < len(ids)
    assert [id_ for id_ in ids if exists(broker, id_)] == kept
    assert error_of(lambda: broker.enqueue([job("last", PAYLOAD)]), BrokerUnavailable) == f"{path}: {NO_SPACE}"

    disk.remount("size=8m")
    for id_ in ids:  # the same calls again: none makes a second job
        assert broker.enqueue([job(id_, PAYLOAD)])[0].created is (id_ not in kept)
    assert [queue.counts for queue in broker.queues()] == [{JobState.AVAILABLE: len(ids)}]
    check_intact(path)


def test_outcomes_on_a_full_disk(disk: Disk, make: Making) -> None:
    broker = make(disk.folder / "jobs.db")
    broker.enqueue([job("a"), job("b")])
    leases = broker.exchange("w", (), Want(limit=2)).leases
    disk.fill()
    while stored(broker, "filler"):
        broker.delete(["filler"])
    message = error_of(
        lambda: broker.exchange("w", [done(lease) for lease in leases], Want(limit=5)), BrokerUnavailable
    )
    assert message.endswith(NO_SPACE)
    disk.remount("size=8m")
    exchange = broker.exchange("w", [done(lease) for lease in leases], Want(limit=5))
    assert (exchange.fenced, exchange.leases) == ([], [])
    assert [found.state for found in broker.get(["a", "b"]) if found] == [JobState.COMPLETED] * 2
    assert broker.exchange("w", [done(leases[0])], Want(limit=5)).fenced == [leases[0].key]


def test_the_log_does_not_take_the_first_room_there_is(disk: Disk, make: Making) -> None:
    """A store that was refused for want of room goes on with its checkpoints, or its log takes all of the disk."""
    disk.remount("size=12m")
    broker = make(disk.folder / "jobs.db")
    for number in range(300):
        broker.enqueue([job(f"a{number}")])
    disk.fill()
    refused = 0
    for number in range(3000):
        try:
            broker.enqueue([job(f"b{number}")])
        except BrokerUnavailable:
            refused += 1
            if refused == 20:
                break
    assert refused == 20
    (disk.folder / "ballast").unlink()
    for number in range(4000):
        broker.enqueue([job(f"c{number}")])


def test_a_batch_too_large_for_the_disk_leaves_nothing(disk: Disk, make: Making) -> None:
    """It outgrows SQLite's cache, so that the disk is full in the middle of a statement."""
    broker = make(disk.folder / "jobs.db")
    batch = [job(f"b{number}", b"x" * 8000) for number in range(1000)]
    assert error_of(lambda: broker.enqueue(batch), BrokerUnavailable).endswith(NO_SPACE)
    assert broker.queues() == []
    disk.remount("size=64m")
    assert all(enqueued.created for enqueued in broker.enqueue(batch))
    check_intact(disk.folder / "jobs.db")


@pytest.mark.parametrize("there", [False, True], ids=["new", "old"])
def test_a_store_is_opened_on_a_full_disk(disk: Disk, make: Making, there: bool) -> None:
    path = disk.folder / "jobs.db"
    if there:
        before = make(path)
        before.enqueue([job("a")])
        before.close()
    disk.fill()
    broker = make(path)
    started = time.monotonic()
    assert error_of(lambda: broker.enqueue([job("b")]), BrokerUnavailable) == f"{path}: {NO_SPACE}"
    assert elapsed(started) < 4.5
    (disk.folder / "ballast").unlink()
    assert stored(broker, "b")
    assert exists(broker, "a") is there


def test_no_inodes_are_left(disk: Disk, make: Making) -> None:
    broker = make(disk.folder / "jobs.db")
    disk.remount("nr_inodes=2")  # the root folder, and one more
    assert error_of(broker.queues, BrokerUnavailable).endswith(
        "no inodes are left on its disk; nothing was stored, delete some files and try again"
    )
    disk.remount("nr_inodes=100")
    assert broker.queues() == []


# -- limits of the process -------------------------------------------------------------------------------------------

_LIMITED = """
import json, os, resource, signal
from mouso.brokers import connect
from mouso.job import Job

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
broker = connect("sqlite:///jobs.db")
broker.open()
resource.setrlimit(resource.RLIMIT_FSIZE, (512 << 10, resource.RLIM_INFINITY))
kept, errors = [], {}
for number in range(200):
    id_ = f"j{number}"
    try:
        broker.enqueue([Job(id=id_, task="t", payload=b'"' + b"x" * (7000 if number % 3 else 100) + b'"')])
        kept.append(id_)
    except Exception as error:
        errors[id_] = f"{type(error).__name__} {error}"
print(json.dumps([kept, errors]), flush=True)
"""
_AND_DIES = "os.kill(os.getpid(), signal.SIGKILL)\n"
_AND_GOES_ON = """
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert [broker.enqueue([Job(id=id_, task="t")])[0].created for id_ in errors] == [True] * len(errors)
assert [broker.enqueue([Job(id=id_, task="t")])[0].created for id_ in kept] == [False] * len(kept)
broker.close()
"""


def run(code: str, folder: Path) -> str:
    """What code prints that is run in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("then", [_AND_GOES_ON, _AND_DIES], ids=["goes on", "dies"])
def test_the_file_size_limit(path: Path, make: Making, then: str) -> None:
    """A job whose commit failed is not there, not even after the process died and SQLite recovered the log."""
    kept, errors = json.loads(run(_LIMITED + then, path.parent))
    assert kept
    assert set(errors.values()) == {
        f"BrokerUnavailable {path}: it or its log has reached the file size limit of 524,288 bytes (ulimit -f); nothing"
        " was stored, raise the limit and try again"
    }
    broker = make(path)
    assert all(exists(broker, id_) for id_ in kept)
    assert {exists(broker, id_) for id_ in errors} == {then == _AND_GOES_ON}
    assert [sum(queue.counts.values()) for queue in broker.queues()] == [200 if then == _AND_GOES_ON else len(kept)]
    check_intact(path)


_WITHOUT_DESCRIPTORS = """
import os, resource
from mouso.brokers import connect
from mouso.job import Job

old, new = connect("sqlite:///jobs.db"), connect("sqlite:///jobs.db")
old.open()
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
for count in range(3):  # none left, one left, two left
    try:
        new.enqueue([Job(id="n", task="t")])
    except Exception as error:
        print(type(error).__name__, error)
    os.close(held.pop())
for _ in range(4):
    os.close(held.pop())
print(new.enqueue([Job(id="n", task="t")])[0].created)
new.close()
while len(held) < 50:
    try:
        held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        break
for number in range(400):  # more than a checkpoint's worth, which opens the file once more
    old.enqueue([Job(id=f"o{number}", task="t", payload=b"x" * 20_000)])
os.closerange(min(held), max(held) + 1)
print(sum(old.queues()[0].counts.values()))
old.close()
"""


def test_no_file_descriptors_are_left(path: Path) -> None:
    refusal = (
        f"BrokerUnavailable {path}: this process has no file descriptor left; nothing was stored, close some or raise"
        " the limit (ulimit -n)"
    )
    assert run(_WITHOUT_DESCRIPTORS, path.parent).splitlines() == [refusal] * 3 + ["True", "401"]


# -- what the codes of a failed commit mean --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_FULL, BrokerUnavailable),
        (sqlite3.SQLITE_BUSY, BrokerUnavailable),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, BrokerUnavailable),
        (sqlite3.SQLITE_IOERR_WRITE, BrokerUnavailable),
        (sqlite3.SQLITE_IOERR_FSYNC, OutcomeUnknown),
        (sqlite3.SQLITE_IOERR_SHMSIZE, OutcomeUnknown),
        (sqlite3.SQLITE_NOMEM, OutcomeUnknown),
    ],
)
def test_a_commit_that_failed(path: Path, code: int, kind: type[MousoError]) -> None:
    error = sqlite3.OperationalError("as SQLite says")
    error.sqlite_errorcode = code
    found = faults.commit_failed(error, str(path))
    assert type(found) is kind
    assert str(found).startswith(str(path))
    assert ("repeat the call with the same id" in str(found)) is (kind is OutcomeUnknown)
    assert ("nothing was stored" in str(found)) is (kind is BrokerUnavailable)


def test_a_savepoint_that_is_gone_hides_no_error(path: Path) -> None:
    """When SQLite rolls back by itself, the RELEASE that follows fails as well."""
    error: Any = sqlite3.OperationalError("no such savepoint: alone")
    error.sqlite_errorcode = sqlite3.SQLITE_ERROR
    error.__context__ = sqlite3.OperationalError("database or disk is full")
    error.__context__.sqlite_errorcode = sqlite3.SQLITE_FULL
    assert str(faults.translate(error, str(path))) == f"{path}: {NO_SPACE}"


# -- locks of other programs -----------------------------------------------------------------------------------------


@pytest.fixture
def other(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program's connection."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    yield connection
    connection.close()


def test_a_foreign_lock_beyond_the_deadline(broker: Broker, other: sqlite3.Connection, path: Path) -> None:
    broker.open()
    other.execute("BEGIN EXCLUSIVE")
    assert error_of(lambda: broker.enqueue([job("a")], timeout=0.1), BrokerUnavailable) == (
        f"{path} stayed locked by another transaction for 0.1 s; nothing was stored, try again"
    )
    assert error_of(lambda: broker.enqueue([job("a")], timeout=0.01), BrokerUnavailable) == (
        f"{path} is locked by another transaction, and the time to wait for it is over; nothing was stored, try again"
    )
    assert broker.queues() == []  # readers do not wait
    other.execute("ROLLBACK")
    assert broker.enqueue([job("a")], timeout=0.1)[0].created


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_file_that_is_locked_before_it_is_opened(
    broker: Broker, other: sqlite3.Connection, path: Path, mode: str
) -> None:
    other.execute("PRAGMA locking_mode = exclusive")
    other.execute(f"PRAGMA journal_mode = {mode}")
    other.execute("CREATE TABLE theirs (x)")
    other.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    message = error_of(lambda: broker.enqueue([job("a")], timeout=0.1), BrokerUnavailable)
    assert message == f"{path} is locked by another transaction; nothing was stored, try again"
    assert elapsed(started) < 4.5  # and not SQLite's own five seconds
    other.close()
    assert broker.enqueue([job("a")], timeout=1)[0].created


def test_a_long_reader_holds_up_no_enqueue(broker: Broker, other: sqlite3.Connection) -> None:
    """A checkpoint cannot pass a reader, such as a backup; it must not wait for it with the writer's lock in hand."""
    broker.open()
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM mouso_jobs").fetchone()
    longest = 0.0
    for number in range(300):
        started = time.monotonic()
        broker.enqueue([job(f"j{number}", b"x" * 30_000)])
        longest = max(longest, time.monotonic() - started)
    assert longest < 4.5


# -- the file goes away ----------------------------------------------------------------------------------------------

REPLACED = "{} was replaced by another file while it was open; nothing was stored, restart this program"
VERBS: list[Callable[[Broker], object]] = [
    lambda broker: broker.enqueue([job("late")]),
    lambda broker: broker.exchange("w", (), Want(limit=1)),
    lambda broker: broker.queues(),
    lambda broker: broker.get(["a"]),
    lambda broker: broker.watch({"a": None}, 0),
]


def refusals(broker: Broker) -> str:
    """What every verb says, at the first time and later."""
    (message,) = {error_of(lambda verb=verb: verb(broker), ConfigError) for verb in VERBS * 2}  # type: ignore[misc]  # why: mypy does not infer a lambda's default
    return message


@pytest.mark.parametrize("ends", [[""], ["", "-wal", "-shm"]], ids=["alone", "with its log"])
def test_the_file_is_deleted_while_it_is_open(broker: Broker, path: Path, ends: list[str]) -> None:
    broker.enqueue([job("a")])
    for end in ends:
        Path(f"{path}{end}").unlink()
    assert refusals(broker) == (
        f"{path} was deleted or moved while it was open; nothing was stored, put it back or restart this program"
    )
    assert not path.exists()
    broker.close()  # as a restart would
    assert broker.queues() == []
    assert stored(broker, "late")


def test_the_file_is_replaced_while_it_is_open(broker: Broker, path: Path, make: Making) -> None:
    broker.enqueue([job("a")])
    new_store(path.with_name("other.db"), make).replace(path)
    for end in ("-wal", "-shm"):
        Path(f"{path}{end}").unlink()
    assert refusals(broker) == REPLACED.format(path)
    newcomer = make(path)
    assert [exists(newcomer, id_) for id_ in ("a", "b", "late")] == [False, True, False]
    newcomer.enqueue([job("c")])
    broker.close()
    assert exists(broker, "c")
    check_intact(path)


_ENQUEUE = """
from mouso.brokers import connect
from mouso.job import Job
broker = connect("sqlite:///jobs.db")
try:
    print(broker.enqueue([Job(id="b", task="t")])[0].created)
except Exception as error:
    print(type(error).__name__, error)
broker.close()
"""


def test_the_log_of_a_deleted_file_stops_nobody_for_long(broker: Broker, path: Path) -> None:
    """A new file cannot be opened while somebody uses the log of the old one, who gives it up at the next call."""
    broker.enqueue([job("a")])
    path.unlink()
    assert run(_ENQUEUE, path.parent) == (
        f"BrokerUnavailable {path} is missing or empty, and its log (-wal) is in use: it was replaced or emptied; stop"
        " the programs that use it, and try again\n"
    )
    assert "was deleted or moved while it was open" in refusals(broker)
    assert run(_ENQUEUE, path.parent) == "True\n"
    check_intact(path)


def new_store(path: Path, make: Making) -> Path:
    """A store with one job, b."""
    broker = make(path)
    broker.enqueue([job("b")])
    broker.close()
    return path


def test_a_file_that_comes_back_is_used_again(broker: Broker, path: Path) -> None:
    broker.enqueue([job("a")])
    away = path.parent.rename(path.parent.with_name("away"))
    refusals(broker)
    away.rename(path.parent)
    assert exists(broker, "a")
    assert not exists(broker, "late")
    assert stored(broker, "b")


def test_a_late_outcome_settles_nothing_in_a_new_file(broker: Broker, path: Path, make: Making) -> None:
    """The first claim of the first job has the same number and token in every file."""
    broker.enqueue([job("a")])
    (old,) = broker.exchange("w1", (), Want(limit=1)).leases
    for end in ("", "-wal", "-shm"):
        Path(f"{path}{end}").unlink()
    newcomer = make(path)
    newcomer.enqueue([job("b")])
    (new,) = newcomer.exchange("w2", (), Want(limit=1)).leases
    assert (old.key, old.token) == (new.key, new.token)
    for _ in range(2):
        error_of(lambda: broker.exchange("w1", [done(old)], Want(limit=0)), ConfigError)
    assert [found.state for found in newcomer.get(["b"]) if found] == [JobState.RUNNING]


def test_a_folder_that_cannot_be_entered_for_a_while() -> None:
    with visible_folder() as folder:
        folder.chmod(0o777)
        code = """
from mouso.brokers import connect
from mouso.job import Job
os.mkdir("mine")
broker = connect("sqlite:///mine/jobs.db")
broker.enqueue([Job(id="a", task="t")])
os.chmod("mine", 0)
for verb in (lambda: broker.enqueue([Job(id="b", task="t")]), broker.queues):
    try: print("worked:", verb())
    except Exception as error: print(type(error).__name__, error)
os.chmod("mine", 0o755)
print(broker.enqueue([Job(id="b", task="t")])[0].created)
broker.close()
"""
        refusal = (
            f"BrokerUnavailable {folder / 'mine' / 'jobs.db'} cannot be reached: Permission denied; nothing was stored,"
            " try again"
        )
        assert as_nobody(code, folder).splitlines() == [refusal] * 2 + ["True"]


# -- a place that is mended ------------------------------------------------------------------------------------------


def test_permissions_that_are_mended() -> None:
    with visible_folder() as folder:
        folder.chmod(0o777)
        code = """
from mouso.brokers import connect
from mouso.job import Job
os.mkdir("mine")
broker = connect("sqlite:///mine/jobs.db")
def tried(id_):
    try: print(broker.enqueue([Job(id=id_, task="t")])[0].created)
    except Exception as error: print(type(error).__name__, error)
    broker.close()
os.chmod("mine", 0o555); tried("a"); os.chmod("mine", 0o755); tried("a")
os.chmod("mine/jobs.db", 0o444); tried("b"); os.chmod("mine/jobs.db", 0o644); tried("b")
"""
        mine = folder / "mine"
        assert as_nobody(code, folder).splitlines() == [
            f"ConfigError no permission to write into {mine}, which SQLite needs beside jobs.db",
            "True",
            f"ConfigError no permission to write {mine / 'jobs.db'}",
            "True",
        ]


def test_a_file_system_that_is_mounted_read_only(disk: Disk, make: Making) -> None:
    broker = make(disk.folder / "jobs.db")
    disk.remount("ro")
    assert error_of(broker.queues, ConfigError) == (
        f"{disk.folder / 'jobs.db'} lies on a file system that is mounted read-only; remount it for writing or choose"
        " another file"
    )
    disk.remount("rw")
    assert broker.queues() == []


@pytest.mark.parametrize(
    ("offset", "content"),
    [
        pytest.param(0, b"X", id="magic"),
        pytest.param(16, b"\0\3", id="page size"),
        pytest.param(18, b"\x63\x63", id="versions"),
        pytest.param(28, b"\0\0\0\1", id="page count"),
        pytest.param(44, b"\0\0\0\x63", id="schema format"),
        pytest.param(100, b"\xff" * 40, id="first page"),
    ],
)
def test_a_damaged_header(broker: Broker, path: Path, offset: int, content: bytes) -> None:
    broker.enqueue([job("a")])
    broker.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:offset] + content + whole[offset + len(content) :])
    for verb in (lambda: broker.enqueue([job("b")]), broker.queues):
        message = error_of(verb, ConfigError)
        assert message.startswith(f"{path} is no intact SQLite database (")
        assert message.endswith("); restore it or choose another file")
    path.write_bytes(whole)
    assert exists(broker, "a")
    assert stored(broker, "b")


def test_a_table_that_is_gone(broker: Broker, path: Path, other: sqlite3.Connection) -> None:
    broker.open()
    other.execute("DROP TABLE mouso_live")
    assert "is no intact SQLite database (no such table: " in error_of(lambda: broker.enqueue([job("a")]), ConfigError)
    assert os.path.exists(path)


SHORT_OF_MEMORY = """
import sqlite3, sys
from mouso.brokers import connect
from mouso.errors import BrokerUnavailable
from mouso.job import Job

broker = connect(f"sqlite:///{sys.argv[1]}")
broker.enqueue([Job(id="before", task="t")])
sqlite3.connect(":memory:").execute("PRAGMA hard_heap_limit = 5000000")  # of the whole process, never to be raised
try:
    broker.enqueue([Job(id="large", task="t", payload=bytes(20_000_000))])
except BrokerUnavailable as error:
    print(error)
broker.enqueue([Job(id="after", task="t")])
print([job is not None for job in broker.get(["before", "large", "after"])])
"""


def test_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    done = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY, path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{path}: this process has no memory left; nothing was stored, free some and try again",
        "[True, False, True]",
    ]
