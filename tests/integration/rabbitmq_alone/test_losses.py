"""RabbitMQ without a store: workers that die, do not know a task, or take long; nothing is lost on the way."""

from contextlib import closing
from functools import partial
from pathlib import Path

import pika
import pytest
from msgspec.structs import replace

from mouso.brokers import connect
from mouso.brokers.base import JobFilter
from mouso.brokers.rabbitmq.alone import LoneRabbitBroker
from mouso.brokers.rabbitmq.consumer import POISON, Consumer
from mouso.brokers.rabbitmq.letter import letter_of
from mouso.brokers.rabbitmq.sending import until
from mouso.clock import SYSTEM
from mouso.job import JobState
from mouso.testing.conformance.kit import W1, W2, enqueue, failure, join, outcome, settle
from tests.integration.harness import WAIT, Bench
from tests.integration.rabbitmq_alone.kit import claimed, texts
from tests.integration.snippets import PAUSES
from tests.servers.rabbitmq import RabbitServer
from tests.support import wait_until

pytestmark = pytest.mark.xdist_group("RabbitMQ alone")


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


KILLS = """
@app.task
def kills() -> None:
    note("kills")
    os.kill(os.getpid(), 9)
"""


def test_a_job_that_kills_its_process_is_dead_after_three_runs(bench: Bench) -> None:
    jobs = bench.app(KILLS)
    bench.worker()
    jobs.kills.delay()
    [dead] = wait_until(lambda: jobs.app.jobs(state="dead"), timeout=WAIT)
    assert (dead.reason, dead.crashes, len(bench.history("kills"))) == ("poison", 3, 3)


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


def test_a_message_of_another_program_among_the_dead(bench: Bench, server: RabbitServer) -> None:
    """It hides nobody, and can be deleted like them."""
    jobs = bench.app(PAUSES)
    assert jobs.app.jobs(state="dead") == []
    name = jobs.app.broker._sending.names.dead
    with closing(server.client()) as client:
        for body in (b"hello", b"hello", b"\xff"):
            client.channel().basic_publish("", name, body, pika.BasicProperties(headers={"x-delivery-count": "x"}))
    found = wait_until(lambda: [job for job in jobs.app.jobs(state="dead") if job.reason == "foreign"][2:])
    assert found
    for id in {job.id for job in jobs.app.jobs(state="dead")}:
        assert jobs.app.job(id).record.reason == "foreign"
        jobs.app.job(id).delete()
    assert jobs.app.jobs(state="dead") == []


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
