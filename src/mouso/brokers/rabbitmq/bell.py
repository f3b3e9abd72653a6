"""The bell of a store, by RabbitMQ: whoever changes something rings, and all workers hear it.

It is a fanout exchange, ``mouso.NAMESPACE.bell``; each worker that waits has an exclusive queue on it, which keeps the
last message only. Rings are hints: one that gets lost costs a second, after which an idle worker looks by itself.
"""

from __future__ import annotations

import atexit
import threading
import weakref

import pika
from pika import exceptions
from pika.channel import Channel

from mouso.brokers.rabbitmq.link import REMEDY, Link, Outage
from mouso.brokers.rabbitmq.topology import refusal
from mouso.clock import SYSTEM
from mouso.config import one_line
from mouso.urls import BrokerURL

_PATIENCE = 1.0
"""Seconds that a program which ends may take to ring once more."""
_LAST = {"x-max-length": 1}
"""Of a worker's queue: who stands still finds one ring, not all that it has missed."""
_LOOK = 0.02
_FIRST = 2.0
"""Seconds that the first wait takes until it hears, or does without."""


class _End:
    """One side of the bell, with a connection of its own: RabbitMQ holds up who publishes when it is short of memory,
    and who listens shall not suffer from that.

    Attributes:
        link: The connection.
        refused: What the server has refused, for people; empty if it has nothing.
    """

    def __init__(self, url: BrokerURL, outage: Outage) -> None:
        self.link = Link(url, outage, lambda connection: connection.channel(on_open_callback=self._open), self._lost)
        self._exchange = f"mouso.{url.params.get('namespace', 'default')}.bell"
        self._shown, self._outage = url.server, outage
        self._forget()

    def _forget(self) -> None:
        """Begins anew, at first and in a fork."""
        self._channel: Channel | None = None
        self.refused = ""

    def _open(self, channel: Channel) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        channel.exchange_declare(self._exchange, "fanout", durable=True, callback=lambda _: self._ready(channel))

    def _ready(self, channel: Channel) -> None:
        """The exchange is there."""

    def _closed(self, channel: Channel, error: BaseException) -> None:
        """Without its connection: the server does not take what was said, and the next connection says the same."""
        self._lost()
        if isinstance(error, exceptions.ChannelClosedByBroker):
            self.refused = one_line(refusal(self._shown, error.reply_code, error.reply_text))
            self._outage.refuses(self.refused)

    def _lost(self) -> None:
        self._channel = None

    def close(self) -> None:
        """Closes the connection."""
        self.link.close()
        self._forget()


class Hammer(_End):
    """Rings, from a thread of its own, for which nobody waits."""

    def _forget(self) -> None:
        super()._forget()
        self._asked = threading.Event()
        self._done = threading.Event()
        self._ringing = self._used = False

    def ring(self) -> None:
        """Makes all workers look. Of many calls at a time the last is enough."""
        if self.link.inherited:
            self._forget()
        if not self._asked.is_set():
            self._asked.set()
            if not self._used:
                self._used = True
                atexit.register(_finish, weakref.ref(self))
            self.link.soon(self._strike)

    def finish(self, timeout: float) -> None:
        """Waits until the last ring is heard of by the server, or cannot be."""
        deadline = SYSTEM.monotonic() + timeout
        while (self._ringing or self._asked.is_set()) and SYSTEM.monotonic() < deadline:
            if self._channel is None and self.link.tried and not self.link.up:
                return
            self._done.wait(_LOOK)

    def test(self, timeout: float) -> str:
        """Rings; returns why the server has not taken that after so many seconds, for people: empty if it has."""
        self.ring()
        deadline = SYSTEM.monotonic() + timeout
        while self._ringing or self._asked.is_set():
            if self.refused:
                return self.refused
            if self.link.blocked:
                return f"{self._shown} takes no messages ({self.link.blocked}); {REMEDY}"
            if SYSTEM.monotonic() >= deadline:
                return f"{self._shown} does not confirm a message; see its log"
            self._done.wait(_LOOK)
        return ""

    # -- on the link's thread

    def _strike(self) -> None:
        """Publishes one message, unless one is under way: its confirm leads to the next."""
        if self._channel is None or self._ringing or not self._asked.is_set():
            return
        self._ringing = True  # first, for `finish`
        self._asked.clear()
        self._done.clear()
        self._channel.basic_publish(self._exchange, "", b"", pika.BasicProperties(delivery_mode=1))

    def _ready(self, channel: Channel) -> None:
        channel.confirm_delivery(self._confirmed, callback=lambda _: self._strike())

    def _confirmed(self, frame: object) -> None:
        self._ringing = False
        self._strike()
        self._done.set()

    def _lost(self) -> None:
        super()._lost()
        self._ringing = False

    def close(self) -> None:
        self.finish(_PATIENCE)
        super().close()


def _finish(hammer: weakref.ref[Hammer]) -> None:
    """Lets a program that ends ring before."""
    if (found := hammer()) is not None:
        found.finish(_PATIENCE)


class Ear(_End):
    """Hears the bell."""

    def _forget(self) -> None:
        super()._forget()
        self._news = threading.Condition()
        self._rung = self._interrupted = False
        self._listening = threading.Event()

    def wait(self, timeout: float) -> bool:
        """Blocks until a ring, ``interrupt`` or the timeout (seconds); returns False for the timeout."""
        if self.link.inherited:
            self._forget()
        self.link.start()
        if not self._listening.is_set():  # what rang before was not heard
            self._listening.wait(_FIRST)
            self._listening.set()
            return True
        with self._news:
            rung = self._news.wait_for(lambda: self._interrupted or self._rung, timeout)
            self._interrupted = self._rung = False
        return rung

    def interrupt(self) -> None:
        """Ends the wait that is under way, or else the next one."""
        with self._news:
            self._interrupted = True
            self._news.notify_all()

    def close(self) -> None:
        self.interrupt()
        super().close()

    # -- on the link's thread

    def _ready(self, channel: Channel) -> None:
        channel.queue_declare("", exclusive=True, arguments=_LAST, callback=lambda made: self._listen(channel, made))

    def _listen(self, channel: Channel, made: pika.frame.Method) -> None:
        name = made.method.queue
        channel.queue_bind(name, self._exchange)
        channel.basic_consume(name, self._heard, auto_ack=True, exclusive=True, callback=self._listens)

    def _listens(self, consuming: object) -> None:
        if self._listening.is_set():
            self._heard()  # what rang while there was no connection was not
        self._listening.set()

    def _heard(self, *delivery: object) -> None:
        with self._news:
            self._rung = True
            self._news.notify_all()
