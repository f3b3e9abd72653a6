"""Users of a Redis server that may do no more than the documented rules let them."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mouso import Mouso
from mouso.brokers.redis.rights import ROLES, rule
from mouso.errors import ConfigError
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
