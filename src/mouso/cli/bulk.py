"""Acting on many jobs: in batches, with a progress bar for a person, and only when it is meant."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from enum import StrEnum
from typing import TypeVar

import click

from mouso.brokers.base import BATCH
from mouso.cli.output import is_terminal, say, write_json
from mouso.cli.report import Failed

E = TypeVar("E", bound=StrEnum)


def act(ids: Sequence[str], verb: Callable[[Sequence[str]], Sequence[E]], label: str) -> list[tuple[str, E]]:
    """Applies a verb of the broker to jobs, 1,000 in a round trip; returns what became of each."""
    results: list[tuple[str, E]] = []
    with progress_bar(label, len(ids)) as advance:
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            results += zip(batch, verb(batch), strict=True)
            advance(len(batch))
    return results


@contextlib.contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar on stderr while the block runs, if a person looks and it takes more than one batch."""
    if total <= BATCH or not is_terminal(sys.stderr):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)


def tell(results: Sequence[tuple[str, StrEnum]], good: Collection[StrEnum], *, as_json: bool) -> None:
    """Writes what became of each job.

    Raises:
        Failed: It was not what was asked for, for one of them at least.
    """
    if as_json:
        write_json([{"id": id_, "result": result.value} for id_, result in results])
    else:
        for id_, result in results:
            say(f"{id_}  {result.value}")
    bad = [(id_, result) for id_, result in results if result not in good]
    if not bad:
        return
    if len(results) == 1:
        raise Failed(f"{_MEANING.get(bad[0][1].value, bad[0][1].value)}: {bad[0][0]}")
    counts = Counter(result.value for _, result in bad)
    parts = ", ".join(f"{count:,} {result}" for result, count in counts.items())
    raise Failed(f"{len(bad):,} of {len(results):,} jobs were left as they are: {parts}")


def tell_count(results: Sequence[tuple[str, StrEnum]], good: StrEnum, *, as_json: bool) -> None:
    """Writes how many jobs of a bulk action came to which end.

    Raises:
        Failed: Some were left as they are.
    """
    counts = Counter({good.value: 0}) + Counter(result.value for _, result in results)
    counts.setdefault(good.value, 0)
    if as_json:
        write_json(dict(counts))
    else:
        say(f"{counts[good.value]:,} {good.value}")
    rest = ", ".join(f"{count:,} {result}" for result, count in counts.items() if result != good.value)
    if rest:
        raise Failed(f"not all jobs were {good.value}: {rest}")


def confirm(question: str, *, yes: bool) -> None:
    """Asks before something that cannot be undone.

    Raises:
        click.UsageError: Nobody is there to answer.
        Failed: The answer was no.
    """
    if yes:
        return
    if not is_terminal(sys.stdin):
        raise click.UsageError(f"{question} add --yes to do it without being asked")
    if not click.confirm(question, err=True):
        raise Failed("nothing was done")


_MEANING = {
    "unknown": "no job has this id",
    "done": "it is final already",
    "running": "it is running; cancel it first",
    "conflict": "another job holds its unique key",
    "live": "it is not final",
}
