"""``mouso doctor``: everything that can be told to be wrong, or about to be, with what to do about it.

It only looks. The broker examines its own store (``Broker.diagnose``) and hands out a view of it; what is read through
that is judged by ``mouso.cli.checks``. Whatever cannot be read is a finding as well, and the rest goes on.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec
from msgspec.structs import replace

from mouso.brokers.base import Finding, JobFilter, Level, Retention
from mouso.cli.base import Target, app_command, require_shared
from mouso.cli.output import Column, say, write_json, write_table
from mouso.clock import SYSTEM
from mouso.config import one_line
from mouso.errors import MousoError
from mouso.job import Job, JobState

if TYPE_CHECKING:
    from pathlib import Path

    from mouso.app import Mouso
    from mouso.brokers import Broker
    from mouso.cli.checks import Seen
    from mouso.config import ProjectSettings

T = TypeVar("T")
_STYLES: Mapping[str, str] = {Level.OK: "green", Level.INFO: "blue", Level.WARNING: "yellow", Level.ERROR: "bold red"}
_COLUMNS = (Column("LEVEL", whole=True, styles=_STYLES), Column("CHECK", whole=True), Column("FINDING"))
_PAGE = 100
"""Jobs in a round trip: arguments, up to 1 MiB each, come with them."""
_SAMPLE = 200
_PATIENCE = 5.0
_CORRUPT = "another program may have written to the store; look at all of it with --full"
_CONFIG = "mend it: no worker starts like this"
"""For what a person has written down: it was no other program."""


@app_command(example="mouso doctor shop:app")
@click.option("--full", is_flag=True, help="Look at every page and row of the store, however long it takes.")
def doctor(target: Target, full: bool, as_json: bool) -> int:
    """Find what is wrong, or about to be: store, disk, clock, workers, queues, jobs.

    Nothing is changed. Run it as the user of the workers, on their machine.

    Exit codes: 0 no error (there may be warnings), 1 at least one error, 2 wrong usage.
    """
    from mouso.loading import locate_app

    path, folder = locate_app(target.path)
    patient = Patient()
    url = patient.examine(target, folder, full=full)
    order = list(Level)
    findings = sorted(map(_encodable, patient.findings), key=lambda finding: -order.index(finding.level))
    if as_json:
        write_json({"app": path, "broker": url, "level": findings[0].level, "findings": findings})
    else:
        _write(findings)
    return int(findings[0].level is Level.ERROR)


def _encodable(finding: Finding) -> Finding:
    """The finding with bytes of file names that are no UTF-8 escaped."""
    what, remedy = (text.encode(errors="backslashreplace").decode() for text in (finding.what, finding.remedy))
    return replace(finding, what=what, remedy=remedy)


def _write(findings: list[Finding]) -> None:
    rows = [(f.level, f.check, f"{f.what}; {f.remedy}" if f.remedy else f.what) for f in findings]
    write_table(_COLUMNS, rows, "")
    counts = Counter(finding.level for finding in findings)
    parts = [f"{counts[level]} {level}{'s' * (counts[level] != 1)}" for level in (Level.ERROR, Level.WARNING)]
    say()
    say(f"{', '.join(parts)}")


class Patient:
    """One app and its store, with what was found so far."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def examine(self, target: Target, folder: Path | None, *, full: bool) -> str | None:
        """Looks at everything; returns the broker's URL, None if none is known."""
        from mouso import __version__
        from mouso.config import ProjectSettings, project_settings

        versions = f"Mouso {__version__}, Python {platform.python_version()}, msgspec {msgspec.__version__}"
        self._found(Level.OK, "program", versions)
        settings = self._ask("settings", lambda: project_settings(folder), ProjectSettings(), _CONFIG)
        with contextlib.ExitStack() as stack:
            app = self._ask("app", lambda: stack.enter_context(target.imported()), None, _CONFIG)
            broker = self._ask("store", lambda: _broker(app, stack), None, _CONFIG)
            if broker is None:
                return None
            require_shared(broker)
            if app is None:
                self._found(Level.INFO, "app", f"without it, {broker.url} is looked at", "set $MOUSO_BROKER to another")
            elif not app.tasks:
                remedy = "decorate functions with @app.task, or import the modules that do"
                self._found(Level.ERROR, "app", "it has no tasks, and no worker starts without any", remedy)
            self._examine_store(app, broker, settings, full=full)
            return broker.url

    def _examine_store(self, app: Mouso | None, broker: Broker, settings: ProjectSettings, *, full: bool) -> None:
        from mouso.cli.checks import CHECKS

        retention = Retention() if app is None else app.retention
        diagnosis = self._ask("store", lambda: broker.diagnose(retention=retention, full=full), None)
        if diagnosis is None:
            return
        self.findings += diagnosis.findings
        if diagnosis.view is not None:
            with contextlib.closing(diagnosis.view):
                seen = self._look(app, diagnosis.view, settings, retention)
            for check in CHECKS:
                self.findings += self._ask(check.__name__, partial(_all, check, seen), [])

    def _look(self, app: Mouso | None, view: Broker, settings: ProjectSettings, retention: Retention) -> Seen:
        """Reads what the checks judge."""
        from mouso.cli.checks import MOST_READ, Seen
        from mouso.worker.proof import identity

        def jobs(most: int, **where: Any) -> list[Job]:
            return self._ask("jobs", lambda: list(_read(view, most, JobFilter(limit=min(most, _PAGE), **where))), [])

        newest = jobs(1)
        return Seen(
            running=jobs(MOST_READ, states=frozenset({JobState.RUNNING})),
            dead=jobs(_SAMPLE, states=frozenset({JobState.DEAD})),
            available=jobs(_SAMPLE, states=frozenset({JobState.AVAILABLE}), parked=False),
            parked=Counter((job.task, job.queue) for job in jobs(MOST_READ, parked=True)),
            newest=newest[0] if newest else None,
            queues=self._ask("queues", view.queues, []),
            workers=self._ask("workers", view.workers, []),
            now=SYSTEM.now(),
            steady=SYSTEM.steady(),
            here=identity(),
            tasks=None if app is None else app.tasks,
            settings=settings,
            retention=retention,
        )

    def _found(self, level: Level, check: str, what: str, remedy: str = "") -> None:
        self.findings.append(Finding(level, check, what, remedy))

    def _ask(self, check: str, question: Callable[[], T], otherwise: T, remedy: str = _CORRUPT) -> T:
        """The answer; where there is none, what stands in for it, and a finding that says why."""
        try:
            return question()
        except MousoError as error:
            what, _, own = one_line(error).partition("; ")
            self._found(Level.ERROR, check, what, own or remedy)
        except Exception as error:  # rows that another program wrote may raise anything
            self._found(Level.ERROR, check, f"it cannot be read: {type(error).__name__}: {one_line(error)}", remedy)
        return otherwise


def _broker(app: Mouso | None, stack: contextlib.ExitStack) -> Broker | None:
    """The app's broker; without an app, the one that an app here would have, if its store is there."""
    if app is not None:
        return app.broker
    from mouso.brokers import connect
    from mouso.urls import BrokerURL, default_broker_url

    url = BrokerURL.parse(default_broker_url())
    if url.scheme == "memory" or (url.scheme == "sqlite" and not os.path.exists(url.path)):
        return None
    broker = connect(str(url))
    stack.callback(broker.close)
    return broker


def _read(view: Broker, most: int, where: JobFilter) -> Iterator[Job]:
    """Jobs page by page, without their arguments and results: as many as asked for, or as the patience lasts."""
    late = SYSTEM.monotonic() + _PATIENCE
    while most > 0 and SYSTEM.monotonic() < late and (page := view.find(where)):
        yield from (replace(job, payload=b"", result=None) for job in page[:most])
        most -= len(page)
        where = replace(where, after=page[-1].id)


def _all(check: Callable[[Seen], Iterable[Finding]], seen: Seen) -> list[Finding]:
    return list(check(seen))
