"""The ``mouso`` command.

1. ``main`` mends closed standard streams, so that no file or socket is ever opened in their place, and forgets a size
   of the terminal that is none.
2. The command's own module is imported, and no other: ``mouso --version`` needs neither the brokers nor rich.
3. Whatever goes wrong becomes one line on stderr and an exit code (``mouso.cli.report``); Ctrl-C is a quiet 130.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TextIO

from mouso.cli.interrupt import early_end, quiet_interrupts

with quiet_interrupts():
    import click
    from click.shell_completion import CompletionItem


class Entry(NamedTuple):
    """Where a command is defined, and what ``mouso --help`` says of it."""

    module: str
    attribute: str
    help: str


SECTIONS: Mapping[str, Mapping[str, Entry]] = {
    "Run": {
        "worker": Entry("mouso.cli.worker", "worker", "Run jobs, until told to stop."),
        "demo": Entry("mouso.demo.command", "demo", "See it all work: a worker and sample jobs."),
    },
    "Look": {
        "jobs": Entry("mouso.cli.show", "jobs", "List jobs, the last enqueued first."),
        "job": Entry("mouso.cli.job", "job", "Show everything about one job."),
        "queues": Entry("mouso.cli.show", "queues", "Count the jobs of every queue by state."),
        "workers": Entry("mouso.cli.show", "workers", "List the workers that are alive."),
        "doctor": Entry("mouso.cli.doctor", "doctor", "Find what is wrong, or about to be."),
    },
    "Act": {
        "enqueue": Entry("mouso.cli.enqueue", "enqueue", "Enqueue a job, and wait for its result if asked."),
        "cancel": Entry("mouso.cli.act", "cancel", "Cancel jobs."),
        "retry": Entry("mouso.cli.act", "retry", "Run dead, cancelled or expired jobs again."),
        "delete": Entry("mouso.cli.act", "delete", "Delete jobs for good."),
        "dead": Entry("mouso.cli.dead", "dead", "List, retry or delete dead jobs."),
        "pause": Entry("mouso.cli.queue", "pause", "Stop workers from taking jobs of a queue."),
        "resume": Entry("mouso.cli.queue", "resume", "End a pause."),
        "purge": Entry("mouso.cli.queue", "purge", "Delete all waiting jobs of a queue."),
    },
    "Set up": {
        "migrate": Entry("mouso.cli.migrate", "migrate", "Bring the store's schema up to date."),
        "completion": Entry("mouso.cli.completion", "completion", "Print the completion script of a shell."),
    },
}
"""``{section: {command: entry}}``, in the order of ``mouso --help``."""

COMMANDS: Mapping[str, Entry] = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class Commands(click.Group):
    """The commands by name, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        with quiet_interrupts():
            command = getattr(importlib.import_module(entry.module), entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            from mouso.config import closest

            hint = closest(name, COMMANDS) or f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command is called {name!r:.80}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            name = ctx.invoked_subcommand
            if error.ctx is None and name is not None and (command := self.get_command(ctx, name)) is not None:
                error.ctx = click.Context(command, parent=ctx, info_name=name)  # whose help tells of its options
            raise

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=entry.help) for name, entry in COMMANDS.items() if name.startswith(incomplete)
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name, entry.help) for name, entry in commands.items()])


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from mouso import __version__

        click.echo(f"mouso {__version__}")
        ctx.exit()


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: mouso worker shop:app",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show it.")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Background jobs that are never lost.

    APP is module:attribute, such as shop:app. It can be left out when $MOUSO_APP names it, or app = "shop:app" under
    [tool.mouso] in pyproject.toml. An argument of this form is the APP if its module can be found; with -A/--app, no
    argument is.

    Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 75 the broker cannot be reached.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: Without the program's name; default: ``sys.argv[1:]``.

    Returns:
        The exit code.
    """
    _mend_streams()
    _mend_size()
    given = list(sys.argv[1:] if args is None else args)
    try:
        with early_end(given):
            code = _run(given)
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        _silence(sys.stdout)  # whoever read the output has seen enough
        return 0
    except Exception as error:
        from mouso.cli.report import report

        code = report(error)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                _silence(stream)  # or Python would try again when it exits, and complain
    return code


def _run(args: list[str]) -> int:
    if instruction := os.environ.get("_MOUSO_COMPLETE"):
        from click.shell_completion import shell_complete

        from mouso.cli import complete as complete  # it teaches click about bash

        return shell_complete(cli, {}, "mouso", "_MOUSO_COMPLETE", instruction)
    try:
        with cli.make_context("mouso", args) as ctx:
            code = cli.invoke(ctx)
    except click.exceptions.Exit as error:
        return error.exit_code
    return code if isinstance(code, int) else 0


def _mend_streams() -> None:
    """Opens standard streams that the caller closed on the null device, and lets no character stop the output."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            os.set_inheritable(null, True)  # or a worker's children would have none, and give the number to a file
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _mend_size() -> None:
    """Forgets ``$COLUMNS`` and ``$LINES`` that are no size, over which rich stumbles: then it asks the terminal."""
    for name in ("COLUMNS", "LINES"):
        if not re.fullmatch("[1-9][0-9]{0,8}", os.environ.get(name, "1")):
            del os.environ[name]


def _silence(stream: TextIO) -> None:
    """Sends what is still buffered, and all that follows, nowhere."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except OSError:
        pass
