"""How the arguments of a call are bound, for functions of every kind."""

import functools
import os
import subprocess
import sys
import typing
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mouso.codec import Signature, type_hints
from mouso.errors import ArgumentError, ConfigError
from tests.unit.codec_kit import ITEM, LIMIT, USER, Cat, Dog, Item, Movie, User, travel

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


# -- what stands for a call in a unique key


def key(function: Any, *args: Any, codec: str = "json", **kwargs: Any) -> bytes:
    own = Signature("shop.task", function)
    return own.canonical(own.encode(args, kwargs, codec, LIMIT), codec)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_equal_calls_are_the_same_in_canonical_form(codec: str) -> None:
    def task(
        a: float,
        b: float = 2,
        c: dict[str, Any] | None = None,
        d: set[str] | None = None,
        e: Path = Path("x"),
        f: tuple[int, ...] = (),
        *,
        g: User | int = 1,
        h: Cat | Dog | None = None,
        i: Item | None = None,
    ) -> None: ...

    tags = {"grey", "small", "x", "y"}
    equal: list[tuple[Any, Any]] = [
        (((7,), {}), ((7.0, 2), {"e": Path("x"), "f": [], "g": 1})),
        (((1,), {"c": {"x": 1, "y": {"a": 1, "b": 2}}}), ((1,), {"c": {"y": {"b": 2, "a": 1}, "x": 1}})),
        (((1,), {"d": tags}), ((1,), {"d": {"y", "x", "small", "grey"}})),
        (((1,), {"g": USER}), ((1, 2), {"g": USER.model_copy()})),
        (((1,), {"i": ITEM}), ((1,), {"i": Item("mouse", Decimal("9.90"), {"grey", "small"})})),
    ]
    for (args, kwargs), (others, named) in equal:
        assert key(task, *args, codec=codec, **kwargs) == key(task, *others, codec=codec, **named)
    other = [key(task, 7), key(task, 7, 3), *(key(task, 7, h=cls("x")) for cls in (Cat, Dog)), key(task, 7, g=USER)]
    assert len(set(other)) == len(other)


def test_a_default_that_nobody_can_give_is_no_argument_that_somebody_gave() -> None:
    nobodys = object()

    def task(a: Any = nobodys, b: int | msgspec.UnsetType = msgspec.UNSET) -> None: ...

    assert len({key(task), key(task, None), key(task, {}), key(task, []), key(task, 0)}) == 5


def test_keys_of_sets_are_the_same_in_every_process() -> None:
    program = """if True:
        from mouso.codec import Signature
        def task(tags: set[str], mixed: dict[int, frozenset[int | str | None]]) -> None: ...
        own = Signature("shop.task", task)
        print(own.canonical(own.encode(({"a", "b", "c", "d"}, {2: {1, "x", None}, 1: {"y"}}), {}, "json", 999), "json"))
    """
    seeds = [{**os.environ, "PYTHONHASHSEED": seed} for seed in ("1", "2", "3")]
    run = [subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, check=True) for env in seeds]
    assert len({done.stdout for done in run}) == 1
