"""The results of all jobs, added up for the report."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from mouso.demo.measure import FileFacts, FunctionFacts
from mouso.job import Job

TOP = "(top level)"

_WORST = 8
_LONGEST_PAUSE = 2000


class Failure(NamedTuple):
    """A job in the dead-letter queue: its file, id and last error."""

    path: str
    job: str
    error: str


class Placed(NamedTuple):
    """A function and the file that it is in."""

    path: str
    function: FunctionFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the report shows. Paths are relative to the code base.

    Attributes:
        name: Of the code base.
        dead: How many jobs are dead; ``failures`` may hold fewer.
        retried: How many jobs were completed after a failed attempt.
        facts: One per completed job, by path.
        worst: The most complex functions.
        imports: In how many files each module is imported.
        ended: When each job was completed, in ms of working time from the first: pauses are left out.
        run_seconds: How long each run took.
    """

    name: str
    root: str
    dead: int
    retried: int
    facts: list[FileFacts]
    failures: list[Failure]
    worst: list[Placed]
    imports: Counter[str]
    licences: Counter[str]
    ended: list[int]
    run_seconds: list[float]

    @property
    def files(self) -> int:
        return len(self.facts)

    @property
    def lines(self) -> int:
        return sum(f.lines for f in self.facts)

    @property
    def functions(self) -> int:
        return sum(len(f.complexities) for f in self.facts)

    @property
    def classes(self) -> int:
        return sum(f.classes for f in self.facts)

    def line_kinds(self) -> dict[str, int]:
        """Lines of code, docstrings, comments, and empty ones."""
        return {
            "code": sum(f.code for f in self.facts),
            "docstrings": sum(f.docs for f in self.facts),
            "comments": sum(f.comments for f in self.facts),
            "blank": sum(f.blank for f in self.facts),
        }

    def complexities(self) -> list[int]:
        """Of every function."""
        return [c for f in self.facts for c in f.complexities]

    def mean_complexity(self) -> float:
        """Of all functions; 0 if there is none."""
        return sum(self.complexities()) / self.functions if self.functions else 0.0

    def as_text(self) -> str:
        """The report in a few lines, for the mail's text."""
        lines = [
            f"{self.files:,} files of {self.name} ({self.root}) were analysed.",
            "",
            f"  {self.lines:>10,} lines",
            f"  {self.functions:>10,} functions, of complexity {self.mean_complexity():.1f} on average",
            f"  {self.classes:>10,} classes",
            f"  {self.retried:>10,} jobs were retried",
            f"  {self.dead:>10,} jobs are in the dead-letter queue",
            "",
            "The charts are in the attached page; it needs no network.",
        ]
        return "\n".join(lines).encode("utf-8", "replace").decode() + "\n"


def summarize(root: str, results: Sequence[tuple[Job, FileFacts]], failures: Sequence[Failure], dead: int) -> Summary:
    """Adds up the results of all jobs.

    Args:
        root: The code base's folder, absolute.
        results: The completed jobs, in any order.
    """
    jobs = [job for job, _ in results]
    facts = sorted((_relative(fact, root) for _, fact in results), key=lambda fact: fact.path)
    imports = Counter(name for fact in facts for name in fact.imports if name != "__future__")
    functions = [Placed(fact.path, function) for fact in facts for function in fact.functions]
    functions.sort(key=lambda placed: (-placed.function.complexity, placed.path))
    return Summary(
        name=Path(root).name or root,
        root=root,
        dead=dead,
        retried=sum(1 for job in jobs if job.attempts),
        facts=facts,
        failures=[failure._replace(path=os.path.relpath(failure.path, root)) for failure in failures],
        worst=functions[:_WORST],
        imports=imports,
        licences=Counter(fact.licence for fact in facts if fact.licence),
        ended=_working_time(sorted(job.finished_at for job in jobs if job.finished_at)),
        run_seconds=[job.run_seconds for job in jobs if job.run_seconds is not None],
    )


def folder_of(path: str) -> str:
    """The first folder of a relative path, or ``TOP``."""
    folder, slash, _ = path.partition("/")
    return folder if slash else TOP


def _relative(fact: FileFacts, root: str) -> FileFacts:
    return replace(fact, path=Path(os.path.relpath(fact.path, root)).as_posix())


def _working_time(instants: Sequence[int]) -> list[int]:
    """Instants as ms since the first of them, with every pause cut down to two seconds."""
    times: list[int] = []
    for earlier, later in pairwise(instants):
        times.append(min(later - earlier, _LONGEST_PAUSE) + (times[-1] if times else 0))
    return [0, *times] if instants else []
