"""What the server does to Mouso on RabbitMQ without a store."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from msgspec.structs import replace

from mouso import Mouso
from mouso.brokers import connect
from mouso.brokers.base import Broker, Finding, JobFilter, Level, Retention
from mouso.brokers.rabbitmq import names as naming
from mouso.brokers.rabbitmq.alone import LoneRabbitBroker
from mouso.brokers.rabbitmq.desk import Steps
from mouso.brokers.rabbitmq.frames import Message
from mouso.brokers.rabbitmq.letter import letter_of
from mouso.brokers.rabbitmq.publisher import Parcel
from mouso.brokers.rabbitmq.sending import Sending, until
from mouso.brokers.rabbitmq.shelf import Shelf
from mouso.clock import SYSTEM
from mouso.errors import BrokerError, BrokerUnavailable, ConfigError, OutcomeUnknown
from mouso.job import JobState
from mouso.testing.conformance.kit import W1, claim, enqueue, make_job, outcome, settle
from tests import leaks
from tests.integration.harness import WAIT, Bench
from tests.integration.rabbitmq_alone.kit import SLOW, claimed, texts, waiting
from tests.integration.snippets import PAUSES
from tests.servers.rabbitmq import RabbitServer
from tests.stalls import elapsed
from tests.support import wait_until

pytestmark = pytest.mark.xdist_group("RabbitMQ alone")


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
    """The result, None while the connection, or a right, is not back."""
    try:
        return call()
    except (BrokerUnavailable, ConfigError):
        return None


def test_a_server_short_of_memory_ends_in_the_deadline(url: str, server: RabbitServer) -> None:
    """It takes nothing, and says so: nothing was stored. What is delivered goes on."""
    with Mouso("alarm", broker=url, enqueue_timeout=20.0) as app:

        @app.task
        def work() -> None: ...

        work.delay()  # which makes its queues first
        app.producer.timeout = 1.0
        server.control("set_vm_memory_high_watermark", "0")
        try:

            def refused() -> str:
                began = time.monotonic()
                try:
                    work.delay()
                except BrokerError as error:
                    assert elapsed(began) < SLOW
                    return str(error)
                return ""

            assert "stored" in wait_until(refused)
            assert "takes no messages" in wait_until(refused)
            assert isinstance(app.broker, LoneRabbitBroker)
            assert claimed(app.broker)
        finally:
            server.control("set_vm_memory_high_watermark", "0.4")
        wait_until(lambda: not refused(), message="it takes jobs again")


def test_what_operators_are_told_by_a_server_short_of_memory(broker: LoneRabbitBroker, server: RabbitServer) -> None:
    """What is asked for, and by the doctor an error, on a new connection and on one that is held up already."""
    enqueue(broker, "a")
    server.control("set_vm_memory_high_watermark", "0")
    try:
        for _ in range(2):
            wait_until(lambda: [f.check for f in diagnosed(broker) if f.level is Level.ERROR] == ["alarm"])
        with closing(connect(broker.url)) as other:
            with pytest.raises(OutcomeUnknown, match="may apply all the same") as told:
                other.pause("default")
            assert "jobs" not in str(told.value)
    finally:
        server.control("set_vm_memory_high_watermark", "0.4")
    wait_until(lambda: not any(f.level is Level.ERROR for f in diagnosed(broker)))


def diagnosed(broker: Broker) -> list[Finding]:
    return broker.diagnose(retention=Retention()).findings


FAILS = (
    PAUSES
    + """
@app.task(attempts=2, backoff=constant(0.1))
def fails(flag: str) -> None:
    note("fails")
    while not os.path.exists(flag):
        time.sleep(0.01)
    raise ValueError("no")
"""
)


def test_a_job_that_fails_while_the_server_is_short_of_memory(bench: Bench, server: RabbitServer) -> None:
    """Its next attempt cannot be stored: it waits, and those that complete go on, as they are what makes room."""
    jobs, flag = bench.app(FAILS), bench.folder / "flag"
    worker = bench.worker(concurrency=4)
    handles = [jobs.fails.options(priority=50).delay(str(flag)) for _ in range(2)]
    jobs.pause.map([(n, 0.1) for n in range(200)])
    bench.wait_for("fails", 2)
    server.control("set_vm_memory_high_watermark", "0")
    try:
        flag.touch()
        wait_until(lambda: "takes no messages" in worker.log, message="a failure was to be stored")
        bench.wait_for("end", 200)
        assert len(bench.history("fails")) == 2
    finally:
        server.control("set_vm_memory_high_watermark", "0.4")
    wait_until(lambda: {job.id for job in jobs.app.jobs(state="dead")} == {h.id for h in handles}, timeout=WAIT)
    assert len(bench.history("fails")) == 4
    assert len(bench.history("end")) == 200
    assert worker.log.count("takes no messages") == worker.log.count("takes messages again") == 1
    assert "does not answer" not in worker.log


def test_suspects_hold_up_nobody_while_the_server_is_short_of_memory(bench: Bench, server: RabbitServer) -> None:
    """Their messages cannot move, so they wait; the others run, though they come later, and in one slot."""
    jobs = bench.app(PAUSES)
    sending = jobs.app.broker._sending
    suspects = [letter_of(replace(jobs.pause.job(n, 0.0), priority=60), SYSTEM.now()) for n in range(100, 103)]
    sending.publish([replace(letter, lost=1) for letter in suspects], until(5))
    jobs.pause.map([(n, 0.0) for n in range(20)])
    server.control("set_vm_memory_high_watermark", "0")
    try:
        wait_until(lambda: not takes_messages(sending), message="the alarm is known")
        worker = bench.worker("-p", "1", concurrency=1)
        bench.wait_for("end", 20)
        assert set(texts(bench, "end")) == {str(n) for n in range(20)}
        assert "does not answer" not in worker.log
    finally:
        server.control("set_vm_memory_high_watermark", "0.4")
    bench.wait_for("end", 23)
    assert sorted(texts(bench, "start")) == sorted(map(str, [*range(20), *range(100, 103)]))


def takes_messages(sending: Sending) -> bool:
    """Whether the server takes a message."""
    sending.publisher.post([Message("", sending.names.nowhere, "", "", b"")])
    return not sending.publisher.blocked


LATER = (
    PAUSES
    + """
@app.task(attempts=2, backoff=constant(1.5))
def fails() -> None:
    note("fails")
    raise ValueError("no")
"""
)


@pytest.mark.parametrize("what", ["exchanges", "a queue"])
def test_parts_of_the_ladder_were_deleted(bench: Bench, server: RabbitServer, what: str) -> None:
    """Who needs them next makes them anew: nothing waits in a part above the gap, and no worker is held up."""
    jobs = bench.app(LATER)
    bench.worker()
    jobs.pause.options(delay=3).delay(0, 0.0)
    bench.wait_for("end")
    names = jobs.app.broker._sending.names
    with closing(server.client()) as client:
        channel = client.channel()
        if what == "exchanges":
            for number in range(2):
                channel.exchange_delete(names.rung(number))
        else:
            channel.queue_delete(names.rung(0))
    if what == "exchanges":
        jobs.fails.delay()  # in the worker, which has made them
        bench.wait_for("fails", 2)
    with closing(connect(bench.broker_url)) as other:
        assert isinstance(other, LoneRabbitBroker)
        other.enqueue([replace(jobs.pause.job(1, 0.0), delay=3000)])
    jobs.pause.delay(2, 0.0)
    wait_until(lambda: sorted(texts(bench, "end")) == ["0", "1", "2"], timeout=WAIT)


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
            assert elapsed(began) < SLOW
        finally:
            server.thaw()


def test_no_server_at_all() -> None:
    with Mouso("none", broker="amqp://127.0.0.1:1/", enqueue_timeout=0.5) as app:

        @app.task
        def work() -> None: ...

        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="nothing was stored"):
            work.delay()
        assert elapsed(began) < SLOW
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="does not answer"):
            app.queues()
        assert elapsed(began) < 3 * SLOW, "what may take longer does not wait longer for a connection"


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


@pytest.mark.parametrize("name", ["due", "news"])
def test_an_exchange_of_another_type(url: str, server: RabbitServer, name: str) -> None:
    """It is named, with what to do."""
    with closing(connect(url)) as broker:
        assert isinstance(broker, LoneRabbitBroker)
        exchange = getattr(broker._sending.names, name)
        with closing(server.client()) as client:
            client.channel().exchange_declare(exchange, "headers", durable=True)
        told_so = f"the exchange '{exchange}' of .* arguments .*'type'.*name={exchange}, and start again"
        with pytest.raises(ConfigError, match=told_so):
            broker.open()


@pytest.mark.parametrize("place", ["nobody:secret@127.0.0.1:{port}/", "127.0.0.1:{port}/none"])
def test_who_is_not_let_in_is_told_so_once(bench: Bench, server: RabbitServer, place: str) -> None:
    """By the error alone: the server does answer."""
    module = bench.write(PAUSES)
    module.write_text(module.read_text().replace(bench.broker_url, f"amqp://{place.format(port=server.port)}"))
    worker = bench.start()
    worker.quiet = False
    assert worker.wait() == 2
    assert worker.log.count(f"127.0.0.1:{server.port}") == 1
    assert not any(word in worker.log for word in ("does not answer", "secret", "Traceback")), worker.log


def test_a_worker_leaves_out_a_queue_with_other_arguments(bench: Bench, server: RabbitServer) -> None:
    """One that was given no queues: a line says so, the others are served, and in the end it as well."""
    jobs = bench.app(PAUSES)
    name = jobs.app.broker._sending.names.work("mail", 2)
    jobs.pause.options(queue="mail").delay(0, 0.0)
    with closing(server.client()) as client:
        client.channel().queue_delete(name)
        client.channel().queue_declare(name, durable=True)
    jobs.pause.delay(1, 0.0)
    worker = bench.worker()
    bench.wait_for("end")
    jobs.pause.delay(2, 0.0)
    bench.wait_for("end", 2)
    [line] = [line for line in worker.log.splitlines() if name in line]
    assert all(word in line for word in ("x-queue-type", "rabbitmqctl delete_queue", "'mail' is left out")), line
    assert "does not answer" not in worker.log
    with closing(server.client()) as client:
        client.channel().queue_delete(name)
    jobs.pause.options(queue="mail").delay(3, 0.0)
    bench.wait_for("end", 3)
    assert worker.log.count("'mail' is left out") == worker.log.count("'mail' is served again") == 1


@pytest.fixture
def user(server: RabbitServer) -> Iterator[str]:
    """One with all rights but that to write to queues; the password is ``secret``."""
    name = token_hex(4)
    server.control("add_user", name, "secret")
    server.control("set_permissions", name, ".*", r"^mouso\..*", ".*")
    yield name
    server.control("delete_user", name)


def test_who_may_not_publish_is_told_so(broker: LoneRabbitBroker, url: str, server: RabbitServer, user: str) -> None:
    """The server refuses it for certain: nothing is stored, of one job or of many."""
    with Mouso("refused", broker=url.replace("//", f"//{user}:secret@")) as app:

        @app.task
        def work() -> None: ...

        told_so = r"publish.*'amq\.default'.*none of it was stored.*set_permissions"
        for call in (work.delay, work.delay, lambda: work.map([{}] * 100)):
            with pytest.raises(ConfigError, match=told_so) as told:
                call()
            assert "secret" not in str(told.value)
        assert waiting(broker) == 0
        server.control("set_permissions", user, ".*", ".*", ".*")
        wait_until(lambda: broken(work.delay), message="the right is there")
        assert waiting(broker) == 1


def test_an_exchange_that_is_missing(broker: LoneRabbitBroker, server: RabbitServer) -> None:
    """Certain is the last message to it, and what comes behind: the one before may have come in time."""
    sending, later = broker._sending, [replace(make_job(id), delay=1000) for id in "abcd"]
    broker.enqueue(later[:1])
    first, second = ([message] for message in sending.messages([letter_of(job, 0) for job in later[1:3]], until(5)))
    behind = sending.messages([letter_of(replace(later[3], delay=0), 0)], until(5))
    with closing(server.client()) as client:
        client.channel().exchange_delete(sending.names.rung(0))
    parcels: list[Parcel] = []
    publisher = sending.publisher
    publisher.link.soon(lambda: parcels.extend(map(publisher.post, (first, second, behind))))
    wait_until(lambda: parcels and all(parcel.done.is_set() for parcel in parcels))
    assert [type(parcel.error) for parcel in parcels] == [OutcomeUnknown, BrokerUnavailable, BrokerUnavailable]
    broker.enqueue(later[3:])


def test_an_exchange_that_was_deleted_is_made_again(broker: LoneRabbitBroker, server: RabbitServer) -> None:
    """By who enqueues: nothing was stored, so it is done a second time."""
    job = replace(make_job("a"), delay=1000)
    broker.enqueue([job])
    with closing(server.client()) as client:
        client.channel().exchange_delete(broker._sending.names.rung(0))
    broker.enqueue([replace(job, id="b")])
    assert {lease.id for lease in claimed(broker, 2)} == {"a", "b"}


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


def test_a_lock_that_goes_in_the_moment_in_which_it_is_taken(
    broker: LoneRabbitBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue that keeps other readers out is deleted by the server when it finds the time after the last reading."""
    enqueue(broker, "a")
    settle(broker, outcome(claimed(broker)[0], JobState.DEAD))
    steps, late = Shelf._steps, [True]

    def stepping(self: Shelf, channel: Any, *args: Any) -> Steps[None]:
        if late.pop() if late else False:
            yield lambda done: channel.queue_declare(self._lock, passive=True, callback=done)
        yield from steps(self, channel, *args)

    monkeypatch.setattr(Shelf, "_steps", stepping)
    assert [job.id for job in broker.find(JobFilter(states=frozenset({JobState.DEAD})))] == ["a"]
    assert not late
