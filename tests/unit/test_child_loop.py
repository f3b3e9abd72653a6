"""The event loop of a child."""

import asyncio
import os
import resource
from collections.abc import Iterator

import pytest

from mouso.worker.child import fine_loop


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = fine_loop()
    yield made
    made.close()


def test_timers_go_in_the_order_they_are_due(loop: asyncio.AbstractEventLoop) -> None:
    ended: list[float] = []
    base = loop.time()
    for seconds in (0.003, 0.0005, 0.002, 0.001, 0):
        loop.call_at(base + seconds, ended.append, seconds)
    loop.call_at(base + 0.004, loop.stop)
    loop.run_forever()
    assert ended == [0, 0.0005, 0.001, 0.002, 0.003]


def test_a_descriptor_or_another_thread_ends_a_long_wait(loop: asyncio.AbstractEventLoop) -> None:
    async def wait() -> bytes:
        reading, writing = os.pipe()
        got: asyncio.Future[bytes] = loop.create_future()
        loop.add_reader(reading, lambda: got.set_result(os.read(reading, 1)))
        loop.call_later(0.001, lambda: loop.run_in_executor(None, os.write, writing, b"x"))
        try:
            return await asyncio.wait_for(got, 0.9)
        finally:
            loop.remove_reader(reading)
            os.close(reading)
            os.close(writing)

    assert loop.run_until_complete(wait()) == b"x"


def test_a_process_with_many_descriptors_gets_an_ordinary_loop() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= 1100:
        pytest.skip(f"this machine allows {hard} descriptors, select() takes 1,024")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1100), hard))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1024)]
    try:
        made = fine_loop()
        made.run_until_complete(asyncio.sleep(0.001))
        made.close()
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
