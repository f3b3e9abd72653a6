"""Whether a value that was encoded and decoded is what it was, and what to say if not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from mouso.errors import shown
from mouso.wire import base, is_pydantic


def same(a: Any, b: Any) -> bool:
    """Whether ``b`` is ``a`` come back, a tuple and a list of the same items counting as the same."""
    a = base(a)
    match a, b:
        case (list() | tuple(), list() | tuple()):
            if isinstance(b, list) and hasattr(a, "_fields"):
                return False  # a named tuple has lost its names
            return len(a) == len(b) and all(map(same, a, b))
        case (Mapping(), Mapping()):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        case (set() | frozenset(), set() | frozenset()):
            arrived = {item: item for item in b}
            return a == b and all(same(item, arrived[item]) for item in a)
        case (bytes() | bytearray() | memoryview(), bytes()):
            return bytes(a) == b
        case (float() | Decimal(), float() | Decimal()) if a != a:
            return b != b
        case (datetime(), datetime()) if a.utcoffset() is not None and b.utcoffset() is not None:
            return a.astimezone(UTC) == b.astimezone(UTC)  # == is never true in the doubled hour of a zone
        case (time(), time()):
            return a == b and (a.tzinfo is None) == (b.tzinfo is None)
        case _:
            pass
    if type(a) is type(b):
        if names := _fields(a):
            alike = not is_pydantic(type(a)) or a == b
            return alike and all(same(getattr(a, name), getattr(b, name)) for name in names)
        if not any("__eq__" in vars(cls) for cls in type(a).__mro__[:-1]):
            return True  # no way to compare, but restored to its own type
    return bool(a == b)


def equals_too_much(hint: Any) -> bool:
    """Whether values of a type may be equal (``==``) though one of them is not the ``same``: times without their zone.

    A time has no offset in a zone whose offset depends on the day, and then it equals one without a zone.
    """
    kinds, seen = msgspec.inspect, set()
    found: list[Any] = [kinds.type_info(hint)]
    while found:
        info = found.pop()
        if isinstance(info, kinds.TimeType) or (isinstance(info, kinds.CustomType) and is_pydantic(info.cls)):
            return True
        if id(info) in seen:
            continue
        seen.add(id(info))
        for name in info.__struct_fields__:
            part = getattr(info, name)
            parts = part if isinstance(part, tuple) else (part,)
            found += [each for each in parts if isinstance(each, (kinds.Type, kinds.Field))]
    return False


def difference(a: Any, b: Any, *, discreet: bool = True) -> str:
    """What becomes of ``a``, which would arrive as ``b``, and of the part of it that is to blame; tells types only.

    Args:
        discreet: False tells the key that a mapping would lose, too.
    """
    part, arrived, field = _innermost(a, b)
    if part is a:
        return f"{kind_of(a)} would arrive {_arrival(a, b, discreet)}"
    where = f"in its field {field!r}" if field else "in it"
    text = f"{kind_of(a)} would arrive as {kind_of(b)}, because of {kind_of(part)} {where}"
    return f"{text}, which would arrive {_arrival(part, arrived, discreet)}"


def cure(a: Any, b: Any) -> str:
    """What to do about ``a``, which would arrive as ``b``; empty if it is to annotate the parameter or the task."""
    a, b, field = _innermost(a, b)
    _, instead = _loss_of_zone(a, b)
    if instead:
        return instead
    if field and type(a) is type(b):
        return f"let the field {field!r} survive being encoded and decoded"
    if field:
        return f"annotate the field {field!r} with the type that it holds"
    if type(a) is not type(b) or isinstance(a, (Mapping, list, tuple, set, frozenset)):
        return ""
    return f"let a {kind_of(a)} be equal to what it is encoded and decoded to"


def _arrival(a: Any, b: Any, discreet: bool) -> str:
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() > b.keys():
        key = next(key for key in a if key not in b)
        return f"without {'a key' if discreet else f'the key {shown(key)}'} that the annotation lacks"
    without, _ = _loss_of_zone(a, b)
    return without or (f"as another {kind_of(b)}" if kind_of(a) == kind_of(b) else f"as {kind_of(b)}")


def _loss_of_zone(a: Any, b: Any) -> tuple[str, str]:
    """What a time or an instant would arrive without, and what to pass instead; empty if that is not why."""
    if isinstance(a, (time, datetime)) and isinstance(b, (time, datetime)) and a.tzinfo is not None:
        if b.tzinfo is None:
            return "without its time zone", "pass a datetime, or the name of the zone as well"
        if (a.utcoffset() or timedelta()) % timedelta(minutes=1):
            return "without the seconds of its UTC offset", "pass it in UTC"
    return "", ""


def _innermost(a: Any, b: Any, field: str = "") -> tuple[Any, Any, str]:
    """The first parts of two values that are not the same and have no such parts themselves, and their field if any."""
    return next((_innermost(x, y, name or field) for x, y, name in _parts(a, b) if not same(x, y)), (a, b, field))


def _parts(a: Any, b: Any) -> Iterator[tuple[Any, Any, str]]:
    match a, b:
        case (list() | tuple(), list() | tuple()):
            yield from ((x, y, "") for x, y in zip(a, b, strict=False))
        case (Mapping(), Mapping()):
            yield from ((x, y, "") for x, y in zip(a, b, strict=False))
            yield from ((a[key], b[key], "") for key in a.keys() & b.keys())
        case (set() | frozenset(), set() | frozenset()):
            arrived = {item: item for item in b}
            yield from ((item, arrived[item], "") for item in a if item in arrived)
        case _ if type(a) is type(b):
            yield from ((getattr(a, name), getattr(b, name), name) for name in _fields(a))


def _fields(value: Any) -> Sequence[str]:
    """The names of a record's fields; of any other value none."""
    kind = type(value)
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    if is_pydantic(kind):
        return [*kind.model_fields]
    return [field.name for field in getattr(kind, "__attrs_attrs__", ())]


def kind_of(value: Any) -> str:
    shows_itself = value is None or (isinstance(value, float) and not math.isfinite(value))
    return str(value) if shows_itself else type(value).__qualname__
