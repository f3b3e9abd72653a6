"""Shows results, keeps them in results.json, and writes README.md's table from there."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Row

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
README = HERE / "README.md"
_BEGIN = "<!-- results: written by `python -m benchmarks` from results.json -->\n"
_END = "<!-- end of results -->"
_HEAD = ("", "measured: median (min–max)", "target", "verdict")


def show(rows: Sequence[Row]) -> str:
    """A table for a terminal."""
    lines = [row.cells() for row in rows]
    widths = [max(len(line[i]) for line in [_HEAD, *lines]) for i in range(len(_HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [_HEAD, *lines]
    )


def keep(name: str, rows: Sequence[Row], about: Mapping[str, Any], order: Sequence[str]) -> None:
    """Puts one benchmark's results in the place of its older ones, in results.json and in README.md.

    Args:
        about: Machine, versions, command, date, seconds.
        order: The names of all benchmarks, as they stand in the table.
    """
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    document[name] = {**about, "rows": [row.document() for row in rows]}
    document = {known: document[known] for known in order if known in document}
    RESULTS.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    write_readme(document)


def write_readme(document: Mapping[str, Any]) -> None:
    """Replaces what stands between the marks in README.md."""
    text = README.read_text()
    before, rest = text.split(_BEGIN, 1)
    after = rest.split(_END, 1)[1]
    README.write_text(before + _BEGIN + "\n" + tables(document) + "\n" + _END + after)


def tables(document: Mapping[str, Any]) -> str:
    """Markdown: where the results come from, then a table for each benchmark."""
    parts = []
    shown: Mapping[str, str] = {}
    for name, section in document.items():
        facts = {key: value for key, value in section["machine"].items() if key != "load before"}
        if facts != shown:
            parts.append("; ".join(f"{key}: {value}" for key, value in facts.items()) + ".\n")
            shown = facts
        origin = f"`{section['command']}`, {section['date']}, {section['runs']} runs, {section['seconds']} s"
        parts.append(f"### {name}\n\n{origin}, load before: {section['machine']['load before']}.\n")
        head = "| | measured: median (min–max) | target | verdict | |\n|---|---|---|---|---|"
        rows = [Row.read(row) for row in section["rows"]]
        lines = ["| " + " | ".join([*row.cells(), row.note]) + " |" for row in rows]
        parts.append("\n".join([head, *lines]) + "\n")
    return "\n".join(parts)
