"""``mouso worker``. The app itself is imported by the worker's children, never here."""

from __future__ import annotations

import math
from typing import Any

import click

from mouso.cli.base import Target, Whole, app_command
from mouso.clock import seconds
from mouso.config import LIMITS, closest, parse_queues, project_settings
from mouso.errors import ConfigError
from mouso.isolation import LEAST_MEMORY, size

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
OUTPUTS = ("tagged", "raw")


class Size(click.ParamType[int]):
    """A number of bytes, or a text such as 500MB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        try:
            number = size(text, "--max-memory-per-child")
        except ValueError as error:
            raise click.UsageError(str(error), ctx) from None
        if number < LEAST_MEMORY:
            raise click.UsageError(f"--max-memory-per-child {text!r:.40}: a child needs 16MiB or more", ctx)
        return number


class Between(click.ParamType[tuple[int, int]]):
    """Two numbers of processes."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        least, most = LIMITS["processes"]
        words = str(value).split(",")
        if len(words) == 2 and all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words):
            low, high = (int(word) for word in words)
            if least <= low <= high <= most:
                return low, high
        raise click.UsageError(
            f"--autoscale {value!r:.40}: use MIN,MAX with {least} <= MIN <= MAX <= {most:,}, such as 1,8", ctx
        )


class Grace(click.ParamType[float]):
    """A duration within the limits of the grace."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        low, high = LIMITS["grace"]
        text = str(value)
        try:
            number = math.nan if text.lstrip().startswith("-") else seconds(text, "--grace")
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise click.UsageError(f"--grace {text!r:.40}: use {low} to {high:,} seconds, or a text such as 5m", ctx)
        return number


class Word(click.ParamType[str]):
    """One of a few words."""

    name = "word"

    def __init__(self, *words: str) -> None:
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        word = str(value).lower()
        if word not in self.words:
            hint = closest(word, self.words) or f"there are {', '.join(self.words)}"
            raise click.UsageError(f"{'' if param is None else param.opts[0]} {value!r:.40}: {hint}", ctx)
        return word


def _health(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        from mouso.observe.health import parse_address

        try:
            parse_address(value)
        except ConfigError as error:
            raise click.UsageError(f"--health {error}", ctx) from None
    return value


@app_command(example="mouso worker shop:app -Q mail=3,default -p 4 -c 16", json=False)
@click.option("-Q", "--queues", metavar="QUEUES", help="Queues with their weights, mail=3,default; default: all.")
@click.option("--strict", is_flag=True, help="Serve the queues in the order given, not in turn.")
@click.option("-p", "--processes", type=Whole(*LIMITS["processes"]), help="Child processes; default: the usable CPUs.")
@click.option("-c", "--concurrency", type=Whole(*LIMITS["concurrency"]), help="Jobs at once in each child; default: 8.")
@click.option("--preload", is_flag=True, help="Import the app once; the children are copies and share its memory.")
@click.option("--max-jobs-per-child", metavar="N", type=Whole(*LIMITS["max-jobs-per-child"]),
              help="Replace a child after so many jobs; default: never.")  # fmt: skip
@click.option("--max-memory-per-child", metavar="SIZE", type=Size(),
              help="Replace a child that has more than this resident, 500MB; default: never.")  # fmt: skip
@click.option("--autoscale", metavar="MIN,MAX", type=Between(),
              help="Between so many processes, by queue wait, CPU and memory; in place of -p.")  # fmt: skip
@click.option("--reload", is_flag=True, help="Replace the children when the app's code changes; for development.")
@click.option("--grace", type=Grace(), help="Time for running jobs to end at shutdown; default: 25 s.")
@click.option("--name", help="What to call it, with a number if another has the name; default: host and process id.")
@click.option("--health", metavar="HOST:PORT", callback=_health,
              help="Answer /live, /ready and /metrics over HTTP there; default: nowhere.")  # fmt: skip
@click.option("--log-level", default="info", type=Word(*LEVELS), help="debug, info (default), warning or error.")
@click.option("--log-format", default="text", type=Word(*FORMATS), help="text (default), or json: one object a line.")
@click.option("--output", default="tagged", type=Word(*OUTPUTS),
              help="What tasks print: tagged (default), each line with the job's id, or raw.")  # fmt: skip
def worker(
    target: Target,
    queues: str | None,
    strict: bool,
    processes: int | None,
    concurrency: int | None,
    preload: bool,
    max_jobs_per_child: int | None,
    max_memory_per_child: int | None,
    autoscale: tuple[int, int] | None,
    reload: bool,
    grace: float | None,
    name: str | None,
    health: str | None,
    log_level: str,
    log_format: str,
    output: str,
) -> int:
    """Run jobs until told to stop (SIGTERM or Ctrl-C; SIGQUIT dumps all stacks).

    Queues, processes, concurrency and grace that are not given here come from [tool.mouso] in pyproject.toml.
    """
    from mouso.loading import locate_app
    from mouso.worker import WorkerOptions, run

    app, folder = locate_app(target.path)
    settings = project_settings(folder)
    chosen = queues if queues is not None else settings.queues
    if strict and chosen is None:
        raise click.UsageError("--strict needs the queues in their order: -Q mail,default")
    if name is not None and not (0 < len(name) <= 100 and name.isprintable()):
        raise click.UsageError(f"--name {name!r:.80}: use 1 to 100 printable characters")
    options: dict[str, Any] = {
        "processes": processes if processes is not None else settings.processes,
        "concurrency": concurrency if concurrency is not None else settings.concurrency,
        "grace": grace if grace is not None else settings.grace,
    }
    if autoscale is not None and processes is not None:
        raise click.UsageError("--autoscale says how many processes there are; leave --processes out")
    return run(
        WorkerOptions(
            app=app,
            preload=preload,
            max_jobs_per_child=max_jobs_per_child,
            max_memory_per_child=max_memory_per_child,
            autoscale=autoscale,
            reload=reload,
            folder="" if folder is None else str(folder),
            queues=None if chosen is None else parse_queues(chosen),
            strict=strict,
            name=name,
            log_level=log_level,
            log_format=log_format,
            output=output,
            health=health,
            **{key: value for key, value in options.items() if value is not None},
        )
    )
