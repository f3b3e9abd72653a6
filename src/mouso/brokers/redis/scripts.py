"""The Lua scripts: one for each verb, put together from its file and the parts of ``lib.lua`` that it names.

A script's first line names the keys that it touches: they are what it gets in ``KEYS``, and local variables in it.
Every key of an application namespace has the same hash tag, so that a cluster holds them in one place.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

_FOLDER = Path(__file__).parent / "lua"
_HEADER = re.compile(r"-- keys:(.*?)\n(?:-- parts:(.*?)\n)?(?=-- ARGV)", re.DOTALL)


class Script(NamedTuple):
    """A script.

    Attributes:
        keys: Names of the keys that it touches, in the order of ``KEYS``.
        digest: What it is called by.
    """

    name: str
    source: str
    keys: tuple[str, ...]
    digest: bytes


def load() -> dict[str, Script]:
    """All scripts, by name."""
    parts = _parts()
    return {path.stem: _script(path, parts) for path in sorted(_FOLDER.glob("*.lua")) if path.stem != "lib"}


def _parts() -> dict[str, str]:
    sections = re.split(r"^--- (\w+)\n", (_FOLDER / "lib.lua").read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(sections[::2], sections[1::2], strict=True))


def _script(path: Path, parts: dict[str, str]) -> Script:
    text = path.read_text()
    found = _HEADER.match(text)
    assert found is not None, path
    keys, used = (tuple(re.findall(r"\w+", group or "")) for group in found.groups())
    source = f"local {', '.join(keys)} = unpack(KEYS)\n" + "".join(parts[name] for name in used) + text[found.end() :]
    return Script(path.stem, source, keys, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest().encode())
