"""Workers on RabbitMQ without a store: what runs, what does not, and that nothing is lost on the way."""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import pika
import pytest
from msgspec.structs import replace

from mouso import Mouso
from mouso.brokers import connect
from mouso.brokers.base import JobFilter, Level, Retention
from mouso.brokers.rabbitmq import names as naming
from mouso.brokers.rabbitmq.alone import LoneRabbitBroker
from mouso.brokers.rabbitmq.consumer import POISON, Consumer
from mouso.brokers.rabbitmq.letter import letter_of
from mouso.brokers.rabbitmq.sending import until
from mouso.clock import SYSTEM
from mouso.errors import BrokerError, BrokerUnavailable, CapabilityError, ConfigError
from mouso.job import Job, JobState, Lease
from mouso.testing.conformance.kit import W1, W2, claim, enqueue, failure, join, make_job, outcome, settle
from tests import leaks
from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import PAUSES
from tests.servers.rabbitmq import RabbitServer
from tests.support import wait_until

pytestmark = pytest.mark.xdist_group("RabbitMQ alone")

SLOW = 4.0
"""Seconds that a call with a deadline of one may take on a slow machine."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """One for all, as it takes its time to start."""
    with RabbitServer(tmp_path_factory.mktemp("rabbitmq"), "consumer_timeout = 3600000\n") as server:
        yield server


@pytest.fixture
def url(server: RabbitServer) -> str:
    return f"{server.alone}?namespace={token_hex(4)}"


@pytest.fixture
def bench(tmp_path: Path, url: str) -> Iterator[Bench]:
    with closing(Bench(tmp_path, url)) as made:
        yield made


@pytest.fixture
def broker(url: str) -> Iterator[LoneRabbitBroker]:
    with closing(connect(url)) as made:
        assert isinstance(made, LoneRabbitBroker)
        made.open()
        yield made


def texts(bench: Bench, event: str) -> list[str]:
    return [line.text for line in bench.history(event)]


def claimed(broker: LoneRabbitBroker, count: int = 1, **options: Any) -> list[Lease]:
    """So many claims, which may take a moment to be delivered."""
    leases: list[Lease] = []

    def enough() -> bool:
        leases.extend(claim(broker, count - len(leases), **options))
        if len(leases) < count:
            broker.wait(0.1)
        return len(leases) >= count

    wait_until(enough, message=f"{count} claims")
    return leases


def waiting(broker: LoneRabbitBroker, queue: str = "default") -> int:
    """How many messages of a queue are with nobody."""
    return sum(info.counts[JobState.AVAILABLE] for info in broker.queues() if info.name == queue)


# -- what runs


FAILING = """
@app.task(attempts=2, backoff=constant("{delay}"))
def failing(n: int) -> None:
    note("run", str(n))
    raise ValueError("no " + str(n))
"""


def test_a_job_fails_and_ends_among_the_dead_letters(bench: Bench) -> None:
    """It is tried again, once below a second and once by the ladder; then it is listed, retried and deleted."""
    jobs = bench.app(FAILING.format(delay="1.2s"))
    bench.worker()
    job = jobs.failing.delay(1)
    [dead] = wait_until(lambda: jobs.app.jobs(state="dead"), timeout=WAIT)
    assert (dead.id, dead.state, dead.reason, dead.attempts) == (job.id, JobState.DEAD, "attempts", 2)
    first, second = bench.history("run")
    assert second.at - first.at >= 1.2
    assert [error.message for error in job.errors] == ["no 1", "no 1"]
    assert job.retry() == "retried"
    bench.wait_for("run", 4)
    wait_until(lambda: jobs.app.jobs(state="dead"), timeout=WAIT)
    assert job.delete() == "deleted"
    assert jobs.app.jobs(state="dead") == []


def test_dead_letters_on_the_command_line(bench: Bench) -> None:
    jobs = bench.app(FAILING.format(delay="10ms"))
    bench.worker()
    handles = jobs.failing.map([(n,) for n in range(3)])
    wait_until(lambda: len(jobs.app.jobs(state="dead")) == 3, timeout=WAIT)
    listed = json.loads(mouso(bench, "dead", "jobs:app", "list", "--json"))
    assert {job["id"] for job in listed} == {handle.id for handle in handles}
    assert {job["error"]["type"] for job in listed} == {"ValueError"}
    assert mouso(bench, "dead", "jobs:app", "delete", handles[0].id) == f"{handles[0].id}  deleted\n"
    text = mouso(bench, "dead", "jobs:app", "retry", handles[1].id, "--payload", '{"n": 7}')
    assert text == f"{handles[1].id}  retried\n"
    wait_until(lambda: "7" in texts(bench, "run"), timeout=WAIT)
    assert mouso(bench, "dead", "jobs:app", "retry", "--all").endswith(" retried\n")
    assert "dead letters" in mouso(bench, "doctor", "jobs:app") or not jobs.app.jobs(state="dead")
    assert "remembers jobs that are dead" in mouso(bench, "jobs", "jobs:app", code=2)


def mouso(bench: Bench, *words: str, code: int = 0) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "mouso", *words],
        cwd=bench.folder, env=bench.environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_higher_levels_first_then_first_in_first_out(broker: LoneRabbitBroker) -> None:
    """Five levels of priority; inside of one it is first in, first out."""
    for id, priority in [("a", 0), ("b", -100), ("c", 100), ("d", 0), ("e", 1), ("f", 51), ("g", -1)]:
        enqueue(broker, id, priority=priority)
    assert [lease.id for lease in claimed(broker, 7)] == ["c", "f", "e", "a", "d", "g", "b"]


def test_a_long_job_keeps_nobody_else_waiting(bench: Bench) -> None:
    """What was delivered to a worker that has no slot for it goes back, to one that has."""
    jobs = bench.app(PAUSES)
    bench.worker("--grace", "0.2", concurrency=1)
    jobs.pause_coroutine.delay(0, 600.0)
    bench.wait_for("start")
    jobs.pause.map([(n, 0.0) for n in range(1, 6)])
    bench.worker(concurrency=1)
    bench.wait_for("end", 5)
    assert Counter(texts(bench, "end")) == Counter("12345")


def test_an_expired_job_is_not_started(bench: Bench) -> None:
    jobs = bench.app(PAUSES)
    expired = jobs.pause.options(expires="1ms").delay(1, 0.0)
    jobs.pause.options(expires="1h").delay(2, 0.0)
    bench.worker()
    bench.wait_for("end")
    [found] = wait_until(lambda: jobs.app.jobs(state="expired"), timeout=WAIT)
    assert (found.id, found.reason) == (expired.id, "expired")
    assert texts(bench, "start") == ["2"]


@pytest.mark.parametrize("delay", [0.3, 1.0, 2.4])
def test_a_delay(bench: Bench, delay: float) -> None:
    """Below a second its worker waits for it, else the ladder."""
    jobs = bench.app(PAUSES)
    bench.worker()
    began = time.monotonic()
    jobs.pause.options(delay=delay).delay(1, 0.0)
    [line] = bench.wait_for("start")
    assert line.at - began >= delay


def test_delays_of_any_length_find_their_way(broker: LoneRabbitBroker) -> None:
    """A step for each bit: the message waits where the highest is set, under a key that has them all."""
    names = broker._sending.names
    for delay in (1, 2, 3, 1000, (1 << 28) - 1, 1 << 28, 10**9):
        letter = letter_of(make_job("a", delay=delay * 1000 + 7), 0)
        message = names.message(letter)
        whole = min(delay, (1 << naming.RUNGS) - 1)
        assert message.exchange == names.rung(whole.bit_length() - 1)
        bits = message.key.split(".")[: naming.RUNGS]
        assert int("".join(bits), 2) == whole


def test_the_ladder_grows_with_the_delays(broker: LoneRabbitBroker) -> None:
    """Each step is a quorum queue, which is not for nothing."""
    names, topology = broker._sending.names, broker._sending.topology
    for delay, top in ((2, 1), (1000, 9), (1, 9), (10**9, 27)):
        enqueue(broker, f"after-{delay}", delay=delay * 1000)
        steps = [number for number in range(naming.RUNGS) if topology.exists(names.rung(number), until(5))]
        assert steps == list(range(top + 1))


def test_a_paused_queue_waits(bench: Bench) -> None:
    jobs = bench.app(PAUSES)
    bench.worker()
    jobs.pause.delay(0, 0.0)
    bench.wait_for("end")
    jobs.app.pause("default")
    wait_until(lambda: jobs.app.queues()[0].paused)
    jobs.pause.options(queue="other").delay(1, 0.0)
    jobs.pause.delay(2, 0.0)
    jobs.pause.options(queue="other", delay="500ms").delay(3, 0.0)
    wait_until(lambda: "3" in texts(bench, "end"), timeout=WAIT)
    assert "2" not in texts(bench, "start")
    jobs.app.resume("default")
    wait_until(lambda: "2" in texts(bench, "end"), timeout=WAIT)


def test_purging(broker: LoneRabbitBroker) -> None:
    enqueue(broker, *[f"j{n}" for n in range(10)])
    enqueue(broker, "high", priority=100)
    assert broker.purge("default", 4) == 4
    wait_until(lambda: waiting(broker) == 7)
    assert broker.purge("default", 100) == 7
    assert broker.purge("unknown", 100) == 0


def test_a_queue_that_comes_later(bench: Bench) -> None:
    """A worker without -Q serves whatever queue there is."""
    jobs = bench.app(PAUSES)
    bench.worker()
    for name in ("größe", "a:b", "*", "#", "q" * 255):
        jobs.pause.options(queue=name).delay(1, 0.0)
        jobs.pause.options(queue=name, delay="1s").delay(2, 0.0)
    bench.wait_for("end", 10)


def test_shares(broker: LoneRabbitBroker) -> None:
    """Every queue gets its share when all have enough; what one leaves, others take."""
    for queue in ("a", "b"):
        enqueue(broker, *[f"{queue}{n}" for n in range(9)], queue=queue)
    counts = Counter(lease.queue for lease in claimed(broker, 4, shares=[("a", 3), ("b", 1)]))
    assert set(counts) == {"a", "b"}
    assert len(claimed(broker, 14, shares=[("a", 3), ("b", 1)])) == 14
    assert claim(broker, 5, shares=[("a", 3), ("b", 1)]) == []


# -- who runs it


OTHER = """
@app.task(name="only.here")
def only() -> None:
    note("only")
"""


def test_a_task_that_the_worker_does_not_know(bench: Bench) -> None:
    """It is said once, and a worker that knows it runs it, uncharged."""
    jobs = bench.app(PAUSES)
    other = bench.app(OTHER, "other")
    first = bench.worker()
    other.only.delay()
    jobs.pause.delay(1, 0.0)
    bench.wait_for("end")
    wait_until(lambda: "no worker knows the task 'only.here'" in first.log)
    bench.worker(app="other:app")
    bench.wait_for("only")
    assert first.log.count("no worker knows") == 1


def test_a_killed_worker_loses_nothing(bench: Bench) -> None:
    """What it ran and what waited in it goes to another at once."""
    jobs = bench.app(PAUSES)
    first = bench.worker(processes=1, concurrency=4)
    jobs.pause.map([(n, 0.2) for n in range(40)])
    bench.wait_for("end", 8)
    first.quiet = False
    first.send(9)
    bench.worker(concurrency=8)
    wait_until(lambda: set(texts(bench, "end")) == {str(n) for n in range(40)}, timeout=WAIT)
    assert jobs.app.jobs(state="dead") == []


POISONOUS = """
@app.task
def poison() -> None:
    note("poison")
    import signal
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
"""


def test_a_job_that_kills_its_workers_is_dead_in_the_end(tmp_path: Path, url: str) -> None:
    """Under the third that died of it for certain; a few deaths before count as bad luck."""
    with closing(Bench(tmp_path, f"{url}&consumer_timeout=6")) as bench:
        jobs = bench.app(POISONOUS)
        letter = letter_of(jobs.poison.job(), SYSTEM.now())
        jobs.app.broker._sending.publish([replace(letter, lost=POISON - 2)], until(5))
        for number in (1, 2):
            worker = bench.start("-p", "1")
            worker.quiet = False
            bench.wait_for("poison", number)
            assert worker.wait() == -9
        bench.worker()
        [dead] = wait_until(lambda: jobs.app.jobs(state="dead"), timeout=WAIT)
        assert (dead.reason, len(bench.history("poison"))) == ("poison", 2)


def delivered(consumer: Consumer, count: int) -> bool:
    return len(consumer._out) == count


def test_who_only_waits_in_workers_that_die_is_not_charged(broker: LoneRabbitBroker, url: str) -> None:
    """Jobs that are lost before they have started, as often as may be."""
    enqueue(broker, *[f"j{n}" for n in range(4)])
    for _ in range(12):
        with closing(connect(url)) as worker:
            assert isinstance(worker, LoneRabbitBroker)
            join(worker)
            consumer = worker._working._consumer
            consumer.serve(["default"], 4)
            consumer.sources["default"].pushed = True
            consumer.adjust()
            wait_until(partial(delivered, consumer, 4))
    leases = claimed(broker, 4)
    assert {(lease.id, lease.token) for lease in leases} == {(f"j{n}", 13) for n in range(4)}
    assert settle(broker, *[outcome(lease, JobState.COMPLETED) for lease in leases]) == []
    assert broker.find(JobFilter(states=frozenset({JobState.DEAD}))) == []


def test_a_message_of_another_program(bench: Bench, server: RabbitServer) -> None:
    """It is no job; it ends among the dead letters, and stops nobody."""
    jobs = bench.app(PAUSES)
    worker = bench.worker()
    jobs.pause.delay(1, 0.0)
    bench.wait_for("end")
    name = jobs.app.broker._sending.names.work("default", 2)
    with closing(server.client()) as client:
        for body in (b"", b"\xff" * 100, b'{"id": "x"}', b"\x93\xc0\xc0\xc0"):
            client.channel().basic_publish("", name, body, pika.BasicProperties(headers={"x-delivery-count": "x" * 9}))
    jobs.pause.delay(2, 0.0)
    bench.wait_for("end", 2)
    wait_until(lambda: len(jobs.app.jobs(state="dead")) == 4, timeout=WAIT)
    assert {job.reason for job in jobs.app.jobs(state="dead")} == {"foreign"}
    assert worker.alive


# -- what the server does


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """One that is killed, and has a short ``consumer_timeout``."""
    short = "[{rabbit, [{consumer_timeout, 3000}, {channel_tick_interval, 500}]}]."
    with RabbitServer(tmp_path_factory.mktemp("fragile"), advanced=short) as server:
        yield server


def test_the_server_s_own_consumer_timeout(tmp_path: Path, fragile: RabbitServer) -> None:
    """A real one, of three seconds: a longer job ends once, and its worker stays."""
    with closing(Bench(tmp_path, f"{fragile.alone}?consumer_timeout=3")) as bench:
        jobs = bench.app(PAUSES)
        worker = bench.worker()
        jobs.pause.delay(1, 6.0)
        bench.wait_for("end")
        jobs.pause.delay(2, 0.0)
        bench.wait_for("end", 2)
        assert texts(bench, "start") == ["1", "2"]
        assert "closed the channel" not in worker.log


def test_a_killed_server_loses_nothing(tmp_path: Path, fragile: RabbitServer) -> None:
    """It has had its queues for some seconds by then: 3.10 forgets younger ones, see not-promised.md."""
    with closing(Bench(tmp_path, fragile.alone)) as bench:
        jobs = bench.app(PAUSES)
        worker = bench.worker()
        jobs.pause.delay(0, 5.0)
        bench.wait_for("end")
        accepted: set[str] = set()
        stop = threading.Event()

        def produce() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    jobs.pause.delay(number, 0.01)
                    accepted.add(str(number))
                except BrokerError:
                    stop.wait(0.05)
                stop.wait(0.005)

        producer = threading.Thread(target=produce)
        producer.start()
        try:
            wait_until(lambda: len(bench.history("end")) > 50, timeout=WAIT)
            fragile.kill()
            wait_until(lambda: "does not answer" in worker.log, timeout=WAIT)
            with leaks.lasting():
                fragile.start()
            wait_until(lambda: "answers again" in worker.log, timeout=WAIT)
            count = len(accepted)
            wait_until(lambda: len(accepted) > count + 50, timeout=WAIT)
        finally:
            stop.set()
            producer.join()
        # On a busy machine some come back so often that they are suspects, and wait for 20 s.
        wait_until(lambda: accepted <= set(texts(bench, "end")), timeout=3 * WAIT)
        assert worker.log.count("until it does, jobs wait") == 1
        assert "Traceback" not in worker.log
        assert "pika" not in worker.log


def test_a_run_whose_connection_was_cut_is_not_repeated_here(broker: LoneRabbitBroker, server: RabbitServer) -> None:
    """Its end is fenced, and remembered for the message that comes back."""
    enqueue(broker, "a", "b")
    first, second = claimed(broker, 2)
    cut(broker, server)
    assert wait_until(lambda: broken(lambda: settle(broker, outcome(first, JobState.COMPLETED)))) == [first.key]
    assert broker.reconcile(W1, [(first.key, first.token), (second.key, second.token)]) == [first.key, second.key]
    [again] = claimed(broker)
    assert (again.id, again.token) == ("b", second.token + 1)
    assert claim(broker) == []


def cut(broker: LoneRabbitBroker, server: RabbitServer) -> None:
    """Ends the connections that a worker has."""
    link = broker._working._consumer.link
    before = link._connection
    server.control("close_all_connections", "cut")
    wait_until(lambda: link._connection is not before)


def broken(call: Callable[[], Any]) -> Any:
    """The result, None while the connection is not back."""
    try:
        return call()
    except BrokerUnavailable:
        return None


def test_a_server_short_of_memory_ends_in_the_deadline(url: str, server: RabbitServer) -> None:
    """It takes nothing, and says so: nothing was stored. What is delivered goes on."""
    with Mouso("alarm", broker=url, enqueue_timeout=1.0) as app:

        @app.task
        def work() -> None: ...

        work.delay()
        server.control("set_vm_memory_high_watermark", "0")
        try:

            def refused() -> str:
                began = time.monotonic()
                try:
                    work.delay()
                except BrokerError as error:
                    assert time.monotonic() - began < SLOW
                    return str(error)
                return ""

            assert "stored" in wait_until(refused)
            assert "takes no messages" in wait_until(refused)
            assert isinstance(app.broker, LoneRabbitBroker)
            assert claimed(app.broker)
        finally:
            server.control("set_vm_memory_high_watermark", "0.4")
        wait_until(lambda: not refused(), message="it takes jobs again")


def test_a_frozen_server_ends_in_the_deadline(url: str, server: RabbitServer) -> None:
    with Mouso("frozen", broker=url, enqueue_timeout=1.0) as app:

        @app.task
        def work() -> None: ...

        work.delay()
        server.freeze()
        try:
            began = time.monotonic()
            with pytest.raises(BrokerError):
                work.delay()
            assert time.monotonic() - began < SLOW
        finally:
            server.thaw()


def test_no_server_at_all() -> None:
    with Mouso("none", broker="amqp://127.0.0.1:1/", enqueue_timeout=0.5) as app:

        @app.task
        def work() -> None: ...

        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="nothing was stored"):
            work.delay()
        assert time.monotonic() - began < SLOW
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="does not answer"):
            app.queues()
        assert time.monotonic() - began < 3 * SLOW, "what may take longer does not wait longer for a connection"


def test_a_queue_with_other_arguments(bench: Bench, server: RabbitServer) -> None:
    """Who enqueues is told, a worker ends with exit code 2, and the doctor finds it."""
    jobs = bench.app(PAUSES)
    jobs.pause.delay(0, 0.0)
    name = jobs.app.broker._sending.names.work("mail", 2)
    with closing(server.client()) as client:
        client.channel().queue_declare(name, durable=True)
    for _ in range(2):
        with pytest.raises(ConfigError, match="other arguments") as caught:
            jobs.pause.options(queue="mail").delay(1, 0.0)
        assert all(word in str(caught.value) for word in (name, "quorum", "rabbitmqctl", "shovel"))
    worker = bench.start("-Q", "mail")
    worker.quiet = False
    assert worker.wait() == 2
    assert "other arguments" in worker.log
    found = jobs.app.broker.diagnose(retention=Retention()).findings
    assert any(f.level is Level.ERROR and name in f.what for f in found)


def test_a_channel_that_the_server_closes_is_opened_again(broker: LoneRabbitBroker) -> None:
    """As it does with one that has not acknowledged for long: claims are void, and the jobs come back."""
    enqueue(broker, "a")
    [first] = claimed(broker)
    consumer = broker._working._consumer
    consumer.link.soon(lambda: consumer._channel.basic_ack(10**6))  # type: ignore[union-attr]  # why: it is there
    wait_until(lambda: not consumer.held)
    again = wait_until(lambda: broken(lambda: claim(broker)))
    assert [(lease.id, lease.token) for lease in again] == [("a", first.token + 1)]
    assert settle(broker, outcome(first, JobState.COMPLETED)) == [first.key]


def test_a_deleted_queue_is_made_again(bench: Bench, server: RabbitServer) -> None:
    """By who enqueues, who is told that nobody took it; and by the worker, whose consumer has ended."""
    jobs = bench.app(PAUSES)
    bench.worker()
    jobs.pause.delay(1, 0.0)
    bench.wait_for("end")
    with closing(server.client()) as client:
        for level in naming.LEVELS:
            client.channel().queue_delete(jobs.app.broker._sending.names.work("default", level))
    jobs.pause.delay(2, 0.0)
    bench.wait_for("end", 2)


# -- long jobs


def test_a_long_job_outlives_the_consumer_timeout(broker: LoneRabbitBroker, server: RabbitServer, url: str) -> None:
    """Its message moves to a queue of its worker's own, unseen by the fleet, and is acknowledged there."""
    with closing(connect(f"{url}&consumer_timeout=1")) as worker:
        assert isinstance(worker, LoneRabbitBroker)
        enqueue(broker, "a", "b")
        first, second = claimed(worker, 2)
        hold = worker._sending.names.hold(W1)
        held = list(worker._working._consumer.held.values())

        def moved() -> bool:
            join(worker)
            return all(one.tap.name == hold for one in held)

        wait_until(moved)
        wait_until(moved, message="and again")
        assert worker.reconcile(W1, [(first.key, first.token), (second.key, second.token)]) == []
        assert settle(worker, outcome(first, JobState.COMPLETED), failure(second, delay=10)) == []
        [again] = claimed(worker)
        assert (again.id, again.attempts) == ("b", 1)
        assert settle(worker, outcome(again, JobState.COMPLETED)) == []
        wait_until(lambda: unacknowledged(server, worker) == 0)
        worker.retire(W1)
        assert broker._sending.topology.size(hold, until(5)) is None


def unacknowledged(server: RabbitServer, broker: LoneRabbitBroker) -> int:
    """How many messages of a namespace are anywhere but in the facts."""
    prefix = broker._sending.names.due.removesuffix("due")
    listed = server.control("list_queues", "name", "messages").splitlines()
    rows = [line.split("\t") for line in listed if line.startswith(prefix)]
    return sum(int(count) for name, count in rows if not name.endswith("facts"))


def test_a_long_job_of_a_worker_that_died_comes_back(broker: LoneRabbitBroker, url: str) -> None:
    enqueue(broker, "a", priority=60)
    with closing(connect(f"{url}&consumer_timeout=1")) as worker:
        assert isinstance(worker, LoneRabbitBroker)
        [lease] = claimed(worker)
        held = worker._working._consumer.held[int(lease.key)]
        wait_until(lambda: (join(worker), held.tap.name == worker._sending.names.hold(W1))[1])
    [again] = claimed(broker, worker=W2)
    assert (again.id, again.token > lease.token, again.priority) == ("a", True, 60)


# -- who enqueues


def test_many_threads_share_confirms(url: str) -> None:
    with Mouso("many", broker=url) as app:

        @app.task
        def work(n: int) -> None: ...

        work.delay(0)

        def produce() -> None:
            for n in range(50):
                work.delay(n)

        threads = [threading.Thread(target=produce) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        broker = app.broker
        assert isinstance(broker, LoneRabbitBroker)
        wait_until(lambda: waiting(broker) == 401)


FORK = """
import os, sys
from mouso import Mouso

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
    work.delay()
    import time
    deadline = time.monotonic() + 10
    while sum(sum(q.counts.values()) for q in app.queues()) != 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    print(sum(sum(q.counts.values()) for q in app.queues()))
"""


def test_a_fork_has_connections_of_its_own(url: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_what_needs_a_store_is_refused(url: str) -> None:
    """When it is declared, or else when it is called; each time with the remedy."""
    with Mouso("refused", broker=url) as app:

        @app.task(keep_result=False, priority=3)
        def work() -> None: ...

        with pytest.raises(CapabilityError, match="unique="):
            app.task(unique=True, name="unique")(lambda: None)
        refused: list[Callable[[], object]] = [
            lambda: work.options(id="x"),
            lambda: work.options(unique="x"),
            lambda: work.options(keep_result="1h"),
            lambda: app.job("x").get(timeout=1),
            lambda: app.job("x").state,
            lambda: app.job("x").cancel(),
            lambda: app.job("x").stack(),
            lambda: next(app.job("x").watch()),
            lambda: app.jobs(),
            lambda: app.jobs(state="running"),
            lambda: app.workers(),
            lambda: app.enqueue_in(object()).__enter__(),
            lambda: app.broker.enqueue([Job(id="a", task="b", unique="c")]),
        ]
        for call in refused:
            with pytest.raises(CapabilityError, match="store") as caught:
                call()
            assert "\n" not in str(caught.value)


def test_progress_is_not_kept_and_no_error(bench: Bench) -> None:
    jobs = bench.app("""
    @app.task
    def steps(ctx: Context) -> None:
        for n in range(3):
            ctx.progress(n, 3)
        ctx.log.warning("here")
        note("end", "1")
    """)
    bench.worker()
    jobs.steps.delay()
    bench.wait_for("end")
    wait_until(lambda: jobs.app.queues()[0].counts[JobState.AVAILABLE] == 0)
    assert jobs.app.jobs(state="dead") == []
