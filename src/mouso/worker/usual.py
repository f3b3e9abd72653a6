"""How long the runs of each task usually take, to tell of one that takes far longer."""

from __future__ import annotations

import math
from collections import Counter

from mouso.job import Charge
from mouso.worker.process import ChildProcess

_ENOUGH = 100
"""Runs that must be known before one can be called unusual."""
_MOST = 10_000
"""Runs after which the older ones begin to count less."""
_SHORTEST = 1e-3


class RunTimes:
    """Run times by task, in classes of powers of two."""

    def __init__(self) -> None:
        self._classes: dict[str, Counter[int]] = {}

    def sample(self, child: ChildProcess) -> None:
        """Notes the latest run of a child: of many that it has ended a sample is enough."""
        latest, child.latest = child.latest, None
        if latest is not None and latest.charge is not Charge.RELEASE:
            classes = self._classes.setdefault(latest.task, Counter())
            classes[math.frexp(max(latest.run_seconds, _SHORTEST))[1]] += 1
            if classes.total() > _MOST:
                self._classes[latest.task] = Counter({of: count // 2 for of, count in classes.items()})

    def p99(self, task: str) -> float | None:
        """Seconds that 99 of 100 runs stay below, at most twice too many; None if too few runs are known."""
        known = self._classes.get(task, Counter())
        slower = known.total() / 100
        if known.total() >= _ENOUGH:
            for above in sorted(known, reverse=True):
                slower -= known[above]
                if slower < 0:
                    return math.ldexp(1.0, above)
        return None
