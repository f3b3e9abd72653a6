"""What a RabbitMQ server can do to the bell, and that jobs run all the same."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from secrets import token_hex

import pika
import pytest

from mouso.brokers import connect
from mouso.brokers.base import Finding, Level, Retention
from mouso.errors import ConfigError
from mouso.urls import BrokerURL
from tests.brokers import own_server
from tests.integration.harness import Bench
from tests.integration.snippets import PAUSES, SOUND
from tests.integration.test_redis_trouble import all_done, load
from tests.servers.rabbitmq import RabbitServer
from tests.servers.server import Server, self_signed
from tests.stalls import elapsed
from tests.support import free_port, wait_until

DOWN, UP = "does not answer (", "answers again after"
QUICK = 1.0
"""Seconds that an enqueue may take on a slow machine: it does not wait for RabbitMQ."""


pytestmark = pytest.mark.xdist_group("a RabbitMQ of their own")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """One for all, as it takes its time to start."""
    with RabbitServer(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture
def url(server: RabbitServer) -> Iterator[str]:
    with server.store(token_hex(4)) as url:
        yield url


@pytest.fixture
def bench(tmp_path: Path, url: str) -> Iterator[Bench]:
    with closing(Bench(tmp_path, url)) as made:
        yield made


def test_the_server_is_gone_and_comes_back(tmp_path: Path) -> None:
    """Jobs run without it, found by looking; the log has a line when it goes and one when it is back."""
    with own_server("rabbitmq", tmp_path) as server, closing(Bench(tmp_path, server.url)) as bench:
        goes_and_comes(bench, server)


def goes_and_comes(bench: Bench, server: Server) -> None:
    jobs = bench.app(PAUSES)
    worker = bench.worker()
    with load(jobs).going() as producer:
        wait_until(lambda: len(bench.history("end")) > 50)
        server.kill()
        wait_until(lambda: DOWN in worker.log)
        count = len(bench.history("end"))
        wait_until(lambda: len(bench.history("end")) > count + 50)
        server.start()
        wait_until(lambda: UP in worker.log)
        count = len(bench.history("end"))
        wait_until(lambda: len(bench.history("end")) > count + 50)
    all_done(bench, producer.accepted)
    assert worker.log.count(DOWN) == worker.log.count(UP)
    assert "Traceback" not in worker.log
    assert "pika" not in worker.log


def test_a_server_that_was_never_there(tmp_path: Path) -> None:
    """An enqueue does not wait for it, the tenth as little as the first."""
    url = f"amqp://127.0.0.1:1/?store=sqlite:///{tmp_path}/jobs.db"
    with closing(Bench(tmp_path, url)) as bench:
        jobs = bench.app(SOUND)
        bench.worker()
        times, handles = [], []
        for number in range(10):
            began = time.monotonic()
            handles.append(jobs.sound.delay(number))
            times.append(time.monotonic() - began)
        assert max(times) < QUICK
        assert [handle.get(timeout=20) for handle in handles] == list(range(10))


def test_a_server_short_of_memory_holds_up_nobody(bench: Bench, server: RabbitServer) -> None:
    """It takes nothing from those who publish: rings are lost, jobs and enqueues are not."""
    jobs = bench.app(SOUND)
    worker = bench.worker()
    assert jobs.sound.delay(3).get(timeout=20) == 3
    server.control("set_vm_memory_high_watermark", "0")
    for number in range(10):
        began = time.monotonic()
        handle = jobs.sound.delay(number)
        assert elapsed(began) < QUICK
        assert handle.get(timeout=20) == number
    server.control("set_vm_memory_high_watermark", "0.4")
    assert jobs.sound.delay(7).get(timeout=20) == 7
    assert worker.alive


def test_the_doctor_sees_an_alarm(url: str, server: RabbitServer) -> None:
    """The server says it only to who sends something."""
    with closing(connect(url)) as broker:
        broker.open()

        def found() -> Finding:
            return broker.diagnose(retention=Retention()).findings[-1]

        server.control("set_vm_memory_high_watermark", "0")
        try:
            wait_until(lambda: found().level is Level.ERROR and "takes no messages" in found().what)
        finally:
            server.control("set_vm_memory_high_watermark", "0.4")
        wait_until(lambda: found().level is Level.OK)


def test_a_frozen_server_holds_up_nobody(bench: Bench, server: RabbitServer) -> None:
    jobs = bench.app(SOUND)
    bench.worker()
    assert jobs.sound.delay(3).get(timeout=20) == 3
    server.freeze()
    try:
        for number in range(5):
            began = time.monotonic()
            handle = jobs.sound.delay(number)
            assert elapsed(began) < QUICK
            assert handle.get(timeout=20) == number
    finally:
        server.thaw()


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("nobody:secret@127.0.0.1:{port}/", "user or password are wrong"),
        ("guest:secret@127.0.0.1:{port}/", "user or password are wrong"),
        ("127.0.0.1:{port}/none", "this virtual host"),
    ],
)
def test_who_is_not_let_in_is_told_so(place: str, why: str, bench: Bench, server: RabbitServer) -> None:
    """At once, without the password, and a worker ends as with any wrong setting."""
    wrong = f"amqp://{place.format(port=server.port)}?store=sqlite:///{bench.folder}/jobs.db"
    with closing(connect(wrong)) as broker, pytest.raises(ConfigError, match=why) as caught:
        broker.open()
    assert "secret" not in str(caught.value)
    module = bench.write(SOUND)
    (bench.folder / "wrong.py").write_text(module.read_text().replace(bench.broker_url, wrong))
    worker = bench.start(app="wrong:app")
    assert worker.wait() == 2
    assert worker.log.count(why) == 1
    assert "does not answer" not in worker.log
    assert "secret" not in worker.log


def test_an_exchange_of_another_kind(bench: Bench, server: RabbitServer) -> None:
    """It is said once, and jobs run."""
    bell = bell_of(bench)
    with closing(server.client()) as client:
        client.channel().exchange_declare(bell, "topic", durable=True)
    jobs = bench.app(SOUND)
    worker = bench.worker()
    assert [jobs.sound.delay(n).get(timeout=20) for n in range(3)] == [0, 1, 2]
    assert worker.log.count(f"the exchange '{bell}' of") == 1, "although two connections find it"
    assert "inequivalent arg 'type'" in worker.log


def bell_of(bench: Bench) -> str:
    return f"mouso.{BrokerURL.parse(bench.broker_url).params['namespace']}.bell"


def test_a_worker_has_two_connections_at_most(bench: Bench, server: RabbitServer) -> None:
    """One that listens and one that rings, however many slots."""
    jobs = bench.app(SOUND)
    bench.worker("-p", "2", "-c", "8")
    bench.wait_final(jobs.sound.map([(n,) for n in range(100)]))
    bench.producer.close()

    def connections() -> int:
        return server.control("list_connections", "client_properties").count("mouso ")

    wait_until(lambda: connections() <= 2, message="those of the producer have gone")
    assert connections() >= 1


FORK = """
import os, sys
from contextlib import closing
from mouso import Mouso
from mouso.brokers import connect

with Mouso("forks", broker=sys.argv[1]) as app:
    @app.task
    def work() -> None: ...

    work.delay()
    pid = os.fork()
    if not pid:
        work.delay()
        app.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    with closing(connect(sys.argv[1])) as worker:
        while worker.wait(0.5):
            pass
        work.delay()
        assert worker.wait(5.0), "the parent's connection is as it was"
    print(len(app.jobs()))
"""


def test_a_fork_has_connections_of_its_own(url: str) -> None:
    """What a web server that forks its workers does: the app was used before."""
    command = [sys.executable, "-W", "ignore", "-c", FORK, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_a_program_that_ends_has_rung_before(bench: Bench) -> None:
    """A script that enqueues and ends: its worker need not look by itself."""
    bench.app(SOUND)
    with closing(connect(bench.broker_url)) as worker:
        worker.open()
        while worker.wait(0.5):
            pass
        for _ in range(3):
            assert bench.program("import jobs; jobs.sound.delay(1)").wait() == 0
            assert worker.wait(5.0)
            while worker.wait(0.5):
                pass


def test_it_is_a_bell_that_anybody_may_ring(bench: Bench, server: RabbitServer) -> None:
    """A message of another program is a ring like any other: it makes workers look, and no more."""
    jobs = bench.app(SOUND)
    worker = bench.worker()
    with closing(server.client()) as client:
        channel = client.channel()
        for body in (b"", b"\xff" * 100, b'{"id": "x"}'):
            channel.basic_publish(bell_of(bench), "x", body, pika.BasicProperties(headers={"a": "b"}))
    assert jobs.sound.delay(3).get(timeout=20) == 3
    assert worker.alive


def said(caplog: pytest.LogCaptureFixture, url: str, why: str) -> None:
    """Who does not reach the server at this URL is told why in one line."""
    caplog.clear()
    with closing(connect(url)) as broker:
        broker.wait(0.0)
        wait_until(lambda: why in caplog.text)
    assert caplog.text.count("127.0.0.1") + caplog.text.count("localhost") == 1
    assert not any(word in caplog.text for word in ("Error", "pika", "SSL:", "Traceback")), caplog.text


def test_no_tls_where_it_is_expected(server: RabbitServer, tmp_path: Path) -> None:
    url = f"amqps://127.0.0.1:{server.port}/"
    for wrong in (url, f"{url}?store=sqlite:///{tmp_path}/jobs.db"):
        with closing(connect(wrong)) as broker, pytest.raises(ConfigError, match="speak TLS there; write amqp://"):
            broker.open()


def test_over_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The server is asked for its certificate, and one that nobody vouches for is no server."""
    folder = tmp_path / "rabbitmq"
    folder.mkdir()
    certificate = self_signed(folder)
    port = free_port()
    files = f"ssl_options.cacertfile = {certificate}\nssl_options.certfile = {certificate}\n"
    files += f"ssl_options.keyfile = {folder / 'server.key'}\nssl_options.verify = verify_none\n"
    with RabbitServer(folder, f"listeners.ssl.default = 127.0.0.1:{port}\n{files}"):
        url = f"amqps://localhost:{port}/?store=sqlite:///{folder}/jobs.db"
        with closing(connect(f"{url}&ssl_ca_certs={certificate}")) as broker:
            broker.open()
            assert "answers" in [f.what for f in broker.diagnose(retention=Retention()).findings][-1]
            broker.wait(5.0)
            broker.resume("default")
            assert broker.wait(10.0), "it rings"
        with closing(connect(url)) as broker:
            with pytest.raises(ConfigError, match="does not hold: self-signed certificate; name") as told:
                broker.open()
            assert "_ssl" not in str(told.value)
            found = broker.diagnose(retention=Retention()).findings[-1]
            assert (found.level, "certificate that does not hold" in found.what) == (Level.ERROR, True), found
        said(
            caplog,
            f"amqp://localhost:{port}/?store=sqlite:///{folder}/jobs.db",
            "if it speaks TLS there, write amqps://",
        )
    lacking = connect(f"{url}&ssl_ca_certs={folder}/none.pem")
    with (
        closing(lacking),
        pytest.raises(ConfigError, match=r"ssl_ca_certs of the broker URL: .*: No such file"),
    ):
        lacking.open()
