"""Rows of the table: what was measured, over how many runs, and whether that is what was asked for."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured quantity.

    Attributes:
        runs: One number per run, in ``unit``.
        target: What the median is held against; None where nothing is asked.
        better: Whether it may not be below (``more``) or above (``less``) the target.
        note: What the reader must know to judge it.
    """

    what: str
    runs: Sequence[float]
    unit: str
    target: float | None = None
    better: Literal["more", "less"] = "more"
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    @property
    def verdict(self) -> str:
        """``met``, ``missed by 12 %``, or nothing if there is no target."""
        if self.target is None:
            return ""
        miss = self.target - self.median if self.better == "more" else self.median - self.target
        if miss <= 0:
            return "met"
        return f"missed by {miss / self.target * 100:.0f} %" if self.target else "missed"

    def cells(self) -> tuple[str, str, str, str]:
        """What, measured (min–max), target, verdict, as text."""
        measured = f"{number(self.median)}"
        if len(self.runs) > 1:
            measured += f" ({number(min(self.runs))}–{number(max(self.runs))})"
        sign = "≥" if self.better == "more" else "≤"
        target = "" if self.target is None else f"{sign} {number(self.target)}{unit(self.unit)}"
        return self.what, measured + unit(self.unit), target, self.verdict

    def document(self) -> dict[str, Any]:
        """As it stands in results.json."""
        return {
            "what": self.what,
            "median": float(f"{self.median:.5g}"),
            "runs": [float(f"{run:.5g}") for run in self.runs],
            "unit": self.unit,
            "target": self.target,
            "better": self.better,
            "verdict": self.verdict,
            "note": self.note,
        }

    @classmethod
    def read(cls, document: dict[str, Any]) -> Self:
        """The row that ``document`` wrote."""
        names = ("what", "runs", "unit", "target", "better", "note")
        return cls(**{name: document[name] for name in names})


def unit(name: str) -> str:
    """The unit as it follows a number."""
    return name if name in {"×", ""} else f" {name}"


def number(value: float) -> str:
    """Three digits that matter, thousands with commas."""
    if abs(value) >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample that ``share`` (0..1) of all do not exceed."""
    ordered = sorted(samples)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Run by run, so that a slow minute of the machine hits both."""
    return [a / b for a, b in zip(over, under, strict=True)]
