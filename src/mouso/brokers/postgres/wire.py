"""Arguments of statements in PostgreSQL's binary form, and results back from it.

Columns of many values travel as arrays: psycopg's own dumper takes 1 µs a value, these take 0.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

INTEGER, SMALLINT, BIGINT, TEXT, BYTEA, DOUBLE = 23, 21, 20, 25, 17, 701
"""Type numbers, which never change (pg_type.dat)."""

_PACK = {
    SMALLINT: struct.Struct(">ih").pack,
    INTEGER: struct.Struct(">ii").pack,
    BIGINT: struct.Struct(">iq").pack,
    DOUBLE: struct.Struct(">id").pack,
}
_SIZE = {SMALLINT: 2, INTEGER: 4, BIGINT: 8, DOUBLE: 8}
_LENGTH = struct.Struct(">i").pack
_HEADER = struct.Struct(">iiIii").pack
_NULL = b"\xff\xff\xff\xff"
_double = struct.Struct(">d").unpack


def number(value: int | None) -> bytes | None:
    """A bigint."""
    return None if value is None else value.to_bytes(8, "big", signed=True)


def small(value: int) -> bytes:
    """An integer."""
    return value.to_bytes(4, "big", signed=True)


def text(value: str | None) -> bytes | None:
    """A text."""
    return None if value is None else value.encode()


def numbers(kind: int, values: Sequence[int | float | None]) -> bytes | None:
    """An array of numbers; None if there is none in it."""
    pack, size = _PACK[kind], _SIZE[kind]
    if None not in values:
        return _array(kind, len(values), [pack(size, value) for value in values])
    if values.count(None) == len(values):
        return None
    return _array(kind, len(values), [_NULL if value is None else pack(size, value) for value in values])


def texts(values: Sequence[str | None]) -> bytes | None:
    """An array of texts; None if there is none in it."""
    if values.count(None) == len(values) > 0:
        return None
    return _strings(TEXT, [None if value is None else value.encode() for value in values])


def byte_strings(values: Sequence[bytes | None]) -> bytes | None:
    """An array of byte strings; None if there is none in it."""
    if values.count(None) == len(values) > 0:
        return None
    return _strings(BYTEA, values)


def _strings(kind: int, values: Sequence[bytes | None]) -> bytes:
    parts = [_NULL if value is None else _LENGTH(len(value)) + value for value in values]
    return _array(kind, len(values), parts)


def _array(kind: int, count: int, parts: Iterable[bytes]) -> bytes:
    if not count:
        return _HEADER(0, 0, kind, 0, 0)[:12]
    return _HEADER(1, 1, kind, count, 1) + b"".join(parts)


def read_number(value: bytes | None) -> int | None:
    """An integer of any size."""
    return None if value is None else int.from_bytes(value, "big", signed=True)


def read_double(value: bytes | None) -> float | None:
    """A double precision number."""
    if value is None:
        return None
    found: float = _double(value)[0]
    return found


def read_text(value: bytes | None) -> str | None:
    """A text."""
    return None if value is None else value.decode()


def escape(value: str) -> str:
    """A text without NUL, which PostgreSQL cannot store."""
    return value.replace("\\", "\\\\").replace("\0", "\\0") if "\0" in value or "\\" in value else value


def unescape(value: str) -> str:
    """What ``escape`` was given."""
    if "\\" not in value:
        return value
    return "\\".join(part.replace("\\0", "\0") for part in value.split("\\\\"))
