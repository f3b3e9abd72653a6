"""Values to bytes and back: what each codec carries."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import PurePath
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from mouso.errors import BadPayload, shown

Codec = Literal["json", "msgpack"]
CODECS: tuple[str, ...] = get_args(Codec)
PICKLE = "pickle"
MAX_DEPTH = 200
"""How deep arguments and results may be nested: far less than what ends in a RecursionError, here or in a worker."""


class Uncarried(NotImplementedError):
    """An object of a type that no codec carries; the message names the type and nothing of the object."""


def _enc_hook(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if is_pydantic(type(value)):
        return value.model_dump(mode="json", by_alias=True, round_trip=True, warnings=False)
    for kind, plain in _BASES:
        if isinstance(value, kind):
            return plain(value)
    if value is None or type(value) in (tuple, frozenset):  # which msgspec encodes itself wherever else they stand
        raise Uncarried(f"a key of type {type(value).__qualname__} cannot be encoded; use text")
    raise Uncarried(f"an object of type {type(value).__qualname__} cannot be encoded")


_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, bytes.__bytes__),
    (bytearray, bytearray.copy),
)
"""How a value of a subclass becomes one of its base, by no method that the subclass may have of its own."""


def base(value: Any) -> Any:
    """What a value of a subclass of text, numbers or bytes travels as; any other is itself."""
    if not isinstance(value, (str, int, float, bytes, bytearray)) or isinstance(value, (bool, Enum)):
        return value
    return next(plain for kind, plain in _BASES if isinstance(value, kind))(value)


def _dec_hook(kind: Any, value: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return kind(value)
    if is_pydantic(kind):
        return kind.model_validate_json(_JSON.encode(value))
    if isinstance(kind, _ByValue):
        return kind.find(value)
    if kind is object:
        return value
    raise Uncarried(f"an object of type {getattr(kind, '__qualname__', kind)} cannot be restored")


def is_pydantic(kind: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


_JSON = msgspec.json.Encoder(enc_hook=_enc_hook)
ENCODERS: dict[str, msgspec.json.Encoder | msgspec.msgpack.Encoder] = {
    "json": _JSON,
    "msgpack": msgspec.msgpack.Encoder(enc_hook=_enc_hook),
}


def decoder(kind: Any, codec: str) -> Any:
    make: Any = msgspec.json.Decoder if codec == "json" else msgspec.msgpack.Decoder
    return make(kind, dec_hook=_dec_hook)


def with_numbers(kind: Any, encoded: bytes, codec: str, error: msgspec.ValidationError) -> bytes:
    """Encoded values with 1 and 0 for the bools where a type has numbers: to Python, True is an int and a float.

    Args:
        error: Why they could not be decoded; raised again if no bool is to blame.
    """
    if "got `bool`" not in str(error):
        raise error
    return ENCODERS[codec].encode(_numbers(msgspec.inspect.type_info(kind), decoder(Any, codec).decode(encoded)))


def _numbers(info: Any, plain: Any) -> Any:
    kinds = msgspec.inspect
    members = [
        one.type if isinstance(one, kinds.Metadata) else one
        for one in (info.types if isinstance(info, kinds.UnionType) else (info,))
    ]
    if isinstance(plain, bool):
        is_number = any(isinstance(one, (kinds.IntType, kinds.FloatType)) for one in members)
        return int(plain) if is_number and not any(isinstance(one, kinds.BoolType) for one in members) else plain
    for one in members:
        if isinstance(plain, list):
            plain = _numbers_in_list(one, plain)
        elif isinstance(plain, dict):
            plain = _numbers_in_dict(one, plain)
    return plain


def _numbers_in_list(info: Any, plain: list[Any]) -> list[Any]:
    kinds = msgspec.inspect
    if isinstance(info, (kinds.CollectionType, kinds.VarTupleType)):
        return [_numbers(info.item_type, item) for item in plain]
    if isinstance(info, kinds.TupleType):
        known = info.item_types
    elif isinstance(info, kinds.NamedTupleType):
        known = tuple(field.type for field in info.fields)
    else:
        return plain
    return [*map(_numbers, known, plain), *plain[len(known) :]]


def _numbers_in_dict(info: Any, plain: dict[Any, Any]) -> dict[Any, Any]:
    kinds = msgspec.inspect
    if isinstance(info, kinds.DictType):
        return {key: _numbers(info.value_type, item) for key, item in plain.items()}
    if not isinstance(info, (kinds.StructType, kinds.DataclassType, kinds.TypedDictType)):
        return plain
    if isinstance(info, kinds.StructType) and info.tag_field is not None and plain.get(info.tag_field) != info.tag:
        return plain  # another member of the union
    types = {field.encode_name: field.type for field in info.fields}
    return {key: _numbers(types[key], item) if key in types else item for key, item in plain.items()}


class _ByValue(type):
    """Stands in a type hint for an enum of values that msgspec does not look up itself."""

    members: Mapping[bytes, Enum]

    def __instancecheck__(cls, value: object) -> bool:
        return value in cls.members.values()

    def find(cls, value: object) -> Enum:
        """The member with this value, as it came in.

        Raises:
            ValueError: None has.
        """
        member = cls.members.get(_JSON.encode(value))
        if member is None:
            raise ValueError(f"no member of {cls.__name__} has this value")
        return member


def with_enums(hint: Any) -> Any:
    """A type hint in which enums that msgspec refuses, of both texts and numbers or of others, are found by value."""
    known = _with_enums(hint)
    return known if known is hint or is_usable(known) else hint


def _with_enums(hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint if is_usable(hint) else _by_value(hint)
    old = get_args(hint)
    new = tuple(map(_with_enums, old))
    if all(a is b for a, b in zip(old, new, strict=True)):
        return hint
    origin = get_origin(hint)
    if origin is Annotated:
        return Annotated[(new[0], *hint.__metadata__)]
    return Union[new] if origin in (Union, UnionType) else origin[new]  # noqa: UP007  # built at run time


def _by_value(kind: type[Enum]) -> Any:
    try:
        members = {_JSON.encode(member.value): member for member in kind}
    except Exception:  # a value that nothing carries
        return kind
    return _ByValue(kind.__name__, (), {"members": members}) if len(members) == len(kind) else kind


class Adapter:
    """Lets pydantic handle a type that msgspec refuses, such as ``Model | int``."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter

    def dump(self, value: Any) -> Any:
        return self._adapter.dump_python(value, mode="json", by_alias=True, round_trip=True, warnings="error")

    def load(self, value: Any) -> Any:
        return self._adapter.validate_json(_JSON.encode(value))


def adapter_of(hint: Any) -> Adapter | None:
    """pydantic's way of handling a type; None if it is not installed or cannot either."""
    try:
        return Adapter(importlib.import_module("pydantic").TypeAdapter(hint))
    except Exception:
        return None


def is_usable(hint: Any) -> bool:
    """Whether msgspec can decode into a type."""
    try:
        decoder(hint, "json")
    except Exception:
        return False
    return True


def decode_plain(encoded: bytes | None, codec: str) -> Any:
    """Decodes bytes without a type: only JSON's own types come out.

    Raises:
        BadPayload: They do not decode.
    """
    if encoded is None:
        return None
    if codec == PICKLE:
        raise BadPayload(f"{len(encoded):,} pickled bytes, which are not unpickled to be shown")
    try:
        return decoder(Any, codec).decode(encoded)
    except Exception as error:
        raise BadPayload(f"undecodable bytes: {first_line(error)} (start {preview(encoded)})") from None


_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))


def is_deep(encoded: bytes, codec: str, value: Any) -> bool:
    """Whether something encoded is nested deeper than ``MAX_DEPTH``."""
    if codec != "json":
        try:
            encoded = _JSON.encode(value)
        except RecursionError:
            raise
        except Exception:
            return False  # JSON lacks such keys; the worker's own limit holds
    if encoded.count(b"[") + encoded.count(b"{") <= MAX_DEPTH:
        return False
    return not _folds(encoded) and not _folds(_STRING.sub(b"", encoded))


def _folds(encoded: bytes) -> bool:
    """Whether nothing is left once ``MAX_DEPTH`` times every pair of brackets without content was taken away."""
    brackets = encoded.translate(_BRACKETS, _OTHERS)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return True
        brackets = brackets.replace(b"[]", b"")
    return not brackets


def loses_nan(value: Any, codec: str) -> bool:
    """Whether a value would lose a number that JSON lacks; False for one that cannot be looked at."""
    try:
        return codec == "json" and has_nan(value)
    except Exception:
        return False


def has_nan(value: Any) -> bool:
    """Whether a value holds a number that JSON lacks."""
    return _is_nan(msgspec.to_builtins(value, enc_hook=_enc_hook))


def _is_nan(plain: Any) -> bool:
    if isinstance(plain, dict):
        return any(map(_is_nan, plain.values()))
    if isinstance(plain, (list, tuple)):
        return any(map(_is_nan, plain))
    return isinstance(plain, float) and not math.isfinite(plain)


_SCALARS = frozenset({str, int, float, bool, bytes, type(None)})


def canonical(value: Any) -> Any:
    """A value's plain form, which is the same for equal values: mappings and sets are sorted, by their encoded form."""
    if type(value) in _SCALARS:
        return value
    encode = ENCODERS["msgpack"].encode
    if isinstance(value, Mapping):
        return {"": sorted(([canonical(key), canonical(item)] for key, item in value.items()), key=encode)}
    if isinstance(value, (set, frozenset)):
        return sorted(map(canonical, value), key=encode)
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    kind = type(value)
    if isinstance(value, msgspec.Struct):
        return [kind.__qualname__, *(canonical(getattr(value, name)) for name in value.__struct_fields__)]
    if dataclasses.is_dataclass(value):
        return [kind.__qualname__, *(canonical(getattr(value, field.name)) for field in dataclasses.fields(value))]
    if is_pydantic(kind):
        return [kind.__qualname__, canonical(dict(value))]
    return {} if value is msgspec.UNSET else value


def preview(payload: object) -> str:
    return payload[:16].hex(" ") if isinstance(payload, bytes) else shown(payload)


_QUOTED = re.compile(r"'[^']*'")


def without_values(error: BaseException) -> str:
    """What an error says, without what it quotes; of an error that may quote in any way, only its type."""
    if isinstance(error, msgspec.MsgspecError):
        return _QUOTED.sub("'…'", first_line(error))
    if isinstance(error, Uncarried):
        return first_line(error)
    if isinstance(error, UnicodeError):
        return f"text that is not UTF-8: {getattr(error, 'reason', 'it cannot be encoded')}"
    return type(error).__qualname__


def first_line(error: BaseException) -> str:
    try:
        text = str(error).strip()
    except (Exception, SystemExit):
        text = ""
    lines = text.splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[:3])[:300]
