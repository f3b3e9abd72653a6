"""Values of subclasses travel as their base has them, and a bool where the annotation has a number."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import pytest

from mouso.codec import Signature
from mouso.errors import ArgumentError, ResultError
from mouso.wire import CODECS
from tests.unit.codec_kit import LIMIT, Flavour, Level, Point, arrives, one, signature


def _never(*args: object) -> Any:
    raise AssertionError("a method of the subclass was called")


class Safe(str):
    __slots__ = ()
    __str__ = __repr__ = __len__ = _never


class Count(int):
    __int__ = __index__ = __str__ = __repr__ = _never


class Ratio(float):
    __float__ = __str__ = __repr__ = __trunc__ = _never


class Blob(bytes):
    __bytes__ = __len__ = __iter__ = __repr__ = _never


class Buffer(bytearray):
    __bytes__ = __len__ = __iter__ = __repr__ = copy = _never


class Contrary(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


SUBCLASSED: list[tuple[Any, Any, Any]] = [
    (str, Safe("x"), "x"),
    (str, Contrary("x"), "x"),
    (int, Count(3), 3),
    (float, Ratio(2.5), 2.5),
    (float, Count(2), 2.0),
    (bytes, Blob(b"x"), b"x"),
    (bytes, Buffer(b"x"), b"x"),
    (Any, Safe("x"), "x"),
    (Any, {"a": [Safe("x"), Count(3), Ratio(2.5)]}, {"a": ["x", 3, 2.5]}),
    (list[str], [Safe("x"), "y"], ["x", "y"]),
    (dict[str, int], {"k": Count(1)}, {"k": 1}),
    (str, Flavour.SWEET, "sweet"),
    (Flavour, Flavour.SWEET, Flavour.SWEET),
    (Level, Level.HIGH, Level.HIGH),
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("hint", "value", "plain"), SUBCLASSED, ids=range(len(SUBCLASSED)))
def test_a_value_of_a_subclass_arrives_as_its_base_has_it(hint: Any, value: Any, plain: Any, codec: str) -> None:
    arrived = one(hint, value, codec)
    assert arrived == plain
    assert type(arrived) is type(plain)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("hint", "value", "plain"), SUBCLASSED, ids=range(len(SUBCLASSED)))
def test_a_result_of_a_subclass_is_stored_as_its_base_has_it(hint: Any, value: Any, plain: Any, codec: str) -> None:
    own = signature(hint)
    stored = own.decode_result(own.encode_result(value, codec, LIMIT), codec)
    assert stored == plain
    assert type(stored) is type(plain)


def test_a_number_of_a_subclass_that_json_lacks_is_refused_as_ever() -> None:
    with pytest.raises(ResultError, match="holds NaN"):
        signature(float).encode_result(Ratio(math.nan), "json", LIMIT)
    assert arrives(Any, Ratio(math.nan)) is None
    assert math.isnan(one(Any, Ratio(math.nan), "msgpack"))


class Size(msgspec.Struct, tag=True):
    n: int
    exact: bool = False


class Weight(msgspec.Struct, tag=True):
    n: float


@dataclass
class Box:
    n: int
    full: bool
    counts: list[int] = field(default_factory=list)


BOOLS: list[tuple[Any, Any, Any]] = [
    (int, True, 1),
    (float, False, 0.0),
    (int | None, True, 1),
    (int | str, True, 1),
    (Annotated[int, msgspec.Meta(ge=0, title="n")], True, 1),
    (list[int], [True, 2], [1, 2]),
    (tuple[int, bool], (True, True), (1, True)),
    (tuple[int, ...], (True,), (1,)),
    (set[int] | None, {True}, {1}),
    (dict[str, int | None], {"a": True, "b": None}, {"a": 1, "b": None}),
    (dict[str, list[int | bool] | int], {"a": [True, 2], "b": True}, {"a": [True, 2], "b": 1}),
    (Point, Point(True), Point(1)),
    (Box, Box(True, True, [False]), Box(1, True, [0])),
    (Size | Weight, Size(True, True), Size(1, True)),
    (list[Size | Weight], [Size(1, True), Weight(True)], [Size(1, True), Weight(1.0)]),
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("hint", "value", "number"), BOOLS, ids=range(len(BOOLS)))
def test_a_bool_is_a_number_where_the_annotation_has_one(hint: Any, value: Any, number: Any, codec: str) -> None:
    own = signature(hint)
    result = own.decode_result(own.encode_result(value, codec, LIMIT), codec)
    for arrived in (one(hint, value, codec), result):
        assert arrived == number
        assert repr(arrived) == repr(number)


def test_a_bool_is_no_text_and_a_number_no_bool() -> None:
    assert [arrives(hint, value) for hint, value in ((str, True), (bool, 1), (list[str], [True]))] == [None] * 3
    assert arrives(Annotated[int, msgspec.Meta(ge=1)], False) is None


def test_the_argument_that_is_to_blame_is_named_beside_a_bool_that_is_a_number() -> None:
    def task(x: int, y: str) -> None: ...

    with pytest.raises(ArgumentError, match="argument 'y': Expected `str`, got `int`"):
        Signature("shop.task", task).encode((True, 5), {}, "json", LIMIT)


def test_a_bool_and_its_number_are_the_same_call() -> None:
    def task(x: int, *rest: float, y: int = 0) -> None: ...

    own = Signature("shop.task", task)
    payloads = [own.encode(args, {"y": 1}, "json", LIMIT) for args in ((True, False), (1, 0))]
    assert own.canonical(payloads[0], "json") == own.canonical(payloads[1], "json")
