"""A quorum queue that is read by taking all of its messages, unacknowledged, and putting them back.

One reader at a time, or each would see a part. The lock for that is an exclusive queue of the reader's connection,
with a consumer on the reader's channel: it goes with either of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pika
from pika.channel import Channel

from mouso.brokers.rabbitmq.desk import NOT_FOUND, Closed, Desk, Steps
from mouso.brokers.rabbitmq.frames import Message
from mouso.brokers.rabbitmq.publisher import Parcel, Publisher
from mouso.brokers.rabbitmq.reader import number_in
from mouso.brokers.rabbitmq.topology import LOCKED, Topology
from mouso.clock import SYSTEM
from mouso.errors import BrokerUnavailable, OutcomeUnknown

_MOST = 65_535
_WORN = 8
"""Deliveries after which a message that is put back is replaced by a new one: servers drop what was put back often."""
_QUIET = 0.03
"""Seconds without a message after which those that the last reader has put back have come as well."""
_IDLE = 1.0
"""Seconds without a message after which no more are expected: others were taken meanwhile."""
_LOOK = 0.02
_HALF = "it may be done later, or half; look at what is there before you repeat it"


class Piece(NamedTuple):
    """A message in the hands of the reader; ``times`` is how often it was delivered before."""

    tag: int
    body: bytes
    times: int


class Verdict(NamedTuple):
    """What to do with the messages: those of ``gone`` go, after ``sent`` is stored; all others stay."""

    gone: Sequence[Piece] = ()
    sent: Sequence[Message] = ()


Judge = Callable[[list[Piece]], Verdict]


class Shelf:
    """One such queue, as one connection reads it."""

    def __init__(self, desk: Desk, publisher: Publisher, topology: Topology, name: str) -> None:
        self._desk, self._publisher, self._topology = desk, publisher, topology
        self._name = name
        self._lock = f"{name}.lock"
        self._one = threading.Lock()
        self._sent: Parcel | None = None

    def visit(self, judge: Judge, deadline: float, limit: int = _MOST) -> None:
        """Takes all messages, or the first of them, and does what is decided about them.

        Raises:
            BrokerUnavailable: It could not be done; nothing is lost.
            OutcomeUnknown: What was to be sent may be stored, and all messages are there as before.
        """
        with self._one:
            while True:
                try:
                    self._desk.talk(lambda channel: self._steps(channel, judge, limit), deadline)
                    return
                except BrokerUnavailable:
                    sent, self._sent = self._sent, None
                    if sent is None or self._publisher.withdraw(sent):
                        raise
                    raise OutcomeUnknown(f"{self._desk.link.server} did not confirm in time; {_HALF}") from None
                except Closed as closed:
                    # The lock of this connection's last visit may go between its being declared and being used.
                    if closed.code != LOCKED and not (closed.code == NOT_FOUND and f"'{self._lock}'" in closed.text):
                        raise self._topology.error(closed) from None
                if SYSTEM.monotonic() > deadline:
                    raise BrokerUnavailable(f"another program reads the queue {self._name!r} just now; try again")
                time.sleep(_LOOK)

    def _steps(self, channel: Channel, judge: Judge, limit: int) -> Steps[None]:
        yield lambda done: channel.queue_declare(self._lock, exclusive=True, auto_delete=True, callback=done)
        channel.basic_consume(self._lock, lambda *_: None)
        pieces: list[Piece] = yield lambda done: take(channel, self._name, limit, done)
        gone, sent = judge(pieces)
        leaving = {piece.tag for piece in gone}
        worn = [piece for piece in pieces if piece.times >= _WORN and piece.tag not in leaving]
        if not self._publisher.ready:  # another time will do
            worn = []
        messages = [*sent, *(Message("", self._name, "", "", piece.body) for piece in worn)]
        if messages:
            soon, post = self._desk.link.soon, self._publisher.post

            def keep(parcel: Parcel) -> None:
                self._sent = parcel

            parcel: Parcel = yield lambda done: keep(post(messages, lambda parcel: soon(lambda: done(parcel)), _HALF))
            self._sent = None
            if parcel.error or parcel.returned:
                raise parcel.error or BrokerUnavailable("a queue is missing; nothing was changed, try again")
        kept = len(pieces) - len(gone) - len(worn)
        if not kept:
            yield lambda done: take_out(channel, done)
            return
        for piece in (*gone, *worn):
            channel.basic_ack(piece.tag)
        channel.basic_nack(0, multiple=True, requeue=True)
        # Of many acknowledgements the server keeps some back for a moment, and forgets them when the channel is closed.
        # They come before what is put back, so they are done when that is there.
        yield lambda done: _until_back(channel, self._name, kept, done)


def take_out(channel: Channel, done: Callable[[object], None]) -> None:
    """Acknowledges all that was taken."""
    channel.basic_ack(0, multiple=True)
    channel.basic_qos(prefetch_count=1, callback=done)


def _until_back(channel: Channel, queue: str, count: int, done: Callable[[None], None]) -> None:
    loop: Any = channel.connection.ioloop

    def look(made: Any) -> None:
        if made.method.message_count >= count:
            done(None)
        else:
            loop.call_later(_LOOK, ask)

    def ask() -> None:
        if channel.is_open:
            channel.queue_declare(queue, passive=True, callback=look)

    ask()


def take(channel: Channel, queue: str, limit: int, done: Callable[[list[Piece]], None]) -> None:
    """Takes what is in a queue, up to ``limit`` messages, and leaves it unacknowledged."""
    pieces: list[Piece] = []
    loop: Any = channel.connection.ioloop
    over, count = [False], [0]

    def finish() -> None:
        if not over[0]:
            over[0] = True
            channel.basic_cancel(tag, callback=lambda _: done(pieces))

    def look(before: int, silent: float) -> None:
        if not channel.is_open:
            return
        if len(pieces) == before and (len(pieces) >= count[0] or silent >= _IDLE):
            finish()
        elif not over[0]:
            silent = silent + _QUIET if len(pieces) == before else 0.0
            now = len(pieces)
            loop.call_later(_QUIET, lambda: look(now, silent))

    def piece(channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        pieces.append(Piece(method.delivery_tag, body, number_in(properties.headers, "x-delivery-count")))
        if len(pieces) >= limit:
            finish()

    def counted(made: Any) -> None:
        count[0] = min(made.method.message_count, limit)
        look(-1, 0.0)

    channel.basic_qos(prefetch_count=min(limit, _MOST))
    tag = channel.basic_consume(queue, piece)
    channel.queue_declare(queue, passive=True, callback=counted)
