"""``mouso demo``: its options, its errors in one line, and the words at its end."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from mouso.cli.base import Whole
from mouso.config import printable
from mouso.demo.source import WrongFolder, find_files, standard_library
from mouso.demo.store import Store, StoreInUse

_DEFAULT_STORE = "mouso-demo"
_SHOWN = 10


@click.command()
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="The code base; default: Python's own library.")
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=_DEFAULT_STORE,
    envvar="MOUSO_DEMO_STORE",
    show_default=True,
    help="Where its store, report, mails and log go.",
)
@click.option("--fresh", is_flag=True, help="Start afresh, even if a demo was interrupted.")
@click.option("-p", "--processes", type=Whole(1, 64), help="The worker's child processes; default: the CPUs.")
def demo(folder: Path | None, store: Path, fresh: bool, processes: int | None) -> int:
    """See it all work: analyse a code base, one job per file.

    Each job measures a file; some do not parse and end in the dead-letter queue, some are retried because a service is
    busy. A last job makes a page of the results and mails it to a server of the demo's own. The store is left for you
    to explore. Ctrl-C stops everything; started again, it goes on where it stopped.
    """
    os.environ["MOUSO_DEMO_STORE"] = str(store)  # before mouso.demo.jobs is imported, here and in the worker
    try:
        root = standard_library() if folder is None else folder
        files = find_files(root)
        place = Store(store)
        with place.claimed():
            return _run(root.resolve(), files, place, processes, fresh=fresh)
    except (WrongFolder, StoreInUse) as error:
        raise click.UsageError(str(error)) from None


def _run(root: Path, files: list[str], store: Store, processes: int | None, *, fresh: bool) -> int:
    from mouso.cli.report import Failed
    from mouso.demo.screen import open_screen
    from mouso.demo.show import Interrupted, perform
    from mouso.demo.worker import WorkerFailed
    from mouso.worker.cpus import usable_cpus

    screen = open_screen()
    if not fresh and store.holds_unfinished(str(root)):
        screen.say(f"{len(files):,} Python files in {root}: going on where the last demo stopped")
    else:
        _refuse_living_workers(store)
        store.clear()
        store.begin(str(root))
        screen.say(f"{len(files):,} Python files in {root}: one job each")
    try:
        ended = perform(root, files, store, processes or max(usable_cpus(), 2), screen)
    except Interrupted as error:
        click.echo(f"{error}; nothing is left running. The same command goes on from there.")
        return 128 + error.number
    except WorkerFailed as error:
        raise Failed(str(error)) from None
    rate = ended.jobs / ended.seconds if ended.seconds else 0.0
    click.echo(
        f"{ended.report.files:,} files analysed, {ended.report.dead:,} dead, {ended.report.retried:,} retried: "
        f"{ended.jobs:,} jobs in {ended.seconds:.1f} s, {rate:,.0f} jobs/s"
    )
    if ended.skipped:
        click.echo(f"Left out, because their names are not valid UTF-8: {ended.skipped:,}")
    for line in _closing(root, store):
        click.echo(line)
    store.end(str(root))
    return 0


def _refuse_living_workers(store: Store) -> None:
    """The store is about to be removed: nobody may be working on it.

    Raises:
        StoreInUse: Somebody is.
    """
    import socket

    from mouso import MousoError
    from mouso.demo.jobs import app

    if not store.database.exists():
        return
    try:
        workers = app.workers()
    except MousoError:
        return  # it cannot be read, so there is all the more reason to start afresh
    finally:
        app.close()
    for worker in workers:
        if worker.host == socket.gethostname() and _is_alive(worker.pid):
            who = f"worker {worker.name} (process {worker.pid})"
            raise StoreInUse(f"{who} still works on {store.database}; stop it first")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _closing(root: Path, store: Store) -> Iterator[str]:
    """What is in the dead-letter queue, and how to look at everything."""
    from mouso.demo.jobs import REPORT_ID, app, failures
    from mouso.demo.show import APP

    with app:
        dead = failures()
    if dead:
        yield ""
        yield "In the dead-letter queue:"
        names = [printable(os.path.relpath(failure.path, root)) for failure in dead[:_SHOWN]]
        width = min(max(map(len, names)), 48)
        columns = max(shutil.get_terminal_size((160, 24)).columns, 80)
        for name, failure in zip(names, dead, strict=False):
            line = f"  {name:{width}}  {printable(failure.error)}"
            yield line if len(line) <= columns else f"{line[: columns - 1]}…"
        if len(dead) > _SHOWN:
            yield f"  … and {len(dead) - _SHOWN:,} more"
    yield ""
    yield f"The report: {store.page}, also mailed: {store.mails}{os.sep}"
    yield ""
    mouso = _mouso(store)
    example = dead[0].job if dead else REPORT_ID
    yield "Have a look:"
    yield f"  {mouso} dead {APP}"
    yield f"  {mouso} job {APP} {example}"
    yield f"  {mouso} jobs {APP} --state completed --limit 5"
    yield f"  {mouso} queues {APP}"
    if dead:
        yield "Run a dead job again (Ctrl-C ends the worker):"
        yield f"  {mouso} dead {APP} retry {example}"
        yield f"  {mouso} worker {APP}"


def _mouso(store: Store) -> str:
    """How to call ``mouso`` from here for the demo's store, as one writes it in a shell."""
    words = []
    if str(store.folder) != _DEFAULT_STORE:
        words.append(f"MOUSO_DEMO_STORE={shlex.quote(str(store.folder))}")
    script = Path(sys.executable).parent / "mouso"
    found = shutil.which("mouso")
    if found is not None and Path(found).parent == script.parent:
        words.append("mouso")
    elif script.exists():
        here = Path.cwd()
        shown = script.relative_to(here) if script.is_relative_to(here) else script
        words.append(shlex.quote(str(shown)))
    else:
        words.append(f"{shlex.quote(sys.executable)} -m mouso")
    return " ".join(words)
