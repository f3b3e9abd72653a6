"""JSON from the command line, made into the arguments of a task."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import msgspec

from mouso.editing import from_json
from mouso.errors import ArgumentError
from mouso.task import Task

_HALF = re.compile(r"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]")


def json_value(text: str, what: str, *, hidden: bool = False) -> Any:
    """Decodes one JSON value.

    Args:
        hidden: No error quotes it.

    Raises:
        ArgumentError: It is no JSON; for a bare word, tells how to quote it.
    """
    quote = "" if hidden else f" {text:.80}"
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise ArgumentError(f"{what} is nested too deep; give it fewer levels") from None
    except msgspec.ValidationError as error:  # it is JSON
        raise ArgumentError(f"{what}{quote}: {str(error).partition(' - at ')[0].lower()}") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        if _HALF.search(text):
            raise ArgumentError(f"{what}{quote} holds half a character: a lone \\ud800 or the like") from None
        if text[:1] in ("{", "[", '"'):
            raise ArgumentError(f"{what} is no JSON: {error}") from None
        if hidden:
            raise ArgumentError(f"{what} is no JSON; write a text in double quotes inside single ones") from None
        quoted = msgspec.json.encode(text.encode(errors="replace").decode()).decode()
        raise ArgumentError(f"{what} {text!r:.80} is no JSON; for a text write '{quoted:.80}'") from None


def json_object(text: str, what: str) -> dict[str, Any]:
    """Decodes a JSON object.

    Raises:
        ArgumentError: It is none.
    """
    if not text.lstrip().startswith("{"):
        raise ArgumentError(f"{what} must be a JSON object by parameter name, such as '{{\"x\": 1}}'")
    value = json_value(text, what, hidden=True)  # nobody knows what it holds
    if not isinstance(value, dict):
        raise ArgumentError(f"{what} must be a JSON object by parameter name, such as '{{\"x\": 1}}'")
    names = [name for name, _ in json.loads(text, object_pairs_hook=list)]
    if len(names) > len(value):
        twice = next(name for name in names if names.count(name) > 1)
        raise ArgumentError(f"{what} has the name {twice!r:.80} twice; give each argument once")
    return value


def positional(task: Task[..., Any], texts: Sequence[str], hides: Callable[[str], bool]) -> list[Any]:
    """Decodes arguments by position.

    Args:
        hides: Whether values of a parameter of this name are hidden.

    Raises:
        ArgumentError: One is no JSON; its value is not quoted where it is hidden.
    """
    parameters = list(_signature(task).parameters.values())
    names = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    rest = next((one.name for one in parameters if one.kind is one.VAR_POSITIONAL), "")
    named = zip_longest(names[: len(texts)], texts, fillvalue=rest)
    return [json_value(text, f"argument {number}", hidden=hides(name)) for number, (name, text) in enumerate(named, 1)]


def _signature(task: Task[..., Any]) -> inspect.Signature:
    """What a caller gives: all parameters but that of the context."""
    signature = inspect.signature(task.function)
    injected = task.context_parameter[0] if task.context_parameter else None
    return signature.replace(parameters=[p for p in signature.parameters.values() if p.name != injected])


def restore(
    task: Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Turns plain JSON values into the task's own types: a text for a ``datetime`` becomes one.

    Raises:
        ArgumentError: They do not fit the task's signature.
    """
    signature = _signature(task)
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise ArgumentError(f"task {task.name}: {error}; it takes {signature}") from None
    return from_json(task, msgspec.json.encode(bound))
