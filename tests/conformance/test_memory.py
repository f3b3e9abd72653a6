"""The memory broker keeps what it specifies."""

from collections import Counter
from collections.abc import Callable
from itertools import count

import pytest

from mouso.brokers import Broker, connect
from mouso.brokers.memory import MemoryBroker
from mouso.testing.clock import FakeClock
from mouso.testing.conformance import BrokerConformance

_names = count()


class TestMemoryBroker(BrokerConformance):
    @pytest.fixture
    def make_broker(self, clock: FakeClock) -> Callable[[], Broker]:
        url = f"memory://conformance-{next(_names)}"
        return lambda: connect(url, clock=clock)


def test_no_part_of_the_suite_hides_a_test_of_another() -> None:
    """The suite is gathered by inheritance, where the same name twice would be tested once."""
    names = Counter(name for part in BrokerConformance.__bases__ for name in vars(part) if name.startswith("test_"))
    assert [name for name, times in names.items() if times > 1] == []


def test_a_name_is_one_store_and_a_broker_without_a_name_has_its_own() -> None:
    """One store per name and process; the empty name too."""
    assert isinstance(connect("memory://"), MemoryBroker)
    connect("memory://").pause("shared")
    assert [queue.name for queue in connect("memory://").queues()] == ["shared"]
    assert connect("memory://other").queues() == []
    assert MemoryBroker().queues() == []
    assert connect("memory://other").url == "memory://other"
