"""Queues that do not answer while their server does: those without a majority of their members, or with one that hangs.

Whoever asks such a queue for a job waits on a channel on which nothing else can be said, and after a minute RabbitMQ
closes the whole connection. So the others are served without it, until it answers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pika
from pika import spec
from pika.channel import Channel

from mouso.brokers.rabbitmq.desk import Closed, Desk, Steps
from mouso.brokers.rabbitmq.link import Outage
from mouso.brokers.rabbitmq.names import LEVELS, Names
from mouso.clock import SYSTEM
from mouso.errors import BrokerUnavailable, ConfigError
from mouso.urls import BrokerURL

_REACH = 5.0
_FIRST, _NEXT = 2.0, 10.0
"""Seconds for which a queue is waited for, at first and then again and again."""
_PAUSE = 1.0

log = logging.getLogger("mouso.brokers.rabbitmq")


class Silence:
    """Queues of Mouso's that have not answered; each is asked again on a connection of its own.

    Args:
        over: Called when a queue answers again, on another thread.
    """

    def __init__(self, url: BrokerURL, names: Names, over: Callable[[], None]) -> None:
        self._url, self._names, self._over = url, names, over
        self._lock = threading.Lock()
        self._queues: set[str] = set()
        self._closed = threading.Event()

    def __contains__(self, queue: str) -> bool:
        return queue in self._queues

    def suspect(self, queue: str) -> None:
        """It has not answered, or its server has not: from now on it is left out, until it does."""
        with self._lock:
            if queue in self._queues:
                return
            self._queues.add(queue)
        name = "mouso-rabbitmq-silence"
        try:
            threading.Thread(target=self._watch, args=(queue,), name=name, daemon=True).start()
        except RuntimeError:  # the system has no thread left: it is asked as before, and suspected again
            self._queues.discard(queue)

    def close(self) -> None:
        """Stops asking, soon; ``over`` is not called any more."""
        with self._lock:
            self._closed.set()

    def _watch(self, queue: str) -> None:
        """Asks it until it answers."""
        desk = Desk(self._url, _Untold(self._url.server))
        began, told = SYSTEM.monotonic(), False
        try:
            while not self._closed.is_set() and self._is_silent(desk, queue, _NEXT if told else _FIRST):
                if desk.link.up and not told:
                    told = True
                    log.error(
                        "%s: the queue %r does not answer, others do; its jobs wait until it does (rabbitmq-queues"
                        " quorum_status %s shows its members)",
                        self._url.server, queue, self._names.work(queue, LEVELS[0]),
                    )  # fmt: skip
                desk.renew("it waits for a queue that does not answer")
                self._closed.wait(_PAUSE)
        finally:
            desk.close()
            self._queues.discard(queue)
        with self._lock:
            if self._closed.is_set():
                return
            if told:
                seconds = SYSTEM.monotonic() - began
                log.info("%s: the queue %r answers again after %.1f s", self._url.server, queue, seconds)
            self._over()

    def _is_silent(self, desk: Desk, queue: str, patience: float) -> bool:
        try:
            desk.reach(SYSTEM.monotonic() + _REACH)
        except (BrokerUnavailable, ConfigError):
            return True
        for level in LEVELS:
            name = self._names.work(queue, level)
            try:
                desk.talk(partial(_ask, name=name), SYSTEM.monotonic() + patience)
            except Closed:  # it was deleted, and will be made anew
                continue
            except BrokerUnavailable:
                return True
        return False


class _Untold(Outage):
    """The outages of a connection that exists for what may break it."""

    def begins(self, link: object, why: str, *, refused: bool = False) -> None:
        pass

    def ends(self, link: object, *, back: bool = True) -> None:
        pass


def _ask(channel: Channel, name: str) -> Steps[None]:
    """Asks a queue for a message and puts it back: to look at how many it has asks others, not the queue."""

    def ask(done: Callable[[Any], None]) -> None:
        def got(_: Channel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
            channel.basic_nack(method.delivery_tag, requeue=True)
            done(None)

        channel.add_callback(done, [spec.Basic.GetEmpty])
        channel.basic_get(name, got)

    yield ask
