"""Arguments and results to bytes and back, by the annotations of the function.

The arguments of a call are bound to the parameters' names, so the stored form (an object, ``{"x": 1, "y": 2}``)
does not depend on how the call was written. Parameters left at their default are left out: the worker's own default
applies. What a producer encodes it also decodes and compares at once, so a value that the annotation cannot restore
is refused where it can still be mended. That check costs about 0.5 µs a call.
"""

from __future__ import annotations

import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal, get_args

import msgspec
from msgspec import UNSET, UnsetType

from mouso.errors import ArgumentError, BadPayload, ConfigError, PayloadTooDeep, PayloadTooLarge, ResultError

Codec = Literal["json", "msgpack"]
CODECS: tuple[str, ...] = get_args(Codec)

_P = inspect.Parameter


def _enc_hook(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if _is_pydantic(type(value)):
        return value.model_dump(mode="json")
    raise NotImplementedError(f"a {type(value).__qualname__} cannot be encoded")


def _dec_hook(kind: type, value: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return kind(value)
    if _is_pydantic(kind):
        return kind.model_validate(value)  # type: ignore[attr-defined]  # known to be a pydantic model
    raise NotImplementedError(f"a {getattr(kind, '__qualname__', kind)} cannot be restored")


def _is_pydantic(kind: Any) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


_ENCODERS: dict[str, msgspec.json.Encoder | msgspec.msgpack.Encoder] = {
    "json": msgspec.json.Encoder(enc_hook=_enc_hook),
    "msgpack": msgspec.msgpack.Encoder(enc_hook=_enc_hook),
}


def _decoder(kind: Any, codec: str) -> msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any]:
    make: Any = msgspec.json.Decoder if codec == "json" else msgspec.msgpack.Decoder
    return make(kind, dec_hook=_dec_hook)  # type: ignore[no-any-return]  # one of the two decoders


class Signature:
    """How the arguments and the result of one function travel.

    Args:
        name: The task's name, for messages.
        function: The function.
        injected: Parameters that the worker fills in by itself.

    Raises:
        ConfigError: The function's signature cannot be read.
    """

    def __init__(self, name: str, function: Callable[..., Any], injected: frozenset[str] = frozenset()) -> None:
        self.name = name
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            raise ConfigError(
                f"task {name}: the signature of {function!r} cannot be read; wrap it in a function"
            ) from None
        hints = type_hints(function)
        parameters = [p for p in signature.parameters.values() if p.name not in injected]
        self._signature = signature.replace(parameters=parameters)
        self._plain = all(p.kind is _P.POSITIONAL_OR_KEYWORD for p in parameters)
        self._required = all(p.default is _P.empty for p in parameters)
        self._kinds = {p.name: p.kind for p in parameters}
        self._hints = {p.name: hints.get(p.name, Any) for p in parameters}
        self._adapters: dict[str, Any] = {}
        self._args: Any = msgspec.defstruct(
            "Arguments", [self._field(p) for p in parameters], forbid_unknown_fields=True
        )
        self._decoders = {codec: _decoder(self._args, codec) for codec in CODECS}
        returns = hints.get("return", Any)
        self._result_decoders = {codec: self._result_decoder(returns, codec) for codec in CODECS}

    def _field(self, parameter: inspect.Parameter) -> tuple[str, Any] | tuple[str, Any, Any]:
        hint = self._hints[parameter.name]
        if parameter.kind is _P.VAR_POSITIONAL:
            return parameter.name, types.GenericAlias(tuple, (hint, ...)), ()
        if parameter.kind is _P.VAR_KEYWORD:
            return parameter.name, types.GenericAlias(dict, (str, hint)), msgspec.field(default_factory=dict)
        try:
            _decoder(hint, "json")
        except TypeError:
            hint = self._adapt(parameter.name, hint)
        if parameter.default is _P.empty and self._all_before_required(parameter):
            return parameter.name, hint
        return parameter.name, typing.Union[hint, UnsetType], UNSET  # noqa: UP007  # built at run time

    def _all_before_required(self, parameter: inspect.Parameter) -> bool:
        """Struct fields without default cannot follow one with; keyword-only parameters may."""
        for other in self._signature.parameters.values():
            if other.name == parameter.name:
                return True
            if other.default is not _P.empty or other.kind in (_P.VAR_POSITIONAL, _P.VAR_KEYWORD):
                return False
        return True

    def _adapt(self, name: str, hint: Any) -> Any:
        """Lets pydantic handle a hint that msgspec refuses, such as ``Model | int``."""
        pydantic = sys.modules.get("pydantic")
        if pydantic is None:
            raise ConfigError(
                f"task {self.name}: the annotation {hint} of argument {name!r} cannot be restored from JSON; "
                "use a plainer one, or install pydantic and import it first"
            )
        self._adapters[name] = pydantic.TypeAdapter(hint)
        return Any

    def _result_decoder(self, hint: Any, codec: str) -> Any:
        try:
            return _decoder(hint, codec)
        except TypeError:
            return _decoder(Any, codec)

    # -- arguments

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any], codec: str, limit: int) -> bytes:
        """Binds and encodes the arguments of a call.

        Args:
            limit: Most bytes.

        Raises:
            ArgumentError: They do not fit the signature, or the worker could not restore one.
            PayloadTooLarge, PayloadTooDeep: They are too much.
        """
        bound = self._bind(args, kwargs)
        try:
            payload = _ENCODERS[codec].encode(bound)
            restored = self._decoders[codec].decode(payload)
            if restored != bound or self._adapters:
                self._compare(bound, restored)
        except ArgumentError:
            raise
        except RecursionError:
            raise PayloadTooDeep(
                f"task {self.name}: the arguments are nested too deeply or contain themselves"
            ) from None
        except Exception as error:
            raise self._explain(bound, codec, error) from None
        if len(payload) > limit:
            raise PayloadTooLarge(
                f"task {self.name}: the arguments take {len(payload):,} bytes, the limit is {limit:,}; "
                "store the data elsewhere and pass its key, or raise payload_limit"
            )
        return payload

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self._plain and not self._adapters:
            try:
                return self._args(*args, **kwargs)
            except TypeError:
                pass  # the standard library words it better
        try:
            bound = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise ArgumentError(f"task {self.name}: {error}; it takes {self._signature}") from None
        try:
            for name, adapter in self._adapters.items():
                if name in bound:
                    bound[name] = adapter.dump_python(bound[name], mode="json")
        except Exception as error:
            raise ArgumentError(f"task {self.name}: argument {name!r}: {_first_line(error)}") from None
        return self._args(**bound)

    def _explain(self, bound: Any, codec: str, error: Exception) -> ArgumentError:
        """The error for the first argument that does not survive by itself."""
        for name in self._args.__struct_fields__:
            value = getattr(bound, name)
            if value is UNSET:
                continue
            hint = Any if name in self._adapters else self._wire_hint(name)
            try:
                _decoder(hint, codec).decode(_ENCODERS[codec].encode(value))
            except Exception as own:
                return ArgumentError(f"task {self.name}: argument {name!r}: {_first_line(own)}")
        return ArgumentError(f"task {self.name}: the arguments cannot be encoded: {_first_line(error)}")

    def _wire_hint(self, name: str) -> Any:
        hint, kind = self._hints[name], self._kinds[name]
        if kind is _P.VAR_POSITIONAL:
            return types.GenericAlias(tuple, (hint, ...))
        return types.GenericAlias(dict, (str, hint)) if kind is _P.VAR_KEYWORD else hint

    def _compare(self, bound: Any, restored: Any) -> None:
        for name in self._args.__struct_fields__:
            before, after = getattr(bound, name), getattr(restored, name)
            if name in self._adapters:
                self._adapters[name].validate_python(after)
            elif not _same(before, after):
                raise ArgumentError(
                    f"task {self.name}: argument {name!r}: {_kind(before)} would arrive as {_kind(after)}; "
                    "annotate the parameter with the type you pass"
                )

    def decode(self, payload: bytes, codec: str) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Decodes stored arguments into the task's own types.

        Returns:
            Positional and keyword arguments for the function.

        Raises:
            BadPayload: The bytes are no arguments of this task.
        """
        try:
            arguments = self._decoders[codec].decode(payload)
            if self._plain and not self._adapters:
                values = msgspec.structs.astuple(arguments)
                if self._required or UNSET not in values:
                    return values, {}
            return self._spread(arguments)
        except RecursionError:
            raise BadPayload("the payload is nested too deeply") from None
        except KeyError:
            raise BadPayload(f"the payload's codec {codec!r:.40} is unknown") from None
        except Exception as error:
            preview = payload[:16].hex(" ")
            raise BadPayload(
                f"the payload does not fit task {self.name}: {_first_line(error)} (starts {preview})"
            ) from None

    def _spread(self, arguments: Any) -> tuple[list[Any], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for name, kind in self._kinds.items():
            value = getattr(arguments, name)
            if value is UNSET:
                continue
            if name in self._adapters:
                value = self._adapters[name].validate_python(value)
            if kind is _P.VAR_POSITIONAL:
                args.extend(value)
            elif kind is _P.VAR_KEYWORD:
                kwargs.update(value)
            elif (
                kind is _P.KEYWORD_ONLY
                or (kind is _P.POSITIONAL_OR_KEYWORD and kwargs)
                or (kind is _P.POSITIONAL_OR_KEYWORD and len(args) < list(self._kinds).index(name))
            ):
                kwargs[name] = value
            else:
                args.append(value)
        return args, kwargs

    # -- results

    def encode_result(self, value: Any, codec: str, limit: int) -> bytes | None:
        """Encodes a return value; None for None.

        Raises:
            ResultError: It cannot be encoded or is too large.
        """
        if value is None:
            return None
        try:
            encoded = _ENCODERS[codec].encode(value)
        except RecursionError:
            raise ResultError(f"the result of task {self.name} is nested too deeply or contains itself") from None
        except Exception as error:
            raise ResultError(f"the result of task {self.name} cannot be stored: {_first_line(error)}") from None
        if len(encoded) > limit:
            raise ResultError(
                f"the result of task {self.name} takes {len(encoded):,} bytes, the limit is {limit:,}; "
                "store it elsewhere and return its key"
            )
        return encoded

    def decode_result(self, encoded: bytes | None, codec: str) -> Any:
        """Decodes a stored result by the return annotation.

        Raises:
            ResultError: It does not fit.
        """
        if encoded is None:
            return None
        try:
            return self._result_decoders[codec].decode(encoded)
        except Exception as error:
            raise ResultError(
                f"the result of task {self.name} does not fit its return annotation: {_first_line(error)}"
            ) from None


def decode_plain(encoded: bytes | None, codec: str) -> Any:
    """Decodes bytes without a type: only JSON's own types come out.

    Raises:
        BadPayload: They do not decode.
    """
    if encoded is None:
        return None
    try:
        return _decoder(Any, codec).decode(encoded)
    except Exception as error:
        raise BadPayload(f"undecodable bytes: {_first_line(error)} (start {encoded[:16].hex(' ')})") from None


def type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function as types; one that cannot be resolved counts as Any."""
    function = inspect.unwrap(function)
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:
        hints: dict[str, Any] = {}
        for name, hint in getattr(function, "__annotations__", {}).items():
            holder = types.SimpleNamespace(__annotations__={name: hint})
            try:
                hints |= typing.get_type_hints(holder, getattr(function, "__globals__", {}), include_extras=True)
            except Exception:
                hints[name] = Any
        return hints


def _same(a: Any, b: Any) -> bool:
    """Whether ``b`` is ``a`` come back, a tuple and a list of the same items counting as the same."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (bytes, bytearray, memoryview)) and isinstance(b, bytes):
        return bytes(a) == b
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    if type(a) is type(b) and "__eq__" not in {name for cls in type(a).__mro__[:-1] for name in vars(cls)}:
        return True  # no way to compare, but restored to its own type
    return bool(a == b)


def _kind(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None:
        return "None"
    return f"a {type(value).__qualname__}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    if isinstance(error, NotImplementedError | RecursionError) and not text:
        return type(error).__name__
    lines = text.splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[:3])[:300]
