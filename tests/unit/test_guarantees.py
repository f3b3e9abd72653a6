"""Every sentence under ``Guarantees:`` in the broker protocol is the docstring of a test that every broker passes."""

import inspect
import re

import pytest

from mouso.brokers.base import Broker
from mouso.testing.conformance import BrokerConformance


def plain(text: str) -> str:
    return " ".join(text.replace("`", "").split()).lower()


def clauses(verb: str) -> list[str]:
    """What a verb guarantees, cut at full stops, semicolons and colons."""
    text = inspect.cleandoc(getattr(Broker, verb).__doc__ or "").partition("Guarantees:\n")[2]
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    return [clause.rstrip(".;:") for clause in re.split(r"(?<=[.;:])\s+", plain(" ".join(lines))) if clause]


VERBS = [name for name, member in vars(Broker).items() if inspect.isfunction(member) and clauses(name)]
TESTED = [
    plain(member.__doc__ or "")
    for name, member in inspect.getmembers(BrokerConformance, inspect.isfunction)
    if name.startswith("test_")
]


@pytest.mark.parametrize("verb", VERBS)
def test_what_a_verb_guarantees_is_tested(verb: str) -> None:
    assert [clause for clause in clauses(verb) if not any(clause in text for text in TESTED)] == []


def test_they_are_found() -> None:
    assert len(VERBS) > 20
    assert sum(len(clauses(verb)) for verb in VERBS) > 80
    assert "an id that is stored already, in any state, changes nothing and is reported as not created" in clauses(
        "enqueue"
    )
