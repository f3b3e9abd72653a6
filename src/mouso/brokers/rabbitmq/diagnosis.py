"""What ``mouso doctor`` finds out about a RabbitMQ without a store; nothing is changed or created."""

from __future__ import annotations

from typing import Any

from pika.channel import Channel

from mouso.brokers.base import Finding, Level
from mouso.brokers.rabbitmq.desk import Closed, Steps
from mouso.brokers.rabbitmq.frames import Message
from mouso.brokers.rabbitmq.graveyard import Graveyard
from mouso.brokers.rabbitmq.link import REMEDY
from mouso.brokers.rabbitmq.names import LEVELS
from mouso.brokers.rabbitmq.sending import Sending
from mouso.clock import SYSTEM
from mouso.config import counted, one_line
from mouso.errors import MousoError


def diagnose(sending: Sending, graveyard: Graveyard, deadline: float) -> list[Finding]:
    """The server, the queues with their arguments, the jobs that nobody takes, and the dead letters."""
    link = sending.publisher.link
    try:
        sending.publisher.reach(min(deadline, SYSTEM.monotonic() + 3.0))
        found = [Finding(Level.OK, "rabbitmq", f"RabbitMQ {link.version} at {link.server} answers")]
        if sending.publisher.blocked:  # and answers nothing else
            return [*found, _alarm(sending)]
        for queue in sorted(sending.facts(deadline).queues):
            found += _queue(sending, queue, deadline)
        found += _wrong(sending, sending.names.dead, sending.names.dead_arguments, deadline)
        dead = graveyard.size(deadline)
        found += _taking(sending, deadline)
    except MousoError as error:
        what, _, remedy = one_line(error).partition("; ")
        return [Finding(Level.ERROR, "rabbitmq", what, remedy or "start the server, or correct the URL")]
    if dead:
        what = f"{counted(dead, 'job is', 'jobs are')} among the dead letters"
        found.append(Finding(Level.WARNING, "dead", what, "look at them with mouso dead, then retry or delete them"))
    return found


def _taking(sending: Sending, deadline: float) -> list[Finding]:
    """A finding if the server takes no messages; it says so only to who sends one, so here is one for no queue.

    After that it answers nothing more on this connection.

    Raises:
        ConfigError: This user may send none.
    """
    publisher = sending.publisher
    parcel = publisher.post([Message("", sending.names.nowhere, "", "", b"")])
    taken = publisher.wait_unless_blocked(parcel, min(deadline, SYSTEM.monotonic() + 3.0)) is not None
    return [] if taken else [_alarm(sending)]


def _alarm(sending: Sending) -> Finding:
    link = sending.publisher.link
    what = f"{link.server} takes no messages ({link.blocked}); waiting jobs are run, and nothing can be enqueued"
    return Finding(Level.ERROR, "alarm", what, REMEDY)


def _queue(sending: Sending, queue: str, deadline: float) -> list[Finding]:
    found: list[Finding] = []
    waiting = consumers = 0
    for level in LEVELS:
        name = sending.names.work(queue, level)
        size = sending.topology.size(name, deadline)
        if size is not None:
            waiting, consumers = waiting + size[0], consumers + size[1]
            found += _wrong(sending, name, sending.names.work_arguments, deadline)
    if waiting and not consumers:
        what = f"{counted(waiting, 'job waits', 'jobs wait')} in the queue {queue!r}, and no worker listens to it"
        found.append(Finding(Level.WARNING, "queues", what, "start a worker for it, unless all are busy"))
    return found


def _wrong(sending: Sending, name: str, arguments: dict[str, Any], deadline: float) -> list[Finding]:
    """A finding if a queue that is there has other arguments than it should have."""
    if not sending.topology.exists(name, deadline):
        return []

    def steps(channel: Channel) -> Steps[None]:
        yield lambda done: channel.queue_declare(name, durable=True, arguments=arguments, callback=done)

    try:
        sending.publisher.talk(steps, deadline)
    except Closed as closed:
        what, _, remedy = one_line(sending.topology.error(closed)).partition("; ")
        return [Finding(Level.ERROR, "queues", what, remedy)]
    return []
