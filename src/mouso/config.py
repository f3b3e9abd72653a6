"""Settings: broker URLs, the default broker, and ``[tool.mouso]`` in pyproject.toml.

The words of an error for a person are put together here too: ``closest``, ``printable``, ``one_line``, ``counted``.
"""

from __future__ import annotations

import math
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from mouso.errors import ConfigError, OptionError
from mouso.job import check_name

SCHEMES = ("sqlite", "memory")
"""Brokers of this version."""

_PLANNED = {"redis", "rediss", "postgresql", "postgres", "amqp", "amqps"}
_PARAMETERS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "sqlite": {"synchronous": ("full", "normal")},
    "memory": {},
}
_MAX_CONFIG = 1 << 20


class BrokerURL(msgspec.Struct, frozen=True, kw_only=True):
    """A checked broker URL.

    Attributes:
        path: For SQLite the file, for memory the store's name.
        params: Query parameters with checked names and values.
    """

    scheme: str
    path: str
    params: dict[str, str]

    def __str__(self) -> str:
        query = "&".join(f"{k}={v}" for k, v in self.params.items())
        slashes = ":///" if self.scheme == "sqlite" else "://"
        return f"{self.scheme}{slashes}{_quote(self.path)}{'?' + query if query else ''}"

    @classmethod
    def parse(cls, url: str) -> BrokerURL:
        """Reads and checks a URL.

        Raises:
            ConfigError: It cannot be used; the message never holds a password.
        """
        if not isinstance(url, str) or not url:
            raise ConfigError("the broker URL is empty; use for example sqlite:///mouso.db")
        shown = redact(url)
        if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in url):
            raise ConfigError(f"the broker URL {shown!r} holds a control character or invalid UTF-8; remove it")
        scheme, sep, rest = url.partition("://")
        if not sep:
            raise ConfigError(f"the broker URL {shown!r} has no scheme; write for example sqlite:///mouso.db")
        scheme = scheme.lower()
        if scheme in _PLANNED:
            raise ConfigError(f"this version of Mouso has no broker for {scheme}:// yet; use sqlite:///mouso.db")
        if scheme not in SCHEMES:
            hint = closest(scheme, SCHEMES)
            raise ConfigError(
                f"no broker is called {scheme!r} in the URL {shown!r}; {hint or 'use sqlite:///mouso.db'}"
            )
        target, _, query = rest.partition("?")
        params = _check_params(scheme, query, shown)
        if scheme == "sqlite":
            if not target.startswith("/"):
                file = target if target and "@" not in target else "mouso.db"
                raise ConfigError(f"the broker URL {shown!r} needs three slashes before the file: sqlite:///{file}")
            path = unquote(target[1:])
            if not path or any(ord(c) < 32 or ord(c) == 127 for c in path) or path.endswith("/"):
                raise ConfigError(f"the broker URL {shown!r} names no file; write for example sqlite:///mouso.db")
            if path == ":memory:":
                raise ConfigError(
                    "sqlite:///:memory: cannot be shared between processes; use memory:// in tests or a file"
                )
            return cls(scheme=scheme, path=path, params=params)
        return cls(scheme=scheme, path=unquote(target), params=params)


def _check_params(scheme: str, query: str, shown: str) -> dict[str, str]:
    allowed = _PARAMETERS[scheme]
    params: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in allowed:
            hint = closest(name, allowed) or (f"use {', '.join(allowed)}" if allowed else "remove it")
            raise ConfigError(f"unknown parameter {name!r} in the broker URL {shown!r}; {hint}")
        if value.lower() not in allowed[name]:
            raise ConfigError(f"{name}={value!r} in the broker URL {shown!r} is none of {', '.join(allowed[name])}")
        if name in params:
            raise ConfigError(f"{name} stands twice in the broker URL {shown!r}")
        params[name] = value.lower()
    return params


_SECRETS = re.compile(r"([?&](?:password|passwd|pwd|secret|token|sslpassword)=)[^&#]*", re.IGNORECASE)


def redact(url: str) -> str:
    """The URL with its password, if any, replaced by ``***``."""
    scheme, sep, rest = str(url).partition("://")
    if not sep:
        scheme, rest = "", str(url)
    if not rest.startswith("/"):  # else there is no authority, so no user and no password in it
        rest = re.sub(r"^([^:@]*:).*@", r"\1***@", rest, flags=re.DOTALL)
    return _SECRETS.sub(r"\1***", f"{scheme}{sep}{rest}")


def _quote(path: str) -> str:
    """Escapes what would end the path of a URL, and leaves the rest readable."""
    return path.replace("%", "%25").replace("?", "%3F")


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
    except Exception:
        text = ""
    text = " ".join(text.split()) or type(error).__name__
    return printable(text if len(text) <= 500 else text[:499] + "…")


def counted(count: int, thing: str, things: str = "") -> str:
    """A number with its noun, such as ``1 dead job`` or ``2,000 dead jobs``."""
    return f"{count:,} {thing if count == 1 else things or thing + 's'}"


def default_broker_url(module: str | None = None) -> str:
    """The URL of an app that names none.

    ``$MOUSO_BROKER`` if set, else ``mouso.db`` beside the nearest ``pyproject.toml`` or ``.git`` at or above the
    module's file, else in the current directory.

    Raises:
        ConfigError: The current directory was deleted.
    """
    env = os.environ.get("MOUSO_BROKER")
    if env:
        return env
    source = getattr(sys.modules.get(module or ""), "__file__", None)
    try:
        start = Path(source).resolve().parent if source else Path.cwd()
        folder = _project_folder(start) or Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"there is no place for mouso.db: the current directory cannot be used ({error.strerror}); go to another "
            "one, or set $MOUSO_BROKER"
        ) from None
    return f"sqlite:///{_quote(str(folder / 'mouso.db'))}"


def _project_folder(start: Path) -> Path | None:
    for folder in (start, *start.parents):
        # os.path.exists is False where the folder may not be searched; Path.exists raises.
        if os.path.exists(folder / "pyproject.toml") or os.path.exists(folder / ".git"):
            return folder
    return None


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
