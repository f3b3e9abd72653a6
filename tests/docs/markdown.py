"""Finds the fenced code blocks of a Markdown page, and what the page says to its tests in comments.

``<!-- test: worker tasks:app -->`` means that a worker runs from here on, which the text need not mention.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,}|~{3,})(?P<info>.*)$")
_TEST = re.compile(r"^\s*<!-- test: (?P<order>\S.*) -->\s*$")
_FILE = re.compile(r"^# (?P<name>[\w./-]+\.(?:py|toml))(?P<more> \(continued\))?\n")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, or an order to the tests (kind ``test``).

    Attributes:
        kind: The first word after the fence, such as ``python``; empty if there is none.
        line: Where its text starts, from 1.
    """

    kind: str
    text: str
    line: int

    @property
    def file(self) -> tuple[str, bool] | None:
        """Name of the file that it shows, and whether it goes on with it; None if it is no file."""
        found = _FILE.match(self.text)
        return None if found is None else (found["name"], bool(found["more"]))


def pages() -> list[Path]:
    """Every page of the documentation, those outside of its folder included."""
    outside = ("README.md", "GLOSSARY.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")
    return [*(ROOT / name for name in outside), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    position = 0
    while position < len(lines):
        line = lines[position]
        position += 1
        if found := _TEST.match(line):
            yield Block("test", found["order"], position)
        elif found := _FENCE.match(line):
            start = position
            while position < len(lines) and lines[position].strip() != found["fence"]:
                position += 1
            assert position < len(lines), f"{page}:{start}: the fence is never closed"
            text = "".join(f"{line.removeprefix(found['indent'])}\n" for line in lines[start:position])
            position += 1
            yield Block((found["info"].split() or [""])[0], text, start + 1)
