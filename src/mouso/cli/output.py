"""How answers are written: JSON for programs, tables for people, plain columns where nobody looks.

What comes from jobs is data: it is never taken for markup, and characters that could steer a terminal are escaped.
rich is imported only when stdout is a terminal.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import click
import msgspec

from mouso.clock import moment
from mouso.config import printable
from mouso.job import JobState

STATE_STYLES: Mapping[str, str] = {
    JobState.PENDING: "blue",
    JobState.SCHEDULED: "blue",
    JobState.AVAILABLE: "default",
    JobState.RUNNING: "cyan",
    JobState.RETRYABLE: "yellow",
    JobState.COMPLETED: "green",
    JobState.CANCELLED: "bright_black",
    JobState.EXPIRED: "magenta",
    JobState.DEAD: "red",
    "paused": "yellow",
}

_NARROW = 40
"""Fewer columns than this hold no table; the terminal may wrap plain lines."""
_LEAST = 24
"""So much of a column that may be cut or folded is worth more than a column that is spare."""
_WIDEST = 300
"""No name is as long; or one cell of what another program has written would make each row as long as itself."""
_UNSAFE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class Column(NamedTuple):
    """A column of a table: ``right`` aligns numbers, ``whole`` is never folded, ``styles`` colours known texts.

    A terminal does not show a column that is empty throughout. Where it is too narrow, it leaves out those that are
    ``spare``, the last first, and ends those that are ``cut`` with an ellipsis instead of folding them; where not even
    the titles have room, each row becomes lines of its own.
    """

    title: str
    right: bool = False
    whole: bool = False
    spare: bool = False
    cut: bool = False
    styles: Mapping[str, str] = {}


def say(line: str = "") -> None:
    """Writes a line to stdout. (click's ``echo`` would write UTF-8 where the terminal expects ASCII.)"""
    sys.stdout.write(f"{line}\n")


def write_json(document: Any) -> None:
    """Writes one JSON document to stdout, in ASCII where the terminal's encoding is not UTF-8."""
    text = msgspec.json.format(msgspec.json.encode(document, enc_hook=repr), indent=2).decode()
    text = _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    if "utf" not in (getattr(sys.stdout, "encoding", None) or "utf-8").lower():
        text = "".join(c if c.isascii() else _escaped(c) for c in text)
    say(text)


def _escaped(character: str) -> str:
    """A character as JSON's escapes of its UTF-16 units."""
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def compact(value: Any) -> str:
    """A value as JSON in one printable line."""
    return printable(msgspec.json.encode(value, enc_hook=repr).decode())


def write_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], nothing: str) -> None:
    """Writes a table; without any row, the text ``nothing`` to stderr."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells:
        from mouso.cli.report import note

        note(nothing)
    elif is_terminal(sys.stdout) and shutil.get_terminal_size().columns >= _NARROW:
        _write_rich(columns, cells)
    else:
        _write_plain(columns, cells)


def is_terminal(stream: Any) -> bool:
    """Whether a person looks at it."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def _write_rich(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    shown = _fitting(columns, rows, console.width)
    everything = columns, rows
    columns, rows = [columns[i] for i in shown], [[row[i] for i in shown] for row in rows]
    widest = _widest(columns, rows)
    rigid = [column.whole or wide <= len(column.title) for column, wide in zip(columns, widest, strict=True)]
    least = (wide if stays else len(c.title) for c, wide, stays in zip(columns, widest, rigid, strict=True))
    if sum(least) + len(columns) - 1 > console.width:
        _write_records(*everything)
        return
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for column, stays in zip(columns, rigid, strict=True):
        table.add_column(
            Text(column.title),
            justify="right" if column.right else "left",
            no_wrap=stays,
            overflow="ellipsis" if column.whole else "fold",
        )
    for row in rows:
        table.add_row(
            *(
                Text(cell, column.styles.get(cell, ""), no_wrap=column.cut, overflow="ellipsis" if column.cut else None)
                for column, cell in zip(columns, row, strict=True)
            )
        )
    console.print(table)


def _write_records(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """A row in as many lines as it has cells, where a terminal is too narrow for the titles side by side."""
    for number, row in enumerate(rows):
        if number:
            say()
        write_fields((column.title, cell) for column, cell in zip(columns, row, strict=True))


def _widest(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    """How many columns of a terminal each column takes that is neither folded nor cut, its title included."""
    from rich.cells import cell_len

    return [max(len(column.title), *(cell_len(row[i]) for row in rows)) for i, column in enumerate(columns)]


def _fitting(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Which columns a terminal of a width shows."""
    widths = {}
    for i, widest in enumerate(_widest(columns, rows)):
        if any(row[i] for row in rows):
            widths[i] = 1 + (widest if columns[i].whole else min(widest, _LEAST))
    for i in sorted(widths, reverse=True):
        if columns[i].spare and sum(widths.values()) - 1 > width:
            del widths[i]
    return list(widths)


def _write_plain(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Columns two spaces apart, nothing cut off; a cell of unusual length has its row wider than the others."""
    lines = [[column.title for column in columns], *rows]
    widths = [min(max(len(line[i]) for line in lines), _WIDEST) for i in range(len(columns))]
    for line in lines:
        cells = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        )
        say("  ".join(cells).rstrip())


def write_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Writes ``name  value`` lines; further lines of a value are indented under it, a tab is four spaces."""
    shown = [(name, value) for name, value in fields if value]
    width = max((len(name) for name, _ in shown), default=0)
    bold = is_terminal(sys.stdout)
    for name, value in shown:
        first, *more = [printable(line.expandtabs(4)) for line in value.split("\n")]
        title = click.style(name.ljust(width), bold=True) if bold else name.ljust(width)
        say(f"{title}  {first}".rstrip())
        for line in more:
            say(f"{'':{width}}  {line}".rstrip())


# -- words for numbers -----------------------------------------------------------------------------------------------

_UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"))


def span(ms: float) -> str:
    """A length of time in its largest whole unit, such as ``3 s`` or ``2 h``."""
    for size, unit in _UNITS:
        if ms >= size:
            return f"{ms / size:.0f} {unit}" if ms >= 10 * size or ms % size == 0 else f"{ms / size:.1f} {unit}"
    return f"{max(ms, 0):.0f} ms"


def size(count: int | None) -> str:
    """Bytes in MiB, such as ``64 MiB``; empty for None."""
    return "" if count is None else f"{count / (1 << 20):,.0f} MiB"


def ago(at: int | None, now: int) -> str:
    """How long an instant lies back, such as ``3 s ago``; ahead, ``in 2 min``; empty for None."""
    if at is None:
        return ""
    if at > now:
        return f"in {_whole(at - now)}"
    return f"{_whole(now - at)} ago"


def _whole(ms: int) -> str:
    for size, unit in _UNITS:
        if ms >= size:
            return f"{ms // size} {unit}"
    return "0 s"


def stamp(at: int | None, now: int) -> str:
    """An instant for reading: how long ago, and exactly."""
    return "" if at is None else f"{ago(at, now)} ({moment(at):%Y-%m-%d %H:%M:%S} UTC)"
