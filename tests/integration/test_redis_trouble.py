"""What a Redis server can do to the jobs in it, and what workers and producers do about it."""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mouso import Mouso
from mouso.brokers import connect
from mouso.brokers.base import Level, Retention
from mouso.brokers.redis.broker import RedisBroker
from mouso.errors import BrokerUnavailable, ConfigError, JobFailed, OutcomeUnknown
from mouso.job import Job, JobState, UniqueScope
from mouso.testing.clock import FakeClock
from mouso.urls import BrokerURL
from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import PAUSES, SOUND, still_sound
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer, TLSServer, cluster, watched
from tests.stalls import elapsed
from tests.support import wait_until

FAILS = """
@app.task(attempts=1)
def fails(go):
    while not os.path.exists(go):
        time.sleep(0.01)
    raise ValueError("as told")
"""
DOWN = "the broker does not answer"
UP = "the broker answers again"
BACK = 5.0
"""Seconds after the end of an outage within which work goes on."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis", appendfsync="always") as server:
        yield server


@pytest.fixture
def bench(tmp_path: Path, server: RedisServer) -> Iterator[Bench]:
    with closing(Bench(tmp_path, server.url)) as made:
        yield made


class Producer(threading.Thread):
    """Enqueues one job after the other, and knows which were accepted; one of unknown fate is enqueued again."""

    def __init__(self, enqueue: Callable[[str], object]) -> None:
        super().__init__()
        self.accepted: list[str] = []
        self._enqueue = enqueue
        self._enough = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._enough.is_set():
            id = f"j{number:06}"
            try:
                self._enqueue(id)
            except (BrokerUnavailable, OutcomeUnknown):
                continue
            self.accepted.append(id)
            number += 1
            time.sleep(0.001)

    @contextmanager
    def going(self) -> Iterator["Producer"]:
        self.start()
        try:
            yield self
        finally:
            self._enough.set()
            self.join()


def load(jobs: Any) -> Producer:
    return Producer(lambda id: jobs.pause.options(id=id).delay(0, 0.002))


def all_done(bench: Bench, ids: list[str]) -> None:
    """Every accepted job was run to its end, and the store is sound."""
    bench.wait_final([bench.producer.job(id) for id in ids], timeout=60)
    assert {record.state for record in bench.records(ids)} == {"completed"}
    ended = {line.job for line in bench.history("end")}
    assert set(ids) <= ended


def test_scripts_are_flushed_under_load(bench: Bench, server: RedisServer) -> None:
    jobs = bench.app(PAUSES)
    worker = bench.worker(processes=2)
    with load(jobs).going() as producer:
        for round_ in range(1, 11):
            wait_until(lambda n=round_: len(producer.accepted) > 50 * n)  # type: ignore[misc]  # why: binds the loop variable
            server.ask("SCRIPT", "FLUSH")
    all_done(bench, producer.accepted)
    assert DOWN not in worker.log


def test_the_server_is_killed_under_load(bench: Bench, server: RedisServer) -> None:
    jobs = bench.app(PAUSES)
    worker = bench.worker(processes=2)
    with load(jobs).going() as producer:
        for round_ in range(1, 6):
            wait_until(lambda n=round_: len(producer.accepted) > 100 * n, timeout=WAIT)  # type: ignore[misc]  # why: binds the loop variable
            server.kill()
            wait_until(lambda n=round_: worker.log.count(DOWN) >= n, timeout=WAIT)  # type: ignore[misc]  # why: binds the loop variable
            before = len(bench.history("start"))
            server.start()
            at = time.monotonic()
            wait_until(lambda n=before: len(bench.history("start")) > n, timeout=WAIT)  # type: ignore[misc]  # why: binds the loop variable
            # A job that the worker had already may have been the one that started.
            wait_until(lambda n=round_: worker.log.count(UP) >= n, timeout=WAIT)  # type: ignore[misc]  # why: binds the loop variable
            assert elapsed(at) < BACK
    all_done(bench, producer.accepted)
    assert worker.log.count(UP) == 5


def test_a_worker_stops_beside_a_server_that_does_not_answer(bench: Bench, server: RedisServer) -> None:
    """It gives up within its grace and three seconds, and blames the server, not itself."""
    bench.app(PAUSES)
    worker = bench.worker("--grace", "12")
    server.freeze()
    worker.send(signal.SIGTERM)
    began = time.monotonic()
    assert worker.wait(30) == 75
    assert elapsed(began) < 12 + 3 + 2
    server.thaw()
    assert "the broker did not answer at the end; this worker ends with exit code 75" in worker.log
    assert "does not move" not in worker.log


def test_the_server_follows_another_for_a_while(bench: Bench, server: RedisServer) -> None:
    """As after a failover of which nobody was told: it refuses what writes."""
    jobs = bench.app(PAUSES)
    worker = bench.worker(processes=2)
    with load(jobs).going() as producer:
        wait_until(lambda: len(producer.accepted) > 100)
        server.ask("REPLICAOF", "127.0.0.1", "1")
        wait_until(lambda: DOWN in worker.log, timeout=WAIT)
        server.ask("REPLICAOF", "NO", "ONE")
        before = len(producer.accepted)
        wait_until(lambda: len(producer.accepted) > before + 100, timeout=BACK)
    all_done(bench, producer.accepted)


def test_all_keys_are_deleted_under_a_worker(bench: Bench, server: RedisServer) -> None:
    jobs = bench.app(PAUSES + SOUND)
    worker = bench.worker()
    lost = jobs.pause.delay(0, 1.0)
    bench.wait_for("start")
    server.ask("FLUSHALL")
    still_sound(jobs)
    bench.wait_for("end")
    still_sound(jobs)
    assert jobs.app.broker.get([lost.id]) == [None]
    wait_until(lambda: [info.pid for info in jobs.app.workers()] == [worker.pid], timeout=WAIT)


def test_a_full_server_refuses_jobs_and_takes_what_has_ended(bench: Bench, server: RedisServer) -> None:
    jobs = bench.app(PAUSES)
    bench.worker(processes=2)
    handles = jobs.pause.map([(n, 0.5) for n in range(20)])
    bench.wait_for("start")
    server.ask("CONFIG", "SET", "maxmemory", "1mb")
    with pytest.raises(BrokerUnavailable, match=r"memory is full .* raise maxmemory"):
        jobs.pause.delay(0, 0.1)
    assert {record.state for record in bench.wait_final(handles)} == {"completed"}
    server.ask("CONFIG", "SET", "maxmemory", "0")
    assert bench.wait_final([jobs.pause.delay(0, 0.1)])


def test_a_server_that_evicts_is_refused(bench: Bench, server: RedisServer) -> None:
    bench.write(SOUND)
    server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    worker = bench.start("-p", "1")
    assert worker.wait() == 2
    assert "maxmemory-policy allkeys-lru" in worker.log
    assert "set maxmemory-policy noeviction, or add ?eviction=allow" in worker.log
    with Mouso("other", broker=f"{server.url}?eviction=allow") as app:
        assert app.jobs() == []


def test_a_server_without_an_append_only_file_is_warned_of(bench: Bench, server: RedisServer) -> None:
    bench.app(SOUND)
    server.ask("CONFIG", "SET", "appendonly", "no")
    assert "loses jobs that were accepted; set appendonly yes" in bench.worker().log


def test_keys_of_another_program(bench: Bench, server: RedisServer) -> None:
    bench.write(SOUND)
    server.ask("SET", "mouso:{default}:live", "mine")
    worker = bench.start("-p", "1")
    assert worker.wait() == 2
    assert "another program has put a string under the key mouso:{default}:live" in worker.log
    jobs = bench.app(SOUND)
    with pytest.raises(ConfigError, match="mouso doctor says under which"):
        jobs.sound.delay(1)


@pytest.mark.parametrize("key", ["live", "ready", "delayed", "waiting", "expiring", "periods", "queues", "counts"])
def test_a_key_of_another_program_under_a_producer(server: RedisServer, key: str) -> None:
    """A job that is refused leaves nothing."""
    server.ask("SET", f"mouso:{{default}}:{key}", "mine")
    later = Job(id="a", task="t", delay=3_600_000, ttl=7_200_000)
    held = Job(id="b", task="t", unique="u", unique_scope=UniqueScope.PERIOD, unique_period=60_000)
    with closing(connect(server.url)) as broker:
        with pytest.raises(ConfigError, match="mouso doctor says under which"):
            broker.enqueue([later, held])
        server.ask("DEL", f"mouso:{{default}}:{key}")
        left = {found.decode().rpartition(":")[2] for found in server.ask("KEYS", "*")}
        assert left <= {"meta", "queues"}
        assert [done.created for done in broker.enqueue([later, held])] == [True, True]


def told(server: RedisServer) -> list[Any]:
    """What there is of live jobs."""
    return [server.ask("HGETALL", f"mouso:{{default}}:{name}") for name in ("ids", "jobs", "live", "unique", "counts")]


@pytest.mark.parametrize("key", ["final", "finished", "ended", "parked", "queues", "periods"])
def test_a_key_of_another_program_when_a_unique_key_changes_hands(server: RedisServer, key: str) -> None:
    """A job that is refused takes no unique key from another that waits past its expiry."""
    clock = FakeClock()
    late = Job(id="a", task="t", unique="u", ttl=1000)
    new = Job(id="b", task="t", unique="u", unique_scope=UniqueScope.PERIOD, unique_period=60_000)
    with closing(RedisBroker(BrokerURL.parse(server.url), clock=clock)) as broker:
        broker.enqueue([late])
        clock.advance(2)
        before = told(server)
        server.ask("DEL", f"mouso:{{default}}:{key}")
        server.ask("SET", f"mouso:{{default}}:{key}", "mine")
        with pytest.raises(ConfigError, match="mouso doctor says under which"):
            broker.enqueue([new])
        assert told(server) == before
        server.ask("DEL", f"mouso:{{default}}:{key}")
        assert [done.created for done in broker.enqueue([new])] == [True]
        assert [job and job.state for job in broker.get(["a", "b"])] == [JobState.EXPIRED, JobState.AVAILABLE]


@pytest.mark.parametrize("key", ["errors", "dead", "kept", "runs"])
def test_a_key_of_another_program_under_a_worker(bench: Bench, server: RedisServer, key: str) -> None:
    """A failed job is not settled half."""
    jobs = bench.app(FAILS)
    worker = bench.worker()
    go = bench.folder / "go"
    handle = jobs.fails.options(keep_result="1h").delay(str(go))
    wait_until(lambda: handle.state == "running", timeout=WAIT)
    server.ask("SET", f"mouso:{{default}}:{key}", "mine")
    go.touch()
    wait_until(lambda: DOWN in worker.log, timeout=WAIT)
    assert "another program has put something else" in worker.log
    assert server.ask("HLEN", "mouso:{default}:live") == 1
    server.ask("DEL", f"mouso:{{default}}:{key}")
    with pytest.raises(JobFailed, match="as told"):
        handle.get(timeout=WAIT)
    assert [error.message for error in handle.errors] == ["as told"]
    wait_until(lambda: UP in worker.log, timeout=WAIT)
    findings = bench.producer.broker.diagnose(retention=Retention(), full=True).findings
    assert [finding.what for finding in findings if finding.check == "consistency"] == [
        "jobs, states and queues fit together"
    ]


def test_what_another_program_broke_is_found(bench: Bench, server: RedisServer) -> None:
    jobs = bench.app(PAUSES)
    bench.worker()
    ended = jobs.pause.delay(0, 0)
    ended.get(timeout=WAIT)
    running = jobs.pause.delay(1, 4)
    wait_until(lambda: running.state == "running", timeout=WAIT)
    [claimed] = server.ask("KEYS", "mouso:{default}:claimed:*")
    server.ask("DEL", claimed)
    server.ask("DEL", "mouso:{default}:finished")
    found = bench.producer.broker.diagnose(retention=Retention(), full=True).findings
    assert [finding.what for finding in found if finding.level is Level.ERROR] == [
        "ended jobs that would be kept for ever: 1",
        "running jobs that their worker does not hold: 1",
    ]


def test_a_password_is_never_shown(bench: Bench, server: RedisServer) -> None:
    server.ask("CONFIG", "SET", "requirepass", "geheim")
    url = server.url.replace("redis://", "redis://:falsch@")
    with Mouso("other", broker=url) as app, pytest.raises(ConfigError) as caught:
        app.jobs()
    assert "falsch" not in f"{caught.value} {app!r} {app.broker!r} {app.broker.url}"
    bench.broker_url = server.url.replace("redis://", "redis://:geheim@")
    jobs = bench.app(SOUND)
    worker = bench.worker()
    still_sound(jobs)
    assert "geheim" not in worker.log


def test_over_tls(tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    with TLSServer(tmp_path / "tls") as server, closing(Bench(tmp_path, server.url)) as bench:
        jobs = bench.app(SOUND)
        bench.worker()
        still_sound(jobs)
        untrusted = server.url.partition("?")[0]
        with (
            Mouso("other", broker=untrusted) as app,
            pytest.raises(ConfigError, match="self-signed certificate; name"),
        ):
            app.jobs()
        with Mouso("other", broker=f"{untrusted}?ssl_cert_reqs=none") as app:
            assert app.jobs()
        for parameter, file in ("ssl_ca_certs", "none"), ("ssl_certfile", "none"), ("ssl_certfile", server.certificate):
            with pytest.raises(ConfigError, match=f"{parameter} of the broker URL: .*{file}"):
                connect(f"{untrusted}?{parameter}={file}")
        broker = connect(untrusted.replace("rediss", "redis"))
        with closing(broker), pytest.raises(BrokerUnavailable, match="write rediss:// instead"):
            broker.enqueue([Job(id="a", task="t")], timeout=0.5)
        name = server.url.replace("localhost", "127.0.0.1")
        with Mouso("other", broker=name) as app, pytest.raises(ConfigError, match="IP address mismatch"):
            app.jobs()


def test_a_call_that_a_signal_s_handler_ends(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its question and the answer, which is not the next call's."""
    with Proxy(server.port) as proxy, closing(connect(server.url.replace(str(server.port), str(proxy.port)))) as broker:
        assert isinstance(broker, RedisBroker)
        broker.enqueue([Job(id="a", task="t"), Job(id="b", task="t")])
        proxy.delay = 0.1
        connection = broker._link._connection
        send = connection.send_packed_command

        def interrupted(*words: Any, **options: Any) -> None:
            send(*words, **options)
            raise KeyboardInterrupt

        monkeypatch.setattr(connection, "send_packed_command", interrupted)
        with pytest.raises(KeyboardInterrupt):
            broker.get(["a"])
        monkeypatch.undo()
        [found] = broker.get(["b"])
        assert found is not None
        assert found.id == "b"


@pytest.mark.parametrize("said", [b"HTTP/1.0 503 Unavailable\r\n\r\n", b"+OK\r\n", b"$-1\r\n", b":1\r\n", b"*0\r\n"])
def test_what_answers_is_no_redis(said: bytes) -> None:
    """As a load balancer before a server that is away."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    with listener.accept()[0] as client:
                        client.sendall(said * 10)

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        broker = connect(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        with closing(broker), pytest.raises(BrokerUnavailable, match="cannot be used now"):
            broker.enqueue([Job(id="a", task="t")], timeout=0.5)
        listener.shutdown(socket.SHUT_RDWR)
    answering.join(WAIT)


def test_a_worker_holds_two_connections(bench: Bench, server: RedisServer) -> None:
    jobs = bench.app(PAUSES)
    before = len(server.ask("CLIENT", "LIST").splitlines())
    jobs.app.close()
    bench.worker(processes=8, concurrency=8)
    jobs.pause.map([(n, 0.05) for n in range(200)])
    bench.wait_for("end", count=200)
    jobs.app.close()
    assert len(server.ask("CLIENT", "LIST").splitlines()) - before <= 2


def calls(server: RedisServer) -> int:
    """How many scripts the server has run."""
    stats = server.ask("INFO", "commandstats")
    return sum(int(values["calls"]) for name, values in stats.items() if name.startswith("cmdstat_eval"))


def test_an_idle_worker_asks_twice_a_second_at_most(bench: Bench, server: RedisServer) -> None:
    bench.app(SOUND)
    bench.worker()
    bench.producer.close()
    before, at = calls(server), time.monotonic()
    wait_until(lambda: time.monotonic() - at > 10, timeout=20)
    # What comes at regular times may come once more than these fit into the seconds.
    assert calls(server) - before <= 2 * (time.monotonic() - at) + 2


# -- several servers


def test_a_killed_master_loses_nothing_that_its_replica_has(tmp_path: Path) -> None:
    (tmp_path / "servers").mkdir()
    with watched(tmp_path / "servers") as servers, closing(Bench(tmp_path, f"{servers.url}?wait=1")) as bench:
        jobs = bench.app(PAUSES)
        worker = bench.worker(processes=2)
        with load(jobs).going() as producer:
            wait_until(lambda: len(producer.accepted) > 200, timeout=WAIT)
            first = servers.master()
            first.kill()
            at = time.monotonic()
            wait_until(lambda: servers.master() is not first, timeout=WAIT)
            first.start()  # as a replica, to which the Sentinels make it
            before = len(producer.accepted)
            wait_until(lambda: len(producer.accepted) > before + 100, timeout=40)
            assert elapsed(at) < 40
        all_done(bench, producer.accepted)
        # A short failover is over before any call's time is.
        outages = DOWN, UP
        wait_until(lambda: len({worker.log.count(words) for words in outages}) == 1, timeout=WAIT)


def test_a_node_of_a_cluster_that_is_alone(tmp_path: Path) -> None:
    """It takes connections and does nothing; the URL names others."""
    (tmp_path / "servers").mkdir()
    with cluster(tmp_path / "servers") as servers, closing(Bench(tmp_path, servers.url)) as bench:
        alone = RedisServer(tmp_path / "alone", cluster_enabled="yes")
        (tmp_path / "alone").mkdir()
        with alone:
            _, _, others = servers.url.partition("://")
            with closing(connect(f"redis+cluster://127.0.0.1:{alone.port},{others}")) as broker:
                broker.enqueue([Job(id="a", task="t")])
                assert broker.get(["a"])[0] is not None
        jobs = bench.app(SOUND)
        bench.worker()
        still_sound(jobs)


def test_a_slot_moves_under_load(tmp_path: Path) -> None:
    (tmp_path / "servers").mkdir()
    with cluster(tmp_path / "servers") as servers, closing(Bench(tmp_path, servers.url)) as bench:
        jobs = bench.app(PAUSES)
        worker = bench.worker(processes=2)
        slot = servers.nodes[0].ask("CLUSTER", "KEYSLOT", "mouso:{default}:jobs")
        with load(jobs).going() as producer:
            for round_ in range(1, 4):
                wait_until(lambda n=round_: len(producer.accepted) > 100 * n, timeout=WAIT)  # type: ignore[misc]  # why: binds the loop variable
                there = servers.nodes.index(servers.holder(slot))
                servers.move(slot, servers.nodes[(there + 1) % 3])
        all_done(bench, producer.accepted)
        assert worker.alive
