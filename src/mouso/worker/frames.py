"""What supervisor and child say to each other over their private socket.

A frame is four bytes of length (big-endian) and a MessagePack body. Bodies carry many jobs or outcomes: a frame per
job would cost a system call per job.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import msgspec

from mouso.brokers.base import Update
from mouso.events import Event
from mouso.isolation import Limits
from mouso.job import Lease, Outcome
from mouso.retry import Backoff

EXIT_STARVED = 71
"""With which a child ends that has no memory for what it hears or says: what runs in it need not be to blame."""
MAX_FRAME = 256 << 20
_PORTION = 32 << 20
_LENGTH = struct.Struct(">I")
_SMALL = 512
T = TypeVar("T")


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor must know of a task to judge a job whose process it had to kill."""

    queue: str
    attempts: int
    backoff: Backoff
    limits: Limits | None = None


# -- supervisor to child


class Jobs(msgspec.Struct, tag="jobs", array_like=True):
    """Run these, in this order."""

    leases: Sequence[Lease]


class Stop(msgspec.Struct, tag="stop", array_like=True):
    """Stop one job (or, with key None, all): ``cancelled``, ``fenced`` or ``shutdown``."""

    key: int | str | None
    reason: str


class Drain(msgspec.Struct, tag="drain", array_like=True):
    """Give back what has not started and start nothing more."""


class Ping(msgspec.Struct, tag="ping", array_like=True):
    """Answer."""


class Inspect(msgspec.Struct, tag="inspect", array_like=True):
    """Report where a running job is."""

    key: int | str
    token: int


class Dump(msgspec.Struct, tag="dump", array_like=True):
    """Write the stacks of all threads behind the board."""


class Exit(msgspec.Struct, tag="exit", array_like=True):
    """Nothing runs any more: close the lifespans and end."""


class Happened(msgspec.Struct, tag="events", array_like=True):
    """Tell the app's handlers."""

    events: list[Event]


# -- child to supervisor


class Hello(msgspec.Struct, tag="hello", array_like=True):
    """The app is loaded and its lifespans are entered."""

    app: str
    broker_url: str
    tasks: dict[str, TaskInfo]
    events: list[str]
    retention: tuple[int, int, int, int]


class Failed(msgspec.Struct, tag="failed", array_like=True):
    """The app cannot be loaded, or not now; the child is about to exit."""

    message: str
    passing: bool = False


class Pong(msgspec.Struct, tag="pong", array_like=True):
    """An answer."""


class Outcomes(msgspec.Struct, tag="outcomes", array_like=True):
    """These claims have ended."""

    outcomes: list[Outcome]


class Reports(msgspec.Struct, tag="reports", array_like=True):
    """News of running jobs."""

    updates: list[Update]


ToChild = Jobs | Stop | Drain | Ping | Inspect | Dump | Exit | Happened
ToSupervisor = Hello | Failed | Pong | Outcomes | Reports

_encoder = msgspec.msgpack.Encoder()
to_child = msgspec.msgpack.Decoder(ToChild)
to_supervisor = msgspec.msgpack.Decoder(ToSupervisor)


def encode(message: ToChild | ToSupervisor) -> bytearray:
    """A frame."""
    frame = bytearray(_SMALL)
    _encoder.encode_into(message, frame, _LENGTH.size)  # msgspec 0.22's encode() crashes without memory
    _LENGTH.pack_into(frame, 0, len(frame) - _LENGTH.size)
    return frame


def portions(items: Sequence[T], size: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Cuts a list into parts of about 32 MiB at most: many large payloads or results do not fit into one frame."""
    start = total = 0
    for end, item in enumerate(items):
        total += size(item)
        if total > _PORTION:
            yield items[start : end + 1]
            start, total = end + 1, 0
    if start < len(items):
        yield items[start:]


class Nonsense(Exception):
    """The other side sent what it cannot mean."""


class Splitter:
    """Cuts a stream of bytes into the bodies of frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """Takes what was read and returns the bodies that are complete.

        Raises:
            Nonsense: A frame claims to be larger than 256 MiB.
        """
        buffer = self._buffer
        buffer += data
        bodies = []
        start = 0
        with memoryview(buffer) as view:  # a part of it is no copy: Python complains of one that it has no memory for
            while len(buffer) - start >= 4:
                (length,) = _LENGTH.unpack_from(buffer, start)
                if length > MAX_FRAME:
                    raise Nonsense(f"a frame of {length:,} bytes")
                end = start + 4 + length
                if end > len(buffer):
                    break
                bodies.append(bytes(view[start + 4 : end]))
                start = end
        del buffer[:start]
        return bodies


def send(sock: socket.socket, message: ToChild | ToSupervisor) -> None:
    """Sends a frame on a blocking socket."""
    sock.sendall(encode(message))
