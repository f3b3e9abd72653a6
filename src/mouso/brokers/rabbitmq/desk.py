"""A connection at which other threads have something done: conversations with the server, each on a channel of its own.

A conversation is a generator on the connection's thread. It yields functions that ask something and take a callback,
and gets the answers::

    def steps(channel):
        made = yield lambda done: channel.queue_declare("mail", passive=True, callback=done)
        return made.method.message_count
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from typing import Any, Generic, TypeVar

from pika import exceptions
from pika.adapters.select_connection import SelectConnection
from pika.channel import Channel

from mouso.brokers.rabbitmq.link import Link, Outage, explain
from mouso.clock import SYSTEM
from mouso.errors import BrokerUnavailable, ConfigError
from mouso.urls import BrokerURL

T = TypeVar("T")
Step = Callable[[Callable[..., None]], object]
Steps = Generator[Step, Any, T]
Conversation = Callable[[Channel], Steps[T]]

OLDEST = (3, 10)
"""The first version of RabbitMQ that moves delayed messages on safely."""
NOT_FOUND = 404
_LOOK = 0.05
_REACH = 5.0
"""Seconds that a connection may take, however long what is said on it may."""

log = logging.getLogger("mouso.brokers.rabbitmq")


class Closed(Exception):
    """The server has closed a channel: ``code`` and ``text`` say why."""

    def __init__(self, why: Any) -> None:
        super().__init__(why.reply_text)
        self.code, self.text = int(why.reply_code), str(why.reply_text)


class Talk(Generic[T]):
    """One conversation.

    Attributes:
        answer: What it returned.
    """

    def __init__(self, conversation: Conversation[T]) -> None:
        self.answer: Future[T] = Future()
        self._conversation = conversation
        self._steps: Steps[T] | None = None
        self._channel: Channel | None = None

    def begin(self, channel: Channel) -> None:
        """The channel is open."""
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        self._steps = self._conversation(channel)
        self._go(None)

    def end(self, error: BaseException) -> None:
        """It cannot go on."""
        if not self.answer.done():
            self.answer.set_exception(error)
        if self._channel is not None and self._channel.is_open:
            self._channel.close()

    def _go(self, answer: object) -> None:
        if self.answer.done() or self._steps is None:
            return
        try:
            step = self._steps.send(answer)
            step(self._go)
        except StopIteration as done:
            self.answer.set_result(done.value)
        except BaseException as error:
            self.answer.set_exception(error)
        if self.answer.done() and self._channel is not None and self._channel.is_open:
            self._channel.close()

    def _closed(self, channel: Channel, why: BaseException) -> None:
        if not self.answer.done():
            refused = isinstance(why, exceptions.ChannelClosedByBroker)
            lost = BrokerUnavailable(f"the connection was lost ({explain(why)[0]}); nothing was stored, try again")
            self.answer.set_exception(Closed(why) if refused else lost)


class Desk:
    """A connection, and what is said on it.

    Attributes:
        link: The connection.
    """

    def __init__(self, url: BrokerURL, outage: Outage) -> None:
        self.link = Link(url, outage, self._use, self._lost)
        self._server = url.server
        self._forget()

    def _forget(self) -> None:
        """Begins anew, at first and in a fork."""
        self._connection: SelectConnection | None = None
        self._talks: set[Talk[Any]] = set()
        self._up = threading.Event()

    def reach(self, deadline: float) -> None:
        """Waits until it is ready, which starts the connection.

        Args:
            deadline: On the monotonic clock.

        Raises:
            ConfigError: The server does not let this user in, or is too old.
            BrokerUnavailable: It does not answer.
        """
        if self.link.inherited:
            self._forget()
        if self._up.is_set():
            return
        self.link.start()
        deadline = min(deadline, SYSTEM.monotonic() + _REACH)
        while not self._up.wait(min(_LOOK, max(deadline - SYSTEM.monotonic(), 0))):
            if self.link.tried and self.link.refused is not None:
                raise self.link.refused
            if SYSTEM.monotonic() >= deadline:
                raise self.unavailable()
        if version_of(self.link.version) < OLDEST:
            raise ConfigError(
                f"{self._server} is RabbitMQ {self.link.version}; Mouso needs 3.10 or newer there, or a store beside it"
            )

    def unavailable(self) -> BrokerUnavailable:
        """The error of what certainly did not happen."""
        why = "" if self._up.is_set() else f" ({self.link.why or 'the connection was lost'})"
        return BrokerUnavailable(f"{self._server} does not answer{why}; nothing was stored, try again")

    def talk(self, conversation: Conversation[T], deadline: float) -> T:
        """Has a conversation and returns what it does.

        Raises:
            Closed: The server refused something.
            BrokerUnavailable: It does not answer.
        """
        self.reach(deadline)
        talk = Talk(conversation)
        self.link.soon(lambda: self._begin(talk))
        try:
            return talk.answer.result(max(deadline - SYSTEM.monotonic(), 0.01))
        except Late:
            self.link.soon(lambda: talk.end(self.unavailable()))
            raise self.unavailable() from None

    def renew(self, why: str) -> None:
        """Gives up a connection that does not answer; the next one is made at once."""
        lost = self._connection
        if lost is not None:
            self.link.soon(lambda: self._break(lost, why))

    def close(self) -> None:
        """Closes the connection."""
        self.link.close()
        self._forget()

    # -- on the link's thread

    def _begin(self, talk: Talk[Any]) -> None:
        connection = self._connection
        if connection is None or not connection.is_open:
            talk.end(self.unavailable())
            return
        self._talks.add(talk)
        talk.answer.add_done_callback(lambda _: self._talks.discard(talk))
        connection.channel(on_open_callback=talk.begin)

    def _break(self, lost: Any, why: str) -> None:
        if self._connection is not None and self._connection is lost and self._connection.is_open:
            self._connection._terminate_stream(exceptions.StreamLostError(why))

    def _use(self, connection: SelectConnection) -> None:
        self._connection = connection
        self._start(connection)

    def _start(self, connection: SelectConnection) -> None:
        """Makes it ready."""
        self._up.set()

    def _lost(self) -> None:
        self._connection = None
        self._up.clear()
        for talk in list(self._talks):
            talk.end(self.unavailable())


def version_of(text: str) -> tuple[int, ...]:
    """``3.10.8`` as numbers; of what is no version, a very new one."""
    try:
        return tuple(int(part) for part in text.split("-")[0].split("+")[0].split(".")[:3])
    except ValueError:
        return (99,)
