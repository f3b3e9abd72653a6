"""What the user sees while the jobs run: a bar on a terminal, a line every few seconds anywhere else."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

import click

from mouso.clock import SYSTEM
from mouso.config import printable
from mouso.job import FINAL, JobState

_EVERY = 2.0
_WINDOW = 3.0


class Tally:
    """How far the jobs are, and how fast they go.

    Attributes:
        done, total, dead: Jobs.
        retrying: How many wait for their next attempt.
        rate: Jobs ended per second, over the last three seconds.
    """

    def __init__(self) -> None:
        self.done = self.total = self.dead = self.retrying = 0
        self.rate = 0.0
        self._seen: deque[tuple[float, int]] = deque()

    def update(self, counts: Mapping[JobState, int]) -> None:
        """Takes the counts by state, as they are now."""
        now = SYSTEM.monotonic()
        self.total = sum(counts.values())
        self.done = sum(n for state, n in counts.items() if state in FINAL)
        self.dead = counts.get(JobState.DEAD, 0)
        self.retrying = counts.get(JobState.RETRYABLE, 0)
        self._seen.append((now, self.done))
        while now - self._seen[0][0] > _WINDOW and len(self._seen) > 2:
            self._seen.popleft()
        began, before = self._seen[0]
        self.rate = (self.done - before) / (now - began) if now > began else 0.0


class Screen(Protocol):
    """Shows progress, while the ``with`` block lasts, and lines of text at any time."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, line: str) -> None:
        """Shows a line of text."""
        ...

    def show(self, tally: Tally, remark: str) -> None:
        """Shows how far the jobs are."""
        ...


class Lines:
    """For logs and pipes."""

    def __init__(self) -> None:
        self._last = SYSTEM.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def say(self, line: str) -> None:
        click.echo(printable(line))

    def show(self, tally: Tally, remark: str) -> None:
        now = SYSTEM.monotonic()
        if now - self._last >= _EVERY:
            self._last = now
            self.say(
                f"  {tally.done:,} of {tally.total:,} files, {tally.rate:,.0f}/s, {tally.dead:,} dead, "
                f"{tally.retrying:,} to be retried{f' ({remark})' if remark else ''}"
            )


class Live:
    """For a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self._console = Console(highlight=False)
        self._bar = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("[bold]{task.completed:,.0f}[/] of {task.total:,.0f} files"),
            TextColumn("[cyan]{task.fields[rate]:,.0f}/s[/]"),
            TextColumn("[red]{task.fields[dead]:,} dead[/]"),
            TextColumn("[yellow]{task.fields[remark]}[/]", table_column=Column(min_width=11, no_wrap=True)),
            TimeElapsedColumn(table_column=Column(min_width=7, no_wrap=True)),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task("files", total=1, rate=0.0, dead=0, remark="starting", visible=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        from rich.text import Text

        self._console.print(Text(printable(line)), soft_wrap=True)

    def show(self, tally: Tally, remark: str) -> None:
        remark = remark or (f"{tally.retrying:,} retrying" if tally.retrying else "")
        self._bar.update(
            self._task,
            completed=tally.done,
            total=max(tally.total, 1),
            rate=tally.rate,
            dead=tally.dead,
            remark=remark,
            visible=True,
        )


def open_screen() -> Screen:
    """The screen that suits stdout."""
    return Live() if sys.stdout.isatty() else Lines()
