"""Enums whose values msgspec does not look up itself: texts and numbers side by side, and others."""

import enum
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import pytest

from mouso.codec import Signature
from mouso.errors import ArgumentError, BadPayload, ConfigError, ResultError
from mouso.wire import CODECS
from tests.unit.codec_kit import LIMIT, Page, one, signature


class Mixed(enum.Enum):
    RED = 1
    BLUE = "b"
    CRIMSON = 1


class Odd(enum.Enum):
    HALF = 0.5
    PAIR = (1, 2)
    NOTHING = None


class Uncarried(enum.Enum):
    A = object()
    B = 1


@pytest.fixture(autouse=True)
def no_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)


VALUES: list[tuple[Any, Any]] = [
    (Mixed, Mixed.RED),
    (Mixed, Mixed.BLUE),
    (Mixed | None, Mixed.RED),
    (Mixed | None, None),
    (Annotated[Mixed, "a colour"], Mixed.BLUE),
    (list[Mixed], [Mixed.RED, Mixed.BLUE]),
    (tuple[Mixed, ...], (Mixed.RED,)),
    (dict[str, list[Mixed | None]], {"a": [Mixed.RED, None]}),
    (Mapping[str, Mixed], {"a": Mixed.RED}),
    (Page[Mixed], Page([Mixed.RED])),
    (Odd, Odd.HALF),
    (Odd, Odd.PAIR),
    (set[Odd], {Odd.HALF, Odd.PAIR}),
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("hint", "value"), VALUES, ids=range(len(VALUES)))
def test_a_member_arrives_as_it_was_passed(hint: Any, value: Any, codec: str) -> None:
    own = signature(hint)
    assert one(hint, value, codec) == value
    assert own.decode_result(own.encode_result(value, codec, LIMIT), codec) == value


def test_a_default_is_the_same_call() -> None:
    def task(colour: Mixed = Mixed.BLUE, *more: Mixed) -> None: ...

    own = Signature("shop.task", task)
    payloads = [own.encode(args, {}, "json", LIMIT) for args in ((), (Mixed.BLUE,))]
    assert own.canonical(payloads[0], "json") == own.canonical(payloads[1], "json")
    assert own.decode(own.encode((Mixed.RED, Mixed.BLUE), {}, "json", LIMIT), "json")[0] == [Mixed.RED, Mixed.BLUE]


def test_a_value_that_no_member_has_is_refused() -> None:
    own = signature(Mixed)
    with pytest.raises(ArgumentError, match="argument 'value': no member of Mixed has this value"):
        own.encode(("c",), {}, "json", LIMIT)
    with pytest.raises(ArgumentError, match="argument 'value': int would arrive as Mixed"):
        own.encode((1,), {}, "json", LIMIT)
    with pytest.raises(BadPayload, match="no member of Mixed has this value"):
        own.decode(b'{"value":2}', "json")
    with pytest.raises(ResultError, match=r"by its return annotation .*Mixed: no member of Mixed has this value"):
        own.encode_result("c", "json", LIMIT)


def test_an_enum_of_what_nothing_carries_is_refused_at_the_declaration() -> None:
    with pytest.raises(ConfigError, match="cannot be restored from JSON"):
        signature(Uncarried)
