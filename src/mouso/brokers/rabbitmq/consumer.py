"""Deliveries: messages that RabbitMQ has handed to this worker, those that it runs, and their acknowledgements.

A queue is served in one of two ways. As a rule its messages are *pushed*: consumers with a prefetch fill a buffer,
from which ``claim`` takes. Where that leaves messages lying, because the worker is busy with long jobs, they go back,
and the queue is *fetched* from: message by message, the highest level first, when there is a slot for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pika
from pika import exceptions, spec
from pika.adapters.select_connection import SelectConnection
from pika.channel import Channel

from mouso.brokers.rabbitmq import facts as registry
from mouso.brokers.rabbitmq import frames
from mouso.brokers.rabbitmq.desk import Desk
from mouso.brokers.rabbitmq.facts import Fact, Facts
from mouso.brokers.rabbitmq.letter import Letter, decode
from mouso.brokers.rabbitmq.link import Outage
from mouso.brokers.rabbitmq.names import Names
from mouso.brokers.rabbitmq.reader import Reader, number_in
from mouso.brokers.rabbitmq.silence import Silence
from mouso.brokers.rabbitmq.taps import Fetch, Held, Source, Tap
from mouso.clock import SYSTEM
from mouso.errors import BrokerUnavailable
from mouso.urls import BrokerURL

POISON = 3
"""Runs under which its worker died, after which a job is dead; its first deliveries are not known to be such."""
NACKS = 5
"""Deliveries up to which a message is given back as it is. The server counts them, and some drop what has twenty."""
_REST = 0.25
"""Seconds for which a message may lie in the buffer while there is no slot for it."""
_MOST = 2000
"""The largest prefetch."""
_SOON = 0.1
"""Seconds: who fetches again after less is better served by consumers."""
_ROUND_TRIP = 3.0
_MANY, _SETTLED = 16, 0.2
"""Acknowledgements one by one, of which a server sends 32 on at a time, and seconds after which all are where they
belong. A channel that is closed before forgets those that it has kept back, and the jobs would run again."""

log = logging.getLogger("mouso.brokers.rabbitmq")


class Consumer(Desk):
    """The connection that a worker gets its jobs on.

    Attributes:
        facts: What is known of all queues.
        held: Claims by key.
        sources: The queues that it serves.
        recent: Facts that it has heard since it was last emptied.
        missing: Whether a queue was deleted, so that all have to be looked after.
        listening: Set while it hears new facts.
        news: Guards all of it; notified when something new has come.
        wanted: How many jobs were wanted last.
        doomed: Messages that shall not be claimed: those of other programs, such as killed their workers, and those
            that the server has counted too often.
        void: Claims that were lost with a connection, by key.
    """

    def __init__(self, url: BrokerURL, outage: Outage, names: Names) -> None:
        self._names = names
        self._generation = self._questions = 0
        self._answered: Callable[[object], None] = _nothing
        self._url = url
        super().__init__(url, outage)

    def _forget(self) -> None:
        super()._forget()
        self.news = threading.Condition()
        self.facts = Facts()
        self.missing = False
        self.recent: list[Fact] = []
        self.listening = threading.Event()
        self.held: dict[int | str, Held] = {}
        self.sources: dict[str, Source] = {}
        self.doomed: list[Held] = []
        self.void: dict[int | str, Held] = {}
        self.wanted = 1
        self.rings = 0
        self._channel: Channel | None = None
        self._out: dict[int, Held] = {}
        self._consumers: dict[str, Tap | Callable[[int, Letter], None]] = {}
        self._asked: dict[int, str] = {}
        self._silence = Silence(self._url, self._names, self._answers_again)
        self._crowded = 0.0
        self._acks: list[Held] = []
        self._backs: list[Held] = []
        self._adjusting = False
        self._resting = False

    # -- from any thread

    @property
    def ready(self) -> bool:
        """Whether it has a channel."""
        return self._up.is_set()

    def serve(self, queues: Iterable[str], wanted: int) -> None:
        """Says which queues to take jobs from, and how many there is room for."""
        changed = False
        with self.news:
            self.wanted = wanted
            asked = set(queues)
            for queue in asked - self.sources.keys():
                self.sources[queue] = Source(queue, self._names)
                changed = True
            idle = [q for q in self.sources.keys() - asked if not any(t.out for t in self.sources[q].taps)]
            leaving = self.sources.keys() - asked
            for source in self.sources.values():
                if source.queue in leaving:
                    changed = changed or any(tap.consumer for tap in source.taps)
                    source.pushed = False
                elif source.pushed and source.queue not in self._silence:
                    changed = changed or any(self._unfit(tap) for tap in source.taps)
            for queue in idle:
                if not any(tap.consumer for tap in self.sources[queue].taps):
                    del self.sources[queue]
        if changed:
            self.link.soon(self._adjust)

    def _unfit(self, tap: Tap) -> bool:
        """Whether a tap needs a consumer, or a larger prefetch: it is dry because of what is still running."""
        if not tap.consumer:
            return True
        return not tap.ready and tap.prefetch <= tap.out and tap.prefetch < min(tap.out + self.wanted, _MOST)

    def ring(self) -> None:
        """Lets the worker look for jobs."""
        with self.news:
            self.rings += 1
            self.news.notify_all()

    def adjust(self) -> None:
        """Lets each queue be served as its ``pushed`` says."""
        self.link.soon(self._adjust)

    def settle(self, acks: Sequence[Held], backs: Sequence[Held] = ()) -> None:
        """Acknowledges messages, and gives others back."""
        if acks or backs:
            with self.news:
                for held in (*acks, *backs):
                    if held.generation == self._generation:
                        held.tap.out -= 1
                self._acks += acks
                self._backs += backs
            self.link.soon(self._flush)

    def sync(self, deadline: float) -> None:
        """Waits until the server has taken notice of all that was acknowledged.

        Raises:
            BrokerUnavailable: It has not.
        """
        done = threading.Event()
        self.link.soon(lambda: self._ask(done))
        limit = min(max(deadline - SYSTEM.monotonic(), 0.01), _ROUND_TRIP)
        if not done.wait(limit):
            self._give_up(f"it did not answer for {limit:.0f} s")
            raise self.unavailable()
        if not self._up.is_set():
            raise self.unavailable()

    def fetch(self, plan: Sequence[tuple[Source, int]], limit: int, deadline: float) -> None:
        """Gets up to ``limit`` messages into the buffers: in turn, up to so many of each source."""
        fetch = Fetch([(list(s.taps), share) for s, share in plan if s.queue not in self._silence], limit)
        self.link.soon(lambda: self._fetch(fetch))
        if not fetch.done.wait(min(max(deadline - SYSTEM.monotonic(), 0.01), _ROUND_TRIP)):
            self._give_up("it did not answer a question for a job")
            raise self.unavailable()

    def _give_up(self, why: str) -> None:
        """Makes a new connection, and leaves out the queue that this one waits for, if it waits for one."""
        lost = self._connection

        def give_up() -> None:
            if lost is not None and lost is self._connection:
                queue = next(iter(self._asked.values()), "")
                if queue:
                    self._silence.suspect(queue)
                self._break(lost, why)

        self.link.soon(give_up)

    def unavailable(self) -> BrokerUnavailable:
        why = "" if self._up.is_set() else f" ({self.link.why or 'the connection was lost'})"
        return BrokerUnavailable(f"{self._server} does not answer{why}")

    def close(self) -> None:
        """Closes the connection, but not just after many acknowledgements: the server still keeps some back."""
        time.sleep(min(max(self._crowded + _SETTLED - SYSTEM.monotonic(), 0.0), _SETTLED))
        self._silence.close()
        super().close()

    # -- on the link's thread

    @property
    def _usable(self) -> Channel | None:
        """Its channel, unless that is being closed."""
        return self._channel if self._channel is not None and self._channel.is_open else None

    def _start(self, connection: SelectConnection) -> None:
        self._open(connection)
        self._follow()

    def _follow(self) -> None:
        """Listens to news, on a channel of its own; what was told before is read by ``Working``."""

        def opened(channel: Channel) -> None:
            channel.add_on_close_callback(closed)
            channel.queue_declare("", exclusive=True, callback=lambda made: bind(channel, made.method.queue))

        def closed(channel: Channel, why: object) -> None:
            self.listening.clear()
            self.link.later(_REST, self._follow)

        def bind(channel: Channel, queue: str) -> None:
            channel.queue_bind(queue, self._names.news)
            channel.basic_consume(queue, self._learn, auto_ack=True, callback=lambda _: self.listening.set())

        if self._connection is not None and self._connection.is_open:
            self._connection.channel(on_open_callback=opened)

    def _open(self, connection: SelectConnection) -> None:
        connection.channel(on_open_callback=self._opened)

    def _opened(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_cancel_callback(self._cancelled)
        channel.add_callback(self._empty, [spec.Basic.GetEmpty], one_shot=False)
        self._generation += 1
        self._channel = channel
        self._consumers = {}
        Reader(self._connection, channel.channel_number, self._deliver)
        self._up.set()
        if not self.missing:
            self._adjust()

    def _learn(self, channel: Channel, method: object, properties: object, body: bytes) -> None:
        fact = registry.decode(body)
        if fact is None:
            return
        with self.news:
            self.facts.learn(fact)
            self.recent.append(fact)
            self.rings += 1
            self.news.notify_all()

    def _channel_closed(self, channel: Channel, why: BaseException) -> None:
        """The server takes back what was delivered on it, as if the connection were lost."""
        if self._channel is not channel:
            return
        if isinstance(why, exceptions.ChannelClosedByBroker):
            log.warning("%s closed the channel of this worker: %s", self._server, why.reply_text)
            self.missing = True
        self._drop()
        if self._connection is not None and self._connection.is_open:
            self.link.later(_REST, self._reopen)

    def _reopen(self) -> None:
        if self._channel is None and self._connection is not None and self._connection.is_open:
            self._open(self._connection)

    def _lost(self) -> None:
        super()._lost()
        self._drop()

    def _drop(self) -> None:
        self._channel = None
        self._up.clear()
        with self.news:
            self.void = dict(self.held) or self.void
            self.held.clear()
            self.doomed.clear()
            self._acks, self._backs, self._out, self._asked = [], [], {}, {}
            for source in self.sources.values():
                for tap in source.taps:
                    tap.ready.clear()
                    tap.out, tap.consumer = 0, ""
            self.rings += 1
            self.news.notify_all()
        fetch, self._fetching = self._fetching, None
        if fetch is not None:
            fetch.done.set()

    def _cancelled(self, frame: Any) -> None:
        """The server has ended a consumer: its queue was deleted, or moved."""
        self.missing = True
        with self.news:
            for tap in self._taps():
                if tap.consumer == frame.method.consumer_tag:
                    tap.consumer = ""

    def _taps(self) -> list[Tap]:
        return [tap for source in self.sources.values() for tap in source.taps]

    def _adjust(self) -> None:
        """Gives each tap the consumer that it needs."""
        channel = self._usable
        if channel is None:
            return
        with self.news:
            wanted = max(self.wanted, 1)
            for source in self.sources.values():
                if source.queue in self._silence:
                    continue
                for tap in source.taps:
                    if tap.consumer and (not source.pushed or self._unfit(tap)):
                        channel.basic_cancel(tap.consumer, callback=self._asks(source.queue))
                        tap.consumer = ""
                    if source.pushed and not tap.consumer:
                        tap.prefetch = min(max(2 * wanted, tap.out + wanted, 2 * tap.out), _MOST)
                        channel.basic_qos(prefetch_count=tap.prefetch)
                        tap.consumer = channel.basic_consume(tap.name, _nothing, callback=self._asks(source.queue))
                        self._consumers[tap.consumer] = tap

    def _asks(self, queue: str) -> Callable[[object], None]:
        """Notes a question that a queue itself has to answer; returns what is to be called when it has."""
        self._questions += 1
        number = self._questions
        self._asked[number] = queue

        def answered(_: object) -> None:
            self._asked.pop(number, None)

        return answered

    def _answers_again(self) -> None:
        """A queue that was left out is back."""
        self.link.soon(self._adjust)
        self.ring()

    def hold(self, name: str, take: Callable[[Tap, int, Letter], None]) -> None:
        """Consumes what this worker has sent to itself; ``take`` is called on the link's thread."""
        tap = Tap("", name)

        def consume() -> None:
            if (channel := self._usable) is not None:
                channel.basic_qos(prefetch_count=0)
                consumer = channel.basic_consume(name, _nothing)
                self._consumers[consumer] = lambda tag, letter: take(tap, tag, letter)

        self.link.soon(consume)

    def note(self, tap: Tap, tag: int, letter: Letter) -> Held:
        """Takes a message into account that was delivered; on the link's thread."""
        held = self._out[tag] = Held(letter, tap, tag, 0, 0, self._generation)
        with self.news:
            tap.out += 1
        return held

    def exchange_tags(self, held: Held, other: Held) -> None:
        """Lets a claim hold another message, and the other what it held; on the link's thread, with ``news`` held."""
        held.tag, other.tag = other.tag, held.tag
        held.tap, other.tap = other.tap, held.tap
        self._out[held.tag], self._out[other.tag] = held, other
        held.since = SYSTEM.monotonic()

    @property
    def generation(self) -> int:
        """Which of its channels it has now."""
        return self._generation

    def _deliver(self, consumer: str, tag: int, count: int, seen: int, body: bytes) -> None:
        """A message has come, on the link's thread."""
        to = self._consumers.get(consumer)
        if isinstance(to, Tap):
            self._arrive(to, tag, count, seen, body)
        elif to is not None:
            to(tag, decode(body))

    def _arrive(self, tap: Tap, tag: int, count: int, seen: int, body: bytes) -> None:
        letter = decode(body)
        held = Held(letter, tap, tag, count, max(count, seen), self._generation)
        self._out[tag] = held
        with self.news:
            tap.out += 1
        if 0 < letter.hold < 1000:
            self.link.later(letter.hold / 1000, lambda: self._ripe(held))
        else:
            self._ripe(held)

    def _ripe(self, held: Held) -> None:
        """The message may be claimed now."""
        if held.generation != self._generation or self._channel is None:
            return
        letter = held.letter
        with self.news:
            if letter.hold >= 1000 or letter.state.final or letter.lost >= POISON:
                self.doomed.append(held)
            else:
                held.since = SYSTEM.monotonic()
                held.tap.ready.append(held)
            self.rings += 1
            self.news.notify_all()
        if not self._resting:
            self._resting = True
            self.link.later(_REST, self._rest)

    def _rest(self) -> None:
        """Gives back what has been lying too long, and lets its queues be fetched from."""
        self._resting = False
        late = SYSTEM.monotonic() - _REST
        backs: list[Held] = []
        left = False
        with self.news:
            for source in self.sources.values():
                if any(tap.ready and tap.ready[0].since < late for tap in source.taps):
                    source.pushed = False
                    source.fetched = 0.0
                    for tap in source.taps:
                        backs += tap.ready
                        tap.ready.clear()
                left = left or any(tap.ready for tap in source.taps)
            self.doomed += [held for held in backs if held.count >= NACKS]
        if left:
            self._resting = True
            self.link.later(_REST / 2, self._rest)
        if backs:
            self._adjust()
            self.settle((), [held for held in backs if held.count < NACKS])

    def _flush(self) -> None:
        with self.news:
            acks, self._acks = self._acks, []
            backs, self._backs = self._backs, []
        channel, connection = self._usable, self._connection
        if channel is None or connection is None or not (acks or backs):
            return
        number, out, data = channel.channel_number, self._out, []
        for held in backs:
            if out.get(held.tag) is held:
                del out[held.tag]
                data.append(frames.give_back(number, held.tag))
        done = {held.tag for held in acks if out.get(held.tag) is held}
        last = 0
        for tag in out:  # in the order they were delivered
            if tag not in done:
                break
            last = tag
        if last:
            data.append(frames.ack(number, last, multiple=True))
        for held in acks:
            if out.get(held.tag) is held:
                del out[held.tag]
                if held.tag > last:
                    data.append(frames.ack(number, held.tag))
        if len(data) > _MANY:
            self._crowded = SYSTEM.monotonic()
        if data:
            connection._output_marshaled_frames([b"".join(data)])

    def _ask(self, done: threading.Event) -> None:
        """One cheap question: what was said before it has been heard when it is answered."""
        channel = self._usable
        if channel is None:
            done.set()
        else:
            channel.basic_qos(prefetch_count=1, callback=lambda _: done.set())

    # -- fetching, on the link's thread

    _fetching: Fetch | None = None

    def _fetch(self, fetch: Fetch) -> None:
        if self._usable is None or self._fetching is not None:
            fetch.done.set()
            return
        self._fetching = fetch
        self._get()

    def _get(self) -> None:
        fetch, channel = self._fetching, self._usable
        if fetch is None:
            return
        tap = None if channel is None else fetch.next()
        if channel is None or tap is None:
            self._fetching = None
            fetch.done.set()
        else:
            self._answered = self._asks(tap.queue)
            channel.basic_get(tap.name, self._got)

    def _got(self, channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        self._answered(None)
        if self._fetching is not None and (tap := self._fetching.next()) is not None:
            self._fetching.got()
            count, seen = (number_in(properties.headers, name) for name in ("x-delivery-count", "x-acquired-count"))
            self._arrive(tap, method.delivery_tag, count, seen, body)
            self._get()

    def _empty(self, frame: object) -> None:
        self._answered(None)
        if self._fetching is not None and (tap := self._fetching.next()) is not None:
            self._fetching.empty.add(tap.name)
            self._get()


def _nothing(*delivery: object) -> None:
    """Deliveries go past pika."""
