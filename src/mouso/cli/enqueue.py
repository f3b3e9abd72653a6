"""``mouso enqueue``."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from mouso import reveal
from mouso.cli.base import Target, app_command
from mouso.cli.complete import complete_option
from mouso.cli.output import is_terminal, say, write_json
from mouso.cli.payload import json_object, positional, restore
from mouso.cli.records import job_document
from mouso.cli.report import Failed, explain, note
from mouso.clock import seconds
from mouso.config import closest, printable
from mouso.errors import JobCancelled, JobFailed, OptionError, ResultTimeout
from mouso.job import JobState
from mouso.loading import load_app, looks_like_app

if TYPE_CHECKING:
    from mouso.app import Mouso
    from mouso.brokers.base import JobUpdate
    from mouso.handle import JobHandle
    from mouso.task import Task

_NUMBER = re.compile(r"-(?:\d|\.\d|Infinity)")


@app_command(
    "TASK [JSON]...",
    example="""mouso enqueue shop:app send_email '"a@b.c"' --kwargs '{"subject": "Hi"}' --delay 10m""",
    context_settings={"ignore_unknown_options": True},  # a negative number is an argument, see _check_options
)
@click.option("--kwargs", metavar="JSON", help="Arguments by name, a JSON object.")
@click.option("--queue", shell_complete=complete_option, help="Another queue than the task's own.")
@click.option("--priority", metavar="N", help="-100 to 100, higher first.")
@click.option("--delay", metavar="DURATION", help="Start no earlier than after this time, such as 90s or 1h30m.")
@click.option("--eta", metavar="TIME", help="Start no earlier than at this time, such as 2030-01-31T08:00+01:00.")
@click.option("--expires", metavar="DURATION|TIME", help="Do not start later than that.")
@click.option("--id", "job_id", help="The job's id; the same id again is the same job.")
@click.option("--unique", metavar="KEY", help="A key that one live job at most may hold.")
@click.option("--attempts", metavar="N", help="Runs in all; 1 means no retry.")
@click.option("--timeout", metavar="DURATION", help="Time limit of each attempt.")
@click.option(
    "--wait",
    is_flag=True,
    help="Wait for the end and print the result as JSON; with --json, that of a failure is the job.",
)
@click.option("--wait-timeout", metavar="DURATION", help="Wait no longer than that; implies --wait.")
@click.pass_context
def enqueue(
    ctx: click.Context,
    /,
    target: Target,
    kwargs: str | None,
    wait: bool,
    wait_timeout: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Enqueue a job and print its id. Each argument is a JSON value: 3, true, '"text"', '{"a": [1, 2]}'."""
    name, *texts = target.values
    _check_options(ctx, [name, *texts])
    options = _options(given)
    if wait_timeout is not None:
        _duration("wait-timeout", wait_timeout)
    with target.open() as app:
        task = _task(app, name)
        args = positional(task, texts, app.redaction.hides)
        named = {} if kwargs is None else json_object(kwargs, "--kwargs")
        args_, kwargs_ = restore(task, args, named)
        handle = task.options(**options).delay(*args_, **kwargs_)
        if wait or wait_timeout is not None:
            try:
                result = _result(app, handle, wait_timeout)
            except (JobFailed, JobCancelled, ResultTimeout):
                if as_json:
                    _answer(handle, write_json, job_document(app, handle.record, full=True))
                raise
            _answer(handle, write_json, result)
        elif as_json:
            _answer(handle, write_json, {"id": handle.id, "task": task.name})
        else:
            _answer(handle, say, handle.id)


def _answer(handle: JobHandle[Any], write: Callable[[Any], None], answer: Any) -> None:
    """Writes to stdout.

    Raises:
        Failed: It cannot be written; says that the job is stored all the same.
    """
    try:
        write(answer)
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # whoever read the output has seen enough
    except OSError as error:
        raise Failed(f"{explain(error)[1]}; the job is stored, its id is {handle.id}") from error


def _task(app: Mouso, name: str) -> Task[..., Any]:
    if name not in app.tasks and looks_like_app(name):
        load_app(name)  # a mistyped APP; this raises the error that says so
    return app.find_task(name)


def _check_options(ctx: click.Context, values: list[str]) -> None:
    """Refuses mistyped options, which click has left among the arguments."""
    for value in values:
        if value.startswith("-") and len(value) > 1 and not _NUMBER.match(value):
            option = value.partition("=")[0]
            known = [name for param in ctx.command.params for name in param.opts]
            if option in known:
                raise click.UsageError(f"{option} stands behind '--', among the job's arguments; put it before", ctx)
            hint = closest(option, known)
            raise click.UsageError(f"no option is called {option!r:.80}; {hint}".rstrip("; "), ctx)


def _options(given: dict[str, Any]) -> Any:
    """The options of the job, as ``Task.options`` takes them."""
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if "job_id" in options:
        options["id"] = options.pop("job_id")
    for name in ("priority", "attempts"):
        if name in options:
            options[name] = _integer(name, options[name])
    if "eta" in options:
        options["eta"] = _time("eta", options["eta"])
    if re.match(r"\d{4}-", options.get("expires", "")):
        options["expires"] = _time("expires", options["expires"])
    return options


def _integer(name: str, text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
        raise OptionError(f"--{name} {text!r:.40} is no whole number")
    return int(text)


def _duration(name: str, text: str) -> None:
    try:
        seconds(text, f"--{name}")
    except ValueError as error:
        raise OptionError(str(error)) from None


def _time(name: str, text: str) -> datetime:
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise OptionError(f"--{name} {text!r:.40} is no time; write it as 2030-01-31T08:00:00+01:00") from None
    if value.utcoffset() is None:
        raise OptionError(f"--{name} {text!r:.40} has no time zone; add +01:00, or Z for UTC")
    return value


def _result(app: Mouso, handle: JobHandle[Any], timeout: str | None) -> Any:
    """Waits, and returns the result as plain JSON types."""
    if not app.workers():
        note("no worker is running yet; the job waits for one")
    with _progress(handle.id) as show:
        for update in handle.watch(timeout):
            show(update)
    record = handle.refresh().record
    if record.state is not JobState.COMPLETED:
        handle.get(timeout=5)  # raises what became of it
    return reveal.result(app, record, redact=False)


@contextlib.contextmanager
def _progress(job_id: str) -> Iterator[Callable[[JobUpdate], None]]:
    """Shows state and progress of the job on stderr, if a person looks."""
    if not is_terminal(sys.stderr):
        yield lambda update: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as progress:
        bar = progress.add_task(job_id, total=None)

        def show(update: JobUpdate) -> None:
            done = update.progress
            text = f"{job_id} {update.state}{f' {done.message}' if done and done.message else ''}"
            progress.update(
                bar,
                description=escape(printable(text)),
                completed=done.done if done else 0,
                total=done.total if done else None,
            )

        yield show
