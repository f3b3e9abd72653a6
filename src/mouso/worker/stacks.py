"""Where running jobs are, for those who ask.

A child that answers is asked: it knows its coroutines, and shows the lines of the source. One that does not, because a
job holds its interpreter in C code, gets a signal: the handler of ``faulthandler`` needs no interpreter, and writes the
stacks of all threads behind the board, where the supervisor finds the thread of the job.

That handler walks through frames that other threads may change meanwhile, which can end the process. So it is called
only while something holds the interpreter, and in the thread that does, as far as that can be told: as long as it is in
the handler, no other one gets any further. See docs/design/0009-what-is-known-of-a-run.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import gc
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType, FunctionType
from typing import TYPE_CHECKING, Any

from mouso.brokers.base import Update
from mouso.clock import SYSTEM
from mouso.job import MAX_STACK, Lease
from mouso.observe.outlet import put_error, put_stacks
from mouso.worker.board import Board, number
from mouso.worker.frames import Dump, Inspect

if TYPE_CHECKING:
    from mouso.worker.process import ChildProcess

SIGNAL: int | None = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else None
"""Makes a child write its stacks behind the board; None where there are no such signals."""
_ANSWER = 0.5
_WRITTEN = 1.0
_PAUSE = 0.02
_MOST_TASKS = 8
_DEEPEST = 500
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x([0-9a-fA-F]+)")
_RUNS_JOBS = os.path.join("mouso", "worker", "executor.py")

Wakers = dict[Any, list[asyncio.Task[Any]]]
"""Tasks, by what goes on when they end."""


# -- in the child


def write_all(board: Board, coroutines: str) -> None:
    """Writes the stacks of all threads behind the board, then those of coroutines.

    Who calls this holds the interpreter, so all others wait.
    """
    faulthandler.dump_traceback(board.descriptor, all_threads=True)
    if coroutines:
        os.write(board.descriptor, coroutines.encode("utf-8", "replace"))


def write_on_signal(board: Board) -> None:
    """Lets ``SIGNAL`` write the stacks of all threads behind the board."""
    if SIGNAL is not None:
        faulthandler.register(SIGNAL, file=board.descriptor, all_threads=True)


def dump_on_quit() -> None:
    """Lets SIGQUIT write the stacks of all threads to stderr, as soon as the interpreter is free."""
    signal.signal(signal.SIGQUIT, lambda *_: put_stacks())


def of_thread(thread: int) -> str:
    """Where a thread is, the innermost call last; empty if it is gone."""
    frame = sys._current_frames().get(thread)
    return "" if frame is None else _formatted([(f, line) for f, line in traceback.walk_stack(frame)][::-1])


def of_task(task: asyncio.Task[Any], loop_thread: int, wakers: Wakers | None = None) -> str:
    """Where a coroutine is, and the tasks that it waits for, each after the one that does, the innermost call last."""
    parts = [("", _of_coroutine(task, loop_thread))]
    with contextlib.suppress(Exception):  # what a job awaits may be of its own making
        waits = _waits_of(task, find_wakers(task.get_loop()) if wakers is None else wakers)
        for waiter, other in waits[:_MOST_TASKS]:
            who = "" if waiter is task else f"{waiter.get_name()} "
            parts.append((f"{who}waits for {other.get_name()}:\n", _of_coroutine(other, loop_thread)))
        if len(waits) > _MOST_TASKS:
            parts.append((f"and {len(waits) - _MOST_TASKS} more tasks\n", ""))
    if sum(len(title) + len(stack) for title, stack in parts) > MAX_STACK:
        parts = [(title, innermost(stack, MAX_STACK // len(parts) - len(title))) for title, stack in parts]
    return "".join(title + stack for title, stack in parts)


def _of_coroutine(task: asyncio.Task[Any], loop_thread: int) -> str:
    coroutine = task.get_coro()
    if getattr(coroutine, "cr_running", False):
        return of_thread(loop_thread)
    return _formatted([(frame, frame.f_lineno) for frame in _awaits(coroutine)])


def find_wakers(loop: asyncio.AbstractEventLoop) -> Wakers:
    """The tasks of a loop, by the futures and tasks that go on when they end.

    asyncio does not tell them. But the callbacks of a task refer to them: to the future that ``gather()`` or ``wait()``
    has made for all its tasks, or to the group that the task belongs to.
    """
    wakers: Wakers = {}
    with contextlib.suppress(Exception):  # the tasks may be of a job's own making
        for task in sorted(asyncio.all_tasks(loop), key=lambda task: (len(task.get_name()), task.get_name())):
            for future in _reached(task):
                wakers.setdefault(future, []).append(task)
    return wakers


def _reached(task: asyncio.Task[Any]) -> Iterable[asyncio.Future[Any]]:
    """A task, the futures that its callbacks lead to, and the tasks whose groups it belongs to."""
    pending: list[asyncio.Future[Any]] = [task]
    reached = dict.fromkeys(pending)
    with contextlib.suppress(Exception):  # so may the callbacks
        while pending:
            for future in _referred(pending.pop()):
                if future not in reached:
                    reached[future] = None
                    if not isinstance(future, asyncio.Task):
                        pending.append(future)
    return reached


def _referred(future: asyncio.Future[Any]) -> Iterator[asyncio.Future[Any]]:
    """The futures that the callbacks of one refer to, and the tasks whose groups they belong to."""
    for callback, *_ in getattr(future, "_callbacks", None) or ():
        if isinstance(callback, FunctionType):
            held = gc.get_referents(*(callback.__closure__ or ()))
        elif isinstance(callback, functools.partial):
            held = list(callback.args)
        else:
            held = [getattr(callback, "__self__", None)]
        for one in held:
            queue = getattr(one, "_done", one)  # as_completed() waits for a queue
            getters = list(getattr(queue, "_getters", ())) if isinstance(queue, asyncio.Queue) else []
            for found in (one, getattr(one, "_on_completed_fut", None), *getters):
                if asyncio.isfuture(found) and not isinstance(found, asyncio.Task):
                    yield found
            if isinstance(parent := getattr(one, "_parent_task", None), asyncio.Task):
                yield parent


def _waits_of(task: asyncio.Task[Any], wakers: Wakers) -> list[tuple[asyncio.Task[Any], asyncio.Task[Any]]]:
    """The tasks that a task waits for, and those that they wait for, each with the one that does."""
    waits, pending, seen = [], [(task, task)], {task}
    while pending:
        waits.append(pending.pop())
        waiter = waits[-1][1]
        waited = wakers.get(getattr(waiter, "_fut_waiter", None), ())
        others = dict.fromkeys((*waited, *wakers.get(waiter, ())))
        pending += [(waiter, other) for other in reversed(others) if other not in seen]
        seen.update(others)
    return waits[1:]


def _awaits(coroutine: Any) -> Iterator[FrameType]:
    """The frames of a coroutine and of all that it awaits, from the outside in."""
    for _ in range(_DEEPEST):
        if coroutine is None:
            return
        for kind in ("cr", "gi", "ag"):
            frame = getattr(coroutine, f"{kind}_frame", None)
            if frame is not None:
                yield frame
                break
        awaited = (getattr(coroutine, name, None) for name in ("cr_await", "gi_yieldfrom", "ag_await", "steps"))
        coroutine = next((found for found in awaited if found is not None), None)


def innermost(stack: str, most: int = MAX_STACK) -> str:
    """A stack that is not too long to be kept: its last lines."""
    if len(stack) <= most:
        return stack
    return "…\n" + stack[-most + 2 :].partition("\n")[2]


def _formatted(frames: Sequence[tuple[FrameType, int]]) -> str:
    ours = [n for n, (frame, _) in enumerate(frames) if frame.f_code.co_filename.endswith(_RUNS_JOBS)]
    begin = ours[-1] + 1 if ours and ours[-1] + 1 < len(frames) else 0
    return "".join(traceback.StackSummary.extract(iter(frames[begin:])).format())


# -- in the supervisor


class Stacks:
    """Asks children where jobs are.

    Args:
        report: Takes what could be found out only from outside.
    """

    def __init__(self, report: Callable[[list[Update]], None]) -> None:
        self._report = report
        self._asked: dict[tuple[int | str, int], asyncio.Event] = {}

    async def find(self, child: ChildProcess, lease: Lease) -> None:
        """Finds out where a job is; the child reports it, or it is reported for it."""
        claim = lease.key, lease.token
        if claim in self._asked:
            return
        answered = self._asked[claim] = asyncio.Event()
        try:
            child.send(Inspect(*claim))
            await asyncio.wait_for(answered.wait(), _ANSWER)
        except TimeoutError:
            self._report([Update(*claim, stack=await self._from_outside(child, lease))])
        finally:
            del self._asked[claim]

    def heard(self, updates: Sequence[Update]) -> None:
        """A child has answered."""
        for update in updates:
            if update.stack is not None and (update.key, update.token) in self._asked:
                self._asked[update.key, update.token].set()

    async def _from_outside(self, child: ChildProcess, lease: Lease) -> str:
        thread = None if child.gone else child.board.threads().get(number(lease.key))
        if thread is None:
            return f"it waits in process {child.pid} and has not started, or has just ended\n"
        if child.stopped():
            return f"process {child.pid} was stopped by a signal\n"
        found = _of_thread(await written(child), thread)
        if not found:
            return f"process {child.pid} does not answer, and its system shows no stacks\n"
        return innermost(f"process {child.pid} does not answer, as if something held its interpreter:\n{found}")


async def written(child: ChildProcess) -> str:
    """The stacks of all threads of a child, as ``faulthandler`` writes them; empty if it cannot be made to."""
    if not child.ready:
        return ""
    async with child.stacks_lock:
        if child.gone:  # and its board with it
            return ""
        child.board.clear_stacks()
        child.send(Dump())
        text = await _read(child, _ANSWER)
        if text or child.gone or SIGNAL is None:
            return text
        holder = await _find_holder(child.pid)
        if not holder or child.gone:
            return ""
        child.signal(SIGNAL, holder)
        return await _read(child, _WRITTEN)


async def _read(child: ChildProcess, patience: float) -> str:
    text, deadline = "", SYSTEM.monotonic() + patience
    while SYSTEM.monotonic() < deadline:
        await asyncio.sleep(_PAUSE)
        if child.gone:
            return ""
        before, text = text, child.board.stacks()
        if text and text == before:  # it is written within a millisecond, and no end is marked
            break
    return text


async def _find_holder(pid: int) -> int:
    """The thread of a process that holds its interpreter; the main one if that thread sleeps; 0 if nothing moves.

    It computes, or it sleeps. The others wait, and look every five milliseconds whether it is free; in a process that
    was stopped or frozen, nobody does.
    """
    computing, looked = {thread for thread, (state, _) in _threads(pid).items() if state == "R"}, _threads(pid)
    for _ in range(3):
        await asyncio.sleep(_PAUSE)
        now = _threads(pid)
        computing &= {thread for thread, (state, _) in now.items() if state == "R"}
    if computing:
        return min(computing)
    return pid if any(now[thread][1] != switches for thread, (_, switches) in looked.items() if thread in now) else 0


_MOST_THREADS = 256
"""Of one process that are looked at: a job may have started 20,000, whose files take the supervisor seconds to read."""


def _threads(pid: int) -> dict[int, tuple[str, str]]:
    """State of each thread of a process, and how often it has given up the CPU, as proc(5) tells."""
    found = {}
    with contextlib.suppress(OSError):  # it is gone
        for thread in os.listdir(f"/proc/{pid}/task")[:_MOST_THREADS]:
            with open(f"/proc/{pid}/task/{thread}/status") as status:
                told = dict(line.split(":\t", 1) for line in status if ":\t" in line)
            found[int(thread)] = told.get("State", "")[:1], told.get("voluntary_ctxt_switches", "")
    return found


def _handles(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal: one whose interpreter only just starts has none, and would die."""
    try:
        with open(f"/proc/{pid}/status") as status:
            caught = next(line for line in status if line.startswith("SigCgt:"))
    except (OSError, StopIteration):
        return True
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def _of_thread(stacks: str, thread: int) -> str:
    """One thread of what ``faulthandler`` has written, the innermost call last."""
    for part in stacks.split("\n\n"):
        title, *lines = part.splitlines() or [""]
        found = _THREAD.match(title)
        if found and int(found[1], 16) == thread:
            lines.reverse()
            ours = [n for n, line in enumerate(lines) if f'{_RUNS_JOBS}"' in line]
            return "".join(f"{line}\n" for line in lines[ours[-1] + 1 if ours else 0 :])
    return ""


async def dump(child: ChildProcess) -> None:
    """Writes the stacks of a child to stderr, each with the jobs that run on the thread."""
    text = await written(child)
    if not text and not child.stopped() and _handles(child.pid, signal.SIGQUIT):
        child.signal(signal.SIGQUIT)  # it writes them itself, without the jobs, when it can
    if not text:
        return
    threads = child.board.threads()
    jobs: dict[int, list[str]] = {}
    for lease in list(child.leases.values()):
        thread = threads.get(number(lease.key))
        if thread is not None:
            jobs.setdefault(thread, []).append(f"{lease.id} ({lease.task})")
    lines = [f"child {child.pid}:"]
    for line in text.splitlines():
        found = _THREAD.match(line)
        runs = jobs.get(int(found[1], 16)) if found else None
        lines += [f"{line}", f"  runs job {', '.join(runs)}"] if runs else [line]
    put_error("\n".join(lines) + "\n\n")
