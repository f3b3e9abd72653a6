"""The gate that writers of a store pass one at a time.

SQLite's own lock is dropped when its process closes *any* descriptor of the file that it lies on, as a job does that
copies the store's files while another one writes. The gate is an open file description lock (``fcntl(2)``,
``F_OFD_SETLK``) on a byte of the database file that SQLite does not use: it lasts as long as what it was taken with.

A job may even close all descriptors of the store, found by their name. So what the gate is taken with is under way in a
socket as well that nobody reads: it stays open, and a transaction that has begun keeps the others out until it is over.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mouso.brokers.sqlite import descriptors, faults
from mouso.brokers.sqlite.locks import USERS

try:
    import fcntl
except ImportError:  # no POSIX system
    _HERE = False
else:
    _HERE = hasattr(fcntl, "F_OFD_SETLK")

_PLACE, _FRONT = USERS[1] + 1024, USERS[1] + 1025


def _lock(kind: int, first: int, last: int) -> bytes:
    """A ``struct flock``."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, first, last - first + 1, 0)


def _open_gate(descriptor: int, command: int, lock: bytes, /) -> bytes:
    """Where there are no such locks."""
    return b""


pass_gate: Callable[[int, int, bytes], Any] = fcntl.fcntl if _HERE else _open_gate
if _HERE:
    SET, LOOK, ENTER = fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK, _PLACE, _PLACE)
    LEAVE, FREE = _lock(fcntl.F_UNLCK, _PLACE, _PLACE), struct.pack("h", fcntl.F_UNLCK)
    STEP_UP, _STEP_BACK = _lock(fcntl.F_WRLCK, _FRONT, _FRONT), _lock(fcntl.F_UNLCK, _FRONT, _FRONT)
    _USE, _USE_NO_MORE = _lock(fcntl.F_RDLCK, *USERS), _lock(fcntl.F_UNLCK, *USERS)
else:
    SET, LOOK, ENTER, LEAVE, FREE, STEP_UP, _STEP_BACK, _USE, _USE_NO_MORE = 0, 0, b"", b"", b"", b"", b"", b"", b""
"""For ``pass_gate(gate.number, SET, ENTER)``, which is what ``enter`` does, where a function's call counts. ``LOOK``
tells ``FREE`` to who holds the gate, but not with another description of the same file; with ``STEP_UP`` it tells
whether somebody else waits in front.
"""

_left: dict[tuple[int, ...], set[int]] = {}
"""Descriptors of gates that are closed, by inode and device of their files."""


class Gate:
    """The gate as one store of this process passes it.

    Attributes:
        number: Its descriptor; -1 while it is closed.
        held: The last one that it had, and the file that this leads to.
    """

    def __init__(self) -> None:
        self.held: tuple[int, tuple[int, ...]] = (-1, ())
        self.number = -1
        self._file: tuple[int, ...] = ()
        self._under_way: tuple[int, tuple[int, ...]] = (-1, ())

    @property
    def is_open(self) -> bool:
        return self.number >= 0

    def open(self, path: str, *, create: bool) -> None:
        """Opens it, and the file with it.

        Raises:
            BrokerUnavailable: This process has no descriptor left.
            ConfigError: The file cannot be opened.
        """
        try:
            number = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644)
        except OSError as error:
            raise faults.cannot_open(error, path) from error
        self.number, self.held = number, descriptors.one(number)
        self._file = self.held[1][:2]
        with suppress(OSError):  # a system without such sockets, or no descriptor left
            entrance, exit_ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            with entrance, exit_:
                socket.send_fds(entrance, [b"."], [number])
                self._under_way = descriptors.one(exit_.fileno())
                exit_.detach()

    def enter(self) -> None:
        """Passes it.

        Raises:
            BlockingIOError: Another one has.
            OSError: Its descriptor is closed.
        """
        pass_gate(self.number, SET, ENTER)

    def step_up(self) -> bool:
        """Whether this is the first of those who wait for it, from now on. It may look often, and is let pass."""
        try:
            pass_gate(self.number, SET, STEP_UP)
        except (OSError, ValueError):
            return False
        return _HERE

    def step_back(self) -> None:
        """Waits no more."""
        with suppress(OSError, ValueError):
            pass_gate(self.number, SET, _STEP_BACK)

    def leave(self) -> bool:
        """Lets the next one pass. If its descriptor was closed, which is False, nobody here passes it any more."""
        try:
            if os.fstat(self.number)[1:3] == self._file and pass_gate(self.number, LOOK, ENTER)[: len(FREE)] == FREE:
                pass_gate(self.number, SET, LEAVE)
                return True
        except (OSError, ValueError):
            pass
        self._give_up()
        return False

    def close(self) -> None:
        """Closes it after all connections: to close the file drops the locks that SQLite has."""
        number, self.number = self.number, -1
        if number < 0:
            return
        self._give_up()
        with suppress(OSError):
            if descriptors.are_own(((number, self._file),)):
                pass_gate(number, SET, LEAVE)  # it may stay open
                pass_gate(number, SET, _STEP_BACK)
            left = _left.setdefault(self._file, set())
            left.add(number)
            if left >= descriptors.of_the_same_file(number):  # else other connections of this process are in use
                while left:
                    os.close(left.pop())

    def forget(self) -> None:
        """Gives up what may lead to something else by now."""
        self.number = -1
        self._give_up()

    def close_copy(self) -> None:
        """In a fork: or a transaction under which its parent dies would last as long as this process."""
        number, self.number = self.number, -1
        if descriptors.are_own(((number, self._file),)):
            os.close(number)
        self._give_up()

    def _give_up(self) -> None:
        """Lets what is under way go, if it was not closed already, and its number belongs to another file by now."""
        under_way, self._under_way = self._under_way, (-1, ())
        with suppress(OSError):
            if descriptors.are_own((under_way,)):
                os.close(under_way[0])

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """For the length of the block the database file is in use, as if by another process.

        Who closes a file that nobody else uses moves its log into it by the index that it knows, and deletes the log.
        """
        with suppress(OSError, ValueError):
            pass_gate(self.number, SET, _USE)
        try:
            yield
        finally:
            with suppress(OSError, ValueError):
                pass_gate(self.number, SET, _USE_NO_MORE)
