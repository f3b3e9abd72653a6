"""Queues of RabbitMQ that do not answer while their server does, and the jobs of the others.

A queue is made so by suspending its process in the server: as if it had lost the majority of its members.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex

import pytest

from mouso.brokers.rabbitmq.names import LEVELS, Names
from tests.integration.harness import WAIT, Bench, Worker
from tests.integration.snippets import PAUSES
from tests.servers.rabbitmq import RabbitServer
from tests.support import wait_until

pytestmark = pytest.mark.xdist_group("RabbitMQ alone")

SILENT, BACK = "the queue 'mail' does not answer", "the queue 'mail' answers again"
FOUND = 3 * WAIT
"""Seconds in which it is found out on a busy machine: a question takes three, and the others begin anew."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """One of its own: what is suspended in it would hold others up."""
    with RabbitServer(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


class Silenced(Bench):
    """A bench at which queues can be silenced."""

    def __init__(self, folder: Path, server: RabbitServer) -> None:
        self._server, self._namespace = server, token_hex(4)
        super().__init__(folder, f"{server.alone}?namespace={self._namespace}")

    @contextmanager
    def silence(self, queue: str) -> Iterator[None]:
        """Lets a queue answer nothing for the length of the block."""
        names = [Names(self._namespace).work(queue, level) for level in LEVELS]
        self._each("suspend", names)
        try:
            yield
        finally:
            self._each("resume", names)

    def _each(self, what: str, names: list[str]) -> None:
        processes = ", ".join(f'"%2F_{name}"' for name in names)
        self._server.control("eval", f"[sys:{what}(list_to_existing_atom(Name)) || Name <- [{processes}]].")

    def ended(self) -> set[str]:
        return {line.text for line in self.history("end")}


@pytest.fixture
def bench(tmp_path: Path, server: RabbitServer) -> Iterator[Silenced]:
    with closing(Silenced(tmp_path, server)) as made:
        yield made


def more(bench: Silenced, enqueue: Callable[[int], object], first: int) -> list[int]:
    """Jobs that are enqueued now run."""
    numbers = list(range(first, first + 20))
    for number in numbers:
        enqueue(number)
    wait_until(lambda: set(map(str, numbers)) <= bench.ended(), timeout=WAIT)
    return numbers


def goes_on(bench: Silenced, enqueue: Callable[[int], object], first: int) -> list[int]:
    """Of the jobs that are enqueued from now on, those run that the server does not give to the old connection."""
    numbers: list[int] = []

    def enough() -> bool:
        numbers.append(first + len(numbers))
        enqueue(numbers[-1])
        return len(set(map(str, numbers)) & bench.ended()) > 10

    wait_until(enough, timeout=FOUND, interval=0.05)
    return numbers


def all_done(bench: Silenced, worker: Worker, numbers: list[int]) -> None:
    """What waited comes back as soon as the queue answers, and one line tells of each change, if it was noticed."""
    wait_until(lambda: set(map(str, numbers)) <= bench.ended(), timeout=FOUND)
    wait_until(lambda: worker.log.count(SILENT) == worker.log.count(BACK) <= 1, timeout=WAIT)
    assert "Traceback" not in worker.log


def test_a_queue_falls_silent_while_its_jobs_run(bench: Silenced) -> None:
    """Some of its messages wait in the worker, and one runs. The worker notices as soon as it has a question for it."""
    jobs = bench.app(PAUSES)
    here = partial(jobs.pause.delay, seconds=0.01)
    mail = partial(jobs.pause.options(queue="mail").delay, seconds=0.5)
    worker = bench.worker()
    more(bench, here, 0)
    numbers = list(range(1000, 1010))
    for number in numbers:
        mail(number)
    bench.wait_for("start", 22)
    with bench.silence("mail"):
        numbers += goes_on(bench, here, 10_000)
    all_done(bench, worker, numbers)


def test_a_queue_falls_silent_while_nobody_asks_it_anything(bench: Silenced) -> None:
    jobs = bench.app(PAUSES)
    here = partial(jobs.pause.delay, seconds=0.01)
    mail = partial(jobs.pause.options(queue="mail").delay, seconds=0.01)
    worker = bench.worker()
    more(bench, here, 0)
    more(bench, mail, 1000)
    with bench.silence("mail"):
        more(bench, here, 100)
    more(bench, mail, 2000)
    assert SILENT not in worker.log


def test_a_queue_is_silent_when_a_worker_starts(bench: Silenced) -> None:
    jobs = bench.app(PAUSES)
    here = partial(jobs.pause.delay, seconds=0.01)
    mail = partial(jobs.pause.options(queue="mail").delay, seconds=0.01)
    numbers = list(range(1000, 1010))
    for number in numbers:
        mail(number)
    here(0)
    with bench.silence("mail"):
        worker = bench.worker()
        wait_until(lambda: SILENT in worker.log, timeout=FOUND)
        numbers += goes_on(bench, here, 10_000)
        assert not bench.ended() & {"1000", "1009"}
    all_done(bench, worker, numbers)
    assert worker.log.count(BACK) == 1
