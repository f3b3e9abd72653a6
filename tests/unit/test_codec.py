"""Arguments and results of every type survive the way to a worker and back."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NewType, Optional
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mouso.wire import CODECS
from tests.unit.codec_kit import (
    AWARE,
    ID,
    ITEM,
    LIMIT,
    NAIVE,
    ORDER,
    USER,
    Cat,
    Color,
    Dog,
    Flavour,
    Item,
    Level,
    Money,
    Movie,
    Order,
    Page,
    Point,
    Strict,
    Tags,
    User,
    arrives,
    one,
    signature,
)

UserId = NewType("UserId", int)

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
    (User | bytes, b"a"),
    (list[bytes | int], [b"a", 1]),
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
