"""Measures one file of Python: its lines by kind, its functions, and how complex they are."""

from __future__ import annotations

import ast
import importlib.util
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

from mouso.demo.source import read_file

MOST_BYTES = 2 << 20
_WORST = 8
_MOST_IMPORTS = 200

_EMPTY_TOKENS = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler)
_LEAVES = (ast.Constant, ast.Name, ast.alias, ast.expr_context, ast.operator, ast.cmpop, ast.boolop, ast.unaryop)


class TooLarge(Exception):
    """A file of this size was made by a program, not written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionFacts:
    """A function: its name with that of its class, first line, number of lines, and cyclomatic complexity."""

    name: str
    line: int
    lines: int
    complexity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What is known of a file.

    Attributes:
        size: Bytes.
        lines: All lines; they are the sum of the next four.
        code: Lines that hold code.
        docs: Lines of docstrings.
        comments: Lines that hold a comment and nothing else.
        blank: Empty lines.
        classes: How many classes.
        complexities: Of each function, in the order of the file.
        functions: The most complex ones.
        imports: Top-level names of the modules that it imports, sorted.
        licence: Set by the job, not by ``measure``.
    """

    path: str
    size: int
    lines: int
    code: int
    docs: int
    comments: int
    blank: int
    classes: int
    complexities: list[int]
    functions: list[FunctionFacts]
    imports: list[str]
    licence: str = ""


def measure(path: str) -> FileFacts:
    """Reads and measures a file.

    Raises:
        SyntaxError, ValueError: It is not Python (of this version).
        RecursionError, MemoryError: It is nested too deeply.
        Unreadable, TooLarge: It cannot or should not be read.
        OSError: Reading it failed, but may work the next time.
    """
    content = read_file(path, MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise TooLarge(f"more than {MOST_BYTES >> 20} MiB")
    return measure_text(path, importlib.util.decode_source(content), len(content))


def measure_text(path: str, text: str, size: int = 0) -> FileFacts:
    """Measures source text with ``\\n`` line ends."""
    tree = ast.parse(text, path)
    lines = text.count("\n") + (not text.endswith("\n") and text != "")
    docs: set[int] = set()
    imports: set[str] = set()
    classes = 0
    functions: list[FunctionFacts] = []
    for node in _walk(tree, functions):
        match node:
            case ast.ClassDef():
                classes += 1
            case ast.Import(names=names):
                imports.update(alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str() as module, level=0):
                imports.add(module.partition(".")[0])
            case _:
                pass
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docs.update(_docstring_lines(node))
    code, comments = _lines_by_kind(text)
    docs -= {line for line in docs if line > lines}
    comments -= code | docs
    code -= docs
    functions.sort(key=lambda function: function.line)
    worst = sorted(functions, key=lambda function: -function.complexity)[:_WORST]
    return FileFacts(
        path=path,
        size=size,
        lines=lines,
        code=len(code),
        docs=len(docs),
        comments=len(comments),
        blank=lines - len(code) - len(docs) - len(comments),
        classes=classes,
        complexities=[function.complexity for function in functions],
        functions=worst,
        imports=sorted(imports)[:_MOST_IMPORTS],
    )


def _walk(tree: ast.Module, functions: list[FunctionFacts]) -> Iterator[ast.AST]:
    """Yields every node but the leaves, and adds each function when all of it was seen.

    Without recursion: a file may be nested more deeply than Python's stack. What belongs to a function is put on the
    stack above a mark (the function itself, a second time), so the mark comes up when it is complete.
    """
    stack: list[tuple[ast.AST, str]] = [(tree, "")]
    counts: list[tuple[ast.AST, int]] = [(tree, 0)]
    while stack:
        node, scope = stack.pop()
        if isinstance(node, _FUNCTIONS):
            if counts[-1][0] is node:
                functions.append(_facts(node, scope, counts.pop()[1]))
                continue
            counts.append((node, 0))
            scope = f"{scope}.{node.name}" if scope else node.name
            stack.append((node, scope))
        elif isinstance(node, ast.ClassDef):
            scope = f"{scope}.{node.name}" if scope else node.name
        elif decisions := _decisions(node):
            owner, count = counts[-1]
            counts[-1] = owner, count + decisions
        yield node
        stack.extend((child, scope) for child in ast.iter_child_nodes(node) if not isinstance(child, _LEAVES))


def _facts(node: ast.FunctionDef | ast.AsyncFunctionDef, name: str, decisions: int) -> FunctionFacts:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    return FunctionFacts(name=name, line=node.lineno, lines=lines, complexity=decisions + 1)


def _decisions(node: ast.AST) -> int:
    """By how much a node raises the cyclomatic complexity of its function (McCabe 1976)."""
    match node:
        case ast.BoolOp(values=values):
            return len(values) - 1
        case ast.comprehension(ifs=ifs):
            return 1 + len(ifs)
        case ast.match_case(pattern=pattern, guard=guard):
            catches_all = isinstance(pattern, ast.MatchAs) and pattern.pattern is None and guard is None
            return 0 if catches_all else 1
        case _:
            return int(isinstance(node, _BRANCHES))


def _docstring_lines(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> range:
    match node.body[:1]:
        case [ast.Expr(value=ast.Constant(value=str()) as text)]:
            return range(text.lineno, (text.end_lineno or text.lineno) + 1)
        case _:
            return range(0)


def _lines_by_kind(text: str) -> tuple[set[int], set[int]]:
    """Numbers of the lines that hold code, and of those that hold a comment."""
    code: set[int] = set()
    comments: set[int] = set()
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                comments.add(token.start[0])
            elif token.type not in _EMPTY_TOKENS:
                first, last = token.start[0], token.end[0]
                if first == last:
                    code.add(first)
                else:
                    code.update(range(first, last + 1))
    except tokenize.TokenError:
        pass  # the parser, which decides, took it
    return code, comments
