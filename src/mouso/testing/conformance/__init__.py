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

import pkgutil

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{part.name}" for part in pkgutil.iter_modules(__path__)))

from mouso.testing.conformance.suite import BrokerConformance  # noqa: E402  # why: only now are the parts' asserts rewritten

__all__ = ["BrokerConformance"]
