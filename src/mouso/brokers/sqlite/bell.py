"""Wakes other processes that use the same file: a Unix datagram socket for each who listens.

SQLite cannot tell another process that something changed. A listener binds ``<file>-bells/<kind>-<pid>-<random>``;
who commits something sends one byte to every socket of the kind. A datagram arrives 36 µs after the commit, costs
nothing while idle, is kept while the listener is busy, and once ten are waiting the kernel refuses more at once: a
listener that is awake is not woken again. A listener that died is found by the refusal and its socket removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import socket
import threading
from collections.abc import Callable, Iterator

from mouso.brokers.ears import Woken
from mouso.clock import SYSTEM

WORKERS = "w"
CALLERS = "c"
_GONE = {errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOENT, errno.ENOTCONN, errno.EPIPE}
"""What a line says whose listener is gone; EBADF or ENOTSOCK are about the line itself."""
_LONGEST_PATH = 100
_SETTLED = 0.05
_POLL = 0.02
_LOOK, _MARGIN = 0.002, 0.001


class Bells:
    """The sockets beside one file. Rings are hints: where sockets cannot be made, nothing rings and callers poll."""

    def __init__(self, path: str) -> None:
        self._folder = path + "-bells"
        self._lock = threading.Lock()
        self._lines: dict[str, socket.socket] = {}
        self._listed = -1
        self._look_at = 0.0

    def ring(self, kind: str) -> None:
        """Rings every listener of a kind."""
        if not hasattr(socket, "AF_UNIX"):
            return
        now = SYSTEM.monotonic()
        if now >= self._look_at:  # who rings hundreds of times a second need not look each time: that takes 2 µs
            self._look_at = now + _LOOK
            try:
                changed = os.stat(self._folder).st_mtime_ns
            except OSError:
                return
            if changed != self._listed:
                self._list(changed)
        for name, line in list(self._lines.items()):
            if name.startswith(kind):
                try:
                    line.send(b"!")
                except BlockingIOError:
                    pass
                except OSError as error:
                    self._forget(name, gone=error.errno in _GONE)

    def close(self) -> None:
        """Closes the lines to listeners."""
        with self._lock:
            for line in self._lines.values():
                _close(line)
            self._lines.clear()
            self._listed = -1

    def listener(self, kind: str) -> Listener | None:
        """Binds a new listener, or returns None where the place does not allow sockets."""
        if not hasattr(socket, "AF_UNIX"):
            return None
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            name = f"{kind}-{os.getpid()}-{secrets.token_hex(4)}"
            ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                with self._address(name) as address:
                    ear.bind(address)
            except OSError:
                ear.close()
                raise
            try:
                return Listener(ear, os.path.join(self._folder, name))
            except OSError:
                ear.close()
                raise
        except OSError:
            return None

    def _list(self, changed: int) -> None:
        with self._lock:
            try:
                names = set(os.listdir(self._folder))
            except OSError:
                return
            for name in self._lines.keys() - names:
                _close(self._lines.pop(name))
            for name in names - self._lines.keys():
                try:
                    line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                except OSError:  # no descriptor left: nobody is woken, all find the job by looking
                    return
                line.setblocking(False)
                try:
                    with self._address(name) as address:
                        line.connect(address)
                    self._lines[name] = line
                except OSError:
                    line.close()
                    with contextlib.suppress(OSError):
                        os.unlink(os.path.join(self._folder, name))
            # A folder's time stamp moves in steps of a few ms: only an old one proves that the list is complete.
            settled = SYSTEM.now() / 1e3 - changed / 1e9 > _SETTLED
            self._listed = changed if settled else -1

    def _forget(self, name: str, *, gone: bool) -> None:
        """Gives up a line: its listener is gone, or its descriptor was closed by somebody else, and is not ours."""
        with self._lock:
            line = self._lines.pop(name, None)
            self._listed = -1
        if line is None:
            return
        if not gone:
            line.detach()
            return
        line.close()
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._folder, name))

    @contextlib.contextmanager
    def _address(self, name: str) -> Iterator[str]:
        """The socket's path, by way of /proc when it is longer than a socket address can be."""
        path = os.path.join(self._folder, name)
        if len(os.fsencode(path)) <= _LONGEST_PATH:
            yield path
            return
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{folder}/{name}"
        finally:
            os.close(folder)


def _close(line: socket.socket) -> None:
    """Closes a line, but nothing that has its number by now."""
    try:
        line.getpeername()
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ENOTSOCK):
            line.detach()
    with contextlib.suppress(OSError):
        line.close()


class Listener:
    """One ear: a bound socket, and a pipe for ``interrupt``."""

    def __init__(self, ear: socket.socket, path: str) -> None:
        self._ear = ear
        self._path = path
        self._self_in, self._self_out = os.pipe()
        os.set_blocking(self._self_in, False)
        os.set_blocking(self._self_out, False)
        ear.setblocking(False)
        self._fresh = True
        self._poll = select.poll()
        self._poll.register(ear, select.POLLIN)
        self._poll.register(self._self_in, select.POLLIN)

    def wait(self, timeout: float) -> Woken:
        """Blocks until a ring, ``interrupt`` or the timeout (seconds)."""
        fresh, self._fresh = self._fresh, False
        if fresh:  # who has looked for listeners just before may not ring this one yet
            timeout = min(timeout, _LOOK + _MARGIN)
        ready = {fd for fd, _ in self._poll.poll(max(timeout, 0) * 1000)}
        with contextlib.suppress(BlockingIOError):
            while True:
                self._ear.recv(16)
        if self._self_in in ready:
            os.read(self._self_in, 4096)
            return Woken.INTERRUPTED
        return Woken.RUNG if ready or fresh else Woken.TIMEOUT

    def interrupt(self) -> None:
        """Ends the wait that is under way, or else the next one."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._self_out, b"!")

    def close(self) -> None:
        """Removes the socket."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        self._ear.close()
        os.close(self._self_in)
        os.close(self._self_out)


class Poller:
    """The stand-in for a ``Listener`` where no socket can be made: looks whether the file changed.

    Args:
        version: Returns a number that changes with every commit of another connection.
    """

    def __init__(self, version: Callable[[], int]) -> None:
        self._version = version
        self._last = version()
        self._interrupted = threading.Event()

    def wait(self, timeout: float) -> Woken:
        """As ``Listener.wait``, up to 20 ms late."""
        deadline = SYSTEM.monotonic() + timeout
        while True:
            version = self._version()
            if version != self._last:
                self._last = version
                return Woken.RUNG
            left = deadline - SYSTEM.monotonic()
            if left <= 0:
                return Woken.TIMEOUT
            if self._interrupted.wait(min(_POLL, left)):
                self._interrupted.clear()
                return Woken.INTERRUPTED

    def interrupt(self) -> None:
        """As ``Listener.interrupt``."""
        self._interrupted.set()

    def close(self) -> None:
        """Nothing to let go of."""
