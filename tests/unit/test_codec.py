"""Arguments and results survive the way to a worker and back, or are refused where they can still be mended."""

import dataclasses
import enum
import functools
import math
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, Optional, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mouso.codec import CODECS, MAX_DEPTH, Signature, decode_plain, type_hints
from mouso.errors import ArgumentError, BadPayload, ConfigError, JobRejected, PayloadTooLarge, ResultError

LIMIT = 1 << 20
T = TypeVar("T")
UserId = NewType("UserId", int)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Flavour(enum.StrEnum):
    SWEET = "sweet"


class Point(NamedTuple):
    x: int
    y: int = 0


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


@dataclass(frozen=True)
class Item:
    name: str
    price: Decimal
    tags: set[str] = field(default_factory=set)


@dataclass
class Order:
    id: UUID
    at: datetime
    items: list[Item]
    parent: "Order | None" = None


@dataclass
class Page(Generic[T]):
    items: list[T]


class Money(msgspec.Struct, frozen=True):
    amount: Decimal
    currency: str = "EUR"


class Cat(msgspec.Struct, tag=True):
    name: str


class Dog(msgspec.Struct, tag=True):
    name: str


class User(pydantic.BaseModel):
    id: UUID
    joined: datetime
    name: str = pydantic.Field(alias="fullName")
    home: Path | None = None


class Strict(pydantic.BaseModel, strict=True, extra="forbid"):
    id: UUID
    data: bytes = b""

    @pydantic.computed_field  # type: ignore[prop-decorator]  # why: mypy knows no decorated properties
    @property
    def short(self) -> str:
        return str(self.id)[:8]


class Tags(pydantic.RootModel[list[str]]): ...


ID = UUID("0197c3a5-0000-7000-8000-000000000000")
AWARE = datetime(2030, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
NAIVE = datetime(2030, 1, 2, 3, 4, 5, 678_901)
ITEM = Item("mouse", Decimal("9.90"), {"small", "grey"})
ORDER = Order(ID, AWARE, [ITEM], Order(ID, AWARE, []))
USER = User(id=ID, joined=AWARE, fullName="Ann", home=Path("/home/ann"))

VALUES: list[tuple[Any, Any]] = [
    (type(None), None),
    (bool, True),
    (int, -7),
    (int, 2**53 + 1),
    (int, 2**64 - 1),
    (float, 1.5),
    (float, -0.0),
    (float, 7),
    (str, "größe 🐁 \0 \u2028 \x1b"),
    (str, Flavour.SWEET),
    (list, [1, "a", None, {"b": [2.5]}]),
    (dict, {"a": {"b": []}}),
    (Any, {"a": [1, 2.5, "x", True, None]}),
    (object, 1),
    (list[object], [1, {}]),
    (datetime, AWARE),
    (datetime, NAIVE),
    (datetime, AWARE.astimezone(ZoneInfo("Europe/Paris"))),
    (datetime, datetime.min),
    (datetime, datetime.max.replace(tzinfo=UTC)),
    (date, date(2030, 1, 2)),
    (date, date.max),
    (time, time(3, 4, 5, 678_901)),
    (time, time(3, 4, 5, tzinfo=timezone(timedelta(hours=2)))),
    (timedelta, timedelta(days=-3, microseconds=1)),
    (timedelta, timedelta(days=10_000, microseconds=1)),
    (Decimal, Decimal("10.10")),
    (Decimal, Decimal("1E+400")),
    (UUID, ID),
    (bytes, b"\x00\xff"),
    (bytearray, bytearray(b"\x00\xff")),
    (Color, Color.BLUE),
    (Level, Level.HIGH),
    (Flavour, Flavour.SWEET),
    (Path, Path("/etc/hosts")),
    (PurePosixPath, PurePosixPath("a/../b")),
    (Item, ITEM),
    (Order, ORDER),
    (Page[int], Page([1, 2])),
    (Movie, Movie(title="Up", year=2009)),
    (Movie, Movie(title="Up")),
    (Point, Point(1, 2)),
    (Money, Money(Decimal("1.10"))),
    (Cat | Dog, Dog("Rex")),
    (User, USER),
    (Strict, Strict(id=ID, data=b"x")),
    (Tags, Tags(["a", "b"])),
    (Literal["a", 1], "a"),
    (UserId, UserId(3)),
    (Annotated[int, msgspec.Meta(ge=0)], 3),
    (list[datetime], [AWARE, NAIVE]),
    (list[Item], [ITEM, ITEM]),
    (list[User], [USER]),
    (list[Path | None], [Path("a"), None]),
    (dict[str, Item], {"a": ITEM}),
    (dict[str, User], {"a": USER}),
    (dict[int, str], {1: "a", -2: "b"}),
    (dict[UUID, date], {ID: date(2030, 1, 2)}),
    (dict[Color, int], {Color.RED: 1}),
    (dict[datetime, int], {AWARE: 1}),
    (dict[Path, int], {Path("a"): 1}),
    (set[int], {1, 2}),
    (set[UUID], {ID}),
    (frozenset[Decimal], frozenset({Decimal("1.5")})),
    (tuple[int, str], (1, "a")),
    (tuple[date, ...], (date(2030, 1, 2),)),
    (tuple[Point, Item], (Point(1), ITEM)),
    (Sequence[int], [1, 2]),
    (Mapping[str, bytes], {"a": b"\xff"}),
    (Optional[Item], None),  # noqa: UP045  # why: the old spelling is used as well
    (Optional[Item], ITEM),  # noqa: UP045  # why: the old spelling is used as well
    (User | None, USER),
    (User | None, None),
    (int | str | None, "a"),
    (list[dict[str, tuple[Decimal, ...]]], [{"a": (Decimal("1.1"),)}]),
    (User | int, USER),
    (User | int, 3),
    (User | Strict, Strict(id=ID)),
    (Item | Order, ITEM),
]
IDS = [f"{getattr(hint, '__name__', hint)}-{value!a}"[:50] for hint, value in VALUES]


def signature(hint: Any) -> Signature:
    """Of a task with one argument and a result of a type."""

    def task(value: Any) -> Any: ...

    task.__annotations__ = {"value": hint, "return": hint}
    return Signature("shop.task", task)


def travel(function: Callable[..., Any], *args: Any, codec: str = "json", **kwargs: Any) -> Any:
    """What a worker would call the function with."""
    own = Signature("shop.task", function)
    return own.decode(own.encode(args, kwargs, codec, LIMIT), codec)


def one(hint: Any, value: Any, codec: str = "json") -> Any:
    own = signature(hint)
    args, kwargs = own.decode(own.encode((value,), {}, codec, LIMIT), codec)
    assert (len(args), kwargs) == (1, {})
    return args[0]


def arrives(hint: Any, value: Any, codec: str = "json") -> Any:
    """What arrives, or None if the value is refused by the argument's name."""
    own = signature(hint)
    try:
        payload = own.encode((value,), {}, codec, LIMIT)
    except ArgumentError as error:
        if "argument 'value'" not in str(error):
            raise
        return None
    return own.decode(payload, codec)[0][0]


# -- every type there and back


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("hint", "value"), VALUES, ids=IDS)
def test_an_argument_arrives_as_it_was_passed(hint: Any, value: Any, codec: str) -> None:
    arrived = one(hint, value, codec)
    assert arrived == value
    if hint not in (float, str):  # what they take that is not quite one of them arrives as one
        assert type(arrived) is type(value)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("hint", "value"), VALUES, ids=IDS)
def test_a_result_arrives_as_it_was_returned(hint: Any, value: Any, codec: str) -> None:
    own = signature(hint)
    assert own.decode_result(own.encode_result(value, codec, LIMIT), codec) == value


def test_the_json_form_is_plain_enough_for_people() -> None:
    own = signature(Order)
    assert own.encode((dataclasses.replace(ORDER, items=[], parent=None),), {}, "json", LIMIT) == (
        b'{"value":{"id":"0197c3a5-0000-7000-8000-000000000000","at":"2030-01-02T03:04:05.678901Z",'
        b'"items":[],"parent":null}}'
    )


@pytest.mark.parametrize("fold", [0, 1])
def test_a_time_in_the_doubled_hour_of_a_zone_arrives(fold: int) -> None:
    moment = datetime(2030, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Paris"), fold=fold)
    assert one(datetime, moment).astimezone(UTC) == moment.astimezone(UTC)
    order = Order(ID, moment, [])
    assert one(Order, order).at.astimezone(UTC) == moment.astimezone(UTC)


@pytest.mark.parametrize("codec", CODECS)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)  # fmt: skip
def test_any_json_arrives_without_an_annotation(codec: str, value: Any) -> None:
    assert one(Any, value, codec) == value


@pytest.mark.parametrize("codec", CODECS)
@given(st.data())
def test_a_value_of_a_type_arrives_or_is_refused_by_name(codec: str, data: st.DataObject) -> None:
    hint, values = data.draw(
        st.sampled_from(
            [
                (datetime, st.datetimes(timezones=st.none() | st.timezones())),
                (time, st.times(timezones=st.none() | st.timezones())),
                (timedelta, st.timedeltas()),
                (Decimal, st.decimals()),
                (bytes, st.binary()),
                (float, st.floats()),
                (str, st.text(st.characters())),
            ]
        )
    )
    value: Any = data.draw(values)
    arrived = arrives(hint, value, codec)
    if isinstance(arrived, datetime) and arrived.utcoffset() is not None:
        assert arrived.astimezone(UTC) == value.astimezone(UTC)
    else:
        assert arrived == value or arrived is None or value != value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, Decimal("NaN")], ids=str)
def test_msgpack_carries_numbers_that_json_lacks(value: Any) -> None:
    arrived = one(type(value), value, "msgpack")
    assert arrived == value or (arrived != arrived and value != value)


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


REFUSED: list[tuple[Any, Any, str]] = [
    (Any, math.nan, "nan would arrive as None"),
    (float, math.inf, "got `null`"),
    (float | None, math.nan, "nan would arrive as None"),
    (list[float], [1.0, math.nan], "got `null`"),
    (Any, {"a": [1, math.inf]}, "dict would arrive as dict"),
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
    (Any, [Point(1)], "list would arrive as list"),
    (Any, Money(Decimal(1)), "Money would arrive as dict"),
    (Any, USER, "User would arrive as dict"),
    (Any, {1: "a"}, "dict would arrive as dict"),
    (Any, {1: "a", "1": "b"}, "dict would arrive as dict"),
    (dict[str, int], {1: 2, "1": 3}, "dict would arrive as dict"),
    (Any, {None: 1}, "an object of type NoneType cannot be encoded"),
    (Any, {(1, 2): 1}, "an object of type tuple cannot be encoded"),
    (set[int], [1, 1], "list would arrive as set"),
    (int, "1", "Expected `int`, got `str`"),
    (int, 1.0, "Expected `int`, got `float`"),
    (int, True, "Expected `int`, got `bool`"),
    (bool, 1, "Expected `bool`, got `int`"),
    (str, b"x", "bytes would arrive as str"),
    (str, None, "Expected `str`, got `null`"),
    (float, 2**60 + 1, "int would arrive as float"),
    (datetime, date(2030, 1, 2), "Invalid RFC3339"),
    (date, AWARE, "Invalid RFC3339"),
    (Item, {"name": "x", "price": "1"}, "dict would arrive as Item"),
    (Movie, {"title": "Up", "more": 1}, "dict would arrive as dict"),
    (Base, Derived(x=1, y=2), "Derived would arrive as Base"),
    (Secretive, Secretive(password=pydantic.SecretStr("x")), "Secretive would arrive as Secretive"),
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


def nested(depth: int, *, wrap: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


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
    with pytest.raises(JobRejected, match=r"contain themselves or are nested deeper"):
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
    with pytest.raises(JobRejected, match="contain themselves"):
        one(Any, loop)


def test_a_mebibyte_fits_and_a_byte_more_does_not() -> None:
    own = signature(str)
    frame = len(own.encode(("",), {}, "json", LIMIT))
    assert len(own.encode(("x" * (LIMIT - frame),), {}, "json", LIMIT)) == LIMIT
    with pytest.raises(PayloadTooLarge, match="take 1,048,577 bytes, the limit is 1,048,576; store the data elsewhere"):
        own.encode(("x" * (LIMIT - frame + 1),), {}, "json", LIMIT)


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


# -- how a call is bound


def test_arguments_are_stored_by_name_however_they_were_passed() -> None:
    def task(x: int, y: int) -> None: ...

    own = Signature("shop.task", task)
    calls: list[tuple[Any, Any]] = [((1, 2), {}), ((1,), {"y": 2}), ((), {"y": 2, "x": 1})]
    assert {own.encode(args, kwargs, "json", LIMIT) for args, kwargs in calls} == {b'{"x":1,"y":2}'}


def test_defaults_are_left_out_so_the_workers_own_apply() -> None:
    default: list[int] = []

    def task(x: int, y: int = 3, tags: list[int] = default) -> None: ...

    own = Signature("shop.task", task)
    assert own.encode((1,), {}, "json", LIMIT) == b'{"x":1}'
    assert own.decode(b'{"x":1}', "json") == ((1,), {})
    assert own.decode(b'{"x":1,"tags":[2]}', "json") == ((1,), {"tags": [2]})


def test_a_default_that_is_passed_is_stored() -> None:
    def task(x: int = 3) -> None: ...

    assert Signature("shop.task", task).encode((3,), {}, "json", LIMIT) == b'{"x":3}'


def test_a_default_need_not_fit_its_annotation() -> None:
    marker = object()

    def task(x: int = marker) -> None: ...  # type: ignore[assignment]  # why: people do it

    assert travel(task) == ((), {})


def test_keyword_only_parameters() -> None:
    def task(a: int, *, b: int, c: int = 3, d: int) -> None: ...

    assert travel(task, 1, d=4, b=2) == ([1], {"b": 2, "d": 4})
    with pytest.raises(ArgumentError, match="missing a required argument: 'd'"):
        travel(task, 1, b=2)


def test_positional_only_parameters() -> None:
    def task(a: int, b: int = 2, /, c: int = 3) -> None: ...

    assert travel(task, 1) == ([1], {})
    assert travel(task, 1, c=4) == ([1], {"c": 4})
    with pytest.raises(ArgumentError, match=r"positional only|positional-only"):
        travel(task, a=1)


def test_any_number_of_positional_arguments() -> None:
    def task(first: int, *rest: date) -> None: ...

    day = date(2030, 1, 2)
    assert travel(task, 1) == ([1], {})
    assert travel(task, 1, day, day) == ([1, day, day], {})
    with pytest.raises(ArgumentError, match="argument 'rest'"):
        travel(task, 1, "soon")


def test_any_keyword_arguments() -> None:
    def task(a: int, /, **rest: Decimal) -> None: ...

    assert travel(task, 1, a=Decimal(2), b=Decimal(3)) == ([1], {"a": Decimal(2), "b": Decimal(3)})
    with pytest.raises(ArgumentError, match="argument 'rest'"):
        travel(task, 1, b="x")


def test_keyword_arguments_of_a_typed_dict() -> None:
    def task(**movie: typing.Unpack[Movie]) -> None: ...

    assert travel(task, title="Up", year=2009) == ([], {"title": "Up", "year": 2009})
    with pytest.raises(ArgumentError, match=r"argument 'movie'.*`title`"):
        travel(task, year=2009)


def test_everything_at_once() -> None:
    def task(a: int, /, b: int, c: int = 3, *args: int, d: int, e: int = 5, **kw: int) -> Any:
        return a, b, c, args, d, e, kw

    calls: list[tuple[Any, Any]] = [
        ((1, 2), {"d": 4}),
        ((1, 2, 3, 9, 9), {"d": 4, "z": 1}),
        ((1,), {"b": 2, "d": 4, "e": 6}),
    ]
    for args, kwargs in calls:
        arrived_args, arrived_kwargs = travel(task, *args, **kwargs)
        assert task(*arrived_args, **arrived_kwargs) == task(*args, **kwargs)


def test_injected_parameters_are_not_stored() -> None:
    def task(ctx: Any, x: int, **rest: int) -> None: ...

    own = Signature("shop.task", task, frozenset({"ctx"}))
    assert own.encode((1,), {}, "json", LIMIT) == b'{"x":1,"rest":{}}'
    with pytest.raises(ArgumentError, match="argument 'ctx' is filled in by the worker; leave it out"):
        own.encode((1,), {"ctx": 3}, "json", LIMIT)


def test_names_that_look_special_are_ordinary() -> None:
    def task(self: int, cls: int, _x: int, y__: int, args: int, kwargs: int, größe: int) -> None: ...

    assert travel(task, 1, 2, 3, 4, 5, 6, 7) == ((1, 2, 3, 4, 5, 6, 7), {})


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, "missing a required argument: 'x'"),
        ((1,), {}, "missing a required argument: 'y'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1, 2), {"x": 1}, "multiple values for argument 'x'"),
        ((1,), {"y": 2, "z": 3}, "got an unexpected keyword argument 'z'"),
    ],
)
def test_a_wrong_call_fails_in_the_words_of_the_standard_library(args: Any, kwargs: Any, words: str) -> None:
    def task(x: int, y: int) -> None: ...

    with pytest.raises(ArgumentError) as caught:
        travel(task, *args, **kwargs)
    assert str(caught.value) == f"task shop.task: {words}; it takes (x: int, y: int) -> None"


def test_a_name_that_python_mangles_is_refused_at_the_declaration() -> None:
    def task(__x: int) -> None: ...

    with pytest.raises(ConfigError, match="an argument cannot be called '__x'; drop the underscores"):
        Signature("shop.task", task)


# -- functions of every kind


def test_a_partial_keeps_the_types_of_its_function() -> None:
    def task(x: int, day: date) -> None: ...

    assert travel(functools.partial(task, 1), date(2030, 1, 2)) == ((date(2030, 1, 2),), {})


def test_a_callable_object_has_the_types_of_its_call() -> None:
    class Sender:
        def __call__(self, day: date) -> None: ...

    assert travel(Sender(), date(2030, 1, 2)) == ((date(2030, 1, 2),), {})


def test_a_wrapped_function_has_the_types_of_the_inner_one() -> None:
    def task(day: date) -> None: ...

    @functools.wraps(task)
    def outer(*args: Any, **kwargs: Any) -> None:
        task(*args, **kwargs)

    assert travel(outer, date(2030, 1, 2)) == ((date(2030, 1, 2),), {})


def test_a_function_without_a_readable_signature_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the signature of .* cannot be read; wrap it in a function"):
        Signature("shop.task", max)


def test_type_hints_of_what_has_none_are_empty() -> None:
    assert type_hints(print) == {}


def test_an_annotation_that_json_cannot_restore_is_refused_at_the_declaration(monkeypatch: pytest.MonkeyPatch) -> None:
    def task(value: str | Path) -> None: ...

    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(
        ConfigError, match=r"the annotation str \| pathlib.*Path of argument 'value' cannot be restored"
    ):
        Signature("shop.task", task)


# -- payloads that no producer of this task made


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b'{"x":1,"y"',
        b"[]",
        b"null",
        b'"x"',
        b"{}",
        b'{"x":1}',
        b'{"x":1,"y":"2"}',
        b'{"x":1,"y":2,"z":3}',
        b'{"x":1,"y":NaN}',
        b'{"x":1,"y":1e400}',
        b"\x80\x04\x95.",
        b"\xff\xfe",
        bytes(range(256)),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"x":' + b"[" * 100_000, id="deep in an argument"),
        pytest.param(b'{"x":' + b"9" * 5000 + b',"y":1}', id="5000 digits"),
    ],
)
@pytest.mark.parametrize("codec", CODECS)
def test_a_payload_of_other_origin_is_bad_and_shown(payload: bytes, codec: str) -> None:
    def task(x: int, y: int) -> None: ...

    with pytest.raises(BadPayload, match="the payload") as caught:
        Signature("shop.task", task).decode(payload, codec)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


@given(st.binary())
def test_random_bytes_are_arguments_or_bad(payload: bytes) -> None:
    own = signature(Order)
    for codec in CODECS:
        with pytest.raises(BadPayload):
            own.decode(payload, codec)


@given(st.data())
def test_one_changed_byte_does_no_worse_than_a_bad_payload(data: st.DataObject) -> None:
    own = signature(Order)
    codec = data.draw(st.sampled_from(CODECS))
    payload = bytearray(own.encode((ORDER,), {}, codec, LIMIT))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        args, _ = own.decode(bytes(payload), codec)
    except BadPayload:
        return
    assert isinstance(args[0], Order)


@pytest.mark.parametrize("payload", [None, 7, "text"])
def test_a_payload_that_is_not_even_bytes_is_bad(payload: Any) -> None:
    with pytest.raises(BadPayload, match=r"the payload does not fit task shop.task"):
        signature(int).decode(payload, "json")


@pytest.mark.parametrize("codec", ["pickle", "", None, "JSON"])
def test_an_unknown_codec_is_a_bad_payload(codec: Any) -> None:
    with pytest.raises(BadPayload, match=r"the payload's codec .* is unknown"):
        signature(int).decode(b'{"value":1}', codec)


def test_arguments_behind_a_gap_are_a_bad_payload() -> None:
    def task(a: int = 1, b: int = 2, /, c: int = 3, *rest: int) -> None: ...

    own = Signature("shop.task", task)
    for payload in (b'{"b":2}', b'{"a":1,"b":2,"rest":[1]}'):
        with pytest.raises(BadPayload, match="is given without"):
            own.decode(payload, "json")


# -- results


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "cannot be stored: an object of type object cannot be encoded"),
        ((i for i in range(3)), "cannot be stored: an object of type generator cannot be encoded"),
        ({None: 1}, "cannot be stored: an object of type NoneType"),
        ("\ud800", "cannot be stored: .* surrogates not allowed"),
        (nested(MAX_DEPTH + 1), "contains itself or is nested deeper than 200 levels"),
        (nested(100_000), "contains itself or is nested deeper than 200 levels"),
        (math.nan, "holds NaN or Infinity, which JSON cannot; return None in its place"),
        ({"a": [1, {"b": math.inf}]}, "holds NaN or Infinity"),
        (Page([math.nan, None]), "holds NaN or Infinity"),
        ("x" * LIMIT, "takes 1,048,578 bytes, the limit is 1,048,576; store it elsewhere"),
    ],
    ids=lambda value: "" if not isinstance(value, str) else value[:30],
)
def test_a_result_that_cannot_be_stored_is_refused(value: Any, why: str) -> None:
    with pytest.raises(ResultError, match=f"the result of task shop.task {why}"):
        signature(Any).encode_result(value, "json", LIMIT)


def test_a_result_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ResultError, match="contains itself"):
        signature(Any).encode_result(loop, "json", LIMIT)


def test_none_inside_a_result_is_no_lost_number() -> None:
    own = signature(Any)
    value = {"a": None, "b": [1.5, None], "c": "null"}
    assert own.decode_result(own.encode_result(value, "json", LIMIT), "json") == value


def test_no_result_takes_no_bytes() -> None:
    own = signature(Any)
    assert own.encode_result(None, "json", LIMIT) is None
    assert own.decode_result(None, "json") is None


def test_a_stored_result_of_another_type_is_an_error() -> None:
    with pytest.raises(ResultError, match="does not fit its return annotation: Expected `int`, got `str`"):
        signature(int).decode_result(b'"x"', "json")
    with pytest.raises(ResultError):
        signature(User | int).decode_result(b'"x"', "json")


def test_without_a_type_only_json_comes_out() -> None:
    assert decode_plain(b'{"a":[1,"2030-01-02"]}', "json") == {"a": [1, "2030-01-02"]}
    assert decode_plain(b"\x91\x01", "msgpack") == [1]
    assert decode_plain(None, "json") is None
    with pytest.raises(BadPayload, match=r"undecodable bytes: .* \(start 7b\)"):
        decode_plain(b"{", "json")
