"""A child process: imports the app, runs jobs, and ends when its supervisor does.

    python -m mouso.worker.child WORKER SOCKET BOARD SLOTS GRACE LOG_LEVEL LOG_FORMAT OUTPUT APP FOLDER LIMITS

Its life: the app is imported → lifespans are entered → ``Hello`` → jobs come in, outcomes go out → ``Exit`` (or the
socket ends, because the supervisor died) → running jobs get their grace → lifespans are left → the process ends.

The main thread runs the event loop for coroutines; a reader thread takes frames and keeps time, so that neither is
held up by a job that blocks the loop. Handlers of events have a thread of their own, so that a slow one holds up
nothing. A child whose reader or worker thread fails is of no use to anybody: it ends, and is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import queue
import select
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NoReturn

import msgspec

from mouso.app import Mouso
from mouso.clock import SYSTEM
from mouso.errors import BrokerError, ConfigError, StartError
from mouso.events import Event
from mouso.isolation import OOM_CHILD, OOM_ISOLATED, Limits, impose, limit_cpu, offer_to_kernel
from mouso.lifespan import enter
from mouso.loading import load_app
from mouso.retry import Backoff
from mouso.worker import frames
from mouso.worker.arenas import give_back, share_arenas
from mouso.worker.board import Board
from mouso.worker.launch import refusal
from mouso.worker.meter import measure_process
from mouso.worker.output import open_output
from mouso.worker.pool import Pool
from mouso.worker.signals import ignore_ends
from mouso.worker.stacks import dump_on_quit, write_all, write_on_signal
from mouso.worker.tripwire import end_if_closed, stretch

_WAIT_FOR_END = 0.02
_READ = 64 << 10
"""Bytes: the kernel maps fresh memory for a buffer of 1 MiB at every read, 27 µs against 4."""
_ORPHAN_GRACE = 0.5
_LAST_EVENTS = 0.5
_BROKEN, _FENCED = 70, 76
"""Exit codes. They prove nothing to the supervisor: a job may end the process with them."""
_NO_MEMORY = (errno.ENOMEM, errno.ENOBUFS)
_LEASE_LOOK = 0.4
_LEASE_GRACE = 1.5
_COARSE = 1.0
_MOST_SELECTED = 1024
"""``select()`` takes no descriptor from this one on."""
_FOR_LOOP = 3
"""Descriptors of an event loop, which complains unseemly if it gets only some of them."""

log = logging.getLogger("mouso.worker")


class Child:
    """The supervisor's counterpart in this process."""

    def __init__(self, worker: str, sock: socket.socket, board: Board, concurrency: int, grace: float) -> None:
        self._worker = worker
        self._sock = sock
        self._board = board
        self._concurrency = concurrency
        self._grace = grace
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_out, False)
        self._sending = threading.Lock()
        self._sleeping = False
        self._fenced = False
        self._ended: Callable[[], object] = lambda: None
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._teller: threading.Thread | None = None

    async def run(self, app: Mouso) -> None:
        """Runs jobs until the supervisor says ``Exit`` or is gone.

        Raises:
            StartError: A lifespan failed at its start.
            ConfigError: It cannot be one.
        """
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        self._ended = lambda: loop.call_soon_threadsafe(ended.set)
        async with AsyncExitStack() as lifespans:
            for lifespan in app.lifespans:
                await enter(lifespan, lifespans)
            pool = Pool(app, self._worker, loop, self._board, self._concurrency, self._send, self._kick)
            self._app = app
            os.register_at_fork(after_in_child=lambda: self._forked(pool, loop))
            self._send(_hello(app))
            reader = threading.Thread(target=self._read, args=(pool,), name="mouso-reader", daemon=True)
            try:
                reader.start()
            except RuntimeError as error:  # jobs of other processes have left no thread
                raise StartError(refusal(error)) from error
            while not ended.is_set():
                with contextlib.suppress(asyncio.CancelledError):  # a job may cancel every task of the loop
                    await ended.wait()

    def _forked(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        """In a fork that a job has made: nothing of the supervisor's, and no other job, may go on here."""
        self._sock.close()
        pool.forked()
        ready = getattr(loop, "_ready", None)  # what other coroutines were about to do
        if ready is not None:
            ready.clear()
        loop.stop()

    def _send(self, message: frames.ToSupervisor) -> None:
        with self._sending:  # a large frame takes several system calls, and another thread's would get in between
            try:
                frames.send(self._sock, message)
            except OSError as error:  # the supervisor is gone; the reader sees it too
                end_if_closed(error)
                if error.errno in _NO_MEMORY:
                    _end(error)
            except BaseException as error:  # part of it may be sent, and what follows would be taken for the rest
                _end(error)

    def _kick(self) -> None:
        if self._sleeping:
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_out, b"!")

    def _read(self, pool: Pool) -> None:
        """The reader thread."""
        splitter = frames.Splitter()
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._wake_in, select.POLLIN)
        look = 0.0
        while True:
            # Set before the tick looks at what there is: who comes after that look must find a sleeper to wake.
            self._sleeping = True
            pause = pool.tick()
            if SYSTEM.monotonic() > look:  # the supervisor has said nothing for a while
                self._heed_lease(pool)
                look = SYSTEM.monotonic() + _LEASE_LOOK
            self._sleeping = pause is None or pause > 0.01
            ready = {fd for fd, _ in poll.poll(None if pause is None else pause * 1000)}
            self._sleeping = False
            if self._wake_in in ready:
                os.read(self._wake_in, 4096)
            if self._sock.fileno() in ready:
                try:
                    data = self._sock.recv(_READ)
                except OSError as error:  # the supervisor died with outcomes unread
                    end_if_closed(error)
                    data = b""
                if not data:
                    self._orphaned(pool)
                    return
                for body in splitter.feed(data):
                    if not self._handle(frames.to_child.decode(body), pool):
                        return
                look = SYSTEM.monotonic() + _LEASE_LOOK

    def _heed_lease(self, pool: Pool) -> None:
        """Stops what runs here when the worker's lease is about to end: others will run it. If the supervisor lives, it
        has said so already; this is for one that was stopped."""
        until, now = self._board.lease, SYSTEM.steady()
        if pool.idle or not until or now < until:
            self._fenced = False
        elif not self._fenced:
            self._fenced = True
            log.error("the lease of this worker was not renewed: child %d stops its jobs", os.getpid())
            pool.stop(None, "fenced")
        elif now > until + _LEASE_GRACE * 1000:
            self._board.fence()
            os._exit(_FENCED)

    def _handle(self, message: frames.ToChild, pool: Pool) -> bool:
        match message:
            case frames.Jobs():
                pool.add(message.leases)
            case frames.Ping():
                self._send(frames.Pong())
            case frames.Inspect():
                pool.inspect(message.key, message.token)
            case frames.Dump():
                write_all(self._board, pool.coroutines())
            case frames.Stop():
                pool.stop(message.key, message.reason)
            case frames.Drain():
                pool.drain()
            case frames.Happened():
                self._tell(message.events)
            case frames.Exit():
                if self._teller is not None:
                    self._events.put(None)
                    self._teller.join(_LAST_EVENTS)
                self._ended()
                return False
        return True

    def _tell(self, events: Sequence[Event]) -> None:
        if self._teller is None:
            self._teller = threading.Thread(target=self._tell_handlers, name="mouso-events", daemon=True)
            self._teller.start()
        for event in events:
            self._events.put(event)

    def _tell_handlers(self) -> None:
        """The thread of the handlers."""
        for event in iter(self._events.get, None):
            try:
                self._app.events.emit(event)
            except BaseException:  # one that raises KeyboardInterrupt
                log.exception("a handler of %s failed", event.name)

    def _orphaned(self, pool: Pool) -> None:
        """The supervisor died: nobody takes outcomes any more, and its jobs will soon run elsewhere: all stops now."""
        log.warning("the supervisor of child %d is gone; ending", os.getpid())
        pool.drain()
        pool.stop(None, "shutdown")
        deadline = SYSTEM.monotonic() + min(self._grace, _ORPHAN_GRACE)
        pause = threading.Event()
        while not pool.idle and SYSTEM.monotonic() < deadline:
            pause.wait(_WAIT_FOR_END)
        if pool.idle:
            self._ended()
            pause.wait(_ORPHAN_GRACE)
        if os.getpgrp() == os.getpid():  # lifespans or jobs that do not end
            os.killpg(0, signal.SIGKILL)  # with the programs that the jobs started
        os._exit(1)


def _end_with_broken_thread(hook: Callable[[threading.ExceptHookArgs], object]) -> None:
    """Lets an exception in a thread of Mouso's own end the process; those of jobs go to the hook that was there."""

    def ended(details: threading.ExceptHookArgs) -> None:
        if details.thread is None or not details.thread.name.startswith("mouso-"):
            hook(details)
            return
        _end(details.exc_value or details.exc_type())

    threading.excepthook = ended


def _end(error: BaseException) -> NoReturn:
    """Ends this process, which can go on no more."""
    end_if_closed(error)
    starved = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _NO_MEMORY)
    try:
        if starved:
            logging.raiseExceptions = False  # it is in vain to tell, with a traceback, that this cannot be told
            what = "what ran in it is tried again; give the worker more, or run fewer jobs at once (--concurrency)"
            log.critical("child %d has no memory left and ends: %s", os.getpid(), what)
        else:
            log.critical("child %d is broken and ends", os.getpid(), exc_info=error)
    finally:
        os._exit(frames.EXIT_STARVED if starved else _BROKEN)


def fine_loop() -> asyncio.AbstractEventLoop:
    """A new loop that waits to the microsecond.

    ``epoll`` waits in whole milliseconds, rounded up: coroutines that sleep 10 ms sleep up to 11, and end in bursts. At
    200 in flight bare asyncio reaches 0.90 of the ideal rate, with this loop 0.95, for the same CPU.
    """
    if not hasattr(selectors, "EpollSelector"):
        return asyncio.new_event_loop()
    selector = _fine_selector()
    if selector.fileno() >= _MOST_SELECTED:
        selector.close()
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(selector)


def _fine_selector() -> selectors.EpollSelector:
    class Fine(selectors.EpollSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and 0 < timeout < _COARSE:
                select.select((self.fileno(),), (), (), timeout)
                timeout = 0
            return super().select(timeout)

    return Fine()


def _hello(app: Mouso) -> frames.Hello:
    tasks = {}
    for task in app.tasks.values():
        policy = task.settings.policy
        backoff = policy.backoff if isinstance(policy.backoff, Backoff) else Backoff()
        tasks[task.name] = frames.TaskInfo(
            queue=task.default_queue, attempts=policy.attempts, backoff=backoff, limits=task.settings.limits
        )
    retention = msgspec.structs.astuple(app.retention)
    return frames.Hello(app.name, app.broker_url, tasks, sorted(app.events.names), retention)


def _equip(
    worker: str, sock: socket.socket, board_descriptor: int, slots: int, grace: float
) -> tuple[Child, asyncio.Runner]:
    """What takes descriptors.

    Raises:
        ConfigError: There are not enough.
    """
    try:
        stretch()  # before all others: who closes them one by one comes to it first
        board = Board(board_descriptor, 2 * slots)
        write_on_signal(board)
        child = Child(worker, sock, board, slots, grace)
        for descriptor in [os.dup(sock.fileno()) for _ in range(_FOR_LOOP)]:
            os.close(descriptor)
        runner = asyncio.Runner(loop_factory=fine_loop)
        runner.get_loop()
    except OSError as error:
        raise ConfigError(refusal(error)) from error
    return child, runner


def serve(
    worker: str,
    path: str,
    folder: str,
    sock_descriptor: int,
    board_descriptor: int,
    slots: int,
    grace: float,
    limits: Limits | None,
) -> int:
    """Loads the app, unless this process is a copy of one that has, and runs jobs; returns the exit code."""
    _end_with_broken_thread(threading.excepthook)
    for inherited in (sock_descriptor, board_descriptor):
        os.set_inheritable(inherited, False)  # not by the programs that jobs start
    sock = socket.socket(fileno=sock_descriptor)
    offer_to_kernel(OOM_CHILD if limits is None else OOM_ISOLATED)
    try:
        child, runner = _equip(worker, sock, board_descriptor, slots, grace)
        if limits is not None:
            impose(limits)
            measure_process()
        app = load_app(path, folder=Path(folder) if folder else None)
        if limits is None:  # else it is a copy, or ends soon
            give_back()
        app.join_store()  # what a job enqueued into a new one would be lost with it when the old one is put back
        if limits is not None and limits.max_cpu is not None:
            limit_cpu(limits.max_cpu)  # what importing took is not the job's
        if not app.tasks:
            raise ConfigError(f"{path} has no tasks; decorate functions with @app.task, or import the modules that do")
        runner.run(child.run(app))
    except (ConfigError, BrokerError, StartError) as error:
        with contextlib.suppress(OSError):
            frames.send(sock, frames.Failed(str(error), passing=not isinstance(error, ConfigError)))
        return 2
    except BaseException as error:  # a job stopped the loop
        _end(error)
    with contextlib.suppress(RuntimeError):  # jobs have left no thread to wait for those of the loop with
        runner.close()
    app.close()
    return 0


def main(arguments: list[str]) -> int:
    """The process's entry."""
    worker, sock, board, slots, grace, level, form, output, path, folder, limits = arguments
    share_arenas()
    ignore_ends()
    dump_on_quit()
    open_output(level, form, output)
    imposed = msgspec.json.decode(limits, type=Limits | None)
    return serve(worker, path, folder, int(sock), int(board), int(slots), float(grace), imposed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
