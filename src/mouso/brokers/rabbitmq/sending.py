"""Jobs on their way to RabbitMQ: the queues that take them are there first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from mouso.brokers.rabbitmq import facts as registry
from mouso.brokers.rabbitmq.facts import Fact, Facts
from mouso.brokers.rabbitmq.frames import Message
from mouso.brokers.rabbitmq.letter import Letter
from mouso.brokers.rabbitmq.link import Outage
from mouso.brokers.rabbitmq.names import Names, rungs_for
from mouso.brokers.rabbitmq.publisher import Publisher
from mouso.brokers.rabbitmq.shelf import Shelf
from mouso.brokers.rabbitmq.topology import Topology
from mouso.clock import SYSTEM
from mouso.config import one_line
from mouso.errors import BrokerUnavailable, OutcomeUnknown
from mouso.urls import BrokerURL

_MAY_APPLY = "it may apply all the same, at once or later; to repeat it does no harm"


def until(seconds: float) -> float:
    """The deadline after so many seconds, on the monotonic clock."""
    return SYSTEM.monotonic() + seconds


class Sending:
    """What publishes jobs and facts.

    Attributes:
        names: The names of its namespace.
        publisher: Its connection.
        topology: What that has seen to be there.
        knows_queue: Whether everybody was told of a queue before.
    """

    def __init__(self, url: BrokerURL, outage: Outage) -> None:
        self.names = Names(url.params.get("namespace", "default"))
        self.publisher = Publisher(url, outage)
        self.topology = Topology(self.publisher, self.names, self.tell_queue)
        self._facts = Shelf(self.publisher, self.publisher, self.topology, self.names.facts)
        self.knows_queue: Callable[[str], bool] = lambda queue: False
        self._server = url.server

    def close(self) -> None:
        """Closes the connection."""
        self.publisher.close()
        self.topology.forget()

    def publish(self, letters: Sequence[Letter], deadline: float) -> None:
        """Stores jobs; a second time for those whose queues or exchanges were deleted meanwhile."""
        for again in (True, False):
            messages = self.messages(letters, deadline)
            try:
                returned = self.publisher.publish(messages, deadline)
            except BrokerUnavailable:
                if not (self.publisher.missing and again):
                    raise
                continue
            if not returned:
                return
            self.topology.forget()
            letters = [letter for letter in letters if letter.id in returned]
        raise BrokerUnavailable(f"no queue of {self._server} took {len(letters)} of the jobs; try again")

    def messages(self, letters: Iterable[Letter], deadline: float) -> list[Message]:
        """Letters as messages, with queues there to take them."""
        if self.publisher.missing:
            self.publisher.missing = False
            self.topology.forget()
        messages = []
        for letter in letters:
            if letter.state.final:
                self.topology.base(deadline)
                messages.append(self.names.dead_message(letter))
                continue
            self.topology.queue(letter.queue, deadline)
            self.topology.ladder(rungs_for(letter.hold), deadline)
            messages.append(self.names.message(letter))
        return messages

    def facts(self, deadline: float) -> Facts:
        """All facts that there are by now."""
        return registry.read(self._facts, deadline) if self.topology.exists(self.names.facts, deadline) else Facts()

    def tell(self, fact: Fact, deadline: float) -> None:
        """Tells everybody a fact."""
        self.topology.base(deadline)
        self.publisher.publish([registry.encode(self.names, fact)], deadline, _MAY_APPLY)

    def tell_queue(self, queue: str, deadline: float) -> None:
        """Tells everybody that there is a queue, if that is new; what is to be stored there is stored after that."""
        if not self.knows_queue(queue):
            try:
                self.tell(Fact("queue", queue), deadline)
            except OutcomeUnknown as error:
                what = one_line(error).removesuffix(f"; {_MAY_APPLY}")
                raise BrokerUnavailable(f"{what}; nothing was stored, try again") from error
