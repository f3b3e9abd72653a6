"""Users of a Redis server that may do no more than the documented rules let them."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mouso import Mouso
from mouso.brokers.redis.rights import ROLES, rule
from mouso.errors import ConfigError, OutcomeUnknown
from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import SOUND, still_sound
from tests.servers.redis import RedisServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as server:
        for role in ROLES:
            server.ask("ACL", "SETUSER", role, "on", f">{role}-secret", *rule(role).split(" "))
        yield server


def sound(n: int) -> int:
    return n


def nothing() -> None: ...


def url(server: RedisServer, role: str) -> str:
    return server.url.replace("redis://", f"redis://{role}:{role}-secret@")


def test_each_role_can_do_its_work(tmp_path: Path, server: RedisServer) -> None:
    with closing(Bench(tmp_path, url(server, "worker"))) as bench:
        jobs = bench.app(SOUND)
        worker = bench.worker()
        still_sound(jobs)
        with Mouso("jobs", broker=url(server, "producer")) as producer:
            task = producer.task(name="jobs.sound")(sound)
            handle = task.delay(3)
            assert handle.get(timeout=WAIT) == jobs.sound(3)
            assert handle.runs()[0].end == "completed"
            assert task.options(delay="1h").delay(4).cancel() == "cancelled"
        with Mouso("jobs", broker=url(server, "dashboard")) as looks:
            assert [info.pid for info in looks.workers()] == [worker.pid]
            assert [queue.name for queue in looks.queues()] == ["default"]
            assert looks.jobs(state="cancelled")[0].task == "jobs.sound"
            levels = {finding.level for finding in looks.broker.diagnose(retention=looks.retention, full=True).findings}
            assert "error" not in levels
        with Mouso("jobs", broker=url(server, "operator")) as operator:
            operator.pause("default")
            operator.resume("default")
            assert operator.broker.delete([handle.id]) == ["deleted"]
        refused = [entry for entry in server.ask("ACL", "LOG") if entry["object"] != "client|setinfo"]
        assert refused == []


def test_others_cannot(server: RedisServer) -> None:
    with Mouso("jobs", broker=url(server, "dashboard")) as looks:
        task = looks.task(name="x")(nothing)
        with pytest.raises(ConfigError, match=r"refuses: .*permission"):
            task.delay()
        with pytest.raises(ConfigError, match=r"refuses: .*permission"):
            looks.pause("default")
    with Mouso("jobs", broker=f"{url(server, 'producer')}?namespace=other") as other, pytest.raises(ConfigError):
        other.task(name="x")(nothing).delay()


@pytest.mark.parametrize("taken", ["-publish", "-zadd", "-hincrby", "-hset", "resetchannels"])
def test_nothing_is_done_half(server: RedisServer, taken: str) -> None:
    """A server does not undo what a script did before it was refused something."""
    server.ask("ACL", "SETUSER", "producer", taken)
    with Mouso("jobs", broker=url(server, "producer")) as producer:
        task = producer.task(name="x")(nothing)
        for _ in range(2):
            with pytest.raises(ConfigError, match=r"refuses: this user has no permission for [A-Z]+ mouso:"):
                task.options(id="1").delay()
        assert server.ask("KEYS", "*") == []
        server.ask("ACL", "SETUSER", "producer", *rule("producer").split(" "))
        task.options(id="1").delay()
    with Mouso("jobs", broker=server.url) as app:
        [queue] = app.queues()
        assert queue.counts == {"available": 1}


def test_rights_withdrawn_from_a_producer(server: RedisServer) -> None:
    with Mouso("jobs", broker=url(server, "producer")) as producer:
        task = producer.task(name="x")(nothing)
        task.options(id="1").delay()
        server.ask("ACL", "SETUSER", "producer", "-zadd")
        for _ in range(2):
            with pytest.raises(ConfigError, match="no permission"):
                task.options(id="2").delay()
        server.ask("ACL", "SETUSER", "producer", "+zadd")
        assert task.options(id="2").delay().state == "available"


def test_rights_withdrawn_from_an_operator(server: RedisServer) -> None:
    """What a script has done is not undone, and nobody is told that it was not done."""
    with Mouso("jobs", broker=url(server, "operator")) as operator:
        operator.pause("default")
        server.ask("ACL", "SETUSER", "operator", "-hset")
        with pytest.raises(OutcomeUnknown, match="has not done all of it"):
            operator.pause("other")
        with pytest.raises(ConfigError, match="no permission for HSET"):
            operator.pause("other")


@pytest.mark.parametrize("taken", ["-zrem", "-srem", "-subscribe"])
def test_a_worker_that_may_not_do_its_work_does_not_start(tmp_path: Path, server: RedisServer, taken: str) -> None:
    server.ask("ACL", "SETUSER", "worker", taken)
    with closing(Bench(tmp_path, url(server, "worker"))) as bench:
        bench.app(SOUND)
        worker = bench.start("-p", "1")
        assert worker.wait() == 2
        assert "no permission" in worker.log
