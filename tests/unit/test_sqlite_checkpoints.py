"""When the log is moved into the file: only while nobody else can write, and so that it does not grow."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mouso.brokers import connect
from mouso.brokers.base import JobFilter
from mouso.brokers.sqlite import checkpoints as module
from mouso.brokers.sqlite.broker import SQLiteBroker
from mouso.job import Job, new_id


def connect_to(path: Path) -> SQLiteBroker:
    made = connect(f"sqlite:///{path}?synchronous=normal")
    assert isinstance(made, SQLiteBroker)
    return made


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SQLiteBroker]:
    made = connect_to(tmp_path / "jobs.db")
    yield made
    made.close()


def fill(broker: SQLiteBroker, size: int) -> None:
    """Stores so many bytes of payload, 10,000 at a time."""
    for _ in range(size // 10_000):
        broker.enqueue([Job(id=new_id(), task="t", payload=b"x" * 10_000)])


def checkpoint(broker: SQLiteBroker) -> bool:
    """Whether all of the log was moved, and it was begun anew."""
    store = broker._store
    assert store._writer is not None
    return store._checkpoints.make(store._writer)


def log_size(broker: SQLiteBroker) -> int:
    return Path(f"{broker._store.path}-wal").stat().st_size


def test_nothing_is_moved_while_another_program_may_write(broker: SQLiteBroker) -> None:
    """SQLite's own RESTART goes on without the writer's lock, which is how a log gets corrupt."""
    store = broker._store
    fill(broker, 100_000)
    before = Path(store.path).stat().st_mtime_ns
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert checkpoint(broker) is False
        assert Path(store.path).stat().st_mtime_ns == before
        other.execute("ROLLBACK")
        assert checkpoint(broker) is True
    assert Path(store.path).stat().st_mtime_ns > before


def test_a_reader_is_not_waited_for(broker: SQLiteBroker) -> None:
    store = broker._store
    fill(broker, 100_000)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM mouso_jobs").fetchone()
        fill(broker, 100_000)
        assert checkpoint(broker) is False
        fill(broker, 100_000)
    assert checkpoint(broker) is True


def test_a_log_that_was_moved_is_begun_anew(broker: SQLiteBroker) -> None:
    store = broker._store
    fill(broker, 1_000_000)
    size, number = store._checkpoints.log()
    assert checkpoint(broker) is True
    again, other = store._checkpoints.log()
    assert (again, other != number) == (size, True)
    fill(broker, 500_000)
    assert store._checkpoints.log()[0] == size, "what is written next overwrites what was moved"


def test_a_log_that_grew_behind_a_reader_is_cut(broker: SQLiteBroker) -> None:
    store = broker._store
    broker.open()
    with closing(sqlite3.connect(store.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM mouso_jobs").fetchone()
        fill(broker, 2 * module.MOST_LOG_KEPT)
        assert log_size(broker) > 2 * module.MOST_LOG_KEPT
    fill(broker, 2 * module.CHECKPOINT_BYTES)
    assert log_size(broker) <= module.MOST_LOG_KEPT + 2 * module.CHECKPOINT_BYTES


def test_many_writers_keep_the_log_short(broker: SQLiteBroker) -> None:
    others = [connect_to(Path(broker._store.path)) for _ in range(3)]
    threads = [threading.Thread(target=fill, args=(one, 8_000_000)) for one in (broker, *others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log_size(broker) <= module.MOST_LOG_KEPT
    assert len(broker.find(JobFilter(limit=10_000))) == 4 * 800
    for one in others:
        one.close()
    with closing(sqlite3.connect(broker._store.path)) as check:
        assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_file_that_was_just_moved_away_is_not_made_anew(tmp_path: Path) -> None:
    """Or who finds an empty file in its place would take that for another store."""
    path = tmp_path / "jobs.db"
    broker = connect_to(path)
    broker.enqueue([Job(id="a", task="t")])
    path.rename(tmp_path / "away.db")
    assert not checkpoint(broker)
    assert not path.exists()
    (tmp_path / "away.db").rename(path)
    assert [job is not None for job in broker.get(["a"])] == [True]
    broker.close()
