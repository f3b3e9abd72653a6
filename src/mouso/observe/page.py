"""Prometheus's text format 0.0.4, as far as Mouso needs it: counters, gauges and histograms."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

Labels = Mapping[str, str]
_LONGEST = 255
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Histogram:
    """Counts of values by fixed buckets.

    Args:
        bounds: Upper bounds, ascending; one more bucket takes what is above.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Page:
    """Collects metrics and their values."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def text(self) -> str:
        """All of it."""
        return "\n".join(self._lines) + "\n"

    def counter(self, name: str, meaning: str, samples: Iterable[tuple[Labels, float]]) -> None:
        """A number that only grows; its name ends in ``_total``. Samples with the same labels are added up."""
        self._begin(name, "counter", meaning)
        sums: dict[str, float] = {}
        for labels, value in samples:
            text = _labels(labels)
            sums[text] = sums.get(text, 0) + value
        self._lines += [f"{name}{labels} {value}" for labels, value in sums.items()]

    def gauge(self, name: str, meaning: str, value: float | None, labels: Labels | None = None) -> None:
        """A number that goes up and down; left out when it is None."""
        if value is not None:
            self._begin(name, "gauge", meaning)
            self._lines.append(f"{name}{_labels(labels or {})} {value}")

    def histogram(self, name: str, meaning: str, samples: Iterable[tuple[Labels, Histogram]]) -> None:
        """How values spread over the buckets."""
        self._begin(name, "histogram", meaning)
        for labels, histogram in samples:
            for bound, count in zip((*histogram.bounds, "+Inf"), accumulate(histogram.counts), strict=True):
                self._lines.append(f"{name}_bucket{_labels({**labels, 'le': str(bound)})} {count}")
            text = _labels(labels)
            self._lines.append(f"{name}_sum{text} {histogram.total}")
            self._lines.append(f"{name}_count{text} {sum(histogram.counts)}")

    def _begin(self, name: str, kind: str, meaning: str) -> None:
        self._lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{value[:_LONGEST].translate(_ESCAPES)}"' for name, value in labels.items()) + "}"
