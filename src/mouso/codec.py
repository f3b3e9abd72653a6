"""Arguments and results to bytes and back, by the annotations of the function.

The arguments of a call are bound to the parameters' names, so the stored form (an object, ``{"x": 1, "y": 2}``)
does not depend on how the call was written. Parameters left at their default are left out: the worker's own default
applies. What a producer encodes it also decodes and compares at once, so a value that the annotation cannot restore
is refused where it can still be mended. That check costs about 0.5 µs a call.

Pickle (``mouso.pickling``) is for apps that allow it and have keys: its bytes reach this module after their signature
was checked.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import InvalidOperation
from typing import TYPE_CHECKING, Any, get_args

import msgspec
from msgspec import UNSET, UnsetType

from mouso.comparing import cure, difference, equals_too_much, kind_of, same
from mouso.errors import (
    ArgumentError,
    BadPayload,
    ConfigError,
    JobRejected,
    PayloadTooDeep,
    PayloadTooLarge,
    ResultError,
    shown,
)
from mouso.wire import (
    CODECS,
    ENCODERS,
    MAX_DEPTH,
    PICKLE,
    Adapter,
    adapter_of,
    canonical,
    decoder,
    first_line,
    has_nan,
    is_deep,
    is_usable,
    loses_nan,
    preview,
    with_enums,
    with_numbers,
    without_values,
)

if TYPE_CHECKING:
    from mouso.pickling import PickledCalls

_P = inspect.Parameter
_FLAT = frozenset({_P.POSITIONAL_OR_KEYWORD, _P.KEYWORD_ONLY})
_VARIADIC = frozenset({_P.VAR_POSITIONAL, _P.VAR_KEYWORD})
_TEXTS = frozenset({str, bytes, bytearray})
_SIZED = _TEXTS | {list, tuple, set, frozenset, dict}
_FEW, _LEVELS = 64, 4
_SIGNALING = "a Decimal that is a signaling NaN (sNaN) cannot be compared; pass NaN or None"


class Signature:
    """How the arguments and the result of one function travel.

    Args:
        name: The task's name, for messages.
        function: The function.
        injected: Parameters that the worker fills in by itself.
        hides: Whether the value of a parameter of this name must not be told in an error.
        pickle: Whether the app allows to unpickle what a key has signed.

    Raises:
        ConfigError: The function's signature cannot be read, or an annotation cannot be restored from JSON.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        injected: frozenset[str] = frozenset(),
        *,
        hides: Callable[[str], bool] = lambda name: False,
        pickle: bool = False,
    ) -> None:
        self.name = name
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            raise ConfigError(
                f"task {name}: the signature of {function!r} cannot be read; wrap it in a function"
            ) from None
        hints = type_hints(function)
        parameters = [p for p in signature.parameters.values() if p.name not in injected]
        for p in parameters:
            if p.name.startswith("__"):
                raise ConfigError(f"task {name}: an argument cannot be called {p.name!r}; drop the underscores")
        self._injected = injected
        self._signature = signature.replace(parameters=parameters)
        self._kinds = {p.name: p.kind for p in parameters}
        self._names = tuple(self._kinds)
        self._hidden = frozenset(filter(hides, self._names))
        self._pickled = _pickled_calls(self._signature) if pickle else None
        self._adapters: dict[str, Adapter] = {}
        self._hints = {p.name: self._hint(p, hints.get(p.name, Any)) for p in parameters}
        self._plain = tuple(name for name in self._names if name not in self._adapters)
        self._unresolved = {p.name: p.annotation for p in parameters if _is_unresolved(p, self._hints)}
        self._flat = _FLAT.issuperset(self._kinds.values()) and not self._adapters
        self._positional = _P.KEYWORD_ONLY not in self._kinds.values() and self._flat
        self._required = all(p.default is _P.empty for p in parameters)
        self._args = self._struct(parameters)
        self._looks_closer = bool(self._adapters) or equals_too_much(self._args)
        self._decoders = {codec: decoder(self._args, codec) for codec in CODECS}
        annotated = hints.get("return", Any)
        returns = with_enums(annotated)
        self._result_adapter = None if is_usable(returns) else adapter_of(returns)
        self._result_kind = Any if not is_usable(returns) else returns
        self._looks_closer_at_result = self._result_adapter is not None or equals_too_much(self._result_kind)
        self._result_decoders = {codec: decoder(self._result_kind, codec) for codec in CODECS}
        written = signature.return_annotation
        self._returns = (
            inspect.formatannotation(written if annotated is Any else annotated) if "return" in hints else ""
        )
        self._certain = _certain(returns) if is_usable(returns) else frozenset()
        self._may_be_none = self._takes_none()

    def _hint(self, parameter: inspect.Parameter, hint: Any) -> Any:
        """The type to decode a parameter into."""
        hint = with_enums(hint)
        if parameter.kind is _P.VAR_POSITIONAL:
            many = types.GenericAlias(tuple, (hint, ...))
            return many if is_usable(many) else tuple[Any, ...]
        if parameter.kind is _P.VAR_KEYWORD:
            if typing.get_origin(hint) is typing.Unpack:
                return get_args(hint)[0]
            many = types.GenericAlias(dict, (str, hint))
            return many if is_usable(many) else dict[str, Any]
        if is_usable(hint):
            return hint
        adapter = adapter_of(hint)
        if adapter is None:
            remedy = "" if "pydantic" in sys.modules else ", or install pydantic"
            raise ConfigError(
                f"task {self.name}: the annotation {hint} of argument {parameter.name!r} cannot be restored from JSON; "
                f"use a plainer one{remedy}"
            )
        self._adapters[parameter.name] = adapter
        return Any

    def _struct(self, parameters: Sequence[inspect.Parameter]) -> Any:
        """A class whose fields are the parameters, and whose constructor binds a call as the function does."""
        fields: dict[bool, list[Any]] = {True: [], False: []}
        for p in parameters:
            hint: Any = self._hints[p.name]
            default: tuple[Any, ...] = ()
            if p.kind in _VARIADIC:
                default = (msgspec.field(default_factory=tuple if p.kind is _P.VAR_POSITIONAL else dict),)
            elif p.default is not _P.empty:
                hint, default = typing.Union[hint, UnsetType], (UNSET,)  # noqa: UP007  # built at run time
            fields[not self._flat or p.kind is _P.KEYWORD_ONLY].append((p.name, hint, *default))
        named = msgspec.defstruct("Named", fields[True], kw_only=True)
        return msgspec.defstruct("Arguments", fields[False], bases=(named,), forbid_unknown_fields=True)

    # -- arguments

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any], codec: str, limit: int) -> bytes:
        """Binds and encodes the arguments of a call.

        Args:
            limit: Most bytes.

        Raises:
            ArgumentError: They do not fit the signature, or the worker could not restore one.
            PayloadTooLarge, PayloadTooDeep: They are too much.
        """
        try:
            bound = self._args(*args, **kwargs) if self._flat else self._bind(args, kwargs)
        except TypeError:
            bound = self._bind(args, kwargs)  # the standard library words it better
        plain = args if self._flat and not kwargs else [getattr(bound, name) for name in self._plain]
        if size := _outgrows(plain, limit):
            raise self._too_large(size, limit, least=True)
        if codec == PICKLE:
            return self._pickle(args, kwargs, limit)
        try:
            wire = bound if not self._adapters else self._dump(bound)
            payload = ENCODERS[codec].encode(wire)
            size = len(payload)
            if size > limit:
                raise self._too_large(size, limit)
            if size > MAX_DEPTH and is_deep(payload, codec, wire):
                raise RecursionError
            try:
                restored = self._decoders[codec].decode(payload)
            except msgspec.ValidationError as error:
                payload = with_numbers(self._args, payload, codec, error)
                restored = self._decoders[codec].decode(payload)
            if restored != bound or self._looks_closer:
                self._compare(bound, restored, codec)
        except JobRejected:
            raise
        except RecursionError:
            raise self._too_deep(bound, codec) from None
        except Exception as error:
            raise self._explain(bound, codec, error) from None
        return payload

    def _too_large(self, size: int, limit: int, least: bool = False) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"task {self.name}: the arguments take {'at least ' if least else ''}{size:,} bytes, "
            f"the limit is {limit:,}; store the data elsewhere and pass its key, or raise payload_limit"
        )

    def _too_deep(self, bound: Any, codec: str) -> PayloadTooDeep:
        """The error for the first argument that is too deep."""
        which = "the arguments contain themselves or are"
        for name in self._names:
            alone = {name: getattr(bound, name)}
            try:
                deep = alone[name] is not UNSET and is_deep(ENCODERS[codec].encode(alone), codec, alone)
            except Exception as error:
                deep = isinstance(error, RecursionError)
            if deep:
                which = f"argument {name!r} contains itself or is"
                break
        return PayloadTooDeep(f"task {self.name}: {which} nested deeper than {MAX_DEPTH} levels")

    def _pickle(self, args: Sequence[Any], kwargs: Mapping[str, Any], limit: int) -> bytes:
        try:
            payload = self._require_pickle().encode(args, kwargs)
        except Exception as error:
            raise ArgumentError(f"task {self.name}: the arguments cannot be pickled: {self._told(error)}") from None
        if len(payload) > limit:
            raise self._too_large(len(payload), limit)
        return payload

    def _told(self, error: BaseException, name: str | None = None) -> str:
        """What an error says of an argument (of any, by default), without its value if that is hidden."""
        hidden = self._hidden if name is None else name in self._hidden
        return without_values(error) if hidden else first_line(error)

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            bound = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise ArgumentError(f"task {self.name}: {error}; it takes {self._signature}") from None
        for name in self._injected:
            if name in kwargs:
                raise ArgumentError(f"task {self.name}: argument {name!r} is filled in by the worker; leave it out")
        return self._args(**bound)

    def _dump(self, bound: Any) -> Any:
        """The arguments with those that pydantic handles in their JSON form."""
        dumped = {}
        for name, adapter in self._adapters.items():
            value = getattr(bound, name)
            if value is not UNSET:
                try:
                    dumped[name] = adapter.dump(value)
                except Exception as error:
                    raise ArgumentError(f"task {self.name}: argument {name!r}: {self._told(error, name)}") from None
        return msgspec.structs.replace(bound, **dumped)

    def _explain(self, bound: Any, codec: str, error: Exception) -> ArgumentError:
        """The error for the first argument that does not survive by itself."""
        for name, hint in self._hints.items():
            value = getattr(bound, name)
            if value is UNSET or name in self._adapters:
                continue
            try:
                encoded = ENCODERS[codec].encode(value)
                try:
                    restored = decoder(hint, codec).decode(encoded)
                except msgspec.ValidationError as own:
                    restored = decoder(hint, codec).decode(with_numbers(hint, encoded, codec, own))
                bool(restored == value)
            except Exception as own:
                if loses_nan(value, codec):
                    return self._lacks_nan(name)
                said = _SIGNALING if isinstance(own, InvalidOperation) else self._told(own, name)
                return ArgumentError(f"task {self.name}: argument {name!r}: {said}")
        return ArgumentError(f"task {self.name}: the arguments cannot be encoded: {self._told(error)}")

    def _lacks_nan(self, name: str) -> ArgumentError:
        return ArgumentError(
            f"task {self.name}: argument {name!r} holds NaN or Infinity, which JSON cannot; "
            'pass None in its place, or declare the task with codec="msgpack"'
        )

    def _compare(self, bound: Any, restored: Any, codec: str) -> None:
        for name in self._names:
            before, after = getattr(bound, name), getattr(restored, name)
            if before is UNSET:
                continue
            try:
                if name in self._adapters:
                    after = self._adapters[name].load(after)
                wrong = "" if same(before, after) else difference(before, after, discreet=name in self._hidden)
            except RecursionError:
                raise
            except Exception as error:
                if loses_nan(before, codec):
                    raise self._lacks_nan(name) from None
                raise ArgumentError(f"task {self.name}: argument {name!r}: {self._told(error, name)}") from None
            if wrong and loses_nan(before, codec):
                raise self._lacks_nan(name)
            if wrong:
                remedy = cure(before, after) or self._remedy(name)
                raise ArgumentError(f"task {self.name}: argument {name!r}: {wrong}; {remedy}")

    def _remedy(self, name: str) -> str:
        if name in self._unresolved:
            return (
                f"the annotation {self._unresolved[name]!r} cannot be resolved when the task is declared: define or "
                "import it before, outside of TYPE_CHECKING"
            )
        return "annotate the parameter with the type you pass"

    def decode(self, payload: bytes, codec: str, discreet: bool = False) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Decodes stored arguments into the task's own types.

        Args:
            discreet: Leave values out of the error.

        Returns:
            Positional and keyword arguments for the function.

        Raises:
            BadPayload: The bytes are no arguments of this task.
        """
        own = self._decoders.get(codec)
        if own is None:
            return self._unpickle(payload, codec)
        try:
            arguments = own.decode(payload)
            if not self._positional:
                return self._spread(arguments)
            values = msgspec.structs.astuple(arguments)
            if self._required or UNSET not in values:
                return values, {}
            gap = values.index(UNSET)
            rest = zip(self._names[gap:], values[gap:], strict=True)
            return values[:gap], {name: value for name, value in rest if value is not UNSET}
        except RecursionError:
            raise BadPayload("the payload is nested too deeply") from None
        except Exception as error:
            if discreet or self._hidden:
                raise BadPayload(f"the payload does not fit task {self.name}: {without_values(error)}") from None
            raise BadPayload(
                f"the payload does not fit task {self.name}: {first_line(error)} (starts {preview(payload)})"
            ) from None

    def canonical(self, payload: bytes, codec: str) -> bytes:
        """What stands for encoded arguments in a unique key: the same bytes for equal calls, whoever makes them.

        Defaults count as given; mappings and sets are sorted. What is pickled stands for itself.
        """
        if codec == PICKLE:
            return payload
        arguments = self._decoders[codec].decode(payload)
        values = []
        for name in self._names:
            value = getattr(arguments, name)
            if value is UNSET:
                values.append(self._defaults[name])
            else:
                values.append(canonical(self._adapters[name].load(value) if name in self._adapters else value))
        try:
            return ENCODERS["msgpack"].encode(values)
        except Exception:  # a part that only pydantic can encode
            return payload

    @functools.cached_property
    def _defaults(self) -> dict[str, Any]:
        """The defaults of parameters, in canonical form, as they would arrive if they were given."""
        defaults: dict[str, Any] = {}
        for name, parameter in self._signature.parameters.items():
            value = parameter.default
            try:
                plain = ENCODERS["msgpack"].encode(
                    self._adapters[name].dump(value) if name in self._adapters else value
                )
                value = decoder(self._hints[name], "msgpack").decode(plain)
                defaults[name] = canonical(self._adapters[name].load(value) if name in self._adapters else value)
            except Exception:  # nobody could give it
                defaults[name] = {}
        return defaults

    def _spread(self, arguments: Any) -> tuple[list[Any], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        gap = ""
        for name, kind in self._kinds.items():
            value = getattr(arguments, name)
            if value is UNSET:
                gap = gap or name
                continue
            if name in self._adapters:
                value = self._adapters[name].load(value)
            if kind is _P.VAR_KEYWORD:
                kwargs.update(value)
            elif kind is _P.KEYWORD_ONLY or (gap and kind is _P.POSITIONAL_OR_KEYWORD):
                kwargs[name] = value
            elif gap and (kind is _P.POSITIONAL_ONLY or value):
                raise ValueError(f"argument {name!r} is given without {gap!r} before it")
            elif kind is _P.VAR_POSITIONAL:
                args.extend(value)
            else:
                args.append(value)
        return args, kwargs

    def _unpickle(self, payload: bytes, codec: str) -> tuple[Sequence[Any], Mapping[str, Any]]:
        if codec != PICKLE:
            raise BadPayload(f"the payload's codec {shown(codec)} is unknown")
        pickled = self._require_pickle()
        try:
            return pickled.decode(payload)
        except Exception as error:
            raise BadPayload(f"the pickled payload does not fit task {self.name}: {self._told(error)}") from None

    def _require_pickle(self) -> PickledCalls:
        if self._pickled is None:
            raise BadPayload("the payload's codec 'pickle' is unknown to an app without allow_pickle=True")
        return self._pickled

    # -- results

    def encode_result(self, value: Any, codec: str, limit: int) -> bytes | None:
        """Encodes a return value; None for None.

        Raises:
            ResultError: It cannot be encoded, the return annotation cannot restore it, or it is too large.
        """
        if value is None:
            if self._may_be_none:
                return None
            raise ResultError(
                f"the result of task {self.name} is None, which its return annotation {self._returns} does not allow;"
                f" return a value, or write {self._returns} | None"
            )
        if type(value) in _SIZED and self._result_adapter is None and (size := _outgrows((value,), limit)):
            raise self._result_too_large(size, limit, least=True)
        if codec == PICKLE:
            return self._pickle_result(value, limit)
        wire = value
        if self._result_adapter is not None:
            with contextlib.suppress(Exception):  # what pydantic would not dump by the annotation is refused below
                wire = self._result_adapter.dump(value)
        try:
            encoded = ENCODERS[codec].encode(wire)
            size = len(encoded)
            if size > MAX_DEPTH and size <= limit and is_deep(encoded, codec, value):
                raise RecursionError
            lost = size >= 4 and codec == "json" and encoded.find(b"null") >= 0 and has_nan(value)
        except RecursionError:
            raise ResultError(
                f"the result of task {self.name} contains itself or is nested deeper than {MAX_DEPTH} levels"
            ) from None
        except Exception as error:
            raise ResultError(f"the result of task {self.name} cannot be stored: {first_line(error)}") from None
        if size > limit:
            raise self._result_too_large(size, limit)
        if lost:
            raise ResultError(
                f"the result of task {self.name} holds NaN or Infinity, which JSON cannot; "
                'return None in its place, or declare the task with codec="msgpack"'
            )
        if type(value) not in self._certain:
            return self._checked_result(value, encoded, codec)
        return encoded

    def _checked_result(self, value: Any, encoded: bytes, codec: str) -> bytes:
        try:
            try:
                restored = self._restore_result(encoded, codec)
            except msgspec.ValidationError as error:
                encoded = with_numbers(self._result_kind, encoded, codec, error)
                restored = self._restore_result(encoded, codec)
            equal = restored == value and not self._looks_closer_at_result
            wrong = "" if equal or same(value, restored) else difference(value, restored)
            remedy = cure(value, restored) if wrong else ""
        except Exception as error:
            wrong, remedy = without_values(error), ""
        if wrong:
            by = f"by its return annotation {self._returns}" if self._returns else "without a return annotation"
            raise ResultError(
                f"the result of task {self.name}, {kind_of(value)}, cannot be restored {by}: {wrong}; "
                + (remedy or "annotate the task with the type that it returns")
            )
        return encoded

    def _takes_none(self) -> bool:
        try:
            return self._restore_result(b"null", "json") is None
        except Exception:
            return False

    def _restore_result(self, encoded: bytes, codec: str) -> Any:
        value = self._result_decoders[codec].decode(encoded)
        return value if self._result_adapter is None else self._result_adapter.load(value)

    def _result_too_large(self, size: int, limit: int, least: bool = False) -> ResultError:
        return ResultError(
            f"the result of task {self.name} takes {'at least ' if least else ''}{size:,} bytes, "
            f"the limit is {limit:,}; store it elsewhere and return its key"
        )

    def _pickle_result(self, value: Any, limit: int) -> bytes:
        try:
            encoded = self._require_pickle().dumps(value)
        except Exception as error:
            raise ResultError(f"the result of task {self.name} cannot be pickled: {first_line(error)}") from None
        if len(encoded) > limit:
            raise self._result_too_large(len(encoded), limit)
        return encoded

    def decode_result(self, encoded: bytes | None, codec: str) -> Any:
        """Decodes a stored result by the return annotation.

        Raises:
            ResultError: It does not fit.
        """
        if encoded is None:
            return None
        try:
            if codec == PICKLE:
                return self._require_pickle().loads(encoded)
            return self._restore_result(encoded, codec)
        except Exception as error:
            raise ResultError(
                f"the result of task {self.name} does not fit its return annotation: {first_line(error)}"
            ) from None


_PLAIN = frozenset({str, int, float, bool})


def _certain(hint: Any) -> frozenset[type]:
    """The types of values that an annotation certainly restores from JSON."""
    if hint is Any:
        return _PLAIN
    members = get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return frozenset(kind for kind in _PLAIN if any(member is kind for member in members))


def _pickled_calls(signature: inspect.Signature) -> PickledCalls:
    from mouso.pickling import PickledCalls  # pickle is not even imported for those who do not use it

    return PickledCalls(signature)


def type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function as types; one that cannot be resolved counts as Any."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not inspect.isroutine(function):
        function = type(function).__call__
    local = _surroundings(function)
    try:
        return typing.get_type_hints(function, None, local, include_extras=True)
    except Exception:
        hints: dict[str, Any] = {}
        for name, hint in getattr(function, "__annotations__", {}).items():
            holder = types.SimpleNamespace(__annotations__={name: hint})
            try:
                hints |= typing.get_type_hints(holder, getattr(function, "__globals__", {}), local, include_extras=True)
            except Exception:
                hints[name] = Any
        return hints


def _surroundings(function: Any) -> dict[str, Any] | None:
    """The local variables around a function that is defined in another one which still runs."""
    outer, nested, _ = getattr(function, "__qualname__", "").rpartition(".<locals>.")
    frame = sys._getframe(1) if nested else None
    while frame is not None:
        if frame.f_code.co_qualname == outer and frame.f_globals is getattr(function, "__globals__", None):
            return frame.f_locals
        frame = frame.f_back
    return None


def _is_unresolved(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> bool:
    text = parameter.annotation
    return isinstance(text, str) and hints[parameter.name] is Any and text.rpartition(".")[2] != "Any"


def _outgrows(values: Iterable[Any], limit: int, levels: int = _LEVELS) -> int:
    """How many bytes one of the values takes at the least, if that is beyond a limit for certain; else 0.

    Each character, byte or item takes a byte or more. To encode what is refused anyway would take its memory once more.
    """
    for value in values:
        kind = type(value)
        if kind in _SIZED:
            size = len(value)
            if size > limit:
                return size
            if kind not in _TEXTS and size <= _FEW and levels:
                found = _outgrows([*value.values()] if kind is dict else [*value], limit, levels - 1)
                if found:
                    return found
    return 0
