"""The report as one HTML page that needs nothing else: no script, no font, no network.

It is well-formed XML too, so that any tool can read it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from mouso.demo.charts import Bar, Box, area, columns, rows, shares, shortened, text, treemap
from mouso.demo.measure import FileFacts
from mouso.demo.summary import Summary, folder_of

_MOST_BOXES = 1500
_MOST_GROUPS = 36
_MOST_BARS = 16
_POINTS = 60
_COMPLEXITY = ((1, "1"), (2, "2"), (4, "3–4"), (7, "5–7"), (12, "8–12"), (20, "13–20"), (40, "21–40"))
_HEAT = (1.5, 2.5, 4.0, 7.0)
_HEAT_NAMES = ("up to 1.5", "2.5", "4", "7", "more")
_RUN_TIMES = ((5, "5 ms"), (10, "10"), (20, "20"), (50, "50"), (100, "100"), (200, "200"), (500, "500"), (1000, "1 s"))


def write_page(summary: Summary, path: Path) -> Path:
    """Writes the page, whole or not at all, and returns its path."""
    unfinished = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        unfinished.write_text(make_page(summary), encoding="utf-8", errors="replace")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def make_page(summary: Summary) -> str:
    """The page's text."""
    style = resources.files("mouso.demo").joinpath("page.css").read_text(encoding="utf-8")
    sections = [
        _card(
            "Where the code is", _map(summary), "wide", "Area: lines of code. Colour: mean complexity of a function."
        ),
        _card(
            "Complexity of functions", _complexity(summary), note="How many functions have so many paths through them."
        ),
        _card("What the lines are", _lines(summary)),
        _card("Jobs per second", _throughput(summary), note="Completed jobs, over the time that a worker ran."),
        _card("How long a job took", _run_times(summary), note="Up to so much time, from start to end of the run."),
        _card("Most imported", _imports(summary), note="Modules, by the number of files that import them."),
        _card("Most complex functions", _worst(summary)),
        _card("Dead-letter queue", _failures(summary), "wide", _dead_note(summary)),
    ]
    title = f"{summary.name}, analysed by Mouso"
    return (
        '<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml" lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{_header(summary)}<main>\n{''.join(sections)}</main>\n"
        "<footer>Made by <b>mouso demo</b>: one background job per file, and one for this page.</footer>\n"
        "</body>\n</html>\n"
    )


def _header(summary: Summary) -> str:
    numbers = (
        (f"{summary.files:,}", "files", ""),
        (f"{summary.lines:,}", "lines", ""),
        (f"{summary.functions:,}", "functions", ""),
        (f"{summary.mean_complexity():.1f}", "mean complexity", ""),
        (f"{summary.retried:,}", "jobs retried", ""),
        (f"{summary.dead:,}", "jobs dead", "bad" if summary.dead else ""),
    )
    tiles = "".join(f'<li class="{style}"><b>{value}</b><span>{name}</span></li>' for value, name, style in numbers)
    return (
        f"<header>\n<p>Mouso demo · {datetime.now(UTC):%d %B %Y, %H:%M} UTC</p>\n<h1>{text(summary.name)}</h1>\n"
        f'<p class="path">{text(summary.root)}</p>\n<ul class="tiles">{tiles}</ul>\n</header>\n'
    )


def _card(title: str, content: str, style: str = "", note: str = "") -> str:
    below = f'<p class="note">{text(note)}</p>' if note else ""
    return f'<section class="{style}"><h2>{text(title)}</h2>{below}{content}</section>\n'


def _mean(fact: FileFacts) -> float:
    return sum(fact.complexities) / len(fact.complexities) if fact.complexities else 0.0


def _heat(mean: float) -> str:
    return f"heat{sum(mean > limit for limit in _HEAT)}"


def _map(summary: Summary) -> str:
    """The treemap: one box per file, the smallest of a folder in one."""
    large = {f.path for f in sorted(summary.facts, key=lambda f: -f.code)[:_MOST_BOXES]}
    folders: dict[str, list[FileFacts]] = {}
    for fact in summary.facts:
        if fact.code:
            folders.setdefault(folder_of(fact.path), []).append(fact)
    ranked = sorted(folders.items(), key=lambda item: -sum(fact.code for fact in item[1]))
    rest = [fact for _, facts in ranked[_MOST_GROUPS:] for fact in facts]
    groups = [*ranked[:_MOST_GROUPS], *([("others", rest)] if rest else [])]
    drawn = [(name, _boxes(facts, large)) for name, facts in groups]
    drawn.sort(key=lambda group: -sum(box.value for box in group[1]))
    legend = "".join(f'<li><i class="heat{n}"></i>{text(name)}</li>' for n, name in enumerate(_HEAT_NAMES))
    return treemap(drawn, "Treemap of the files") + f'<ul class="legend">{legend}</ul>'


def _boxes(facts: Iterable[FileFacts], large: set[str]) -> list[Box]:
    boxes, small = [], []
    for fact in facts:
        if fact.path in large:
            hint = f"{fact.path}\n{fact.code:,} lines of code, mean complexity {_mean(fact):.1f}"
            boxes.append(Box(fact.code, hint, _heat(_mean(fact))))
        else:
            small.append(fact)
    if small:
        lines = sum(fact.code for fact in small)
        boxes.append(Box(lines, f"{len(small):,} small files\n{lines:,} lines of code", "heat0"))
    return sorted(boxes, key=lambda box: -box.value)


def _histogram(values: Iterable[float], bins: Sequence[tuple[float, str]], beyond: str) -> list[tuple[str, int]]:
    """``(label, count)`` for each bin, whose numbers are the largest values in it, and one for what is beyond."""
    counts = [0] * (len(bins) + 1)
    for value in values:
        counts[sum(value > limit for limit, _ in bins)] += 1
    return list(zip([*(label for _, label in bins), beyond], counts, strict=True))


def _complexity(summary: Summary) -> str:
    found = _histogram(summary.complexities(), _COMPLEXITY, "41+")
    bars = [
        Bar(label, count, f"{count:,} functions of complexity {label}", "bar" if number < 5 else "bar hot")
        for number, (label, count) in enumerate(found)
    ]
    return columns(bars, "Histogram of the complexity of functions")


def _lines(summary: Summary) -> str:
    kinds = summary.line_kinds().items()
    bars = [Bar(kind, count, f"{count:,} lines: {kind}", f"kind{number}") for number, (kind, count) in enumerate(kinds)]
    licences = summary.licences.most_common(5)
    items = "".join(f"<li><span>{text(name)}</span><b>{count:,}</b></li>" for name, count in licences)
    return shares(bars, "Share of each kind of line") + f'<h3>Licences, by files</h3><ul class="list">{items}</ul>'


def _throughput(summary: Summary) -> str:
    """Completed jobs per second, in a fixed number of steps."""
    length = max(summary.ended[-1] / 1000, 0.001) if summary.ended else 1.0
    points = min(_POINTS, max(len(summary.ended) // 3, 1))
    counts = [0.0] * points
    for at in summary.ended:
        counts[min(int(at / 1000 / length * points), points - 1)] += points / length
    smooth = [sum(near) / len(near) for near in (counts[max(n - 1, 0) : n + 2] for n in range(points))]
    return area(smooth, "Completed jobs per second", "jobs/s", f"{length:.1f} s")


def _run_times(summary: Summary) -> str:
    found = _histogram((1000 * s for s in summary.run_seconds), _RUN_TIMES, "more")
    return columns([Bar(label, count, f"{count:,} jobs: {label}") for label, count in found], "Histogram of run times")


def _imports(summary: Summary) -> str:
    bars = [
        Bar(name, count, f"{count:,} files import {name}") for name, count in summary.imports.most_common(_MOST_BARS)
    ]
    return rows(bars, "Most imported modules")


def _worst(summary: Summary) -> str:
    lines = "".join(
        f'<tr><td><code>{text(shortened(placed.function.name, 34))}</code><small title="{text(placed.path)}">'
        f"{text(shortened(placed.path, 40))}:{placed.function.line}</small></td>"
        f"<td>{placed.function.lines:,}</td><td>{placed.function.complexity:,}</td></tr>"
        for placed in summary.worst
    )
    return f"<table><thead><tr><th>Function</th><th>Lines</th><th>Paths</th></tr></thead><tbody>{lines}</tbody></table>"


def _failures(summary: Summary) -> str:
    if not summary.failures:
        return '<p class="none">Empty: every file could be analysed.</p>'
    lines = "".join(
        f"<tr><td><code>{text(failure.path)}</code></td><td>{text(failure.error[:300])}</td></tr>"
        for failure in summary.failures
    )
    return f'<table class="text"><thead><tr><th>File</th><th>Error</th></tr></thead><tbody>{lines}</tbody></table>'


def _dead_note(summary: Summary) -> str:
    missing = summary.dead - len(summary.failures)
    more = f" {missing:,} more are not shown." if missing > 0 else ""
    return f"Jobs that failed for good. They stay visible, and can be retried or deleted.{more}"
