"""What comes out of the store: payloads that no producer of the task made, and results."""

import math
from datetime import date, datetime, time
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mouso.codec import Signature
from mouso.errors import BadPayload, ResultError
from mouso.wire import CODECS, MAX_DEPTH, decode_plain
from tests.unit.codec_kit import LIMIT, ORDER, Color, Order, Page, User, nested, signature

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
        ({None: 1}, "cannot be stored: a key of type NoneType cannot be encoded; use text"),
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


@pytest.mark.parametrize(
    ("hint", "value", "why"),
    [
        (int, "text", "str, cannot be restored by its return annotation int: Expected `int`, got `str`"),
        (bool, 1, "int, cannot be restored by its return annotation bool: Expected `bool`, got `int`"),
        (int, 1.5, "float, cannot be restored by its return annotation int: Expected `int`, got `float`"),
        (type(None), 1, "int, cannot be restored by its return annotation NoneType: Expected `null`, got `int`"),
        (date, datetime(2026, 1, 1), "datetime, cannot be restored by its return annotation datetime.date: "),
        (list[int], [1, "secret"], r"list, cannot be restored by its return annotation list\[int\]: Expected `int`"),
        (Color, "secret", "str, cannot be restored by its return annotation .*Color: Invalid enum value '…'"),
        (User | int, "secret", "str, cannot be restored by its return annotation .*User | int: "),
        (Any, date(2026, 1, 1), "date, cannot be restored by its return annotation .*Any: date would arrive as str; "),
        (Any, b"x", "bytes, cannot be restored by its return annotation .*Any: bytes would arrive as str; annotate"),
        (Any, {1: 2}, "dict, .*: dict would arrive as dict, because of int in it, which would arrive as str; annotate"),
        (time, time(1, tzinfo=ZoneInfo("Europe/Paris")), "time, .*: time would arrive without its time zone; pass a"),
        (Any, Path("x"), "PosixPath, .* would arrive as str; annotate the task with the type that it returns"),
    ],
    ids=str,
)
def test_a_result_that_its_annotation_cannot_restore_is_refused(hint: Any, value: Any, why: str) -> None:
    with pytest.raises(ResultError, match=f"the result of task shop.task, {why}") as refused:
        signature(hint).encode_result(value, "json", LIMIT)
    assert "secret" not in str(refused.value)


def test_a_result_without_an_annotation_is_what_json_can_tell_apart() -> None:
    def task(): ...  # type: ignore[no-untyped-def]  # why: it is about what has no annotation

    own = Signature("shop.task", task)
    with pytest.raises(ResultError, match="without a return annotation: date would arrive as str"):
        own.encode_result(date(2026, 1, 1), "json", LIMIT)
    for value in ("a", 1, 1.5, True, None, [1, {"a": None}], (1, 2)):
        own.encode_result(value, "json", LIMIT)
    assert own.decode_result(own.encode_result(b"x", "msgpack", LIMIT), "msgpack") == b"x"


def test_what_an_annotation_restores_as_its_equal_is_a_result() -> None:
    for hint, value in ((float, 1), (int | None, None), (list[int], (1, 2)), (float, math.nan), (int | str, "1")):
        signature(hint).encode_result(value, "msgpack", LIMIT)


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


@pytest.mark.parametrize("hint", [int, list[int], User, User | int, Color])
def test_none_is_no_result_of_a_task_that_says_otherwise(hint: Any) -> None:
    with pytest.raises(ResultError, match=r"is None, which its return annotation .* does not allow; return a value"):
        signature(hint).encode_result(None, "json", LIMIT)


@pytest.mark.parametrize("hint", [None, int | None, User | None, User | int | None, object])
def test_none_is_a_result_where_it_may_be(hint: Any) -> None:
    assert signature(hint).encode_result(None, "json", LIMIT) is None


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
