"""The supervisor's side of the template: processes that are copies of one that has imported the app."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable

import msgspec

from mouso.clock import SYSTEM
from mouso.errors import ConfigError
from mouso.isolation import Limits
from mouso.worker import WorkerOptions
from mouso.worker.cgroups import Group
from mouso.worker.launch import Exit, Spawned, clear, describe, kill_group, signal_thread
from mouso.worker.proof import process_state
from mouso.worker.template import (
    MAX_MESSAGE,
    Born,
    Ended,
    Fork,
    FromTemplate,
    Ready,
    Unborn,
    Unfit,
    encode,
    from_template,
)

_KIB = 1024
_LOOK = 0.1
_PATIENCE, _PATIENCE_STOPPED = 5.0, 0.5
"""Seconds for which a template may owe an answer: a busy machine may take a while to copy a large app, but one that a
signal has stopped does nothing until somebody lets it go on."""

log = logging.getLogger("mouso.worker")

_decode: Callable[[bytes], FromTemplate] = from_template.decode


class Uncopyable(Exception):
    """The app can be loaded, but its process not be copied."""


class Forked:
    """A copy of the template.

    Args:
        pidfd: A descriptor of the process, so that a signal never hits another one that got its number.
        alone: It runs an isolated job, and nothing that it started outlives it.
        group: The cgroup that it is in.
        vanished: Called with its pid when it has ended and the template has not told how.
    """

    def __init__(
        self, pid: int, pidfd: int, vanished: Callable[[int], None], *, alone: bool, group: Group | None
    ) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._alone = alone
        self._group = group
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[Exit] = self._loop.create_future()
        self._on_vanished = vanished
        self._is_gone = self._is_forsaken = False
        self._loop.add_reader(pidfd, self._vanished)

    async def wait(self) -> Exit:
        """Waits for its end."""
        return await asyncio.shield(self._exit)

    def signal(self, number: int, thread: int | None = None) -> None:
        """Sends it, or one of its threads, a signal; does nothing when it has ended."""
        if not self._exit.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, 0)  # its number is still its own
                if not signal_thread(self.pid, thread, number):
                    signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Ends it and the processes that it started; does nothing when it has ended."""
        if not self._exit.done():
            if self._group is not None:
                self._group.kill()
            kill_group(self._pidfd, self.pid)
            self.signal(signal.SIGKILL)  # it may be so young that it has no group yet

    def ended(self, found: Exit) -> None:
        """It has ended, in this way."""
        if not self._exit.done():
            self._exit.set_result(clear(found, self._group))
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)

    def forsaken(self) -> None:
        """The template is gone: nobody can tell how it will end, only that it has."""
        self._is_forsaken = True
        if self._is_gone and not self._exit.done():
            if self._alone:
                kill_group(self._pidfd, None)
            self.ended(Exit(None))

    def _vanished(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._is_gone = True
        if self._is_forsaken:
            self.forsaken()
        else:
            self._on_vanished(self.pid)


class Template:
    """A template process and its copies. Make it with ``start``, and await ``ready`` before the first copy.

    One that owes an answer and stands still is killed: without it nothing that it was asked for begins, and nothing
    that it has made ends.
    """

    def __init__(self, control: socket.socket, process: Spawned, app: str) -> None:
        self._control = control
        self._process = process
        self._app = app
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._births: deque[tuple[asyncio.Future[Forked], bool, Group | None]] = deque()
        self._copies: dict[int, Forked] = {}
        self._untold: dict[int, float] = {}
        self._silent = self._looked = 0.0
        self._watched = False
        self._retired = False
        self.alive = True
        control.setblocking(False)
        self._loop.add_reader(control, self._read)
        self._expect()

    @classmethod
    def start(cls, worker: str, options: WorkerOptions) -> Template:
        """Starts the process, which begins to import the app.

        Raises:
            OSError: The system does not let it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", "-m", "mouso.worker.template", worker, str(theirs.fileno())]
            command += [options.log_level, options.log_format, options.output]
            command += [options.app, options.folder]
            try:
                process = Spawned(command, (theirs.fileno(),))
            except BaseException:
                ours.close()
                raise
        return cls(ours, process, options.app)

    async def ready(self) -> None:
        """Waits until it has imported the app.

        Raises:
            ConfigError: The app cannot be loaded, or ends its process.
            Uncopyable: It has threads.
            OSError: It was closed, or sent nonsense.
        """
        try:
            await self._ready
        except EOFError:
            self.close()  # it may have closed its descriptors only
            how = describe(await self._process.wait())
            raise ConfigError(f"the app {self._app} ended its process at import ({how})") from None
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    async def fork(
        self, sock: int, board: int, slots: int, grace: float, limits: Limits | None, group: Group | None
    ) -> Forked:
        """Makes a child with a socket and a board, in a cgroup.

        Raises:
            OSError: The template is gone or does not answer, or the system does not let it.
        """
        if not self.alive:
            raise OSError("the template process is gone")
        birth: asyncio.Future[Forked] = self._loop.create_future()
        fork = Fork(slots, grace, limits, "" if group is None else str(group.folder))
        socket.send_fds(self._control, [encode(fork)], [sock, board])
        self._births.append((birth, limits is not None, group))
        self._expect()
        return await birth

    def retire(self) -> None:
        """Ends the template as soon as none of its copies lives."""
        self._retired = True
        if not (self._copies or self._births):
            self.close()

    def close(self) -> None:
        """Ends the template; its copies live on."""
        self._lost("it was closed")
        self._process.signal(signal.SIGKILL)

    def _read(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE, 1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost("it ended", EOFError())
            return
        try:
            message = _decode(data)
        except msgspec.MsgspecError:
            self._lost("it sent what is no message")
            self._process.signal(signal.SIGKILL)
            return
        self._silent = 0.0
        match message:
            case Ready():
                self._ready.set_result(None)
            case Unfit():
                self._ready.set_exception((Uncopyable if message.loaded else ConfigError)(message.why))
            case Born():
                self._born(message.pid, descriptors)
            case Unborn():
                birth, _, _ = self._births.popleft()
                if not birth.done():
                    birth.set_exception(OSError(message.why))
            case Ended():
                self._untold.pop(message.pid, None)
                copy = self._copies.pop(message.pid, None)  # none if it was refused
                if copy is not None:
                    copy.ended(Exit(message.code, message.max_rss * _KIB, message.cpu))
                if self._retired:
                    self.retire()

    def _born(self, pid: int, descriptors: list[int]) -> None:
        birth, alone, group = self._births.popleft()
        if not descriptors:  # there was no number left for it here
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if not birth.done():
                birth.set_exception(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
            return
        copy = self._copies[pid] = Forked(pid, descriptors[0], self._vanished, alone=alone, group=group)
        if birth.done():  # nobody waits for it any more
            copy.kill()
        else:
            birth.set_result(copy)

    # -- one that stands still

    def _vanished(self, pid: int) -> None:
        """A copy has ended; the template has yet to tell how."""
        if pid in self._copies:
            self._untold[pid] = 0.0
            self._expect()

    def _expect(self) -> None:
        """Looks after a template that owes an answer, until it has given it."""
        if not self._watched:
            self._silent, self._looked = 0.0, SYSTEM.monotonic()
            self._look_later()

    def _look_later(self) -> None:
        self._loop.call_later(_LOOK, self._look)
        self._watched = True

    def _look(self) -> None:
        self._watched = False
        if not (self.alive and (self._births or self._untold or not self._ready.done())):
            return
        now = SYSTEM.monotonic()
        passed = min(now - self._looked, 2 * _LOOK)  # this process, or the machine, may have been stopped meanwhile
        self._looked = now
        self._silent += passed
        for pid in self._untold:
            self._untold[pid] += passed
        silent = max(self._silent, *self._untold.values(), 0.0)
        stopped = silent > _PATIENCE_STOPPED and process_state(self.pid) == "T"
        if stopped or (silent > _PATIENCE and self._ready.done()):  # what an import takes is the app's affair
            why = "it was stopped by a signal" if stopped else f"it has not answered for {silent:.0f} s"
            log.error("the template process %d is killed: %s; another one is made", self.pid, why)
            self._lost(why)
            self._process.signal(signal.SIGKILL)
        else:
            self._look_later()

    def _lost(self, why: str, unready: BaseException | None = None) -> None:
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._control)
        self._control.close()
        gone = OSError(f"the template process is gone: {why}")
        if not self._ready.done():
            self._ready.set_exception(unready or gone)
        for birth, _, _ in self._births:
            if not birth.done():
                birth.set_exception(gone)
        for copy in self._copies.values():
            copy.forsaken()
        self._births.clear()
        self._untold.clear()
