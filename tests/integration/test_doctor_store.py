"""``mouso doctor`` on stores that are missing, in use, locked, damaged, closed, full, or somebody else's."""

import hashlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mouso.brokers import Broker, connect
from mouso.brokers.base import Finding, Level, Retention
from mouso.brokers.sqlite import diagnosis, ground, looking, place, schema
from mouso.errors import BrokerUnavailable, ConfigError
from mouso.job import Job
from tests.support import wait_until
from tests.unit.nobody import as_nobody, visible_folder

HARMLESS = {"engine", "place", "disk"}
"""What depends on the machine that runs the test."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def broker(path: Path) -> Broker:
    quoted = str(path).replace("%", "%25").replace("?", "%3F")
    return connect(f"sqlite:///{quoted}")


def fill(path: Path, count: int = 3) -> None:
    """Stores jobs and closes the store."""
    with closing(broker(path)) as made:
        made.enqueue([Job(id=f"j{n}", task="t", payload=b"x" * 100) for n in range(count)])


def diagnose(path: Path, *, full: bool = False, retention: Retention | None = None) -> list[Finding]:
    """The findings, and a check that jobs can be read if the view says so."""
    with closing(broker(path)) as asked:
        found = asked.diagnose(retention=retention or Retention(), full=full)
        if found.view is not None:
            with closing(found.view) as view:
                view.queues()
                view.workers()
        return found.findings


def worst(findings: list[Finding]) -> list[str]:
    """Warnings and errors that do not depend on the machine, as ``level check: what; remedy``."""
    shown = [f for f in findings if f.level in (Level.WARNING, Level.ERROR) and f.check not in HARMLESS]
    return [f"{f.level} {f.check}: {f.what}; {f.remedy}" for f in shown]


def files(path: Path) -> dict[str, tuple[str, int, int]]:
    """Content, length and time of change of all that lies in the folder."""
    return {
        file.name: (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size, file.stat().st_mtime_ns)
        for file in path.parent.iterdir()
        if file.is_file()
    }


@contextmanager
def program(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another program, which says ``ready`` and then waits for the end of its stdin."""
    source = "import sqlite3, sys\n" + textwrap.dedent(code) + "\nprint('ready', flush=True)\nsys.stdin.read()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


# -- nothing is changed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
def test_a_store_that_nobody_uses_is_left_as_it_is(path: Path, full: bool) -> None:
    fill(path)
    before = files(path)
    assert worst(diagnose(path, full=full)) == []
    assert files(path) == before
    assert list(before) == ["jobs.db"]


@pytest.mark.parametrize("index", [False, True])
def test_a_log_that_was_left_behind_is_read_and_not_moved(path: Path, index: bool) -> None:
    """After a crash the log holds what the file does not; who opens such a store in the usual way moves it."""
    with closing(broker(path)) as crashed:
        crashed.enqueue([Job(id="a", task="t")])
        copy = path.parent / "copy"
        copy.mkdir()
        for end in ("", "-wal", "-shm") if index else ("", "-wal"):
            shutil.copy(f"{path}{end}", copy / f"jobs.db{end}")
    before = files(copy / "jobs.db")
    with closing(broker(copy / "jobs.db")) as asked:
        found = asked.diagnose(retention=Retention(), full=True)
        assert worst(found.findings) == []
        assert found.view is not None
        assert [job.id for job in found.view.get(["a"]) if job] == ["a"]
        found.view.close()
    after = files(copy / "jobs.db")
    for found_files in (before, after):
        found_files.pop("jobs.db-shm", None)  # an index of the log, which every reader makes, or notes itself in
    assert after == before


def test_a_store_in_use_is_left_as_it_is(path: Path) -> None:
    with closing(broker(path)) as user:
        user.enqueue([Job(id=f"j{n}", task="t") for n in range(100)])
        before = files(path)
        assert worst(diagnose(path, full=True)) == []
        after = files(path)
        user.enqueue([Job(id="next", task="t")])
    before.pop("jobs.db-shm"), after.pop("jobs.db-shm")  # every reader notes itself there
    assert after == before


def test_the_view_is_for_looking_only(path: Path) -> None:
    fill(path)
    view = broker(path).diagnose(retention=Retention()).view
    assert view is not None
    with closing(view):
        for verb in (lambda: view.enqueue([Job(id="x", task="t")]), view.migrate, lambda: view.pause("q")):
            with pytest.raises(ConfigError, match="was opened to be looked at"):
                verb()
        assert len(view.get(["j0", "x"])) == 2


def test_a_copy_that_nobody_may_write(path: Path) -> None:
    with visible_folder() as folder:
        with closing(broker(path)) as source:
            source.enqueue([Job(id="a", task="t")])
            for end in ("", "-wal"):
                shutil.copy(f"{path}{end}", folder / f"jobs.db{end}")
        for file in folder.iterdir():
            file.chmod(0o444)
        folder.chmod(0o555)
        before = files(folder / "jobs.db")
        code = """
            from mouso.brokers import connect
            from mouso.brokers.base import Retention
            import mouso.brokers.sqlite.diagnosis
            found = connect("sqlite:///jobs.db").diagnose(retention=Retention(), full=True)
            for finding in found.findings:
                if finding.level == "error":
                    print(finding.check, finding.what)
            print([job.id for job in found.view.get(["a"])])
        """
        *errors, jobs = as_nobody(
            "import mouso.brokers.sqlite.diagnosis\n" + textwrap.dedent(code), folder
        ).splitlines()
        assert jobs == "['a']"
        assert len(errors) == 3
        assert all(line.startswith("permissions this user (") and "may not write" in line for line in errors)
        assert files(folder / "jobs.db") == before


# -- no store, or none of ours ---------------------------------------------------------------------------------------


def test_a_missing_store_is_not_created(path: Path) -> None:
    assert worst(diagnose(path)) == [
        f"warning file: {path} does not exist; start a worker or enqueue a job, which creates it; if jobs should be"
        " there, check the broker's URL"
    ]
    assert list(path.parent.iterdir()) == []


def test_a_missing_folder(path: Path) -> None:
    assert worst(diagnose(path / "no" / "jobs.db")) == [
        f"error file: the folder {path / 'no'} does not exist; create it, or name another file in the broker's URL"
    ]


@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "link"])
def test_what_is_no_file(path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("nowhere")
    else:
        monkeypatch.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    (line,) = worst(diagnose(path))
    assert line.startswith(f"error file: {path} is ")


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"This is no database, but some text.\n" * 100)
    (line,) = worst(diagnose(path))
    assert line.startswith(f"error integrity: {path} is no intact SQLite database (file is not a database); stop the")


def test_an_empty_file(path: Path) -> None:
    path.touch()
    findings = diagnose(path)
    assert worst(findings) == []
    assert [f.what for f in findings if f.check == "schema"] == [f"{path} is empty"]
    assert path.stat().st_size == 0


def test_a_database_of_something_else(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (x)")
    (line,) = worst(diagnose(path))
    assert "is a database of something else: it has 1 tables" in line
    assert path.read_bytes()[18:20] == b"\x01\x01"  # not switched to a log


def test_a_schema_of_a_newer_mouso(path: Path) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE mouso_meta SET value = 99")
    (line,) = worst(diagnose(path))
    assert f"has schema version 99, this Mouso knows up to {schema.VERSION}; upgrade Mouso here" in line


def test_a_schema_of_an_older_mouso(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    findings = diagnose(path)
    assert worst(findings) == []
    (found,) = [f for f in findings if f.check == "schema"]
    assert (found.level, found.remedy) == (Level.INFO, "stop the older workers first, then run mouso migrate")


def test_a_store_without_its_version(path: Path) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM mouso_meta")
    (line,) = worst(diagnose(path))
    assert "does not tell the version of its schema" in line


def test_a_table_of_another_program_where_the_version_would_be(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE mouso_meta (a)")
    (line,) = worst(diagnose(path))
    assert "does not tell the version of its schema" in line


# -- damage ----------------------------------------------------------------------------------------------------------


def test_pages_that_were_overwritten(path: Path) -> None:
    fill(path, 500)
    content = bytearray(path.read_bytes())
    size = len(content)
    content[size // 2 : size // 2 + 8192] = b"\xff" * 8192
    path.write_bytes(content)
    lines = worst(diagnose(path, full=True))
    assert any(line.startswith("error integrity: ") and "restore a backup" in line for line in lines), lines
    assert path.read_bytes() == content


def test_a_file_that_was_cut_off(path: Path) -> None:
    fill(path, 500)
    path.write_bytes(path.read_bytes()[:9000])
    assert any(line.startswith("error integrity: ") for line in worst(diagnose(path)))


def test_a_large_file_is_looked_at_for_a_while(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(broker(path)) as made:
        for batch in range(30):
            made.enqueue([Job(id=f"{batch}-{n}", task="t", payload=b"x" * 500) for n in range(1000)])
    monkeypatch.setattr(diagnosis, "QUICK", 0.001)
    (found,) = [f for f in diagnose(path) if f.check == "integrity"]
    assert (found.level, found.remedy) == (Level.INFO, "look at all of it with --full")
    (found,) = [f for f in diagnose(path, full=True) if f.check == "integrity"]
    assert (found.level, found.what) == (Level.OK, "every page and row is intact")


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("DELETE FROM mouso_live WHERE seq = 1", "jobs in no state: 1"),
        ("DELETE FROM mouso_jobs WHERE seq = 1", "states of no job: 1"),
        ("UPDATE mouso_live SET state = 'bogus' WHERE seq = 1", "jobs in a state that Mouso does not know: 1"),
        ("UPDATE mouso_live SET state = 'running' WHERE seq = 1", "running jobs of no worker: 1"),
        ("INSERT INTO mouso_tallies VALUES ('q', 'dead', 7)", "wrong counts of finished jobs: 1"),
        (
            "INSERT INTO mouso_history (seq, state, queue, finished_at, claims, attempts, crashes, releases)"
            " VALUES (1, 'dead', 'default', 0, 0, 0, 0, 0)",
            "jobs that are live and final at once: 1",
        ),
    ],
)
def test_rows_that_do_not_fit_together(path: Path, statement: str, text: str) -> None:
    fill(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)
    lines = worst(diagnose(path, full=True, retention=Retention(dead=10**15)))
    assert f"error consistency: {text}; find the program that writes to Mouso's tables" in lines[0]


# -- in use by others ------------------------------------------------------------------------------------------------

LOCK = """
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
"""
EXCLUSIVE = """
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA locking_mode = exclusive")
connection.execute("BEGIN IMMEDIATE")
connection.execute("CREATE TABLE mine (x)")
connection.execute("COMMIT")
"""
READ = """
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM mouso_jobs").fetchone()
"""


def test_a_program_that_does_not_let_go_of_the_writers_lock(path: Path) -> None:
    fill(path)
    with program(LOCK, path) as other:
        (line,) = worst(diagnose(path))
        assert line.startswith(f"warning lock: process {other.pid} (python")
        assert "holds the writer's lock and has not let go of it for 0.5 s; look at what it does" in line
    assert worst(diagnose(path)) == []


def test_a_program_that_is_stopped_while_it_has_the_writers_lock(path: Path) -> None:
    """It keeps the lock, nobody can write, and doctor names it; when it goes on, so does everybody."""
    fill(path)
    with program(LOCK, path) as other, closing(broker(path)) as user:
        other.send_signal(signal.SIGSTOP)
        wait_until(lambda: looking.stopped(other.pid), message="it is stopped")
        with pytest.raises(BrokerUnavailable, match="stayed locked by another transaction"):
            user.enqueue([Job(id="a", task="t")])
        (line,) = worst(diagnose(path))
        assert f"process {other.pid} (python" in line
        assert "it is stopped (SIGSTOP, Ctrl-Z, a debugger)" in line
        assert f"kill -CONT {other.pid}" in line
        other.kill()
        other.wait()
        user.enqueue([Job(id="a", task="t")])
    assert worst(diagnose(path)) == []


def test_a_program_that_has_the_file_for_itself(path: Path) -> None:
    fill(path)
    with program(EXCLUSIVE, path) as other:
        (line,) = worst(diagnose(path))
        assert line.startswith(f"error lock: {path} is locked by process {other.pid} (python")


def test_a_reader_that_keeps_the_log_growing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    monkeypatch.setattr(diagnosis, "_LONG_LOG", 10_000)
    with closing(broker(path)) as user, program(READ, path) as other:
        user.enqueue([Job(id="a", task="t", payload=b"x" * 20_000)])
        (line,) = worst(diagnose(path))
        assert line.startswith(f"warning log: the log {path}-wal has grown to ")
        assert f"it is read by process {other.pid} (python" in line


def test_looking_while_others_write_harms_nobody(path: Path, tmp_path: Path) -> None:
    """Locks are done without only while nobody has it open; who begins to use it meanwhile is noticed."""
    write = """
        import itertools
        from mouso.brokers import connect
        from mouso.job import Job
        print("ready", flush=True)
        for n in itertools.count():
            broker = connect(f"sqlite:///{sys.argv[1]}")
            for k in range(20):
                broker.enqueue([Job(id=f"w{n}-{k}-{i}", task="t", payload=b"x" * 2000) for i in range(10)])
            broker.close()
            with open(sys.argv[2], "ab") as count:
                count.write(bytes(200))
    """
    fill(path)
    count = tmp_path / "count"
    count.touch()
    with program(write, path, count) as writer:
        started = time.monotonic()
        looked = 0
        while time.monotonic() < started + 5 or looked < 5 or count.stat().st_size <= 100:
            looked += 1
            assert [line for line in worst(diagnose(path)) if not line.startswith("warning lock")] == []
        assert writer.poll() is None, "the writer failed"
    with closing(broker(path)) as after:
        jobs = sum(sum(queue.counts.values()) for queue in after.queues())
    assert worst(diagnose(path, full=True)) == []
    assert jobs % 10 == 3
    assert jobs > 100


# -- upkeep ----------------------------------------------------------------------------------------------------------


def test_upkeep_that_nobody_does(path: Path) -> None:
    with closing(broker(path)) as made:
        made.enqueue([Job(id="e", task="t", ttl=1), Job(id="d", task="t", delay=1)])
        made.enqueue([Job(id=f"o{n}", task="t") for n in range(3)])
        made.cancel(["o0", "o1", "o2"])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE mouso_live SET due = due - 60000, expires_at = expires_at - 60000")
        connection.execute("UPDATE mouso_history SET finished_at = finished_at - 3600000 * 3")
    assert worst(diagnose(path)) == [
        f"warning upkeep: {text}; start a worker, which does that in passing; if one is there, look at its log"
        for text in (
            "jobs past their expiry that are not marked as expired: 1",
            "jobs that are due and not made available: 1",
        )
    ]
    late = worst(diagnose(path, retention=Retention(finished=1)))
    assert any("jobs kept for hours beyond their retention, of the 5,000 eldest: 3" in line for line in late)


# -- its place -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "level", "text"),
    [
        ("nfs4", Level.ERROR, "lies on a network file system (nfs4), where SQLite loses data"),
        ("tmpfs", Level.WARNING, "lies in memory (tmpfs)"),
        ("overlay", Level.WARNING, "lies in the container's own layer (overlay)"),
        ("9p", Level.WARNING, "lies in a folder that is shared with another machine (9p)"),
        ("ext4", Level.OK, "a local file system (ext4)"),
        ("", Level.OK, "a file system of unknown type"),
    ],
)
def test_file_systems(path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, level: Level, text: str) -> None:
    monkeypatch.setattr(ground, "file_system", lambda folder: kind)
    (found,) = [f for f in diagnose(path) if f.check == "place"]
    assert found.level is level
    assert text in found.what


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="this machine has no file system in memory")
def test_a_real_file_system_in_memory() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="mouso-test-") as folder:
        (found,) = [f for f in diagnose(Path(folder) / "jobs.db") if f.check == "place"]
    assert "every job is gone when this machine restarts" in found.what


@pytest.mark.parametrize(
    ("free", "inodes", "levels"),
    [
        (20 << 20, 5000, [Level.ERROR]),
        (200 << 20, 5000, [Level.WARNING]),
        (4 << 30, 5000, [Level.WARNING]),
        (50 << 30, 5000, [Level.OK]),
        (50 << 30, 7, [Level.OK, Level.WARNING]),
        (50 << 30, 0, [Level.OK, Level.ERROR]),
    ],
)
def test_disks(path: Path, monkeypatch: pytest.MonkeyPatch, free: int, inodes: int, levels: list[Level]) -> None:
    real = os.statvfs

    def statvfs(name: str) -> os.statvfs_result:
        values = list(real(name))
        values[:8] = [4096, 4096, (100 << 30) // 4096, free // 4096, free // 4096, 10_000, inodes, inodes]
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert [f.level for f in diagnose(path) if f.check == "disk"] == levels


def test_a_file_with_two_names(path: Path) -> None:
    fill(path)
    os.link(path, path.parent / "other.db")
    (line,) = worst(diagnose(path))
    assert line.startswith(f"warning file: {path} has 2 names (hard links)")


def test_a_link_is_followed(path: Path) -> None:
    """Log and index lie beside the real file; what is in the log is seen, and the file is known to be in use."""
    real = path.parent / "real" / "jobs.db"
    real.parent.mkdir()
    path.symlink_to(real)
    with closing(broker(path)) as user:
        user.enqueue([Job(id="a", task="t")])
        before = files(real)
        findings = diagnose(path, full=True)
        assert worst(findings) == []
        assert [(f.level, f.what) for f in findings if f.check == "file"][1:] == [
            (Level.INFO, f"{path} is reached by a link, and lies at {real}")
        ]
        view = broker(path).diagnose(retention=Retention()).view
        assert view is not None
        with closing(view):
            assert [job.id for job in view.get(["a"]) if job] == ["a"]
        after = files(real)
    before.pop("jobs.db-shm"), after.pop("jobs.db-shm")  # every reader notes itself there
    assert after == before
    assert sorted(os.listdir(path.parent)) == ["jobs.db", "real"]


def test_odd_characters_in_the_path(path: Path) -> None:
    odd = path.parent / "a b?c#d%20'ä\"; drop" / "jobs.db"
    odd.parent.mkdir()
    fill(odd)
    before = files(odd)
    assert worst(diagnose(odd, full=True)) == []
    assert files(odd) == before


def test_a_file_that_was_changed_in_the_future(path: Path) -> None:
    fill(path)
    later = path.stat().st_mtime + 3600
    os.utime(path, (later, later))
    (line,) = worst(diagnose(path))
    assert line.startswith(f"warning clock: {path} was changed 3,")


def test_a_file_that_everybody_may_write(path: Path) -> None:
    fill(path)
    path.chmod(0o666)
    (line,) = worst(diagnose(path))
    assert f"everybody on this machine may write {path}" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_several_owners(path: Path) -> None:
    with closing(broker(path)) as user:
        user.enqueue([Job(id="a", task="t")])
        os.chown(f"{path}-wal", 1234, -1)
        lines = worst(diagnose(path))
        assert f"warning permissions: {path}-wal belongs to uid 1234, and {path} to root, uid 0" in lines[0]
    os.chown(path, 1234, -1)
    (found,) = [f for f in diagnose(path) if f.check == "permissions"]
    assert (found.level, found.what) == (Level.INFO, f"{path} belongs to uid 1234, and this user is root, uid 0")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look as somebody else")
def test_bells_of_somebody_else() -> None:
    with visible_folder() as folder:
        fill(folder / "jobs.db")
        (folder / "jobs.db-bells").mkdir(mode=0o700)
        code = """
            from mouso.brokers.sqlite.place import examine_place
            for finding in examine_place(str(__import__("os").path.abspath("jobs.db"))):
                print(finding.check, finding.level, finding.what)
        """
        lines = as_nobody(textwrap.dedent(code), folder).splitlines()
        assert any(line.startswith("permissions warning ") and "starts up to 1 s late" in line for line in lines)


def test_bells_that_are_no_folder(path: Path) -> None:
    fill(path)
    Path(f"{path}-bells").touch()
    (line,) = worst(diagnose(path))
    assert "is no folder, so processes cannot wake each other" in line


def test_limits_of_this_process(path: Path) -> None:
    fill(path)
    code = """
        import resource
        from mouso.brokers.sqlite.place import examine_place
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
        for finding in examine_place(sys.argv[1]):
            if finding.check == "limits":
                print(finding.level, finding.what)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        print([finding.level.value for finding in examine_place(sys.argv[1]) if finding.check == "limits"])
    """
    source = "import sys\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", source, path], capture_output=True, text=True, check=True)
    size, descriptors, smaller = done.stdout.splitlines()
    assert size.startswith("warning a file may have 64.0 MiB here (ulimit -f), and the store has files of up to ")
    assert descriptors == "warning a process may have 50 open files here (ulimit -n)"
    assert smaller == "['error', 'warning']"


# -- the engine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "level", "text"),
    [
        ((3, 36, 0), Level.ERROR, "is too old; use a Python that is built with 3.37 or newer"),
        ((3, 40, 1), Level.WARNING, "has the WAL-reset bug (sqlite.org/wal.html, 11.1); Mouso's guarded checkpoints"),
        ((3, 51, 2), Level.WARNING, "has the WAL-reset bug"),
        ((3, 50, 7), Level.OK, ""),
        ((3, 51, 3), Level.OK, ""),
    ],
)
def test_engines(
    path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], level: Level, text: str
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    (found,) = [f for f in diagnose(path) if f.check == "engine"]
    assert found.level is level
    assert text in f"{found.what}; {found.remedy}"


def test_sizes_for_reading() -> None:
    assert [place.size(n) for n in (0, 1023, 1024, 5 << 20, 3 << 30, 1 << 41)] == [
        "0 bytes",
        "1023 bytes",
        "1.0 KiB",
        "5.0 MiB",
        "3.0 GiB",
        "2.0 TiB",
    ]
