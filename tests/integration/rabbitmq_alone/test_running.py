"""Workers on RabbitMQ without a store: what runs, when, and what does not."""

import json
import subprocess
import sys
import time
from collections import Counter

import pytest

from mouso.brokers.rabbitmq import names as naming
from mouso.brokers.rabbitmq.alone import LoneRabbitBroker
from mouso.brokers.rabbitmq.letter import letter_of
from mouso.brokers.rabbitmq.sending import until
from mouso.job import JobState
from mouso.testing.conformance.kit import claim, enqueue, make_job
from tests.integration.harness import WAIT, Bench
from tests.integration.rabbitmq_alone.kit import claimed, texts, waiting
from tests.integration.snippets import PAUSES
from tests.support import wait_until

pytestmark = pytest.mark.xdist_group("RabbitMQ alone")


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
