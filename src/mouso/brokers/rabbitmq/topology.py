"""Declares what Mouso needs in a virtual host, once; and says what is wrong with what is there already."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from pika.channel import Channel

from mouso.brokers.rabbitmq.desk import NOT_FOUND, Closed, Desk, Steps
from mouso.brokers.rabbitmq.names import LEVELS, Names
from mouso.errors import BrokerUnavailable, ConfigError, MousoError

_PRECONDITION, _REFUSED, LOCKED = 406, 403, 405
_UNFIT = re.compile("for (queue|exchange) '([^']*)'")


class Topology:
    """What one connection has seen to be there.

    Args:
        publish_fact: Tells all workers that there is a queue.
    """

    def __init__(self, desk: Desk, names: Names, publish_fact: Callable[[str, float], None]) -> None:
        self._desk, self._names = desk, names
        self._publish_fact = publish_fact
        self.forget()

    def forget(self) -> None:
        """Looks again at all of it: something was deleted, or this is a fork."""
        self._queues: set[str] = set()
        self._base = False
        self._rungs = 0

    def base(self, deadline: float) -> None:
        """Sees to the dead letters and the facts."""
        if self._base:
            return
        names = self._names

        def steps(channel: Channel) -> Steps[None]:
            yield _exchange(channel, names.due)
            yield lambda done: channel.exchange_declare(names.news, "fanout", durable=True, callback=done)
            yield _queue(channel, names.facts, names.facts_arguments)
            yield _bind(channel, names.facts, names.news, "")
            yield _queue(channel, names.dead, names.dead_arguments)

        self._declare(steps, deadline)
        self._base = True

    def ladder(self, rungs: int, deadline: float) -> None:
        """Sees to the lowest so many queues of delays; most applications never need the others."""
        if rungs <= self._rungs:
            return
        self.base(deadline)
        names = self._names

        def steps(channel: Channel) -> Steps[None]:
            for number in range(self._rungs, rungs):
                rung, below = names.rung(number), names.rung(number - 1)
                yield _exchange(channel, rung)
                yield _bind_exchange(channel, below, rung, names.bound(number, stays=False))
                yield _queue(channel, rung, names.rung_arguments(number))
                yield _bind(channel, rung, rung, names.bound(number, stays=True))

        self._declare(steps, deadline)  # all of them, as one that is missing keeps what comes from above for ever
        self._rungs = rungs

    def queue(self, queue: str, deadline: float) -> None:
        """Sees to a queue of Mouso's: first all workers learn of it, then it is made."""
        if queue in self._queues:
            return
        self.base(deadline)
        names = self._names
        self._publish_fact(queue, deadline)

        def steps(channel: Channel) -> Steps[None]:
            for level in LEVELS:
                name = names.work(queue, level)
                yield _queue(channel, name, names.work_arguments)
                yield _bind(channel, name, names.due, f"#.{names.due_key(queue, level)}")

        self._declare(steps, deadline)
        self._queues.add(queue)

    def queues(self, queues: Iterable[str], deadline: float) -> None:
        """``queue`` for each."""
        for queue in queues:
            self.queue(queue, deadline)

    def exists(self, queue: str, deadline: float) -> bool:
        """Whether RabbitMQ has a queue of this name."""
        return self.size(queue, deadline) is not None

    def size(self, queue: str, deadline: float) -> tuple[int, int] | None:
        """How many messages wait in a queue of RabbitMQ's, and how many consumers it has; None if there is none."""

        def steps(channel: Channel) -> Steps[tuple[int, int]]:
            made = yield lambda done: channel.queue_declare(queue, passive=True, callback=done)
            return made.method.message_count, made.method.consumer_count

        try:
            return self._desk.talk(steps, deadline)
        except Closed as closed:
            if closed.code == NOT_FOUND:
                return None
            raise self.error(closed) from None

    def _declare(self, steps: Callable[[Channel], Steps[None]], deadline: float) -> None:
        try:
            self._desk.talk(steps, deadline)
        except Closed as closed:
            raise self.error(closed) from None

    def error(self, closed: Closed) -> MousoError:
        """What the server refused, for people."""
        return refusal(self._desk.link.server, closed.code, closed.text)


def refusal(server: str, code: int, text: str) -> MousoError:
    """What a server says when it closes a channel, for people.

    Args:
        code: An AMQP reply code.
        text: What comes with it.
    """
    if code == _REFUSED:
        return ConfigError(f"{server} does not let this user do that ({text}); see rabbitmqctl set_permissions")
    if code != _PRECONDITION:
        return BrokerUnavailable(f"{server} refuses ({text}); nothing was stored, try again")
    found = _UNFIT.search(text)
    if found is None:
        return ConfigError(f"{server} refuses ({text}); see rabbitmqctl list_queues name arguments")
    kind, name = found.groups()
    if kind == "exchange":
        plan = f"delete it, as with rabbitmqadmin delete exchange name={name}"
    else:
        plan = f"move its messages elsewhere with a shovel, run rabbitmqctl delete_queue {name}"
    return ConfigError(
        f"the {kind} {name!r} of {server} is there with other arguments ({text}); {plan}, and start again, or take"
        " another namespace="
    )


# Steps of a conversation.


def _exchange(channel: Channel, name: str) -> Callable[[Callable[..., None]], Any]:
    return lambda done: channel.exchange_declare(name, "topic", durable=True, callback=done)


def _queue(channel: Channel, name: str, arguments: dict[str, Any]) -> Callable[[Callable[..., None]], Any]:
    return lambda done: channel.queue_declare(name, durable=True, arguments=arguments, callback=done)


def _bind(channel: Channel, queue: str, exchange: str, key: str) -> Callable[[Callable[..., None]], Any]:
    return lambda done: channel.queue_bind(queue, exchange, key, callback=done)


def _bind_exchange(channel: Channel, to: str, exchange: str, key: str) -> Callable[[Callable[..., None]], Any]:
    return lambda done: channel.exchange_bind(to, exchange, key, callback=done)
