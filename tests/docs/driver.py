"""Runs the Python snippets of one page, in one process and one namespace: ``python driver.py``.

Each line on stdin is ``[file, first line, code]`` as JSON, each line on stdout the answer: null, or what went wrong. A
statement that ends in ``# -> text`` is checked: its value's ``repr``, what it printed, or the exception it raised as
``Type: message`` must be that text; a ``…`` at the end stands for any rest. ``await`` is allowed, as in
``python -m asyncio``.
"""

import ast
import asyncio
import contextlib
import inspect
import io
import json
import os
import re
import sys
import traceback
from typing import Any

_CHECK = re.compile(r"#\s*->\s*(?P<expected>\S.*?)\s*$")


class Wrong(Exception):
    """A statement did something else than the page says."""


def run(code: str, file: str, line: int, namespace: dict[str, Any], loop: asyncio.AbstractEventLoop) -> None:
    """Runs one snippet."""
    tree = ast.parse(code)
    lines = code.splitlines()
    checks = {number for number, text in enumerate(lines, 1) if _CHECK.search(text)}
    for statement in tree.body:
        end = statement.end_lineno or statement.lineno
        found = _CHECK.search(lines[end - 1])
        checks.discard(end)
        ast.increment_lineno(statement, line - 1)
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                value = evaluate(statement, file, namespace, loop)
        except Exception as error:
            if found is None:
                raise
            actual = f"{type(error).__name__}: {error}"
        else:
            actual = printed.getvalue().strip() if value is None and printed.getvalue() else repr(value)
        sys.stderr.write(printed.getvalue())
        if found is not None and not matches(found["expected"], actual):
            raise Wrong(f"{file}:{line + end - 1}: the page says\n    {found['expected']}\nand it is\n    {actual}")
    if checks:
        raise Wrong(f"{file}:{line + min(checks) - 1}: only the last line of a top-level statement can be checked")


def evaluate(statement: ast.stmt, file: str, namespace: dict[str, Any], loop: asyncio.AbstractEventLoop) -> Any:
    """Runs one statement and returns its value, if it is an expression."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    if isinstance(statement, ast.Expr):
        code = compile(ast.Expression(statement.value), file, "eval", flags=flags)
    else:
        code = compile(ast.Module([statement], []), file, "exec", flags=flags)
    value = eval(code, namespace)
    return loop.run_until_complete(value) if code.co_flags & inspect.CO_COROUTINE else value


def matches(expected: str, actual: str) -> bool:
    """Whether they are the same, up to a closing ``…``."""
    return actual.startswith(expected[:-1]) if expected.endswith("…") else actual == expected


def main() -> None:
    """Answers until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what subprocesses print goes to the log
    sys.path.insert(0, os.getcwd())
    namespace: dict[str, Any] = {"__name__": "page"}
    with asyncio.Runner() as runner:
        for request in sys.stdin:
            file, line, code = json.loads(request)
            problem = None
            try:
                run(code, file, line, namespace, runner.get_loop())
            except Wrong as error:
                problem = str(error)
            except BaseException:
                problem = traceback.format_exc()
            answers.write(json.dumps(problem) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
