"""The supervisor's side of the template: processes that are copies of one that has imported the app."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable

import msgspec

from mouso.errors import ConfigError
from mouso.isolation import Limits
from mouso.worker import WorkerOptions
from mouso.worker.launch import Exit, Spawned
from mouso.worker.template import MAX_MESSAGE, Born, Ended, Fork, FromTemplate, Ready, Unfit, encode, from_template

_KIB = 1024

_decode: Callable[[bytes], FromTemplate] = from_template.decode


class Forked:
    """A copy of the template.

    Args:
        pidfd: A descriptor of the process, so that a signal never hits another one that got its number.
    """

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[Exit] = self._loop.create_future()

    async def wait(self) -> Exit:
        """Waits for its end."""
        return await asyncio.shield(self._exit)

    def signal(self, number: int) -> None:
        """Sends it a signal; does nothing when it has ended."""
        if not self._exit.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def ended(self, found: Exit) -> None:
        """It has ended, in this way."""
        if not self._exit.done():
            self._exit.set_result(found)
            os.close(self._pidfd)

    def forsaken(self) -> None:
        """The template is gone: nobody can tell how it will end, only that it has."""
        if not self._exit.done():
            self._loop.add_reader(self._pidfd, self._vanished)

    def _vanished(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.ended(Exit(None))


class Template:
    """A template process and its copies. Make it with ``start``."""

    def __init__(self, control: socket.socket, process: Spawned) -> None:
        self._control = control
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._births: deque[asyncio.Future[Forked]] = deque()
        self._copies: dict[int, Forked] = {}
        self.alive = True
        control.setblocking(False)
        self._loop.add_reader(control, self._read)

    @classmethod
    async def start(cls, worker: str, options: WorkerOptions) -> Template:
        """Starts the process and waits until it has imported the app.

        Raises:
            ConfigError: The app cannot be loaded, or not be copied.
            OSError: The system does not let it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-P", "-m", "mouso.worker.template", worker, str(theirs.fileno())]
            command += [options.log_level, options.log_format, options.app, options.folder or os.getcwd()]
            try:
                process = Spawned(command, (theirs.fileno(),))
            except BaseException:
                ours.close()
                raise
        template = cls(ours, process)
        try:
            await template._ready
        except BaseException:
            template.close()
            raise
        return template

    @property
    def pid(self) -> int:
        return self._process.pid

    async def fork(self, sock: int, board: int, slots: int, grace: float, limits: Limits | None) -> Forked:
        """Makes a child with a socket and a board.

        Raises:
            OSError: The template is gone, or the system does not let it.
        """
        if not self.alive:
            raise OSError("the template process is gone")
        birth: asyncio.Future[Forked] = self._loop.create_future()
        socket.send_fds(self._control, [encode(Fork(slots, grace, limits))], [sock, board])
        self._births.append(birth)
        return await birth

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
            self._lost("it ended")
            return
        try:
            message = _decode(data)
        except msgspec.MsgspecError:
            self._lost("it sent what is no message")
            self._process.signal(signal.SIGKILL)
            return
        match message:
            case Ready():
                self._ready.set_result(None)
            case Unfit():
                self._ready.set_exception(ConfigError(message.why))
            case Born():
                copy = self._copies[message.pid] = Forked(message.pid, descriptors[0])
                self._births.popleft().set_result(copy)
            case Ended():
                self._copies.pop(message.pid).ended(Exit(message.code, message.max_rss * _KIB))

    def _lost(self, why: str) -> None:
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._control)
        self._control.close()
        gone = OSError(f"the template process is gone: {why}")
        if not self._ready.done():
            self._ready.set_exception(gone)
        for birth in self._births:
            if not birth.done():
                birth.set_exception(gone)
        for copy in self._copies.values():
            copy.forsaken()
