"""Publishing with confirms: what is handed over is stored when the call returns.

A server that refuses a message closes the channel, and says which exchange it was for, not which message. What it has
taken before and not confirmed may be stored; what comes after is not. So of each exchange the first message on a
channel is sent alone: if it is refused, it is certain that nothing was stored.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pika
from pika.adapters.select_connection import SelectConnection
from pika.channel import Channel

from mouso.brokers.rabbitmq import frames
from mouso.brokers.rabbitmq.desk import NOT_FOUND, Desk
from mouso.brokers.rabbitmq.frames import Message
from mouso.clock import SYSTEM
from mouso.errors import BrokerUnavailable, ConfigError, MousoError, OutcomeUnknown

_LOOK = 0.02
"""Seconds between two looks at whether RabbitMQ holds it up."""
_DOUBT = "the jobs may be stored, and would be twice if it is repeated"
_ACCESS = 403
_EXCHANGE = re.compile("exchange '([^']*)'")
_DEFAULT = "amq.default"
"""What the server calls the exchange without a name."""

log = logging.getLogger("mouso.brokers.rabbitmq")


class Parcel:
    """Messages that are sent together.

    Attributes:
        done: Set when the server has stored all of them, or nothing more will be heard of them.
        returned: The ids of those that no queue took.
        error: Why it is not known of all that they are stored, or known that none is.
        doubt: What to say of them when nobody knows whether they are stored.
        first: The tag of its first message, on the channel that it is sent on.
        sent, left: How many of its messages were sent, and how many are not confirmed.
    """

    __slots__ = ("_then", "done", "doubt", "error", "first", "left", "messages", "returned", "sent")

    def __init__(self, messages: Sequence[Message], then: Callable[[Parcel], None] | None, doubt: str) -> None:
        self.messages = messages
        self.doubt = doubt
        self.left = len(messages)
        self.first = self.sent = 0
        self.done = threading.Event()
        self.returned: set[str] = set()
        self.error: Exception | None = None
        self._then = then

    def finish(self, error: Exception | None = None) -> None:
        """There is nothing more to wait for."""
        if not self.done.is_set():
            self.error = self.error or error
            self.done.set()
            if self._then is not None:
                self._then(self)


class Publisher(Desk):
    """A connection for publishing. RabbitMQ holds it up while it is short of memory or disk.

    Attributes:
        missing: Whether something to publish to was not there, so that all has to be looked after.
    """

    def _forget(self) -> None:
        super()._forget()
        self._channel: Channel | None = None
        self.missing = False
        self._blocked, self._blocked_at = "", 0.0
        self._outbox: deque[Parcel] = deque()
        self._guard = threading.Lock()
        self._tag = 0
        self._waiting: dict[int, Parcel] = {}
        self._taken: set[str] = set()
        self._trial = 0

    @property
    def ready(self) -> bool:
        """Whether it can send just now."""
        return self._up.is_set() and not self._blocked

    @property
    def blocked(self) -> bool:
        """Whether RabbitMQ takes no messages, although it answers."""
        return self._up.is_set() and bool(self._blocked)

    def post(
        self, messages: Sequence[Message], then: Callable[[Parcel], None] | None = None, doubt: str = _DOUBT
    ) -> Parcel:
        """Hands messages over; they are sent as soon as that can be, in this order.

        Args:
            then: Called on the link's thread when the parcel is done.
            doubt: What to say of them when nobody knows whether they are stored.
        """
        if self.link.inherited:
            self._forget()
        parcel = Parcel(messages, then, doubt)
        with self._guard:
            self._outbox.append(parcel)
        self.link.soon(self._send)
        return parcel

    def publish(self, messages: Sequence[Message], deadline: float, doubt: str = _DOUBT) -> set[str]:
        """Publishes messages, and waits until the server has stored them.

        Returns:
            The ids of those that no queue took.

        Raises:
            BrokerUnavailable: None was sent, or there is no such exchange; it is ``missing``.
            ConfigError: This user may not publish them; none is stored.
            OutcomeUnknown: Some may be stored.
        """
        self.reach(deadline)
        return self.wait(self.post(messages, None, doubt), deadline)

    def wait(self, parcel: Parcel, deadline: float) -> set[str]:
        """Waits for a parcel, as ``publish``; one that was sent can be waited for again."""
        if not parcel.done.wait(max(deadline - SYSTEM.monotonic(), 0)):
            raise self.unavailable() if self.withdraw(parcel) else self._unknown(parcel, "did not confirm in time")
        if parcel.error is not None:
            raise parcel.error
        return parcel.returned

    def withdraw(self, parcel: Parcel) -> bool:
        """Takes back what was not sent yet; returns whether that is all of it."""
        with self._guard:
            waits = parcel in self._outbox
            if waits:
                self._outbox.remove(parcel)
        if waits:
            parcel.finish(self._unknown(parcel, "was not waited for") if parcel.sent else self.unavailable())
        return waits and not parcel.sent

    def wait_unless_blocked(self, parcel: Parcel, deadline: float) -> set[str] | None:
        """Waits for a parcel, as ``wait``; returns None while RabbitMQ holds it up, which may last for hours."""
        while not self.blocked:
            if parcel.done.wait(min(_LOOK, max(deadline - SYSTEM.monotonic(), 0))) or SYSTEM.monotonic() >= deadline:
                return self.wait(parcel, deadline)
        return self.wait(parcel, deadline) if parcel.done.is_set() else None

    def unavailable(self) -> BrokerUnavailable:
        if self._blocked and self._up.is_set():
            return BrokerUnavailable(
                f"{self._server} takes no messages ({self._blocked}); nothing was stored, see its alarms and try again"
            )
        return super().unavailable()

    def _unknown(self, parcel: Parcel, what: str) -> OutcomeUnknown:
        return OutcomeUnknown(f"{self._server} {what}; {parcel.doubt}")

    # -- on the link's thread

    def _start(self, connection: SelectConnection) -> None:
        self._unblocked()
        connection.add_on_connection_blocked_callback(self._block)
        connection.add_on_connection_unblocked_callback(self._unblock)
        connection.channel(on_open_callback=self._opened)

    def _opened(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_return_callback(self._returned)
        channel.confirm_delivery(self._confirmed, callback=lambda _: self._ready(channel))

    def _ready(self, channel: Channel) -> None:
        self._channel, self._tag, self._trial = channel, 0, 0
        self._taken.clear()
        self._up.set()
        self._send()

    def _block(self, connection: object, frame: Any) -> None:
        if not self._blocked:
            self._blocked_at = SYSTEM.monotonic()
            self._blocked = str(frame.method.reason or "it is short of memory or disk")
            log.warning("%s takes no messages (%s); jobs that wait there are run", self._server, self._blocked)

    def _unblock(self, connection: object, frame: object) -> None:
        self._unblocked()
        self._send()

    def _unblocked(self) -> None:
        if self._blocked:
            self._blocked = ""
            log.info("%s takes messages again after %.1f s", self._server, SYSTEM.monotonic() - self._blocked_at)

    def _send(self) -> None:
        channel, connection = self._channel, self._connection
        if channel is None or connection is None or self._blocked or not channel.is_open:
            return
        number, most = channel.channel_number, connection.params.frame_max or 131072
        most = getattr(connection, "_body_max_length", most - 8) + 8
        while self._outbox and not self._trial:
            with self._guard:
                if not self._outbox:
                    return
                parcel = self._outbox.popleft()
            if not parcel.messages:
                parcel.finish()
                continue
            waiting, taken, tag, data = self._waiting, self._taken, self._tag, []
            parcel.first = parcel.first or tag + 1
            for message in parcel.messages[parcel.sent :] if parcel.sent else parcel.messages:
                tag += 1
                waiting[tag] = parcel
                data.append(frames.publish(number, message, most))
                if message.exchange not in taken:
                    self._trial = tag
                    break
            self._tag, parcel.sent = tag, tag + 1 - parcel.first
            if parcel.sent < len(parcel.messages):
                with self._guard:
                    self._outbox.appendleft(parcel)
            connection._output_marshaled_frames([b"".join(data)])

    def _confirmed(self, frame: Any) -> None:
        method, waiting = frame.method, self._waiting
        tags = [method.delivery_tag]
        if method.multiple:
            tags = []
            for tag in waiting:  # in the order they were sent
                if tag > method.delivery_tag:
                    break
                tags.append(tag)
        failed = method.NAME == "Basic.Nack"
        for tag in tags:
            parcel = waiting.pop(tag, None)
            if parcel is None:
                continue
            parcel.left -= 1
            if tag == self._trial:
                self._trial = 0
                self._taken.add(parcel.messages[tag - parcel.first].exchange)
            if failed:
                parcel.error = self._unknown(parcel, "could not store a message")
            if not parcel.left:
                parcel.finish()
        if self._outbox:
            self._send()

    def _returned(self, channel: Channel, method: object, properties: pika.BasicProperties, body: bytes) -> None:
        """No queue took it; it is confirmed next."""
        for parcel in set(self._waiting.values()):
            if any(message.id == properties.message_id for message in parcel.messages):
                parcel.returned.add(str(properties.message_id))
                return

    def _channel_closed(self, channel: Channel, why: BaseException) -> None:
        if self._channel is channel:
            code, text = int(getattr(why, "reply_code", 0)), str(getattr(why, "reply_text", why))
            self.missing = self.missing or code == NOT_FOUND
            refused = self._refused(text) if code in (_ACCESS, NOT_FOUND) else []
            self._drop(f"closed the channel ({text})", refused, self._refusal(code, text))
            connection = self._connection
            if connection is not None and connection.is_open:
                connection.channel(on_open_callback=self._opened)

    def _refused(self, text: str) -> list[Parcel]:
        """Parcels of which the server has taken nothing: the last message that it can have refused, or later ones.

        Args:
            text: What it says.
        """
        found = _EXCHANGE.search(text)
        if found is None:
            return []
        exchange = "" if found[1] == _DEFAULT else found[1]
        for tag, parcel in reversed(self._waiting.items()):
            if parcel.messages[tag - parcel.first].exchange == exchange:
                others = self._waiting.values()
                return [one for one in dict.fromkeys(others) if one.first >= tag and one.left == len(one.messages)]
        return []

    def _refusal(self, code: int, text: str) -> MousoError:
        """The error of what was certainly refused."""
        if code == NOT_FOUND:
            return BrokerUnavailable(f"{self._server} refuses ({text}); nothing was stored, try again")
        return ConfigError(
            f"{self._server} does not let this user publish ({text}); none of it was stored, let the user write to that"
            " exchange with rabbitmqctl set_permissions"
        )

    def _lost(self) -> None:
        super()._lost()
        self._drop("lost the connection")

    def _drop(self, what: str, refused: Sequence[Parcel] = (), refusal: MousoError | None = None) -> None:
        """What was sent and not confirmed may be stored, unless it was refused.

        What was not sent yet waits for the next channel.
        """
        self._channel = None
        self._up.clear()
        lost, self._waiting = dict.fromkeys(self._waiting.values()), {}
        with self._guard:
            if self._outbox and self._outbox[0].sent:
                lost[self._outbox.popleft()] = None
        for parcel in lost:
            parcel.finish(refusal if parcel in refused else self._unknown(parcel, what))
