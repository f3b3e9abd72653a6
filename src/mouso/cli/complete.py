"""What the shell offers when the tab key is pressed. Whatever goes wrong, it offers nothing and says nothing."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

if TYPE_CHECKING:
    from mouso.app import Mouso
    from mouso.cli.base import AppCommand


@add_completion_class
class Bash(BashComplete):
    """Takes the line as it is typed: bash splits words at ``:``, which every APP has in it."""

    source_template = BashComplete.source_template.replace(
        'COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD',
        'COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS"',
    )

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)[1:]
        return (words, "") if line.endswith((" ", "\t")) or not words else (words[:-1], words[-1])

    def format_completion(self, item: CompletionItem[Any]) -> str:
        typed, colon, _ = self.get_completion_args()[1].rpartition(":")
        known = typed + colon if ":" in os.environ.get("COMP_WORDBREAKS", ":") else ""
        return f"{item.type},{item.value.removeprefix(known)}"


def complete_values(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offers task names, queue names or words for the argument that is being typed."""
    return _complete(ctx, None, incomplete)


def complete_option(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offers what fits the option ``--task``, ``--queue`` or ``--state``."""
    return _complete(ctx, (param.name or "").upper(), incomplete)


def _complete(ctx: click.Context, kind: str | None, incomplete: str) -> list[CompletionItem]:
    from mouso.cli.base import AppCommand

    command = ctx.command
    if not isinstance(command, AppCommand):
        return []
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            found = _candidates(command, ctx, kind, incomplete)
    except Exception:
        return []
    return [CompletionItem(name) for name in found if name.startswith(incomplete)]


def _candidates(command: AppCommand, ctx: click.Context, kind: str | None, incomplete: str) -> Iterable[str]:
    # Before the value of an option there are no params yet, only the arguments that were read so far.
    target = command.split(ctx.params.get("arguments") or ctx.args, ctx.params.get("app"))
    if kind is None:
        if command.words and not target.values:
            return command.words
        if not command.value_names:
            return ()
        kind = command.value_names[min(len(target.values), len(command.value_names) - 1)].strip("[].")
    match kind:
        case "STATE":
            from mouso.job import JobState

            return list(JobState)
        case "TASK":
            with target.open() as app:
                return _task_names(app, incomplete)
        case "QUEUE":
            with target.open() as app:
                return [queue.name for queue in app.queues()] if _is_there(app) else ()
        case _:
            return ()


def _task_names(app: Mouso, incomplete: str) -> list[str]:
    """Full names of tasks; where none begins so, the short ones that commands take as well."""
    full = sorted(name for name in app.tasks if name.startswith(incomplete))
    short = Counter(name.rpartition(".")[2] for name in app.tasks)
    return full or sorted(name for name, count in short.items() if count == 1)


def _is_there(app: Mouso) -> bool:
    """Whether the store exists: a press of the tab key must not create it."""
    from mouso.urls import BrokerURL

    url = BrokerURL.parse(app.broker_url)
    return url.scheme != "sqlite" or os.path.exists(url.path)
