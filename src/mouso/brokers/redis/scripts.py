"""The Lua scripts: one for each verb, put together from its file and the parts of ``lib.lua`` that it names.

A script's first line names the keys that it touches: they are what it gets in ``KEYS``, and local variables in it.
Every key of an application namespace has the same hash tag, so that a cluster holds them in one place.

A server does not undo what a script has written before an error. So a script that writes counts what is under each of
its keys first: where another program has put something else, it ends there, and nothing is written. Only ``enqueue``
undoes what it did. Whether the user may do all that a script does is asked before its first call; see ``may.lua``.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from mouso.brokers.redis.keys import KEYS

_FOLDER = Path(__file__).parent / "lua"
_HEADER = re.compile(r"-- keys:(.*?)\n(?:-- parts:(.*?)\n)?(?=-- ARGV)", re.DOTALL)
_CALL = re.compile(r"(?:redis\.p?call|chunks)\('([A-Z]+)'(?:, (\w+)(?: \.\. '([^']*)')?)?")
_CHANGES = {"HSET", "HDEL", "HINCRBY", "ZADD", "ZREM", "SADD", "SREM"}
_COUNTS = {"hash": "HLEN", "zset": "ZCARD", "set": "SCARD"}
_WORKER = ("exchange", "report", "reconcile", "expired", "retire", "promote", "prune")
_GIVES = {"ask_stack": int, "clock": bytes, "pause": int, "promote": int, "prune": int, "purge": int, "unheld": int}
_LISTENS = {("SUBSCRIBE", "bell", ":w")}


class Script(NamedTuple):
    """A script.

    Attributes:
        keys: Names of the keys that it touches, in the order of ``KEYS``.
        digest: What it is called by.
        needs: The commands that it calls, each with the name of the key, and what follows that; "" if the key varies.
        writes: Whether it changes anything.
        gives: The type of its reply.
    """

    name: str
    source: str
    keys: tuple[str, ...]
    digest: bytes
    needs: frozenset[tuple[str, str, str]]
    writes: bool
    gives: type


def load() -> dict[str, Script]:
    """All scripts, by name."""
    parts = _parts()
    scripts = {path.stem: _script(path, parts) for path in sorted(_FOLDER.glob("*.lua")) if path.stem != "lib"}
    # A worker says at its first heartbeat, when it starts, that it may not do what it will have to.
    needs = scripts["heartbeat"].needs.union(_LISTENS, *(scripts[name].needs for name in _WORKER))
    return scripts | {"heartbeat": scripts["heartbeat"]._replace(needs=needs)}


def _parts() -> dict[str, str]:
    sections = re.split(r"^--- (\w+)\n", (_FOLDER / "lib.lua").read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(sections[::2], sections[1::2], strict=True))


def _script(path: Path, parts: dict[str, str]) -> Script:
    text = path.read_text()
    found = _HEADER.match(text)
    assert found is not None, path
    keys, used = (tuple(re.findall(r"\w+", group or "")) for group in found.groups())
    body = "".join(parts[name] for name in used) + text[found.end() :]
    writes = not _CHANGES.isdisjoint(command for command, _, _ in _CALL.findall(body))
    looks = writes and path.stem != "enqueue"  # which undoes what it did: to look costs a twentieth of a single delay()
    counted = [(_COUNTS[KEYS[key].kind], key) for key in keys if looks and KEYS[key].kind in _COUNTS]
    counting = "".join(f"redis.call('{command}', {key})\n" for command, key in counted)
    source = f"local {', '.join(keys)} = unpack(KEYS)\n{counting}{body}"
    calls = _CALL.findall(source)
    needs = frozenset((command, key, end) if key in keys else (command, "", "") for command, key, end in calls)
    digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest().encode()
    return Script(path.stem, source, keys, digest, needs, writes, _GIVES.get(path.stem, list))
