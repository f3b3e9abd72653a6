"""No sentence of the seam is without a test: each part of each ``Guarantees`` is quoted by one of the suite."""

import inspect
import re
from collections.abc import Iterator

import pytest

from mouso.brokers import Broker
from mouso.testing.conformance import BrokerConformance


def flat(text: str | None) -> str:
    return " ".join((text or "").split())


def promises() -> Iterator[tuple[str, str]]:
    """Each verb with each part of what it guarantees, from one mark of punctuation to the next."""
    for name, verb in inspect.getmembers(Broker, inspect.isfunction):
        _, _, text = (inspect.getdoc(verb) or "").partition("Guarantees:\n")
        for part in re.split(r"[.,;:](?:\s|$)", flat(text)):
            if part:
                yield name, part


TESTS = [
    flat(inspect.getdoc(test)).lower()
    for name, test in inspect.getmembers(BrokerConformance, inspect.isfunction)
    if name.startswith("test_")
]


@pytest.mark.parametrize(("verb", "part"), list(promises()))
def test_a_test_quotes_it(verb: str, part: str) -> None:
    assert any(part.lower() in test for test in TESTS), f"{verb}: no test of the suite says {part!r}"


def test_there_are_many() -> None:
    assert len(list(promises())) > 100
