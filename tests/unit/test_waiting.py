"""Callers that wait for jobs: however many they are, one thread looks for all."""

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from mouso import JobHandle, JobState, Mouso
from mouso.brokers.base import Broker, JobUpdate, Want
from mouso.errors import BrokerUnavailable, ConfigError
from mouso.job import Outcome, new_id
from mouso.waiting import Listener
from tests.support import wait_until, wait_until_async


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mouso]:
    url = f"sqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else f"memory://{new_id()}"
    with Mouso("shop", broker=url) as app:
        yield app


def enqueue(app: Mouso, count: int) -> list[JobHandle[Any]]:
    @app.task
    def same(n: int) -> int:
        return n

    return list(same.map([(n,) for n in range(count)]))


def complete_all(app: Mouso) -> None:
    """Claims whatever there is, and settles it with its own arguments as result."""
    while leases := app.broker.exchange("w", [], Want(limit=100)).leases:
        app.broker.exchange(
            "w",
            [
                Outcome(x.key, x.token, x.id, x.task, x.queue, JobState.COMPLETED, result=x.payload[5:-1])
                for x in leases
            ],
            Want(limit=0),
        )


def listeners() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mouso-listener"]


def test_nobody_listens_while_nobody_waits(app: Mouso) -> None:
    enqueue(app, 1)
    assert listeners() == []


def test_five_hundred_coroutines_wait_with_one_thread(app: Mouso) -> None:
    handles = enqueue(app, 500)
    most = 0

    async def main() -> list[Any]:
        nonlocal most
        waiting = asyncio.gather(*(handle.aget(timeout=60) for handle in handles))
        await asyncio.sleep(0)
        most = len(listeners())
        await asyncio.to_thread(complete_all, app)
        return await waiting

    assert asyncio.run(main()) == list(range(500))
    assert most == 1


def test_a_hundred_threads_wait_with_one_thread(app: Mouso) -> None:
    handles = enqueue(app, 100)
    with ThreadPoolExecutor(100) as pool:
        waiting = [pool.submit(handle.get, 60) for handle in handles]
        wait_until(lambda: sum(map(len, app.listener._subscriptions.values())) == 100)
        assert len(listeners()) == 1
        complete_all(app)
        assert [future.result(60) for future in waiting] == list(range(100))


def test_many_may_wait_for_the_same_job(app: Mouso) -> None:
    (handle,) = enqueue(app, 1)

    async def main() -> list[Any]:
        waiting = asyncio.gather(*(app.job(handle.id).aget(timeout=60) for _ in range(50)))
        await asyncio.sleep(0)
        await asyncio.to_thread(complete_all, app)
        return await waiting

    assert asyncio.run(main()) == [0] * 50


def test_who_comes_later_learns_the_state_as_it_is(app: Mouso) -> None:
    (handle,) = enqueue(app, 1)
    early, late = handle.watch(timeout=10), app.job(handle.id).watch(timeout=10)
    assert next(early).state is JobState.AVAILABLE
    assert next(late).state is JobState.AVAILABLE
    complete_all(app)
    assert list(early)[-1] == list(late)[-1]


def test_the_thread_ends_after_the_last_wait(app: Mouso) -> None:
    handles = enqueue(app, 2)
    complete_all(app)
    assert handles[0].get(timeout=10) == 0
    wait_until(lambda: not listeners())
    assert handles[1].get(timeout=10) == 1
    assert app.listener._subscriptions == {}


def test_a_wait_that_is_given_up_leaves_nothing_behind(app: Mouso) -> None:
    (handle,) = enqueue(app, 1)

    async def main() -> None:
        waiting = asyncio.create_task(handle.aget())
        await wait_until_async(listeners)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    asyncio.run(main())
    next(handle.watch())
    gc.collect()
    assert app.listener._subscriptions == {}


def test_closing_the_app_ends_the_thread_at_once(app: Mouso) -> None:
    (handle,) = enqueue(app, 1)
    updates = handle.watch()
    next(updates)
    app.close()
    assert listeners() == []


def test_after_closing_one_can_wait_again(app: Mouso, request: pytest.FixtureRequest) -> None:
    (handle,) = enqueue(app, 1)
    next(handle.watch())
    app.close()
    complete_all(app)
    assert handle.get(timeout=10) == 0


class Troubled:
    """A broker that fails to watch at first."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error = error
        self.left = times

    def watch(self, seen: Mapping[str, JobUpdate | None], timeout: float) -> list[JobUpdate]:
        if self.left:
            self.left -= 1
            raise self.error
        return [JobUpdate(id, JobState.COMPLETED) for id, update in seen.items() if update is None]

    def interrupt(self) -> None: ...


@pytest.mark.parametrize("error", [BrokerUnavailable("gone"), ConfigError("no database"), RuntimeError("a bug")])
def test_a_broker_in_trouble_does_not_end_the_waiting(error: Exception) -> None:
    broker = Troubled(error, 2)
    listener = Listener(lambda: cast(Broker, broker))
    updates: list[JobUpdate | None] = []
    subscription = listener.subscribe("a", updates.append)
    wait_until(lambda: updates)
    listener.unsubscribe(subscription)
    listener.close()
    assert updates == [JobUpdate("a", JobState.COMPLETED)]


def test_a_callback_that_fails_does_not_disturb_the_others() -> None:
    listener = Listener(lambda: cast(Broker, Troubled(ValueError(), 0)))
    updates: list[JobUpdate | None] = []

    def broken(update: JobUpdate | None) -> None:
        raise RuntimeError("Event loop is closed")

    calls: list[Callable[[JobUpdate | None], object]] = [broken, updates.append]
    subscriptions = [listener.subscribe("a", call) for call in calls]
    wait_until(lambda: updates)
    for subscription in subscriptions:
        listener.unsubscribe(subscription)
    listener.close()


def test_ending_an_interest_twice_is_no_error() -> None:
    listener = Listener(lambda: cast(Broker, Troubled(ValueError(), 0)))
    subscription = listener.subscribe("a", print)
    listener.unsubscribe(subscription)
    listener.unsubscribe(subscription)
    listener.close()
    listener.close()


FORK = """
import os, sys, threading
from mouso import JobState, Mouso
from mouso.brokers.base import Want
from mouso.job import Outcome
app = Mouso("shop", broker=sys.argv[1])

@app.task
def add(x: int) -> int: ...

def finish():
    (x,) = app.broker.exchange("w", [], Want(limit=1)).leases
    outcome = Outcome(x.key, x.token, x.id, x.task, x.queue, JobState.COMPLETED, result=b"3")
    app.broker.exchange("w", [outcome], Want(limit=0))

first = add.delay(1)
next(first.watch())          # the parent's listener runs
pid = os.fork()
if pid == 0:
    threading.Timer(0.1, finish).start()
    os._exit(0 if first.get(timeout=20) == 3 else 1)
assert os.waitpid(pid, 0)[1] == 0
print(first.get(timeout=20))
app.close()
"""


def test_a_forked_child_waits_with_a_thread_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, f"sqlite:///{tmp_path}/jobs.db"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == ("3", "")
