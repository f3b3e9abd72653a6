"""Charts as inline SVG. Colours come from the page's CSS classes, so they follow its light and dark themes.

Every text passes through ``text``: file names are data.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

_ILLEGAL = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_GAP = 0.28


class Bar(NamedTuple):
    """A bar: its label, its value, what a pointer on it shows, and its CSS class."""

    label: str
    value: float
    hint: str = ""
    style: str = "bar"


class Box(NamedTuple):
    """A rectangle of a treemap: its area's value, what a pointer on it shows, and its CSS class."""

    value: float
    hint: str
    style: str


class Rect(NamedTuple):
    """Where something is drawn."""

    x: float
    y: float
    width: float
    height: float

    def inset(self, margin: float) -> Rect:
        """The rectangle without a margin, never negative."""
        return Rect(
            self.x + margin,
            self.y + margin,
            max(self.width - 2 * margin, 0.0),
            max(self.height - 2 * margin, 0.0),
        )


def text(value: object) -> str:
    """A value as text that is safe inside an element and inside an attribute."""
    return html.escape(_ILLEGAL.sub("\ufffd", str(value)), quote=True)


def shortened(value: str, limit: int) -> str:
    """A text of at most ``limit`` characters, its end kept: of a path that tells most."""
    return value if len(value) <= limit else "…" + value[-limit + 1 :]


def svg(width: float, height: float, label: str, *parts: str) -> str:
    """A picture that scales with the page."""
    inner = "".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img"'
        f' aria-label="{text(label)}">{inner}</svg>'
    )


def columns(bars: Sequence[Bar], label: str, *, width: float = 520, height: float = 250) -> str:
    """Upright bars with their values above and labels below."""
    top, bottom = 22.0, 24.0
    highest = max((bar.value for bar in bars), default=0) or 1
    step = width / max(len(bars), 1)
    parts = [f'<line class="axis" x1="0" x2="{width:g}" y1="{height - bottom:g}" y2="{height - bottom:g}"/>']
    for number, bar in enumerate(bars):
        size = (height - top - bottom) * bar.value / highest
        if bar.value:
            size = max(size, 1.5)
        x, middle, y = number * step + step * _GAP / 2, (number + 0.5) * step, height - bottom - size
        parts.append(
            f'<g><title>{text(bar.hint or bar.label)}</title><rect class="{bar.style}" x="{x:.1f}" y="{y:.1f}"'
            f' width="{step * (1 - _GAP):.1f}" height="{size:.1f}" rx="3"/></g>'
            f'<text class="value" x="{middle:.1f}" y="{y - 6:.1f}" text-anchor="middle">{_short(bar.value)}</text>'
            f'<text class="tick" x="{middle:.1f}" y="{height - 7:g}" text-anchor="middle">{text(bar.label)}</text>'
        )
    return svg(width, height, label, *parts)


def rows(bars: Sequence[Bar], label: str, *, width: float = 520, indent: float = 150) -> str:
    """Lying bars, labels on the left, values at their ends."""
    step = 24.0
    highest = max((bar.value for bar in bars), default=0) or 1
    parts = []
    for number, bar in enumerate(bars):
        size = max((width - indent - 56) * bar.value / highest, 1.5)
        y = number * step
        parts.append(
            f'<text class="tick" x="{indent - 10:g}" y="{y + 16:g}" text-anchor="end">'
            f"{text(shortened(bar.label, 22))}</text>"
            f'<g><title>{text(bar.hint or bar.label)}</title><rect class="{bar.style}" x="{indent:g}" y="{y + 4:g}"'
            f' width="{size:.1f}" height="16" rx="3"/></g>'
            f'<text class="value" x="{indent + size + 8:.1f}" y="{y + 16:g}">{_short(bar.value)}</text>'
        )
    return svg(width, max(len(bars), 1) * step, label, *parts)


def shares(bars: Sequence[Bar], label: str, *, width: float = 520) -> str:
    """One bar cut into its parts, with a legend below."""
    total = sum(bar.value for bar in bars) or 1
    parts, x = [], 0.0
    for bar in bars:
        size = width * bar.value / total
        if size:
            parts.append(
                f"<g><title>{text(bar.hint or bar.label)}</title>"
                f'<rect class="{bar.style}" x="{x:.1f}" y="0" width="{max(size - 2, 0.5):.1f}" height="38" rx="3"/></g>'
            )
        x += size
    step = width / max(len(bars), 1)
    for number, bar in enumerate(bars):
        left = number * step
        parts.append(
            f'<rect class="{bar.style}" x="{left:.1f}" y="57" width="11" height="11" rx="2.5"/>'
            f'<text class="tick" x="{left + 18:.1f}" y="67">{text(bar.label)}</text>'
            f'<text class="big" x="{left:.1f}" y="94">{100 * bar.value / total:.0f} %</text>'
        )
    return svg(width, 104, label, *parts)


def area(values: Sequence[float], label: str, unit: str, last: str, *, width: float = 520, height: float = 250) -> str:
    """A filled curve over time, with two lines to read it by; ``last`` is written at the end of the time."""
    bottom, top = 24.0, 14.0
    highest = _round_up(max(values, default=0))
    step = width / max(len(values) - 1, 1)
    floor = height - bottom

    def level(value: float) -> float:
        return floor - (floor - top) * value / highest

    points = [f"{number * step:.1f},{level(value):.1f}" for number, value in enumerate(values)]
    parts = []
    for part in (highest / 2, highest):
        y = level(part)
        parts.append(f'<line class="grid" x1="0" x2="{width:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
    if points:
        right = (len(values) - 1) * step
        parts.append(f'<path class="area" d="M0,{floor:.1f} L{" L".join(points)} L{right:.1f},{floor:.1f} Z"/>')
        parts.append(f'<polyline class="curve" points="{" ".join(points)}"/>')
    for part in (highest / 2, highest):
        parts.append(f'<text class="tick halo" x="2" y="{level(part) - 5:.1f}">{part:,.4g} {text(unit)}</text>')
    parts.append(f'<line class="axis" x1="0" x2="{width:g}" y1="{floor:g}" y2="{floor:g}"/>')
    parts.append(f'<text class="tick" x="0" y="{height - 7:g}">0 s</text>')
    parts.append(f'<text class="tick" x="{width:g}" y="{height - 7:g}" text-anchor="end">{text(last)}</text>')
    return svg(width, height, label, *parts)


def treemap(
    groups: Sequence[tuple[str, Sequence[Box]]], label: str, *, width: float = 1080, height: float = 520
) -> str:
    """Groups of rectangles whose areas are their values; groups large enough bear their names."""
    totals = [sum(box.value for box in boxes) for _, boxes in groups]
    parts = []
    for (name, boxes), place in zip(groups, squarify(totals, Rect(0, 0, width, height)), strict=True):
        inner = place.inset(1.5)
        for box, spot in zip(boxes, squarify([box.value for box in boxes], inner), strict=True):
            drawn = spot.inset(0.4)
            parts.append(
                f'<g><title>{text(box.hint)}</title><rect class="{box.style}" x="{drawn.x:.1f}" y="{drawn.y:.1f}"'
                f' width="{drawn.width:.1f}" height="{drawn.height:.1f}"/></g>'
            )
        room = int((place.width - 10) / 7.2)
        if room >= min(len(name), 5) and place.height > 22:
            shown = name if len(name) <= room else name[: room - 1] + "…"
            parts.append(f'<text class="group" x="{place.x + 6:.1f}" y="{place.y + 17:.1f}">{text(shown)}</text>')
    return svg(width, height, label, *parts)


def squarify(values: Sequence[float], place: Rect) -> list[Rect]:
    """Cuts a rectangle into ones of the given areas, as square as can be (Bruls, Huizing, van Wijk 2000).

    Args:
        values: Positive, the largest first.
    """
    total = sum(values)
    if not total or place.width <= 0 or place.height <= 0:
        return [Rect(place.x, place.y, 0, 0) for _ in values]
    areas = [value * place.width * place.height / total for value in values]
    found: list[Rect] = []
    start = 0
    while start < len(areas):
        side = min(place.width, place.height)
        end = start + 1
        while end < len(areas) and _worst(areas[start : end + 1], side) <= _worst(areas[start:end], side):
            end += 1
        strip = areas[start:end]
        depth = sum(strip) / side if side > 0 else 0.0
        along = 0.0
        for size in strip:
            length = size / depth if depth > 0 else 0.0
            if place.width >= place.height:
                found.append(Rect(place.x, place.y + along, depth, length))
            else:
                found.append(Rect(place.x + along, place.y, length, depth))
            along += length
        if place.width >= place.height:
            place = Rect(place.x + depth, place.y, max(place.width - depth, 0.0), place.height)
        else:
            place = Rect(place.x, place.y + depth, place.width, max(place.height - depth, 0.0))
        start = end
    return found


def _worst(strip: Sequence[float], side: float) -> float:
    """The worst ratio of sides among the rectangles of a strip."""
    total, square = sum(strip), side * side
    if not total or not square:
        return math.inf
    smallest = min(strip)
    return max(square * max(strip) / total**2, total**2 / (square * smallest) if smallest else math.inf)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value < 100_000 else f"{value / 1000:,.0f} k"


def _round_up(value: float) -> float:
    """The next number that is easy to read and to halve."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10) if step * power >= value * 0.999)
