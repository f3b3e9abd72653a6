"""Long jobs: the server ends a channel that leaves a message unacknowledged for long (``consumer_timeout``, 30 min).

So the message of a job that runs long moves, in time, to a queue of its worker's own: a copy is stored there and
delivered at once; then the first is acknowledged, and the claim holds the copy. If the worker dies, what was
delivered is in that queue again, and goes back to where it came from after a while: the routing key is still that of
its first queue.

The messages of suspects move as well, and before they start: of jobs that were delivered often, as those are that kill
their workers. What comes back from there has lost its worker under its run, not while it waited, and is charged.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec.structs import replace
from pika.channel import Channel

from mouso.brokers.rabbitmq.consumer import Consumer
from mouso.brokers.rabbitmq.desk import Closed, Steps
from mouso.brokers.rabbitmq.frames import Message
from mouso.brokers.rabbitmq.letter import Letter, encode
from mouso.brokers.rabbitmq.names import level_of
from mouso.brokers.rabbitmq.publisher import Parcel
from mouso.brokers.rabbitmq.sending import Sending, until
from mouso.brokers.rabbitmq.taps import Held, Tap
from mouso.clock import SYSTEM
from mouso.errors import BrokerError, ConfigError

_PART = 3
"""A message moves when it is as old as this part of the server's timeout."""
_STAYS = 20_000
"""ms for which a message waits for its worker to come back before others get it; not longer than that part, either."""
_LAST = 1.0
_SWAP = 3.0


class Holding:
    """Moves the messages of long jobs.

    Args:
        timeout: The server's ``consumer_timeout``, in seconds.
    """

    def __init__(self, consumer: Consumer, sending: Sending, timeout: float) -> None:
        self._consumer, self._sending = consumer, sending
        self._age = timeout / _PART
        self._stays = min(_STAYS, int(self._age * 1000))
        self._generation = -1
        self._moving: dict[tuple[str, int], Held] = {}
        self._orphans: list[Held] = []
        self._trials: dict[int | str, tuple[Held, Parcel]] = {}

    def look(self, worker: str, deadline: float) -> None:
        """Moves what has become old, unless RabbitMQ takes no messages.

        Raises:
            BrokerUnavailable, OutcomeUnknown: It could not be done; it is tried again with the next call.
        """
        consumer, late = self._consumer, SYSTEM.monotonic() - self._age
        with consumer.news:
            mine = [held for held in consumer.held.values() if held.worker == worker and held.key not in self._trials]
        old = [held for held in mine if held.since < late]
        if old and not self._sending.publisher.blocked:
            self._sending.publisher.wait(self._move(worker, old, deadline), deadline)

    def try_out(self, worker: str, suspects: Sequence[Held], most: int, deadline: float) -> list[Held]:
        """Moves the messages of jobs that may be what their workers die of, before they start.

        What RabbitMQ takes no messages for is not waited for; a later call returns it.

        Args:
            most: How many are to be returned.

        Returns:
            Those that can start now.

        Raises:
            BrokerUnavailable, ConfigError, OutcomeUnknown: It could not be done.
        """
        if not suspects and not self._trials:
            return []
        consumer, publisher, held_by = self._consumer, self._sending.publisher, self._consumer.held
        try:
            if suspects:
                parcel = self._move(worker, suspects, deadline)
                self._trials.update((held.key, (held, parcel)) for held in suspects)
            with consumer.news:  # without those whose claims were lost with a connection
                self._trials = {key: trial for key, trial in self._trials.items() if held_by.get(key) is trial[0]}
            trials = list(self._trials.values())[:most]
            moved = [held for held, parcel in trials if publisher.wait_unless_blocked(parcel, deadline) is not None]
            with consumer.news:
                if not consumer.news.wait_for(lambda: not any(held.tap.queue for held in moved), _SWAP):
                    raise consumer.unavailable()
        except (BrokerError, ConfigError):
            self._trials.clear()  # they go back
            raise
        for held in moved:
            del self._trials[held.key]
        return moved

    @property
    def trials(self) -> Collection[int | str]:
        """Keys of claims that cannot start yet, as RabbitMQ takes no messages."""
        return self._trials.keys()

    def _move(self, worker: str, old: Sequence[Held], deadline: float) -> Parcel:
        consumer, name = self._consumer, self._sending.names.hold(worker)
        if self._generation != consumer.generation:
            self._open(name, deadline)
        messages = []
        with consumer.news:
            self._moving = {claim: held for claim, held in self._moving.items() if held.key in consumer.held}
            for held in old:
                letter = replace(held.letter, claims=held.token, lost=held.letter.lost + 1, hold=0)
                self._moving[letter.id, held.token] = held
                back = self._sending.names.work(letter.queue, level_of(letter.priority))
                messages.append(Message(name, back, letter.id, letter.task, encode(letter)))
        self._sending.publisher.reach(deadline)
        return self._sending.publisher.post(messages)

    def _open(self, name: str, deadline: float) -> None:
        names, generation = self._sending.names, self._consumer.generation

        arguments = names.hold_arguments(self._stays)

        def steps(channel: Channel) -> Steps[None]:
            yield lambda done: channel.exchange_declare(name, "fanout", durable=True, auto_delete=True, callback=done)
            yield lambda done: channel.queue_declare(name, durable=True, arguments=arguments, callback=done)
            yield lambda done: channel.queue_bind(name, name, callback=done)

        try:
            self._consumer.talk(steps, deadline)
        except Closed as closed:
            raise self._sending.topology.error(closed) from None
        self._consumer.hold(name, self._take)
        self._generation = generation

    def end(self, worker: str) -> None:
        """The worker leaves and holds nothing more: its queue goes, unless there is something in it."""
        name = self._sending.names.hold(worker)
        if self._generation < 0 or self._moving or self._orphans:
            return

        def steps(channel: Channel) -> Steps[None]:
            made = yield lambda done: channel.queue_declare(name, passive=True, callback=done)
            if not made.method.message_count:
                yield lambda done: channel.queue_delete(name, callback=done)

        try:
            self._consumer.talk(steps, until(_LAST))
        except Exception:
            return  # the server removes it when nobody has used it for a day

    def orphans(self) -> list[tuple[Held, Letter]]:
        """Messages whose claims were lost: they go back to where they came from."""
        if not self._orphans:
            return []
        with self._consumer.news:
            orphans, self._orphans = self._orphans, []
        return [(held, held.letter) for held in orphans]

    def _take(self, tap: Tap, tag: int, letter: Letter) -> None:
        """A copy has come, on the link's thread."""
        consumer = self._consumer
        copy = consumer.note(tap, tag, letter)
        with consumer.news:
            held = self._moving.pop((letter.id, letter.claims), None)
            lives = held is not None and consumer.held.get(held.key) is held
            if held is not None and lives:
                consumer.exchange_tags(held, copy)
                consumer.news.notify_all()
            elif held is None:
                self._orphans.append(copy)
                return
        consumer.settle([copy])  # what the claim held before; or the copy, if the job has ended meanwhile
