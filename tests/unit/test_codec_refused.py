"""Arguments that would not arrive are refused by name, where they can still be mended."""

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest

from mouso.codec import Signature
from mouso.errors import ArgumentError, JobRejected, PayloadTooLarge, ResultError
from mouso.wire import CODECS, MAX_DEPTH
from tests.unit.codec_kit import (
    AWARE,
    ID,
    ITEM,
    LIMIT,
    ORDER,
    USER,
    Color,
    Item,
    Money,
    Movie,
    Page,
    Point,
    User,
    arrives,
    nested,
    one,
    signature,
    travel,
)

# -- what cannot be restored is refused with the argument's name


class Unequal:
    """A list's item that does all it can to be no ordinary value."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    def __getstate__(self) -> object:
        raise RuntimeError("no state")


@dataclass(eq=False)
class Quarrelsome:
    name: str

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")


class OddList(list[int]):
    def __len__(self) -> int:
        raise RuntimeError("no length")


class Base(pydantic.BaseModel):
    x: int


class Derived(Base):
    y: int


class Secretive(pydantic.BaseModel):
    password: pydantic.SecretStr


class Hours(pydantic.BaseModel):
    opens: list[time]


@dataclass
class Stripped:
    name: str

    def __post_init__(self) -> None:
        self.name = self.name.strip()


STRIPPED = Stripped("")
STRIPPED.name = " "
PARIS = time(1, 2, tzinfo=ZoneInfo("Europe/Paris"))
ODD = timezone(timedelta(seconds=3601))

REFUSED: list[tuple[Any, Any, str]] = [
    (Any, AWARE, "datetime would arrive as str; annotate the parameter with the type you pass"),
    (Any, date(2030, 1, 2), "date would arrive as str"),
    (Any, timedelta(1), "timedelta would arrive as str"),
    (Any, Decimal(1), "Decimal would arrive as str"),
    (Any, ID, "UUID would arrive as str"),
    (Any, b"x", "bytes would arrive as str"),
    (Any, {1, 2}, "set would arrive as list"),
    (Any, Color.RED, "Color would arrive as str"),
    (Any, Path("a"), "PosixPath would arrive as str"),
    (Any, ITEM, "Item would arrive as dict"),
    (Any, Point(1), "Point would arrive as list"),
    (Any, [Point(1)], "list would arrive as list, because of Point in it, which would arrive as list;"),
    (Any, Money(Decimal(1)), "Money would arrive as dict"),
    (Any, USER, "User would arrive as dict"),
    (Any, {1: "a"}, "dict would arrive as dict, because of int in it, which would arrive as str;"),
    (Any, {"a": {"b": {1}}}, "dict would arrive as dict, because of set in it, which would arrive as list;"),
    (Any, {1: "a", "1": "b"}, "dict would arrive as dict"),
    (dict[str, int], {1: 2, "1": 3}, "dict would arrive as dict"),
    (Any, {None: 1}, "a key of type NoneType cannot be encoded; use text"),
    (Any, {(1, 2): 1}, "a key of type tuple cannot be encoded; use text"),
    (set[int], [1, 1], "list would arrive as set"),
    (int, "1", "Expected `int`, got `str`"),
    (int, 1.0, "Expected `int`, got `float`"),
    (bool, 1, "Expected `bool`, got `int`"),
    (str, b"x", "bytes would arrive as str"),
    (str, None, "Expected `str`, got `null`"),
    (float, 2**60 + 1, "int would arrive as float"),
    (datetime, date(2030, 1, 2), "Invalid RFC3339"),
    (date, AWARE, "Invalid RFC3339"),
    (Item, {"name": "x", "price": "1"}, "dict would arrive as Item"),
    (Movie, {"title": "Up", "more": 1}, "dict would arrive without the key 'more' that the annotation lacks; annotate"),
    (
        list[Movie],
        [{"title": "Up", "more": 1}],
        "because of dict in it, which would arrive without the key 'more' that",
    ),
    (Base, Derived(x=1, y=2), "Derived would arrive as Base"),
    (Secretive, Secretive(password=pydantic.SecretStr("x")), "because of SecretStr in its field 'password', which"),
    (Stripped, STRIPPED, "which would arrive as another str; let the field 'name' survive being encoded and decoded"),
    (Page[Any], Page([{"a": ID}]), "UUID in its field 'items', which would arrive as str; annotate the field 'items'"),
    (time, PARIS, "time would arrive without its time zone; pass a datetime, or the name of the zone as well"),
    (list[time | None], [None, PARIS], "because of time in it, which would arrive without its time zone; pass a"),
    (dict[str, tuple[time, ...]], {"a": (PARIS,)}, "because of time in it, which would arrive without its time zone;"),
    (set[time], {PARIS}, "because of time in it, which would arrive without its time zone;"),
    (Page[time], Page([PARIS]), "because of time in its field 'items', which would arrive without its time zone;"),
    (Hours, Hours(opens=[PARIS]), "because of time in its field 'opens', which would arrive without its time zone;"),
    (time, time(1, tzinfo=ODD), "time would arrive without the seconds of its UTC offset; pass it in UTC"),
    (
        datetime,
        AWARE.replace(tzinfo=ODD),
        "would arrive without the seconds of its UTC offset; pass it in UTC",
    ),
    (Decimal, Decimal("sNaN"), "a Decimal that is a signaling NaN (sNaN) cannot be compared; pass NaN or None"),
    (Annotated[int, msgspec.Meta(ge=0)], -1, "Expected `int` >= 0"),
    (str | Path, Path("a"), "PosixPath would arrive as str"),
    (User | int, "x", "argument 'value'"),
    (Any, "\ud800", "surrogates not allowed"),
    (str, "a\udcff", "surrogates not allowed"),
    (Any, {"\ud800": 1}, "surrogates not allowed"),
    (Any, 10**5000, "4300 digits"),
    (Any, object(), "an object of type object cannot be encoded"),
    (Any, Unequal(), "an object of type Unequal cannot be encoded"),
    (Any, [Unequal()], "an object of type Unequal cannot be encoded"),
    (Quarrelsome, Quarrelsome("x"), "no comparison"),
    (Any, lambda: None, "an object of type function cannot be encoded"),
    (Any, (i for i in range(3)), "an object of type generator cannot be encoded"),
    (Any, open, "an object of type builtin_function_or_method cannot be encoded"),
    (Any, 1j, "an object of type complex cannot be encoded"),
    (complex, 1j, "an object of type complex cannot be encoded"),
    (Any, ValueError("x"), "an object of type ValueError cannot be encoded"),
    (type, int, "cannot be encoded"),
]


@pytest.mark.parametrize(("hint", "value", "why"), REFUSED, ids=[why[:40] for *_, why in REFUSED])
def test_what_would_not_arrive_is_refused_with_the_arguments_name(hint: Any, value: Any, why: str) -> None:
    def task(first: Any, value: Any) -> Any: ...

    task.__annotations__ = {"first": int, "value": hint}
    with pytest.raises(ArgumentError, match=r"task shop.task: argument 'value': ") as caught:
        Signature("shop.task", task).encode((1, value), {}, "json", LIMIT)
    assert why in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Any, math.nan),
        (float, math.inf),
        (float | None, math.nan),
        (list[float], [1.0, math.nan]),
        (Any, {"a": [1, math.inf]}),
        (Page[float], Page([-math.inf])),
        (User | float, math.nan),
    ],
    ids=str,
)
def test_a_number_that_json_lacks_is_refused_with_what_has_it(hint: Any, value: Any) -> None:
    words = r"argument 'value' holds NaN or Infinity, which JSON cannot; pass None .*, or declare .* codec=\"msgpack\"$"
    with pytest.raises(ArgumentError, match=words):
        one(hint, value)


def test_the_key_that_is_to_blame_is_not_told_of_what_is_hidden() -> None:
    def task(login: Movie) -> Movie:
        return login

    own = Signature("shop.task", task, hides=lambda name: name == "login")
    login: Any = {"title": "Up", "sesame": 1}
    with pytest.raises(ArgumentError, match="dict would arrive without a key that the annotation lacks; annotate"):
        own.encode((login,), {}, "json", LIMIT)
    with pytest.raises(ResultError, match="dict would arrive without a key that the annotation lacks; annotate"):
        own.encode_result(login, "json", LIMIT)


def test_a_refusal_is_a_type_error_and_says_that_nothing_was_stored() -> None:
    assert issubclass(ArgumentError, TypeError)
    assert issubclass(ArgumentError, JobRejected)


def test_msgpack_refuses_integers_beyond_64_bits_by_name() -> None:
    with pytest.raises(ArgumentError, match="argument 'value': can't serialize ints"):
        one(int, 2**64, "msgpack")


def test_json_carries_integers_of_thousands_of_digits_exactly() -> None:
    assert one(int, 10**4000 + 1) == 10**4000 + 1


def test_a_list_whose_length_raises_is_refused_or_arrives() -> None:
    assert arrives(Any, OddList([1, 2])) in (None, [1, 2])


def test_an_annotation_that_could_not_be_resolved_is_named_in_the_refusal() -> None:
    def task(order: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821  # why: wrong on purpose

    with pytest.raises(ArgumentError, match="the annotation 'Missing' cannot be resolved when the task is declared"):
        travel(task, ORDER)


def test_an_annotation_that_cannot_be_resolved_lets_json_through() -> None:
    def task(order: "Missing", n: "int") -> None: ...  # type: ignore[name-defined]  # noqa: F821  # why: wrong on purpose

    assert travel(task, {"a": 1}, 3)[0] == ({"a": 1}, 3)
    with pytest.raises(ArgumentError, match="argument 'n'"):
        travel(task, {"a": 1}, "3")


def test_a_local_class_is_found_by_its_name_in_quotes() -> None:
    @dataclass
    class Local:
        x: int

    def task(value: "Local", many: "list[Local]") -> None: ...

    assert travel(task, Local(1), [Local(2)])[0] == (Local(1), [Local(2)])


# -- how deep and how large


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"a": inner}], ids=["lists", "mappings"])
def test_arguments_may_be_nested_to_a_limit(wrap: Callable[[Any], Any], codec: str) -> None:
    fits = nested(MAX_DEPTH - 1, wrap=wrap)  # the arguments themselves are one level
    assert one(Any, fits, codec) == fits
    with pytest.raises(JobRejected, match=f"nested deeper than {MAX_DEPTH} levels"):
        one(Any, wrap(fits), codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_very_deep_arguments_are_refused(depth: int, codec: str) -> None:
    with pytest.raises(JobRejected, match=r"argument 'value' contains itself or is nested deeper"):
        one(Any, nested(depth), codec)


def test_brackets_in_text_are_no_depth() -> None:
    value = {"text": "[{" * 1000, "escaped": '"\\' * 300 + "[" * 300}
    assert one(Any, value) == value


def test_wide_arguments_are_no_depth() -> None:
    value = [[{"a": [n]}] for n in range(1000)]
    assert one(Any, value) == value


def test_what_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(JobRejected, match="argument 'value' contains itself"):
        one(Any, loop)


def test_a_mebibyte_fits_and_a_byte_more_does_not() -> None:
    own = signature(str)
    frame = len(own.encode(("",), {}, "json", LIMIT))
    assert len(own.encode(("x" * (LIMIT - frame),), {}, "json", LIMIT)) == LIMIT
    with pytest.raises(PayloadTooLarge, match="take 1,048,577 bytes, the limit is 1,048,576; store the data elsewhere"):
        own.encode(("x" * (LIMIT - frame + 1),), {}, "json", LIMIT)


HUGE: list[tuple[Any, Callable[[], Any]]] = [
    (str, lambda: "x" * (8 << 20)),
    (bytes, lambda: b"x" * (8 << 20)),
    (list[str], lambda: ["y", "x" * (8 << 20)]),
    (dict[str, list[bytes]], lambda: {"a": [b"x" * (8 << 20)]}),
    (list[int], lambda: [7] * (2 << 20)),
    (Any, lambda: {"a": {"b": "x" * (8 << 20)}}),
]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(("hint", "make"), HUGE)
def test_what_is_huge_is_refused_before_it_is_encoded(hint: Any, make: Callable[[], Any], codec: str) -> None:
    """A value that fills the memory is there once, not a second time as bytes."""
    own, value = signature(hint), make()
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge, match=r"take at least [0-9,]+ bytes, the limit is 1,048,576"):
            own.encode((value,), {}, codec, LIMIT)
        with pytest.raises(ResultError, match=r"takes at least [0-9,]+ bytes, the limit is 1,048,576"):
            own.encode_result(value, codec, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_too_large_arguments_are_refused_before_they_are_decoded() -> None:
    class Seen(msgspec.Struct):
        text: str

        def __post_init__(self) -> None:
            made.append(self)

    made: list[Any] = []
    value = Seen("x" * 2000)
    made.clear()
    with pytest.raises(PayloadTooLarge):
        signature(Seen).encode((value,), {}, "json", 1000)
    assert not made
