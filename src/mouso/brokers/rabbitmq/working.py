"""The worker's side of RabbitMQ without a store: claims from what was delivered, and what becomes of them."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import secrets
from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from mouso.brokers.base import Command, Exchange, Update, Want, WorkerInfo
from mouso.brokers.rabbitmq import facts as registry
from mouso.brokers.rabbitmq.consumer import NACKS, POISON, Consumer
from mouso.brokers.rabbitmq.facts import Fact
from mouso.brokers.rabbitmq.holding import Holding
from mouso.brokers.rabbitmq.letter import Letter, ended, lease_of, settled
from mouso.brokers.rabbitmq.link import Outage
from mouso.brokers.rabbitmq.publisher import Parcel
from mouso.brokers.rabbitmq.sending import Sending, until
from mouso.brokers.rabbitmq.shelf import Shelf
from mouso.brokers.rabbitmq.taps import Held, Source
from mouso.brokers.rabbitmq.topology import Topology
from mouso.clock import SYSTEM, Clock
from mouso.errors import BrokerError, BrokerUnavailable, ConfigError
from mouso.job import Charge, JobState, Outcome, check_transition
from mouso.urls import BrokerURL

_PATIENCE = 5.0
_ANSWER = 3.0
_KEPT = 10_000
"""Ends of runs that are remembered, for messages that come back although their jobs have ended here."""
_STRAY = 60
"""Seconds for which a job that came to the wrong workers again and again stays away."""
_MOST_FETCHED = 16
"""Messages that are fetched one by one; who wants more has consumers."""
_HASTY = 0.1
"""Seconds: who fetches again after less is better served by consumers."""

_AMISS = 15.0
"""Seconds until a queue that cannot be served is looked at again."""
_READ = 60.0
"""Seconds between two readings of all facts, which takes out what is outdated."""

log = logging.getLogger("mouso.brokers.rabbitmq")


class Working:
    """What a worker does with its connection; see the verbs of ``Broker``."""

    def __init__(self, url: BrokerURL, outage: Outage, sending: Sending, clock: Clock) -> None:
        self._sending = sending
        self._clock = clock
        self._server = url.server
        self._consumer = Consumer(url, outage, sending.names)
        self._topology = Topology(self._consumer, sending.names, sending.tell_queue)
        sending.knows_queue = lambda queue: queue in self._consumer.facts.queues
        self._holding = Holding(self._consumer, sending, float(url.params.get("consumer_timeout", 1800)))
        self._keys = itertools.count(secrets.randbits(32) << 24 | 1)
        self._facts = Shelf(self._consumer, sending.publisher, self._topology, sending.names.facts)
        self._read, self._read_again = -1, 0.0
        self._heard = 0
        self._interrupted = False
        self._turn = 0
        self._done: dict[tuple[str, int], Outcome] = {}
        self._held_up: dict[int | str, tuple[Held, Letter]] = {}
        self._begun = False
        self._amiss: dict[str, float] = {}

    def close(self) -> None:
        """Closes the connection; what is not acknowledged goes back."""
        self.interrupt()
        self._consumer.close()
        self._topology.forget()

    def learn(self, fact: Fact) -> None:
        """Takes over a fact that others will read in a moment."""
        with self._consumer.news:
            self._consumer.facts.learn(fact)

    def wait(self, timeout: float) -> bool:
        consumer = self._consumer
        consumer.link.start()
        with consumer.news:
            consumer.news.wait_for(lambda: self._interrupted or consumer.rings != self._heard, timeout)
            rung = consumer.rings != self._heard
            self._interrupted, self._heard = False, consumer.rings
            return rung

    def interrupt(self) -> None:
        with self._consumer.news:
            self._interrupted = True
            self._consumer.news.notify_all()

    def exchange(self, worker: str, outcomes: Sequence[Outcome], want: Want) -> Exchange:
        for outcome in outcomes:
            check_transition(JobState.RUNNING, outcome.state)
        deadline = until(_PATIENCE)
        self._reach(deadline)
        exchange = Exchange(leases=[])
        ended: list[tuple[Held, Outcome]] = []
        try:
            exchange.fenced, moves = self._settle(worker, outcomes, ended)
            self._carry(moves, deadline)
            if want.limit:
                self._claim(worker, want, exchange, deadline)
            if len(exchange.fenced) < len(outcomes):
                self._consumer.sync(deadline)
        except (BrokerError, ConfigError):
            for held, outcome in ended:  # nobody knows whether the server has heard it
                self._remember(held, outcome)
            raise
        return exchange

    def _reach(self, deadline: float) -> None:
        """Waits until there is a connection, and all facts are known that were told before it listened."""
        consumer = self._consumer
        self._topology.base(deadline)
        consumer.reach(deadline)
        generation, now = consumer.generation, SYSTEM.monotonic()
        if generation == self._read and now < self._read_again:
            return
        if not consumer.listening.wait(max(deadline - now, 0)):
            raise consumer.unavailable()
        consumer.recent.clear()
        facts = registry.read(self._facts, deadline)
        with consumer.news:
            for fact in consumer.recent:
                facts.learn(fact)
            consumer.facts = facts
        self._read, self._read_again = generation, now + _READ * random.uniform(0.8, 1.2)

    def _settle(
        self, worker: str, outcomes: Sequence[Outcome], ended: list[tuple[Held, Outcome]]
    ) -> tuple[list[int | str], list[tuple[Held, Letter]]]:
        """Acknowledges what has completed, and adds it to ``ended``.

        Returns:
            Keys of claims that are fenced, and of all else what comes next, which is to be stored first.
        """
        consumer, now = self._consumer, self._clock.now()
        fenced: list[int | str] = []
        acks, backs, moves = [], [], []
        with consumer.news:
            for outcome in outcomes:
                held = self._claim_of(worker, outcome.key, outcome.token)
                if held is None:
                    fenced.append(outcome.key)
                    void = consumer.void.get(outcome.key)
                    if void is not None and (void.token, void.worker) == (outcome.token, worker):
                        self._remember(void, outcome)
                    continue
                after = settled(held.letter, outcome, worker, now)
                given_back = outcome.state is JobState.AVAILABLE and outcome.charge in (Charge.NONE, Charge.RELEASE)
                if after is None:
                    acks.append(held)
                    ended.append((held, outcome))
                elif given_back and held.count < NACKS and held.tap.queue:
                    backs.append(held)
                else:
                    moves.append((held, after))
            for held in (*acks, *backs):
                del consumer.held[held.key]
        consumer.settle(acks, backs)
        return fenced, moves

    def _claim_of(self, worker: str, key: int | str, token: int) -> Held | None:
        """The fence: the message, if this claim of this worker still holds it."""
        held = self._consumer.held.get(key)
        return held if held is not None and (held.token, held.worker) == (token, worker) else None

    def _remember(self, held: Held, outcome: Outcome) -> None:
        """Keeps the end of a run whose connection was lost: its message may come back to here."""
        self._done[held.letter.id, outcome.token] = outcome
        if len(self._done) > _KEPT:
            del self._done[next(iter(self._done))]

    def _carry(self, moves: Iterable[tuple[Held, Letter]], deadline: float) -> None:
        """Stores what comes after runs that did not complete, then acknowledges the runs.

        What RabbitMQ takes no messages for is not waited for, as that may take hours, and the jobs that complete are
        what relieves it. It is tried again with the next call.
        """
        consumer, publisher = self._consumer, self._sending.publisher
        with consumer.news:
            left = {key: move for key, move in self._held_up.items() if consumer.held.get(key) is move[0]}
        left.update((held.key, (held, after)) for held, after in moves)
        self._held_up = left.copy()
        for _ in range(2):
            fresh = [(h, after) for h, after in left.values() if h.moving is None or h.moving.error is not None]
            if fresh:
                parcel = self._post([after for _, after in fresh], deadline)
                for held, _ in fresh:
                    held.moving = parcel
            again = {}
            for key, (held, after) in left.items():
                returned = None if held.moving is None else publisher.wait_unless_blocked(held.moving, deadline)
                if returned is None:
                    continue
                if held.letter.id in returned:
                    held.moving = None
                    again[key] = held, after
                    continue
                with consumer.news:
                    consumer.held.pop(key, None)
                consumer.settle([held])
                del self._held_up[key]
            if not again:
                return
            self._sending.topology.forget()
            left = again
        raise BrokerUnavailable(f"no queue of {self._server} took {len(left)} of the jobs; try again")

    def _post(self, letters: Sequence[Letter], deadline: float) -> Parcel | None:
        """Hands messages over, unless RabbitMQ takes none."""
        publisher = self._sending.publisher
        try:
            if not publisher.blocked:
                messages = self._sending.messages(letters, deadline)
                publisher.reach(deadline)
                return publisher.post(messages)
        except BrokerError:
            if not publisher.blocked:
                raise
        return None

    # -- claiming

    def _claim(self, worker: str, want: Want, exchange: Exchange, deadline: float) -> None:
        consumer, now = self._consumer, self._clock.now()
        facts = consumer.facts
        known = facts.queues if want.shares is None else [queue for queue, _ in want.shares]
        queues = [queue for queue in known if not (facts.pauses and facts.paused(queue, now))]
        if consumer.missing:
            self._topology.forget()
        queues = self._usable(queues, deadline)
        consumer.missing = False
        consumer.serve(queues, want.limit)
        tried = self._holding.try_out(worker, (), want.limit, deadline)
        most = want.limit - len(tried)
        want = replace(want, limit=most)
        claims: list[Held] = []
        others: list[tuple[Held, Letter]] = []
        suspects: list[Held] = []
        parked: set[str] = set()
        turns = list(self._turns(want, queues))
        self._pick(turns, want, claims, others, parked)
        if len(claims) < want.limit:
            fetched = self._fetched(queues)
            if fetched:
                by_name = {source.queue: source for source in fetched}
                plan = [(by_name[queue], share) for queue, share in turns if queue in by_name]
                consumer.fetch(plan, min(want.limit - len(claims), _MOST_FETCHED), deadline)
                short = not self._pick(turns, want, claims, others, parked)
                self._after_fetch(fetched, push=short)
        others += self._doomed() + self._holding.orphans()
        with consumer.news:
            for held in claims:
                held.key, held.token, held.worker = next(self._keys), held.letter.claims + held.seen + 1, worker
                done = self._done.pop((held.letter.id, held.token - 1), None) if self._done else None
                if done is None:
                    consumer.held[held.key] = held
                    if held.count >= NACKS or held.letter.lost:
                        suspects.append(held)
                    else:
                        exchange.leases.append(lease_of(held.letter, held.key, held.token, now))
                else:
                    after = settled(held.letter, done, worker, now)
                    others.append((held, after or ended(held.letter, JobState.COMPLETED, "", now)))
        exchange.parked = sorted(parked)
        if others:
            self._send_on(others)
        if suspects:
            tried += self._holding.try_out(worker, suspects, most - len(exchange.leases), deadline)
            if self._holding.trials:
                consumer.ring()  # there is room left for others
        exchange.leases += [lease_of(held.letter, held.key, held.token, now) for held in tried]

    def _usable(self, queues: Sequence[str], deadline: float) -> list[str]:
        """Those that are there as Mouso needs them; a line says when one is not, with what to do, and when it is again.

        The others are served meanwhile.
        """
        found = []
        for queue in queues:
            look_again = self._amiss.get(queue)
            if look_again is not None and SYSTEM.monotonic() < look_again:
                continue
            try:
                self._topology.queue(queue, deadline)
            except ConfigError as error:
                self._amiss[queue] = SYSTEM.monotonic() + _AMISS
                if look_again is None:
                    log.error("%s; the queue %r is left out until then", error, queue)
                continue
            found.append(queue)
            if look_again is not None:
                del self._amiss[queue]
                log.info("%s: the queue %r is served again", self._server, queue)
        return found

    def _turns(self, want: Want, queues: Sequence[str] | frozenset[str]) -> Iterator[tuple[str, int]]:
        """Which queue is asked for how many jobs, in turn: each for its share, then for what is left over."""
        if want.shares is not None:
            yield from want.shares
        elif queues:
            self._turn += 1
            names, first = sorted(queues), self._turn % len(queues)
            names = names[first:] + names[:first]
            yield from ((queue, -(-want.limit // len(names))) for queue in names)
        yield from ((queue, want.limit) for queue in queues)

    def _pick(
        self,
        turns: Iterable[tuple[str, int]],
        want: Want,
        claims: list[Held],
        others: list[tuple[Held, Letter]],
        parked: set[str],
    ) -> bool:
        """Takes from the buffers what is to be started, and what cannot be; returns whether the limit is reached."""
        now = self._clock.now()
        with self._consumer.news:
            for queue, share in turns:
                source = self._consumer.sources.get(queue)
                room = min(share, want.limit - len(claims))
                if source is None or room <= 0:
                    continue
                for held in _ready(source):
                    letter = held.letter
                    if letter.expires_at is not None and letter.expires_at <= now:
                        others.append((held, ended(letter, JobState.EXPIRED, "expired", now)))
                    elif want.tasks is not None and letter.task not in want.tasks:
                        parked.add(letter.task)
                        others.append((held, _strayed(letter)))
                    else:
                        claims.append(held)
                        room -= 1
                        if not room:
                            break
        return len(claims) >= want.limit

    def _fetched(self, queues: Iterable[str]) -> list[Source]:
        """The queues to fetch from; those from which it was done a moment ago are pushed again."""
        now = SYSTEM.monotonic()
        sources = [self._consumer.sources[queue] for queue in queues if queue in self._consumer.sources]
        found = [source for source in sources if not source.pushed]
        hasty = [source for source in found if now - source.fetched < _HASTY]
        self._after_fetch(hasty, push=True)
        for source in found:
            source.fetched = now
        return [source for source in found if source not in hasty]

    def _after_fetch(self, sources: Sequence[Source], *, push: bool) -> None:
        if push and sources:
            with self._consumer.news:
                for source in sources:
                    source.pushed = True
            self._consumer.adjust()

    def _doomed(self) -> list[tuple[Held, Letter]]:
        """What was delivered and is not to be run, with what becomes of it."""
        now, consumer = self._clock.now(), self._consumer
        if not consumer.doomed:
            return []
        with consumer.news:
            doomed, consumer.doomed = consumer.doomed, []
        moves = []
        for held in doomed:
            letter = replace(held.letter, claims=held.letter.claims + held.seen)
            if letter.lost >= POISON:
                log.error("job %s (%s) was lost %d times with its worker; it is dead", letter.id, letter.task, POISON)
                letter = ended(letter, JobState.DEAD, "poison", now)
            elif letter.state.final:
                log.error("a message in %s is no job of Mouso's; it is among the dead letters", held.tap.name)
                letter = ended(letter, JobState.DEAD, letter.reason, now)
            moves.append((held, letter))  # else its delay is longer than a way around the ladder, or it is worn out
        return moves

    def _send_on(self, moves: Sequence[tuple[Held, Letter]]) -> None:
        """Publishes what becomes of messages that are not run here; nobody waits for it."""
        gone = [held for held, after in moves if after.state is JobState.COMPLETED]
        moves = [(held, after) for held, after in moves if after.state is not JobState.COMPLETED]
        consumer = self._consumer
        consumer.settle(gone)

        def then(parcel: Parcel) -> None:
            stored = [h for h, _ in moves if parcel.error is None and h.letter.id not in parcel.returned]
            kept = set(map(id, stored))
            consumer.settle(stored, [h for h, _ in moves if id(h) not in kept])

        try:
            messages = self._sending.messages([after for _, after in moves], until(_ANSWER))
        except Exception:
            consumer.settle((), [held for held, _ in moves])
            raise
        if messages:
            self._sending.publisher.post(messages, then)

    def heartbeat(self, worker: WorkerInfo) -> list[Command]:
        deadline = until(_ANSWER)
        self._reach(deadline)
        if not self._begun:  # a worker that was given queues does not start without them
            self._topology.queues(worker.queues, deadline)
            self._begun = True
        self._consumer.sync(deadline)
        with contextlib.suppress(BrokerError, ConfigError):  # it takes no messages now, and will be asked again
            if moves := self._doomed():
                self._send_on(moves)
            self._holding.look(worker.id, deadline)
        return []

    def report(self, worker: str, updates: Sequence[Update]) -> list[int | str]:
        with self._consumer.news:
            return [u.key for u in updates if self._claim_of(worker, u.key, u.token) is None]

    def reconcile(self, worker: str, held: Sequence[tuple[int | str, int]]) -> list[int | str]:
        consumer, known = self._consumer, {key for key, _ in held}
        self._reach(until(_ANSWER))
        with consumer.news:
            lost = [key for key, token in held if self._claim_of(worker, key, token) is None]
            known |= self._held_up.keys() | self._holding.trials
            backs = [held for key, held in consumer.held.items() if held.worker == worker and key not in known]
        self._give_back(backs)
        return lost

    def retire(self, worker: str) -> int:
        consumer = self._consumer
        with consumer.news:
            known = self._held_up.keys() | self._holding.trials
            backs = [held for key, held in consumer.held.items() if held.worker == worker and key not in known]
        consumer.serve((), 0)
        if self._consumer.ready:
            self._give_back(backs)
            self._holding.end(worker)
        return len(backs)

    def _give_back(self, backs: Sequence[Held]) -> None:
        consumer = self._consumer
        away = [held for held in backs if not held.tap.queue or held.count >= NACKS]
        at_once = [held for held in backs if held not in away]
        with consumer.news:
            for held in at_once:
                consumer.held.pop(held.key, None)
        consumer.settle((), at_once)
        if away:
            self._carry([(held, replace(held.letter, claims=held.token, hold=0)) for held in away], until(_ANSWER))
        if backs:
            consumer.sync(until(_ANSWER))


def _ready(source: Source) -> Iterator[Held]:
    """Takes what waits in the buffers of a queue, the highest level first."""
    for tap in source.taps:
        while tap.ready:
            yield tap.ready.popleft()


def _strayed(letter: Letter) -> Letter:
    """A job on its way to a worker that knows it: for a second at first, for a minute in the end."""
    return replace(letter, strayed=letter.strayed + 1, hold=min(1 << min(letter.strayed, 6), _STRAY) * 1000)
