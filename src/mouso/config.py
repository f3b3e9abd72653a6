"""Settings: ``[tool.mouso]`` in pyproject.toml.

The words of an error for a person are put together here too: ``closest``, ``printable``, ``one_line``, ``counted``.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from mouso.errors import ConfigError, OptionError
from mouso.job import check_name

_MAX_CONFIG = 1 << 20


def closest(word: str, candidates: Iterable[str], shape: str = "{}") -> str:
    """``did you mean 'x'?`` for the candidate nearest to ``word``, put into ``shape``; else an empty text.

    Of two that are equally near, the one that begins alike is meant: ``ad`` is ``add`` rather than ``bad``.
    """
    import difflib  # needed only for errors

    def nearness(candidate: str) -> tuple[float, bool]:
        return difflib.SequenceMatcher(None, candidate, word).ratio(), candidate[:1] == word[:1]

    near = difflib.get_close_matches(word, list(candidates), cutoff=0.6)
    return f"did you mean {shape.format(max(near, key=nearness))!r}?" if near else ""


def printable(text: str) -> str:
    """The text with everything that could steer a terminal (control characters, bidi overrides, …) escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def one_line(error: BaseException) -> str:
    """What an exception says, in one printable line of at most 500 characters."""
    try:
        text = str(error)
    except (Exception, SystemExit):
        text = ""
    text = " ".join(text.split()) or type(error).__name__
    return printable(text if len(text) <= 500 else text[:499] + "…")


def counted(count: int, thing: str, things: str = "") -> str:
    """A number with its noun, such as ``1 dead job`` or ``2,000 dead jobs``."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


class ProjectSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[tool.mouso]`` in pyproject.toml: defaults for the command line.

    Attributes:
        app: ``module:attribute``.
        processes: 1..1024.
        concurrency: 1..10,000.
        queues: As after ``-Q``, see ``parse_queues``.
        grace: Seconds, 0..86,400.
    """

    app: str | None = None
    processes: int | None = None
    concurrency: int | None = None
    queues: str | None = None
    grace: float | None = None


LIMITS: Mapping[str, tuple[int, int]] = {
    "processes": (1, 1024),
    "concurrency": (1, 10_000),
    "grace": (0, 86_400),
    "weight": (1, 1000),
    "max-jobs-per-child": (1, 999_999_999),
}
"""Lowest and highest value of the worker's settings."""


def project_file(start: Path | None = None) -> Path | None:
    """The nearest pyproject.toml at or above ``start`` (default: here), None if there is none."""
    try:
        folder = (start or Path.cwd()).resolve()
    except OSError:
        return None
    for candidate in (folder, *folder.parents):
        if os.path.lexists(candidate / "pyproject.toml"):
            return candidate / "pyproject.toml"
    return None


def project_settings(start: Path | None = None) -> ProjectSettings:
    """Reads ``[tool.mouso]`` of the nearest pyproject.toml at or above ``start`` (default: here).

    Raises:
        ConfigError: The file or the table cannot be used; names file and key.
    """
    path = project_file(start)
    return ProjectSettings() if path is None else _read_project(path)


def parse_queues(text: str) -> tuple[tuple[str, int], ...]:
    """Reads queues and their weights, such as ``mail=3,default``; a weight is 1..1000, and 1 if not given.

    Raises:
        ConfigError: Names the part that cannot be used.
    """
    low, high = LIMITS["weight"]
    queues: dict[str, int] = {}
    for part in text.split(","):
        name, equals, weight = (piece.strip() for piece in part.partition("="))
        if not name:
            raise ConfigError(f"queues={text!r:.80} names an empty queue; write them as mail=3,default")
        try:
            check_name(name, "queue")
        except OptionError as error:
            raise ConfigError(str(error)) from None
        if name in queues:
            raise ConfigError(f"queue {name!r} stands twice in {text!r:.80}; name it once")
        if equals and not (weight.isascii() and weight.isdecimal() and len(weight) < 5 and low <= int(weight) <= high):
            raise ConfigError(
                f"the weight of queue {name!r} is {weight!r:.40}; use a whole number from {low} to {high}"
            )
        queues[name] = int(weight) if equals else 1
    return tuple(queues.items())


def _read_project(path: Path) -> ProjectSettings:
    table = _read_table(path)
    known = ProjectSettings.__struct_fields__
    for key in table:
        if key not in known:
            raise ConfigError(
                f"{path}: unknown key tool.mouso.{printable(key):.80}; "
                f"{closest(key, known) or 'known are ' + ', '.join(known)}"
            )
    for key, value in table.items():
        try:
            msgspec.convert({key: value}, ProjectSettings)
        except msgspec.ValidationError as error:
            text = str(error).partition(" - at ")[0].replace("`", "").replace(" | null", "")
            raise ConfigError(f"{path}: tool.mouso.{key}: {text[:1].lower()}{text[1:]}") from None
        if key in LIMITS:
            low, high = LIMITS[key]
            if math.isnan(value) or not low <= value <= high:
                raise ConfigError(f"{path}: tool.mouso.{key}: {value} is out of range; use {low} to {high:,}")
    try:
        if "queues" in table:
            parse_queues(table["queues"])
    except ConfigError as error:
        raise ConfigError(f"{path}: tool.mouso.queues: {error}") from None
    return msgspec.convert(table, ProjectSettings)


def _read_table(path: Path) -> dict[str, Any]:
    """The table ``tool.mouso`` of a TOML file, empty if it has none."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise ConfigError(f"{path} is {kind}; it should be a TOML file, rename or remove it")
        with path.open("rb") as file:
            content = file.read(_MAX_CONFIG + 1)
        if len(content) > _MAX_CONFIG:
            raise ConfigError(f"{path} is larger than 1 MiB; that is no project file")
        import tomllib  # needed by the command line only

        document = tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start:,}); save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {one_line(error)}") from None
    tool = document.get("tool", {})
    table = tool.get("mouso", {}) if isinstance(tool, dict) else tool
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {'tool.mouso' if isinstance(tool, dict) else 'tool'} must be a table")
    return table
