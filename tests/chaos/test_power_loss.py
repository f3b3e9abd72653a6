"""What a power cut leaves: the store is copied at arbitrary moments, between two writes, and with writes torn.

A process that is stopped by SIGSTOP stands between two system calls, so a copy of its files holds all that it has
written until then and nothing more. A power cut may lose what was not synced, sector by sector; what was acknowledged
must be there.
"""

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.chaos.arena import pass_time
from tests.integration.harness import ROOT
from tests.support import wait_until

COPIES = 40
SECTOR = 512
CHECKPOINTS = 200_000
WRITER = """
    import os, random, sys
    from mouso.brokers import connect
    from mouso.brokers.base import Want
    from mouso.brokers.sqlite import checkpoints
    from mouso.job import Job, JobState, Outcome, new_id

    broker, outcomes = connect(sys.argv[1]), []
    acknowledged = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
    checkpoints.CHECKPOINT_BYTES = int(sys.argv[3])
    while True:
        payload, count = os.urandom(random.randrange(900)), random.choice((1, 1, 9))
        jobs = [Job(id=new_id(), task="t", payload=payload) for _ in range(count)]
        broker.enqueue(jobs)
        os.write(acknowledged, "".join(f"{job.id} available\\n" for job in jobs).encode())
        leases = broker.exchange("w", outcomes, Want(limit=4)).leases
        os.write(acknowledged, "".join(f"{outcome.id} completed\\n" for outcome in outcomes).encode())
        outcomes = [Outcome(l.key, l.token, l.id, l.task, l.queue, JobState.COMPLETED, result=b"1") for l in leases]
"""


class Writer:
    """A process that commits without end and notes what was acknowledged, in a file that is no store."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "jobs.db"
        self.acknowledged = folder / "acknowledged"
        self.acknowledged.touch()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, again and again on the same store."""
        arguments = [f"sqlite:///{self.store}", str(self.acknowledged), str(CHECKPOINTS)]
        command = [sys.executable, "-c", textwrap.dedent(WRITER), *arguments]
        before = self.acknowledged.stat().st_size
        self._process = subprocess.Popen(command, cwd=ROOT)
        wait_until(lambda: self.acknowledged.stat().st_size > before, message="it writes")

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGSTOP:
            stat = Path(f"/proc/{self._process.pid}/stat")
            wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", interval=0.0005)

    def kill(self) -> None:
        """Kills it."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        assert self._process.wait() == -signal.SIGKILL

    def promises(self) -> dict[str, str]:
        """The last state that was acknowledged of each job."""
        lines = self.acknowledged.read_text().splitlines()
        return dict(line.split() for line in lines if line.endswith(("available", "completed")))


@contextmanager
def writing(folder: Path) -> Iterator[Writer]:
    """A writer at work."""
    writer = Writer(folder)
    writer.start()
    try:
        yield writer
    finally:
        writer.kill()


def copy(store: Path, to: Path, *, index: bool) -> None:
    """Copies the store's files; what was there is forgotten."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    for end in ("", "-wal", *(["-shm"] if index else [])):
        shutil.copy(f"{store}{end}", to / f"jobs.db{end}")


def check(store: Path, promises: dict[str, str]) -> None:
    """The store is sound, and each job is at least as far as it was promised."""
    with closing(sqlite3.connect(store)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        states = dict(
            connection.execute(
                "SELECT id, coalesce(h.state, l.state) FROM mouso_jobs LEFT JOIN mouso_live l USING (seq)"
                " LEFT JOIN mouso_history h USING (seq) WHERE id <> ''"
            ).fetchall()
        )
        counted = connection.execute("SELECT state, count(*) FROM mouso_history GROUP BY state").fetchall()
        tallies = connection.execute("SELECT state, n FROM mouso_tallies WHERE n <> 0").fetchall()
    assert set(states.values()) <= {"available", "running", "completed"}, "a job without a state"
    assert promises.keys() <= states.keys(), f"{len(promises.keys() - states.keys())} acknowledged jobs are lost"
    forgotten = [id_ for id_, state in promises.items() if state == "completed" and states[id_] != "completed"]
    assert not forgotten, f"{len(forgotten)} acknowledged ends are lost"
    assert tallies == counted


def test_copied_between_two_writes(tmp_path: Path, seed: int) -> None:
    moments = random.Random(seed)
    with writing(tmp_path) as writer:
        for number in range(COPIES):
            pass_time(moments.uniform(0, 0.1))
            promises = writer.promises()
            writer.signal(signal.SIGSTOP)
            copy(writer.store, tmp_path / "copy", index=number % 2 == 0)
            writer.signal(signal.SIGCONT)
            check(tmp_path / "copy" / "jobs.db", promises)
    assert len(promises) > 100


def test_torn_sector_by_sector(tmp_path: Path, seed: int) -> None:
    """Of what was written to the log since an acknowledgement any sector may be missing."""
    moments = random.Random(seed)
    torn = 0
    with writing(tmp_path) as writer:
        for number in range(10 * COPIES):
            if number >= COPIES and torn > COPIES // 4:
                break
            pass_time(moments.uniform(0, 0.1))
            writer.signal(signal.SIGSTOP)
            promises = writer.promises()
            copy(writer.store, tmp_path / "before", index=False)
            writer.signal(signal.SIGCONT)
            pass_time(moments.uniform(0, 0.01))
            writer.signal(signal.SIGSTOP)
            copy(writer.store, tmp_path / "after", index=False)
            writer.signal(signal.SIGCONT)
            log = tmp_path / "before" / "jobs.db-wal"
            old, new = log.read_bytes(), (tmp_path / "after" / "jobs.db-wal").read_bytes()
            same = (tmp_path / "before" / "jobs.db").read_bytes() == (tmp_path / "after" / "jobs.db").read_bytes()
            if same and old[:32] == new[:32] and old != new:  # it was written to, and no checkpoint came in between
                torn += 1
                log.write_bytes(tear(old, new, moments))
                check(tmp_path / "before" / "jobs.db", promises)
    assert torn > COPIES // 4


def tear(before: bytes, after: bytes, choice: random.Random) -> bytes:
    """The later file with some of its new sectors missing, as a disk may leave it."""
    parts = []
    for start in range(0, len(after), SECTOR):
        old, new = before[start : start + SECTOR], after[start : start + SECTOR]
        parts.append(new if choice.random() < 0.7 else old.ljust(len(new), b"\0"))
    return b"".join(parts)


def test_killed_while_it_commits(tmp_path: Path, seed: int) -> None:
    moments = random.Random(seed)
    writer = Writer(tmp_path)
    for _ in range(COPIES // 2):
        writer.start()
        pass_time(moments.uniform(0, 0.1))
        writer.kill()
        check(writer.store, writer.promises())
    assert len(writer.promises()) > 100
