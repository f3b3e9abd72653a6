"""Fails when a file breaks a house rule: `python -m tools.check_house`, in the project's root.

* A suppression (`type: ignore`, `pyright: ignore`, `noqa`) names its codes and says why, on its line.
* A test that is skipped or expected to fail says why.
* No path of one machine, no lock file, no host name of a package registry: the project installs
  anywhere, from whatever index the reader uses.

Checked are the files that git tracks, and those that it would if they were added.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path, PurePath

LOCK_FILES = frozenset(
    {
        "uv.lock",
        "poetry.lock",
        "Pipfile.lock",
        "pdm.lock",
        "pylock.toml",
        "package-lock.json",
        "npm-shrinkwrap.json",
        "yarn.lock",
        "pnpm-lock.yaml",
        "bun.lock",
        "bun.lockb",
    }
)
# No word, dot or bracket before the slash: that would be a URL or a path below a variable.
MACHINE_PATH = re.compile(r"(?<![\w.)}>~-])/(?:root|work|farm|(?:home|Users)/[\w.-]+)/")
REGISTRY = re.compile(r"\b(?:pypi\.org|(?:files\.)?pythonhosted\.org|registry\.(?:npmjs\.org|yarnpkg\.com))\b")
MARKER = re.compile(r"\b(?:type:\s*ignore|pyright:\s*ignore|noqa\b)")
DIRECTIVE = re.compile(r"(?:(?:type|pyright):\s*ignore\[[\w\s,.-]+\]|noqa:\s*[A-Z]+\d+(?:[\s,]+[A-Z]+\d+)*)")


def lacks_reason(comment: str) -> str | None:
    """Returns what is wrong with a suppressing comment; None for any other and for a good one."""
    if not MARKER.search(comment):
        return None
    rest = DIRECTIVE.sub("", comment)
    if MARKER.search(rest):
        return "name the codes that are suppressed: `type: ignore[code]` or `noqa: CODE`"
    reason = re.sub(r"^why:?", "", rest.replace("#", " ").strip(" -—:"), flags=re.IGNORECASE)
    if len(reason.split()) < 2:
        return "say why after the suppression: `# why: …`"
    return None


def check_comments(text: str) -> Iterator[tuple[int, str]]:
    """Yields (line, problem) for each suppression in Python source that has no reason."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and (problem := lacks_reason(token.string)):
                yield token.start[0], problem
    except (tokenize.TokenError, SyntaxError):
        return  # the linter reports what is not Python


def dotted(node: ast.expr) -> str:
    """Returns `a.b.c` for a chain of names; the empty string for any other expression."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr) if inner := dotted(value):
            return f"{inner}.{attr}"
        case _:
            return ""


def gives_reason(call: ast.Call, *, position: int | None) -> bool:
    """Tells whether a call passes a reason that is not an empty text, by name or at the position."""
    given = [keyword.value for keyword in call.keywords if keyword.arg in {"reason", "msg"}]
    if position is not None:
        given += call.args[position : position + 1]
    return any(not (isinstance(value, ast.Constant) and not value.value) for value in given)


def check_skips(text: str) -> Iterator[tuple[int, str]]:
    """Yields (line, problem) for each skip and xfail in Python source that has no reason."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        match dotted(node).rpartition(".")[0::2]:
            case ("pytest.mark" | "pytest", "skip" | "xfail" as kind):
                position = None if dotted(node) == "pytest.mark.xfail" else 0
            case ("pytest.mark", "skipif" as kind):
                position = None
            case ("unittest", "skip" as kind):
                position = 0
            case _:
                continue
        call = called.get(id(node))
        if call is None or not gives_reason(call, position=position):
            yield node.lineno, f'say why: {kind}(…, reason="…")'


def check_text(text: str) -> Iterator[tuple[int, str]]:
    """Yields (line, problem) for each machine path and registry host in any text."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := MACHINE_PATH.search(line):
            yield (
                number,
                f"a path of one machine ({found.group()}): make it relative",
            )
        if found := REGISTRY.search(line):
            yield (
                number,
                f"a registry's host name ({found.group()}): leave the index to settings",
            )


def check_file(name: str, text: str) -> Iterator[str]:
    """Yields `name:line: problem` for everything in one file that breaks a rule."""
    if PurePath(name).name in LOCK_FILES:
        yield f"{name}:1: a lock file: versions are pinned in constraints/"
        return
    problems = list(check_text(text))
    if name.endswith((".py", ".pyi")):
        problems += [*check_comments(text), *check_skips(text)]
    for line, problem in sorted(problems):
        yield f"{name}:{line}: {problem}"


def project_files(root: Path) -> list[str]:
    """Returns the files that git tracks or would track; outside git, all that are not hidden."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        return sorted(set(listing.stdout.decode().split("\0")) - {""})
    every = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(str(path) for path in every if not any(part.startswith(".") for part in path.parts))


def main(root: Path) -> int:
    """Checks every file of the project; returns 1 if a rule is broken."""
    problems: list[str] = []
    names = project_files(root)
    for name in names:
        try:
            text = (root / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            text = ""  # a picture, or a file that was deleted but not yet in git's eyes
        problems += check_file(name, text)
    for problem in problems:
        print(problem)
    print(f"{len(names)} files, {len(problems)} against the house rules")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path.cwd()))
