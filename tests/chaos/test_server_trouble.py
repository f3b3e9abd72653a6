"""The server that holds the store is killed, frozen or gone: it is said once, no job is lost, and work resumes."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.brokers import STORES, own_server
from tests.chaos.arena import Arena, pass_time
from tests.chaos.test_store_trouble import OUTAGE, OVER, PATIENT, resumes
from tests.servers.server import Server
from tests.support import wait_until


class Served(NamedTuple):
    """An arena, and the server of its store."""

    arena: Arena
    server: Server


@pytest.fixture(params=STORES)
def served(request: pytest.FixtureRequest, tmp_path: Path, seed: int) -> Iterator[Served]:
    folder = tmp_path / "arena"
    folder.mkdir()
    with own_server(request.param, tmp_path) as server, closing(Arena(folder, seed, server.url)) as arena:
        yield Served(arena, server)


def test_killed_and_started_again(served: Served) -> None:
    """Three times, at any moment: what it has confirmed is there, and what it has not is done once."""
    arena, server = served
    arena.begin(mean=0.05, troubled=True)
    for _ in range(3):
        arena.going(arena.ended + 200)
        pass_time(arena.random.uniform(0, 0.2))
        server.kill()
        pass_time(arena.random.uniform(0.1, 2.0))
        server.start()
        resumes(arena)
    arena.finish()
    for worker in arena.pair:
        assert worker.log.count(OUTAGE) == worker.log.count(OVER) <= 3, "two lines, for one of more than a few seconds"


def test_frozen_for_less_than_a_lease(served: Served) -> None:
    """It takes connections and does not answer: no job is taken over, and none is stopped."""
    arena, server = served
    arena.begin(mean=0.05, troubled=True)
    arena.going(300)
    server.freeze()
    pass_time(8.0)
    server.thaw()
    resumes(arena)
    arena.finish()
    for worker in arena.pair:
        assert worker.log.count(OUTAGE) == worker.log.count(OVER) == 1


def test_gone_for_longer_than_a_lease(served: Served) -> None:
    """A worker that cannot renew stops its jobs before others may run them; all go on together afterwards."""
    arena, server = served
    arena.begin(PATIENT, mean=0.05, troubled=True)
    arena.load.accept([arena.jobs.patient.options(priority=50).delay() for _ in range(4)])
    arena.going(300)
    since = time.monotonic()
    server.kill()
    wait_until(lambda: len(arena.lines("stop")) >= 4, timeout=17, message="patients are told to stop")
    assert max(line.at for line in arena.lines("stop")) < since + 15, "before the lease has ended"
    pass_time(since + 17 - time.monotonic())
    server.start()
    supervisors = frozenset(worker.pid for worker in arena.pair)
    # Nobody can settle while it is gone: what ended meanwhile may run again.
    arena.fault("a server that is gone", at=since, until=time.monotonic() + 1, supervisors=supervisors, lease=True)
    (arena.folder / "jobs.db-flag").touch()
    resumes(arena)
    arena.finish()
