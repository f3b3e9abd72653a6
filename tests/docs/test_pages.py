"""Every snippet of README and documentation runs, in the order of its page, and prints what the page says.

* ``python``: a block whose first line is ``# name.py`` is that file; any other runs after those before it.
* ``console``: lines after ``$`` are run, and the lines below must be in the output, in their order. ``mouso worker``
  goes to the background; ``^C`` stops it.
* ``sh``: commands for another machine; those of ``mouso`` must parse.
* ``toml``: ``# pyproject.toml`` is that file. ``sql`` is asked of the page's ``mouso.db``.
* Any other language must be one that nothing can be said about.
"""

import re
import shlex
import signal
import sqlite3
import tomllib
from pathlib import Path

import click
import pytest

from mouso.cli import cli
from tests.docs.markdown import ROOT, Block, blocks, pages
from tests.docs.scratch import Scratch, normal

LANGUAGES = {"python", "console", "sh", "toml", "sql", "test"}
SILENT = {"text", "ini", "yaml", "json"}
ELSEWHERE = {"pip", "git", "cd", "systemctl", "journalctl", "kill", ".venv/bin/pytest", ".venv/bin/python"}
"""Programs that a page may name and that no test runs."""
WITH_CODE = [page for page in pages() if any(block.kind in LANGUAGES for block in blocks(page))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_snippets_run(page: Path, scratch: Scratch) -> None:
    for block in blocks(page):
        where = f"{name(page)}:{block.line}"
        match block.kind:
            case "test":
                assert block.text.startswith("worker "), f"{where}: unknown order {block.text!r}"
                scratch.worker(f"mouso {block.text}")
            case "python" | "toml" if block.file is not None:
                scratch.write(block.file[0], block.text, more=block.file[1])
            case "python":
                scratch.python(block.text, name(page), block.line)
            case "console":
                run_console(block, where, scratch)
            case "sh":
                for line in joined_lines(block.text):
                    check_command(line, where)
            case "toml":
                tomllib.loads(block.text)
            case "sql":
                run_sql(block.text, scratch.folder / "mouso.db")
            case _:
                pass  # test_languages_are_known says which


@pytest.mark.parametrize("page", pages(), ids=name)
def test_languages_are_known(page: Path) -> None:
    for block in blocks(page):
        assert block.kind.startswith("{") or block.kind in LANGUAGES | SILENT, f"{name(page)}:{block.line}"


def run_console(block: Block, where: str, scratch: Scratch) -> None:
    """Runs the commands of a block and looks for the output below each."""
    for command, expected in commands(block.text):
        words = shlex.split(command, comments=True)
        if command == "^C":
            scratch.stop_workers(signal.SIGINT)
        elif words[:2] == ["mouso", "worker"] and "--help" not in words:
            scratch.worker(command)
        elif words[0] in ELSEWHERE:
            continue
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{where}: {command}"
        else:
            code, output = scratch.shell(command)
            failure = any(line.startswith("mouso: error:") for line in expected)
            failure |= words[0] == "grep" and code == 1  # it found nothing, and the page shows that
            assert (code != 0) is failure, f"{where}: {command!r} ended with {code}:\n{output}{scratch.logs()}"
            look_for(expected, output, f"{where}: {command}")


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Commands with the lines that the page shows below them."""
    found: list[tuple[str, list[str]]] = []
    for line in joined_lines(text):
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line == "^C":
            found.append((line, []))
        else:
            found[-1][1].append(line)
    return found


def joined_lines(text: str) -> list[str]:
    """Lines, those that end in a backslash joined with the next."""
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip() and not line.startswith("#")]


def look_for(expected: list[str], output: str, where: str) -> None:
    """Fails unless the lines stand in the output, in this order; ``…`` stands for any lines, or any rest of one."""
    rest = [normal(line) for line in output.splitlines()]
    for line in expected:
        wanted = normal(line)
        if wanted == "…":
            continue
        start = wanted.removesuffix("…").rstrip()
        while rest:
            found = rest.pop(0)
            if found == wanted or (wanted.endswith("…") and found.startswith(start)):
                break
        else:
            pytest.fail(f"{where}: no line\n    {line}\nin its place in\n{output}")


def check_command(line: str, where: str) -> None:
    """Fails if a command of ``mouso`` cannot be parsed, or if it is one of an unknown program."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] in ELSEWHERE or words[0] == "make":
        return
    assert words[0] == "mouso", f"{where}: who knows {words[0]!r}?"
    try:
        with cli.make_context("mouso", words[1:]) as context:
            _, command, rest = cli.resolve_command(context, words[1:])
            assert command is not None
            command.make_context(words[1], rest, parent=context)
    except click.exceptions.Exit:
        pass  # --help and --version
    except click.UsageError as error:
        pytest.fail(f"{where}: {line}: {error.format_message()}")


def run_sql(text: str, store: Path) -> None:
    """Asks the page's store."""
    connection = sqlite3.connect(store)
    try:
        for statement in text.split(";\n"):
            connection.execute(statement)
    finally:
        connection.close()
