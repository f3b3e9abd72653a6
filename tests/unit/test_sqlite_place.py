"""Where the SQLite file lies: every place that cannot work is refused at once, in one line that says what to do."""

import gc
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from mouso.brokers import Broker, connect
from mouso.brokers.sqlite import ground, schema
from mouso.brokers.sqlite.broker import SQLiteBroker
from mouso.errors import BrokerUnavailable, ConfigError, SchemaError
from mouso.job import Job
from tests.unit.nobody import as_nobody, visible_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "jobs.db"


@pytest.fixture
def broker(path: Path) -> Iterator[Broker]:
    broker = connect(f"sqlite:///{path}")
    yield broker
    broker.close()


def refused(broker: Broker) -> str:
    """The message of the refusal, the same from every verb."""
    messages = set()
    for verb in (broker.open, broker.migrate, lambda: broker.enqueue([Job(id="a", task="t")]), broker.queues):
        with pytest.raises(ConfigError) as caught:
            verb()
        messages.add(str(caught.value))
    (message,) = messages
    assert "\n" not in message
    return message


# -- places ----------------------------------------------------------------------------------------------------------


def test_a_missing_folder_is_not_created(folder: Path) -> None:
    broker = connect(f"sqlite:///{folder / 'no' / 'jobs.db'}")
    assert f"the folder {folder / 'no'} does not exist; create it" in refused(broker)
    assert list(folder.iterdir()) == []


def test_a_folder_in_place_of_the_file(path: Path, broker: Broker) -> None:
    path.mkdir()
    assert "is a folder; name a file" in refused(broker)


def test_a_file_in_place_of_the_folder(folder: Path) -> None:
    (folder / "file").touch()
    assert "does not exist" in refused(connect(f"sqlite:///{folder / 'file' / 'jobs.db'}"))


@pytest.mark.parametrize(
    "content", [b"This is no database, but some text.\n" * 100, b"\x89PNG\r\n\x1a\n" + bytes(4096)]
)
def test_a_file_that_is_no_database(path: Path, broker: Broker, content: bytes) -> None:
    path.write_bytes(content)
    assert "is no intact SQLite database" in refused(broker)
    assert path.read_bytes() == content


def test_a_database_that_was_cut_off(path: Path) -> None:
    whole = connect(f"sqlite:///{path}")
    whole.open()
    whole.close()
    path.write_bytes(path.read_bytes()[:5000])
    broker = connect(f"sqlite:///{path}")
    with pytest.raises(ConfigError, match="is no intact SQLite database"):
        broker.queues()
    broker.close()


def test_an_empty_file_becomes_a_store(path: Path, broker: Broker) -> None:
    path.touch()
    broker.open()
    assert broker.queues() == []


def test_a_link_to_a_file(folder: Path, path: Path, broker: Broker) -> None:
    (folder / "real").mkdir()
    path.symlink_to(folder / "real" / "jobs.db")
    broker.enqueue([Job(id="a", task="t")])
    other = connect(f"sqlite:///{folder / 'real' / 'jobs.db'}")
    assert [job.id for job in other.get(["a"]) if job] == ["a"]
    other.close()


NETWORK = [
    "nfs",
    "nfs4",
    "cifs",
    "ceph",
    "davfs",
    "gpfs",
    "orangefs",
    "fuse.sshfs",
    "fuse.s3fs",
    "fuse.rclone",
    "fuse.new",
]
MOUNTS = """\
21 1 254:0 / / rw,relatime - ext4 /dev/root rw
30 21 0:40 / {folder}/dav rw - fuse http://files.example.org:8080/jobs rw,user_id=0
31 21 0:41 / {folder}/host rw - fuse files.example.org:/jobs rw,user_id=0
32 21 0:42 / {folder}/bound\\040here rw - fuse /home rw,user_id=0
33 21 0:43 / {folder}/ssh rw - fuse.sshfs ada@files:/jobs rw,user_id=0
"""
"""As Linux lists them; some in user space say nothing of their kind."""
KINDS = {"dav": "fuse.http", "host": "fuse.remote", "bound here": "fuse", "ssh": "fuse.sshfs", "x": "ext4"}


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_of_a_mount(tmp_path: Path, name: str) -> None:
    folder = tmp_path.resolve()
    (folder / "mounts").write_text(MOUNTS.format(folder=folder))
    kind = ground.file_system(folder / name / "deeper", folder / "mounts")
    assert (kind, ground.is_network(kind)) == (KINDS[name], name in ("dav", "host", "ssh"))


LOCAL = [
    "",
    "ext4",
    "fuseblk",
    "9p",
    "virtiofs",
    "fuse.fuse-overlayfs",
    "fuse.mergerfs",
    "fuse.gocryptfs",
    "fuse.grpcfuse",
]


@pytest.mark.parametrize("kind", LOCAL)
def test_a_local_file_system_in_user_space(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, path: Path, kind: str
) -> None:
    monkeypatch.setattr(ground, "file_system", lambda folder: kind)
    broker.open()
    assert path.exists()


def test_a_folder_of_the_system() -> None:
    with pytest.raises(ConfigError, match=r"^no files can be made in /proc \(proc\), which is the system's; choose an"):
        connect("sqlite:////proc/jobs.db").open()


@pytest.mark.parametrize("kind", NETWORK)
def test_a_network_file_system(broker: Broker, monkeypatch: pytest.MonkeyPatch, path: Path, kind: str) -> None:
    monkeypatch.setattr(ground, "file_system", lambda folder: kind)
    assert f"lies on a network file system ({kind})" in refused(broker)
    assert not path.exists()


def test_memory_cannot_be_shared() -> None:
    with pytest.raises(ConfigError, match="cannot be shared between processes"):
        connect("sqlite:///:memory:")


def test_odd_characters_in_the_path(folder: Path) -> None:
    odd = folder / "a b?c#d%20'ä\"; drop"
    odd.mkdir()
    broker = connect(f"sqlite:///{str(odd / 'x.db').replace('%', '%25').replace('?', '%3F')}")
    broker.enqueue([Job(id="a", task="t")])
    broker.close()
    assert sorted(file.name for file in odd.iterdir() if file.is_file())[0] == "x.db"


# -- schemas ---------------------------------------------------------------------------------------------------------


def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    made = connect(f"sqlite:///{path}")
    made.enqueue([Job(id="a", task="t")])
    made.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE mouso_meta SET value = 99 WHERE key = 'version'")
    connection.close()
    broker = connect(f"sqlite:///{path}")
    for verb in (broker.open, broker.migrate, broker.workers):
        with pytest.raises(SchemaError, match=f"has schema version 99, this Mouso knows up to {schema.VERSION}"):
            verb()
    broker.close()


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            "CREATE TABLE mouso_jobs (x)",
            "has a table mouso_jobs that is not Mouso's, which needs the name; choose another",
        ),
        ("CREATE TABLE Mouso_Workers (x)", "has a table Mouso_Workers that is not Mouso's"),
        ("CREATE VIEW mouso_live AS SELECT 1", "has a view mouso_live that is not Mouso's"),
        (
            "CREATE TABLE orders (x); CREATE INDEX mouso_live_due ON orders (x)",
            "has an index mouso_live_due that is not",
        ),
        ("CREATE TABLE mouso_meta (a)", "has a table mouso_meta that tells no version, so it is not Mouso's"),
        ("CREATE TABLE mouso_meta (key, value)", "has a table mouso_meta that tells no version, so it is not Mouso's"),
        (
            "CREATE TABLE mouso_meta (key, value); INSERT INTO mouso_meta VALUES ('version', 'x')",
            "has a table mouso_meta that tells no version, so it is not Mouso's; choose another file",
        ),
    ],
)
def test_a_table_of_another_program_in_the_place_of_mousos_is_named(path: Path, made: str, words: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(made)
        before = connection.execute("SELECT name FROM sqlite_schema").fetchall()
    connection.close()
    broker = connect(f"sqlite:///{path}")
    for verb in (broker.open, broker.migrate, broker.queues):
        with pytest.raises(SchemaError, match=words):
            verb()
    broker.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == before
    connection.close()


def test_a_database_of_another_program_keeps_its_tables(path: Path, broker: Broker) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
        connection.execute("INSERT INTO orders VALUES (7)")
    connection.close()
    assert broker.migrate() == (0, schema.VERSION)
    assert broker.migrate() == (schema.VERSION, schema.VERSION)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT id FROM orders").fetchall() == [(7,)]
    connection.close()


def test_many_migrate_at_once_and_one_wins(path: Path) -> None:
    brokers = [connect(f"sqlite:///{path}") for _ in range(8)]
    barrier = threading.Barrier(len(brokers))
    found: list[object] = []

    def migrate(broker: Broker) -> None:
        barrier.wait()
        try:
            found.append(broker.migrate())
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=migrate, args=(broker,)) for broker in brokers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=str) == [(0, schema.VERSION)] + [(schema.VERSION, schema.VERSION)] * 7
    for broker in brokers:
        broker.close()


# -- rights ----------------------------------------------------------------------------------------------------------

_TRY = """
import time
from mouso.brokers import connect
from mouso.job import Job
start = time.monotonic()
broker = connect("sqlite:///jobs.db")
for verb in (lambda: broker.enqueue([Job(id="b", task="t")], timeout=1.0), broker.queues):
    try: print("worked:", verb())
    except Exception as error: print(type(error).__name__, error)
print("slow" if time.monotonic() - start > 4 else "fast")
"""


def tried(folder: Path) -> list[str]:
    """What an ordinary user is told by an enqueue and a listing; both must answer soon."""
    *lines, pace = as_nobody(_TRY, folder).splitlines()
    assert pace == "fast"
    assert all("database is locked" not in line for line in lines)
    return lines


def test_a_folder_without_write_permission() -> None:
    with visible_folder() as folder:
        folder.chmod(0o555)
        for line in tried(folder):
            assert line == f"ConfigError no permission to write into {folder}, which SQLite needs beside jobs.db"


def test_a_file_without_write_permission() -> None:
    with visible_folder() as folder:
        make_store(folder)
        (folder / "jobs.db").chmod(0o444)
        folder.chmod(0o777)
        for line in tried(folder):
            assert line == f"ConfigError no permission to write {folder / 'jobs.db'}"


@pytest.mark.skipif(os.geteuid() != 0, reason="the files must belong to somebody else, which only root can arrange")
def test_a_log_without_write_permission() -> None:
    """The file itself may be written, but its -wal and -shm belong to a process of another user."""
    with visible_folder() as folder:
        folder.chmod(0o777)
        holder = make_store(folder, keep_open=True)
        try:
            for file in folder.iterdir():
                file.chmod(0o666 if file.name == "jobs.db" else 0o644)
            assert {file.name for file in folder.iterdir()} >= {"jobs.db", "jobs.db-wal", "jobs.db-shm"}
            enqueued, listed = tried(folder)
        finally:
            holder.close()
    assert enqueued.startswith(f"ConfigError {folder / 'jobs.db'} cannot be opened for writing")
    assert "check the permissions of file and folder" in enqueued
    assert listed.startswith("worked: ")  # SQLite lets a reader look into a log that it may not write


def make_store(folder: Path, *, keep_open: bool = False) -> Broker:
    broker = connect(f"sqlite:///{folder / 'jobs.db'}")
    broker.enqueue([Job(id="a", task="t")])
    if not keep_open:
        broker.close()
    return broker


# -- a busy file -----------------------------------------------------------------------------------------------------


def test_a_file_that_another_program_keeps_locked(path: Path, broker: Broker) -> None:
    broker.open()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BrokerUnavailable, match=r"stayed locked by another transaction for 0\.1 s; nothing was stored"):
        broker.enqueue([Job(id="a", task="t")], timeout=0.1)
    other.execute("ROLLBACK")
    other.close()
    assert broker.enqueue([Job(id="a", task="t")], timeout=0.1)[0].created


# -- a broker that nobody closes


class Owner:
    """Holds a broker, and itself, so that the collector is needed."""

    def __init__(self, broker: SQLiteBroker) -> None:
        self.broker = broker
        self.itself = broker.__dict__["owner"] = self


def test_a_broker_that_is_collected_closes_its_connections_in_silence(path: Path) -> None:
    """Python 3.13 warns of those that its collector comes upon before their store, as of those that were in use when
    it ran before."""

    def opened() -> SQLiteBroker:
        broker = connect(f"sqlite:///{path}")
        broker.open()
        return cast(SQLiteBroker, broker)

    def used(owner: Owner) -> None:
        connections = owner.broker._store._writer, owner.broker._store._reader
        gc.collect()
        assert all(connections)

    used(Owner(opened()))
    gc.collect()  # a warning is an error
    assert not [leads for leads in open_files() if leads.startswith(str(path))]


def open_files() -> list[str]:
    """What this process has open."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found
