"""The suite that every broker has to pass: each sentence of ``Broker``'s ``Guarantees``, and how it is told.

A broker's test module says how to make one, and pytest does the rest::

    class TestMyBroker(BrokerConformance):
        @pytest.fixture
        def make_broker(self, clock: FakeClock) -> Iterator[Callable[[], Broker]]:
            store = new_empty_store()
            made: list[Broker] = []

            def make() -> Broker:
                made.append(MyBroker(store, clock=clock))
                return made[-1]

            yield make
            for broker in made:
                broker.close()

Every call of the factory gives another broker object on the same store, as another process would have it. A
broker that is ``transactional`` overrides ``make_connection`` as well. What a broker cannot do is skipped by its
``capabilities``, never by its name.
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{part}"
        for part in (
            "kit",
            "leases",
            "operating",
            "races",
            "reading",
            "storing",
            "transitions",
            "upkeep",
            "waiting",
            "working",
        )
    )
)

from mouso.testing.conformance.leases import Clocks, Heartbeats, Retiring  # noqa: E402  # after the rewrite
from mouso.testing.conformance.operating import Cancelling, Deleting, Pausing, Retrying  # noqa: E402
from mouso.testing.conformance.races import Races  # noqa: E402
from mouso.testing.conformance.reading import Reading  # noqa: E402
from mouso.testing.conformance.storing import Enqueueing, Opening, Transactions, UniqueKeys  # noqa: E402
from mouso.testing.conformance.transitions import Transitions  # noqa: E402
from mouso.testing.conformance.upkeep import Promoting, Pruning  # noqa: E402
from mouso.testing.conformance.waiting import Waiting, Watching  # noqa: E402
from mouso.testing.conformance.working import (  # noqa: E402
    Claiming,
    Reporting,
    Settling,
    Sharing,
    UnknownTasks,
)

__all__ = ["BrokerConformance"]


class BrokerConformance(
    Opening,
    Enqueueing,
    UniqueKeys,
    Transactions,
    Waiting,
    Watching,
    Settling,
    Reporting,
    Claiming,
    Sharing,
    UnknownTasks,
    Heartbeats,
    Retiring,
    Clocks,
    Transitions,
    Promoting,
    Pruning,
    Cancelling,
    Retrying,
    Deleting,
    Pausing,
    Reading,
    Races,
):
    """All of it; subclass this under a name that begins with ``Test``."""
