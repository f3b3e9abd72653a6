"""Fails when a source file or a function has grown too long to be read at once.

`python -m tools.check_size [folder…]` (default `src`). Limits: 700 lines in a file, 60 in a function,
the function's docstring not counted. The last line tells how large the whole is.
"""

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

FILE_LIMIT = 700
FUNCTION_LIMIT = 60
SUFFIXES = frozenset({".py", ".lua", ".sql"})


def sources(folder: Path) -> list[Path]:
    """Returns every hand-written source file below the folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Returns the lines from `def` to the function's end, less those of its docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def check_file(path: Path, text: str) -> Iterator[str]:
    """Yields one line for the file if it is too long, and one for each function that is."""
    count = len(text.splitlines())
    if count > FILE_LIMIT:
        yield f"{path}:1: {count} lines, at most {FILE_LIMIT}: split the file"
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield f"{path}:{error.lineno}: not Python: {error.msg}"
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (size := function_lines(node)) > FUNCTION_LIMIT:
            yield f"{path}:{node.lineno}: {node.name}() has {size} lines, at most {FUNCTION_LIMIT}: split it"


def code_lines(text: str) -> int:
    """Returns the lines that are neither blank nor only a comment; docstrings count."""
    return sum(1 for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))


def main(arguments: Sequence[str]) -> int:
    """Checks the folders and prints the totals; returns 1 if anything is too long."""
    folders = [Path(name) for name in arguments or ["src"]]
    texts = {path: path.read_text(encoding="utf-8") for folder in folders for path in sources(folder)}
    problems = [problem for path, text in texts.items() for problem in check_file(path, text)]
    for problem in problems:
        print(problem)
    total = sum(len(text.splitlines()) for text in texts.values())
    code = sum(map(code_lines, texts.values()))
    longest, lines = max(
        ((path, len(text.splitlines())) for path, text in texts.items()),
        key=lambda pair: pair[1],
        default=(Path("-"), 0),
    )
    modules = sum(path.suffix == ".py" for path in texts)
    print(f"{modules} modules, {total} lines ({code} of code), longest {longest} with {lines}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
