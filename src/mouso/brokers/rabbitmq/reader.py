"""Deliveries are read here, all other frames by pika: a message takes 3 µs in place of 20.

AMQP 0-9-1, 2.3.5: a delivery is a method frame, a header frame, and the body in as many frames as it takes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

_FRAME = struct.Struct(">BHI")
_SIZE = struct.Struct(">Q")
_METHOD = 1
_DELIVER = b"\x00\x3c\x00\x3c"
_COUNTS = (b"x-delivery-count", b"x-acquired-count")
_INTEGERS = {b"b": ">b", b"s": ">h", b"I": ">i", b"l": ">q"}

Deliver = Callable[[str, int, int, int, bytes], None]
"""Takes the consumer's tag, the delivery's, how often it failed and was delivered before, and the body."""


class Reader:
    """Reads what a connection gets.

    Args:
        connection: It reads in place of its ``_on_data_available`` from now on.
        channel: The number of the channel whose deliveries are read here.
        deliver: Takes them.
    """

    def __init__(self, connection: Any, channel: int, deliver: Deliver) -> None:
        self._connection = connection
        self._channel = channel
        self._deliver = deliver
        self._left = -1
        self._consumer, self._tag, self._counts = "", 0, (0, 0)
        self._parts: list[bytes] = []
        connection._on_data_available = self.feed

    def feed(self, data: bytes) -> None:
        """Takes bytes as they come."""
        connection = self._connection
        buffer = connection._frame_buffer + data if connection._frame_buffer else data
        at, size = 0, len(buffer)
        while size - at >= 8:
            kind, channel, length = _FRAME.unpack_from(buffer, at)
            end = at + 8 + length
            if end > size:
                break
            if channel == self._channel and self._left >= 0:
                self._content(kind, buffer[at + 7 : end - 1])
            elif channel == self._channel and kind == _METHOD and buffer[at + 7 : at + 11] == _DELIVER:
                tag = at + 12 + buffer[at + 11]
                self._consumer = buffer[at + 12 : tag].decode()
                (self._tag,) = _SIZE.unpack_from(buffer, tag)
                self._left = 0
                self._parts = []
            else:
                connection._frame_buffer = buffer[at:end]
                _, frame = connection._read_frame()
                connection._frame_buffer = b""
                if frame is not None:
                    connection._process_frame(frame)
            at = end
        connection._frame_buffer = buffer[at:]
        connection.bytes_received += at

    def _content(self, kind: int, payload: bytes) -> None:
        """The rest of a delivery."""
        if kind == 2:
            (self._left,) = _SIZE.unpack_from(payload, 4)
            self._counts = _count(payload, _COUNTS[0]), _count(payload, _COUNTS[1])
        else:
            self._parts.append(payload)
            self._left -= len(payload)
        if self._left <= 0:
            self._left = -1
            parts = self._parts
            self._deliver(self._consumer, self._tag, *self._counts, parts[0] if len(parts) == 1 else b"".join(parts))


def _count(header: bytes, name: bytes) -> int:
    """A number in a table of headers, 0 if it is none."""
    at = header.find(name)
    if at < 0:
        return 0
    at += len(name)
    form = _INTEGERS.get(header[at : at + 1])
    try:
        return max(int(struct.unpack_from(form, header, at + 1)[0]), 0) if form else 0
    except struct.error:
        return 0


def number_in(headers: Mapping[str, Any] | None, name: str) -> int:
    """A count that the server keeps in a message's headers; 0 if there is none, or another program's word."""
    value = (headers or {}).get(name)
    return value if isinstance(value, int) else 0
