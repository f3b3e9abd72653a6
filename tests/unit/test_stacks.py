"""Where jobs are: of threads and coroutines from inside, of threads from what ``faulthandler`` writes."""

import asyncio
import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any

import pytest

from mouso import Mouso
from mouso.job import MAX_STACK, Lease
from mouso.worker import stacks
from mouso.worker.board import Board
from mouso.worker.executor import Executor, Run
from tests.support import wait_until, wait_until_async


@pytest.fixture
def board() -> Iterator[Board]:
    with closing(Board.create(4)) as board:
        yield board


def prepared(function: Callable[..., object]) -> tuple[Executor, Run]:
    """A run of a task, ready to start."""
    app = Mouso("stacks", broker="memory://stacks")
    task = app.task(name="work")(function)
    executor = Executor(app, "0" * 16, lambda context, what: None)
    run = executor.prepare(Lease(7, 3, "a", task.name, "default", b"{}", "json", 0, 0, 0, 0, None, None))
    assert isinstance(run, Run)
    return executor, run


# -- from inside


def test_a_thread_is_shown_from_the_task_on() -> None:
    asleep, go_on = threading.Event(), threading.Event()

    def task() -> None:
        inner()

    def inner() -> None:
        asleep.set()
        go_on.wait(10)

    executor, run = prepared(task)
    thread = threading.Thread(target=executor.run_function, args=(run,))
    thread.start()
    asleep.wait(10)
    wait_until(lambda: "go_on.wait(10)" in stacks.of_thread(thread.ident or 0))
    text = stacks.of_thread(thread.ident or 0)
    go_on.set()
    thread.join()
    assert text.splitlines()[0].endswith("in task")
    assert "inner()" in text
    assert text.index("in task") < text.index("in inner") < text.index("in wait")
    assert "executor.py" not in text
    assert stacks.of_thread(thread.ident or 0) == ""


def shown(task: Callable[..., object], last: str) -> str:
    """Where a coroutine job is, once a line is in there."""

    async def main() -> str:
        executor, run = prepared(task)
        running = asyncio.create_task(executor.run_coroutine(run))
        await wait_until_async(lambda: last in stacks.of_task(running, threading.get_ident()))
        text = stacks.of_task(running, threading.get_ident())
        running.cancel()
        await running
        return text

    return asyncio.run(main())


async def deep() -> None:
    await asyncio.sleep(10)


def test_a_coroutine_is_shown_with_all_it_awaits() -> None:
    async def task() -> None:
        await middle()

    async def middle() -> None:
        await asyncio.gather(deep(), asyncio.sleep(10))

    text = shown(task, "in deep")
    assert text.splitlines()[0].endswith("in task")
    assert "await middle()" in text
    assert "await asyncio.gather(" in text
    assert "executor.py" not in text


def test_the_tasks_that_a_coroutine_waits_for_are_shown() -> None:
    async def task() -> None:
        await asyncio.create_task(other(), name="the other")

    async def other() -> None:
        await asyncio.wait([asyncio.create_task(deep(), name="the third")])

    before, after = shown(task, "in deep").split("waits for the other:\n")
    assert "in task" in before
    assert "in other" in after
    assert "in deep" in after.split("the other waits for the third:\n")[1]


async def gather() -> None:
    await asyncio.gather(deep(), asyncio.sleep(10))


async def gather_shielded() -> None:
    await asyncio.gather(asyncio.shield(deep()), asyncio.sleep(10))


async def group() -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(deep())


async def group_in_its_block() -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(deep())
        await asyncio.sleep(10)


async def group_that_gathers() -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(gather())


async def wait() -> None:
    await asyncio.wait([asyncio.create_task(deep())], timeout=10)


async def wait_for() -> None:
    await asyncio.wait_for(deep(), 10)


async def wait_for_task() -> None:
    await asyncio.wait_for(asyncio.create_task(deep()), 10)


async def shield() -> None:
    await asyncio.shield(deep())


async def timeout() -> None:
    async with asyncio.timeout(10):
        await deep()


async def as_completed() -> None:
    for each in asyncio.as_completed([deep(), asyncio.sleep(10)]):
        await each


@pytest.mark.parametrize(
    "waiting",
    [
        *(gather, gather_shielded, group, group_in_its_block, group_that_gathers),
        *(wait, wait_for, wait_for_task, shield, timeout, as_completed),
    ],
)
def test_whatever_a_coroutine_waits_with(waiting: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def task() -> None:
        nobody = asyncio.create_task(bystander())
        try:
            await waiting()
        finally:
            nobody.cancel()

    async def bystander() -> None:
        await asyncio.gather(asyncio.sleep(10))

    text = shown(task, "in deep")
    assert text.splitlines()[0].endswith("in task")
    assert text.index("in task") < text.index(f"in {waiting.__name__}") < text.index("in deep")
    assert text.count("in deep\n") == 1
    assert "in bystander" not in text


def test_a_coroutine_that_waits_for_many_shows_some() -> None:
    async def task() -> None:
        await asyncio.gather(*(deep() for _ in range(20)))

    text = shown(task, "in deep")
    assert text.splitlines()[0].endswith("in task")
    assert text.count("waits for ") == text.count("in deep\n") == stacks._MOST_TASKS
    assert text.endswith(f"and {20 - stacks._MOST_TASKS} more tasks\n")


def test_tasks_far_down_leave_room_for_who_waits_for_them() -> None:
    async def task() -> None:
        await asyncio.gather(*(down(100) for _ in range(20)))

    async def down(depth: int) -> None:
        await further(depth - 1) if depth else await deep()

    async def further(depth: int) -> None:
        await down(depth)

    text = shown(task, "in deep")
    assert len(text) <= MAX_STACK
    assert text.splitlines()[0].endswith("in task")
    assert text.count("…\n") == text.count("in deep\n") == stacks._MOST_TASKS
    assert text.endswith(f"and {20 - stacks._MOST_TASKS} more tasks\n")


def test_a_task_that_two_wait_for_and_that_wakes_itself_is_shown_once() -> None:
    async def task() -> None:
        one = asyncio.create_task(deep())
        one.add_done_callback(partial(lambda *_: None, one))
        await asyncio.gather(asyncio.shield(one), asyncio.wait([one]))

    assert shown(task, "in deep").count("in deep\n") == 1


class Odd:
    """An awaitable that has an answer to everything."""

    def __await__(self) -> "Odd":
        return self

    def __iter__(self) -> "Odd":
        return self

    def __next__(self) -> None: ...

    def close(self) -> None: ...

    def __getattr__(self, name: str) -> "Odd":
        return self


class Nasty:
    """What fails when it is looked at."""

    def __call__(self, task: object) -> None: ...

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)


@pytest.mark.parametrize(
    "callback",
    [Nasty(), Nasty().__call__, partial(str, Nasty()), partial(str, Odd()), len],
    ids=["object", "method", "partial", "odd", "builtin"],
)
def test_callbacks_of_a_jobs_own_making(callback: Callable[[object], object]) -> None:
    async def task() -> None:
        odd = asyncio.create_task(asyncio.sleep(10))
        odd.add_done_callback(callback)
        await asyncio.gather(odd, deep())

    text = shown(task, "in deep")
    assert text.splitlines()[0].endswith("in task")


def test_a_stack_is_shown_though_asyncio_does_not_tell_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(loop: object) -> None:
        raise RuntimeError("Set changed size during iteration")

    monkeypatch.setattr(asyncio, "all_tasks", unknown)

    async def task() -> None:
        await gather()

    text = shown(task, "in gather")
    assert text.splitlines()[0].endswith("in task")
    assert "waits for" not in text


def test_an_awaitable_that_has_an_answer_to_everything() -> None:
    async def task() -> None:
        await Odd()  # type: ignore[misc]  # why: odd indeed

    coroutine = task()
    coroutine.send(None)
    found = list(islice(stacks._awaits(coroutine), 10_000))
    coroutine.close()
    assert found[0] is not None
    assert len(found) < 10_000


@pytest.mark.parametrize("gathered", [False, True])
def test_a_coroutine_that_runs_right_now_is_where_the_loop_is(gathered: bool) -> None:
    found: list[str] = []
    holding = threading.Event()

    async def task() -> None:
        if gathered:
            await asyncio.gather(runs())
        else:
            busy()

    async def runs() -> None:
        busy()

    def busy() -> None:
        holding.set()
        while not found:
            time.sleep(0.001)

    async def main() -> None:
        executor, run = prepared(task)
        running = asyncio.create_task(executor.run_coroutine(run))
        loop_thread = threading.get_ident()

        def look() -> None:
            holding.wait(10)
            found.append(stacks.of_task(running, loop_thread))

        looker = threading.Thread(target=look)
        looker.start()
        await running
        looker.join()

    asyncio.run(main())
    assert found[0].splitlines()[0].endswith("in task")
    assert "in busy" in found[0]


def test_a_long_stack_loses_its_beginning() -> None:
    lines = [f'  File "x.py", line {n} in f\n' for n in range(2000)]
    kept = stacks.innermost("".join(lines))
    assert len(kept) <= MAX_STACK
    assert kept.startswith("…\n  File ")
    assert kept.endswith(lines[-1])
    assert stacks.innermost("short\n") == "short\n"


# -- from outside

DUMP = """\
Thread 0x00007f1c564f36c0 (most recent call first):
  File "/shop/tasks.py", line 54 in deep
  File "/shop/tasks.py", line 52 in waiter
  File "/lib/mouso/worker/executor.py", line 217 in run_function
  File "/lib/mouso/worker/pool.py", line 318 in _work

Current thread 0x00007f1c5902cb80 (most recent call first):
  File "/lib/asyncio/base_events.py", line 1884 in _run_once
  File "/lib/asyncio/runners.py", line 118 in run

Thread 0x00007f1c56cf46c0 [mouso-1] (most recent call first):
  <no Python frame>
"""


@pytest.mark.parametrize(
    ("thread", "shown"),
    [
        (0x7F1C564F36C0, '  File "/shop/tasks.py", line 52 in waiter\n  File "/shop/tasks.py", line 54 in deep\n'),
        (
            0x7F1C5902CB80,
            '  File "/lib/asyncio/runners.py", line 118 in run\n'
            '  File "/lib/asyncio/base_events.py", line 1884 in _run_once\n',
        ),
        (0x7F1C56CF46C0, "  <no Python frame>\n"),
        (1, ""),
    ],
)
def test_one_thread_of_a_dump(thread: int, shown: str) -> None:
    assert stacks._of_thread(DUMP, thread) == shown
    assert stacks._of_thread("", thread) == ""


def test_what_faulthandler_writes_is_understood(board: Board) -> None:
    faulthandler.dump_traceback(board.descriptor, all_threads=True)
    mine = stacks._of_thread(board.stacks(), threading.get_ident())
    assert mine.splitlines()[-1].endswith("in test_what_faulthandler_writes_is_understood")


def test_stacks_lie_behind_the_rows(board: Board) -> None:
    board.start(1, 77, 1, None)
    board.here(1)
    board.here(2)
    for _ in range(3):
        board.clear_stacks()
        faulthandler.dump_traceback(board.descriptor, all_threads=False)
        text = board.stacks()
        assert text.startswith("Stack (most recent call first):")
        assert text.count("Stack (") == 1
    assert [note.number for note in board.read()] == [77]
    assert board.threads() == {77: threading.get_ident()}
    board.end(1)
    assert board.threads() == {}
    board.clear_stacks()
    assert board.stacks() == ""


@pytest.mark.skipif(stacks.SIGNAL is None, reason="this system has no real-time signals")
def test_a_signal_makes_a_process_write_its_stacks_though_its_interpreter_is_held(board: Board) -> None:
    program = (
        "import re, sys, threading\n"
        "from mouso.worker.board import Board\n"
        "from mouso.worker.stacks import write_on_signal\n"
        "board = Board(int(sys.argv[1]), 4)\n"
        "write_on_signal(board)\n"
        "def held():\n"
        "    board.start(0, 5, 1, None); board.here(0)\n"
        "    re.match('(a+)+$', 'a' * 40 + 'b')\n"
        "threading.Thread(target=held, daemon=True).start()\n"
        "re.match('(a+)+$', 'a' * 40 + 'b')\n"
    )
    os.set_inheritable(board.descriptor, True)
    with subprocess.Popen([sys.executable, "-c", program, str(board.descriptor)], close_fds=False) as process:
        try:
            wait_until(board.threads)
            assert stacks.SIGNAL is not None
            wait_until(lambda: _asked(process, board), interval=0.1)
            text = stacks._of_thread(board.stacks(), board.threads()[5])
        finally:
            process.send_signal(signal.SIGKILL)
    assert "in held" in text
    assert "re/__init__.py" in text


def _asked(process: subprocess.Popen[bytes], board: Board) -> bool:
    board.clear_stacks()
    assert stacks.SIGNAL is not None
    process.send_signal(stacks.SIGNAL)
    wait_until(board.stacks)
    return "in match" in board.stacks()


class Dying:
    """A child that ends when it is asked for its stacks."""

    ready = True
    gone = False

    def __init__(self) -> None:
        self.board = Board.create(2)
        self.stacks_lock = asyncio.Lock()

    def send(self, message: object) -> None:
        self.gone = True
        self.board.close()


@pytest.mark.skipif(stacks.SIGNAL is None, reason="this system has no real-time signals")
def test_a_process_that_ends_meanwhile_shows_none() -> None:
    child: Any = Dying()

    async def twice() -> tuple[str, str]:
        return await asyncio.gather(stacks.written(child), stacks.written(child))

    assert list(asyncio.run(twice())) == ["", ""]
    assert child.board.descriptor == -1


def test_a_process_that_only_just_starts_gets_no_signal_that_would_end_it() -> None:
    waits = "import signal; {}; print(flush=True); signal.pause()"
    for handler, handled in (("signal.signal(signal.SIGQUIT, print)", True), ("", False)):
        source = waits.format(handler or "pass")
        with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert stacks._handles(process.pid, signal.SIGQUIT) is handled
            process.kill()
