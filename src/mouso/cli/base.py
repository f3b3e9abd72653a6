"""What the commands that work on an app have in common: which arguments are the APP, and how it is opened.

The APP may stand before a command's own arguments, may be given with -A, or comes from the settings. Job ids and
task names may hold a colon too, so the first argument is the APP

1. never with -A,
2. if it has the form ``module:attribute`` and its module can be found,
3. if it is one more than the command can take,
4. if nothing else names an app, and it has the form of one.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from mouso.config import closest
from mouso.errors import ConfigError

if TYPE_CHECKING:
    from mouso.app import Mouso
    from mouso.brokers import Broker


class Whole(click.ParamType[int]):
    """A whole number of a range."""

    name = "integer"

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and self.least <= int(text) <= self.most):
            option = "" if param is None else param.opts[-1]
            range_ = f"use a whole number from {self.least} to {self.most:,}"
            raise click.UsageError(f"{option} {text!r:.40}: {range_}", ctx)
        return int(text)


class Target:
    """The app that a command was told to work on, and the command's own arguments.

    Attributes:
        path: ``module:attribute``, or None for the one in the settings.
        values: What follows the APP.
    """

    def __init__(self, path: str | None, values: Sequence[str]) -> None:
        self.path = path
        self.values = list(values)

    @contextlib.contextmanager
    def open(self) -> Iterator[Mouso]:
        """Imports the app and closes it in the end. What its modules print goes to stderr: stdout is for answers.

        Raises:
            ConfigError: It cannot be imported, or its broker lives in this process alone.
        """
        with self.imported() as app:
            require_shared(app.broker)
            yield app

    @contextlib.contextmanager
    def imported(self) -> Iterator[Mouso]:
        """``open`` for whatever broker the app has."""
        from mouso.loading import load_app

        with contextlib.redirect_stdout(sys.stderr):
            app = load_app(self.path)
        with app:
            yield app


def require_shared(broker: Broker) -> None:
    """Refuses a broker whose jobs nobody sees but this process, and which are gone when it ends.

    Raises:
        ConfigError: It is one.
    """
    if not broker.capabilities.shared:
        raise ConfigError(f"{broker.url} lives inside one process; name a store such as sqlite:///mouso.db")


class AppCommand(click.Command):
    """A command whose callback takes a ``target``.

    Args:
        values: What follows the APP, as the usage line shows it: ``"ID..."``, ``"QUEUE"``, ``"[ID]..."``.
        words: What the first of them may be, if the choice is limited.
    """

    def __init__(self, *args: Any, values: str = "", words: Sequence[str] = (), **kwargs: Any) -> None:
        from mouso.cli.complete import complete_values

        self.value_names = values.split()
        self.words = words
        super().__init__(*args, **kwargs)
        metavar = f"[APP] {values}".strip()
        self.params = [
            click.Argument(["arguments"], nargs=-1, metavar=metavar, shell_complete=complete_values),
            *self.params,
            click.Option(["-A", "--app"], metavar="APP", help="The app, as module:attribute."),
        ]

    @property
    def least(self) -> int:
        """How many values there must be."""
        return sum(1 for name in self.value_names if not name.startswith("["))

    @property
    def most(self) -> int | None:
        """How many values there can be, None for any number."""
        return None if any(name.endswith("...") for name in self.value_names) else len(self.value_names)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._invoke(ctx)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def _invoke(self, ctx: click.Context) -> Any:
        target = self.split(ctx.params.pop("arguments"), ctx.params.pop("app"))
        if len(target.values) < self.least:
            raise click.UsageError(f"{self.value_names[len(target.values)].removesuffix('...')} is missing", ctx)
        if self.most is not None and len(target.values) > self.most:
            raise click.UsageError(f"{target.values[self.most]!r:.80} is one argument too many", ctx)
        ctx.params["target"] = target
        return super().invoke(ctx)

    def split(self, arguments: Sequence[str], app: str | None) -> Target:
        """Tells the APP from the values; see the module's text.

        Raises:
            ConfigError: The settings cannot be read.
        """
        if app is not None or not arguments:
            return Target(app, arguments)
        from mouso.loading import looks_like_app, module_exists

        first = arguments[0]
        complete = looks_like_app(first)
        named = Target(first, arguments[1:])
        if complete and module_exists(first):
            return named
        if self.words and complete and not closest(first, self.words):
            return named
        if self.most is not None and len(arguments) == self.most + 1:
            return named
        if len(arguments) <= self.least or _settings_name_app():
            return Target(None, arguments)
        if complete or (looks_like_app(first, attribute=False) and module_exists(first)):
            return named
        return Target(None, arguments)


def _settings_name_app() -> bool:
    from mouso.loading import locate_app

    try:
        locate_app(None)
    except ConfigError as error:
        if str(error).startswith("no app is named"):
            return False
        raise
    return True


def app_command(
    values: str = "", *, example: str, words: Sequence[str] = (), json: bool = True, **settings: Any
) -> Callable[[Callable[..., Any]], AppCommand]:
    """Makes a command of a function ``(target, …)``, named like it; see ``AppCommand``.

    Args:
        example: A line for the help.
        json: Whether it has the option ``--json``, and the function the parameter ``as_json``.
    """

    def decorate(function: Callable[..., Any]) -> AppCommand:
        if json:
            function = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)
        make = click.command(cls=AppCommand, values=values, words=words, epilog=f"Example: {example}", **settings)
        command = make(function)
        assert isinstance(command, AppCommand)
        return command

    return decorate
