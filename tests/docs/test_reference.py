"""The reference is complete: every command, option, public name, setting, event, state and error is documented.

And every name that the text mentions exists.

The reference is read as Sphinx builds it, so what is documented is what a reader sees.
"""

import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import msgspec
import pytest

import mouso
from mouso import errors
from mouso.app import Mouso
from mouso.brokers.base import Broker
from mouso.cli import COMMANDS, cli
from mouso.config import ProjectSettings
from mouso.context import Context
from mouso.events import EVENTS
from mouso.handle import JobHandle
from mouso.job import FINAL, LIVE, TRANSITIONS, JobState
from mouso.options import Options
from mouso.task import Call, Task
from tests.docs.markdown import ROOT, blocks, pages

DOCS = ROOT / "docs"
GLOSSARY = ROOT / "GLOSSARY.md"
SHIPPED = {
    "amqp",
    "amqps",
    *("memory", "sqlite", "postgresql"),
    *("redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"),
}

pytestmark = pytest.mark.xdist_group("site")  # it is built once


class Site:
    """Pages as trees of docutils nodes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pages: dict[str, ElementTree.Element] = {}

    def page(self, name: str) -> ElementTree.Element:
        if name not in self._pages:
            self._pages[name] = ElementTree.parse(self._folder / f"{name}.xml").getroot()
        return self._pages[name]

    def text(self, name: str) -> str:
        return words(self.page(name))

    def rows(self, name: str) -> list[list[str]]:
        """The rows of all tables of a page."""
        return [[words(entry) for entry in row.iter("entry")] for row in self.page(name).iter("row")]

    def names(self, name: str) -> set[str]:
        """Full names of the Python objects that a page documents, its aliases included."""
        found = set()
        for signature in self.page(name).iter("desc_signature"):
            if full := signature.get("fullname"):
                found |= {f"{signature.get('module')}.{full}"}
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The documentation as Sphinx understands it; any warning fails."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "xml", str(DOCS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Site(out)


def words(node: ElementTree.Element) -> str:
    """All text of a node, in one line."""
    return " ".join("".join(node.itertext()).split())


def words_of(text: str) -> str:
    """A text without what Sphinx changes in it: spaces, quotation marks, dashes."""
    return re.sub(r"[^\w]+", "", text)


def walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from walk(child, f"{path} {name}")


# -- the command line


def test_every_command_and_option_is_in_the_reference(site: Site) -> None:
    sections = {
        words(title): section
        for section in site.page("reference/cli").iter("section")
        if (title := section.find("title")) is not None
    }
    for path, command in walk(cli, "mouso"):
        section = sections.get(path, sections.get(path.rpartition(" ")[2]))
        assert section is not None, f"{path} has no section"
        documented = words(section)
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                for name in parameter.opts:
                    assert re.search(rf"(?<![\w-]){name}(?![\w-])", documented), f"{path} {name} is not documented"
                assert parameter.help, f"{path} {parameter.name} has no help"
                assert words_of(parameter.help)[:30] in words_of(documented), f"{path} {parameter.name}"
        assert words_of(command.help or "")[:40] in words_of(documented), path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_shown_at_work(name: str) -> None:
    """Each command stands in a snippet that a test runs or parses, or (demo, completion) in the text as code."""
    shown = any(re.search(rf"\bmouso {name}\b", block.text) for page in pages() for block in blocks(page))
    assert shown or any(re.search(rf"`[^`]*\bmouso {name}\b[^`]*`", page.read_text("utf-8")) for page in pages())


# -- Python


@pytest.mark.parametrize("name", sorted(mouso.__all__))
def test_every_public_name_is_in_the_reference(site: Site, name: str) -> None:
    documented = {full.rpartition(".")[2] for full in site.names("reference/api") | site.names("reference/errors")}
    assert name in documented


@pytest.mark.parametrize("cls", [Mouso, Task, Call, JobHandle, Context, Broker])
def test_every_public_member_is_in_the_reference(site: Site, cls: type) -> None:
    names = site.names("reference/broker" if cls is Broker else "reference/api")
    members = [name for name in vars(cls) if not name.startswith("_") and not isinstance(vars(cls)[name], type)]
    hidden = {"invoke", "run_settings", "request_stop"}
    for name in members:
        if name not in hidden and getattr(vars(cls)[name], "__doc__", None):
            assert any(full.endswith(f".{cls.__name__}.{name}") for full in names), f"{cls.__name__}.{name}"


def test_every_option_is_in_the_reference(site: Site) -> None:
    rows = {name: row for row in site.rows("reference/options") for name in row[0].split(", ")}
    for name in Options.__annotations__:
        assert all(rows[name]), name


def test_every_error_is_in_the_reference(site: Site) -> None:
    documented = site.names("reference/errors")
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == errors.__name__:
            assert f"mouso.errors.{name}" in documented
            assert name in (errors.__doc__ or ""), f"{name} is not in the tree"


# -- settings, events, states


def test_every_setting_is_in_the_reference(site: Site) -> None:
    rows = {row[0]: row for row in site.rows("reference/settings")}
    for name in ProjectSettings.__struct_fields__:
        assert all(rows[name]), name
    example = next(block for block in blocks(DOCS / "reference" / "settings.md") if block.kind == "toml")
    given = tomllib.loads(example.text)["tool"]["mouso"]
    assert set(given) == set(ProjectSettings.__struct_fields__)
    msgspec.convert(given, ProjectSettings)


def test_every_environment_variable_is_in_the_reference(site: Site) -> None:
    source = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py") if "demo" not in path.parts
    )
    page = site.text("reference/settings")
    for name in set(re.findall(r"\bMOUSO_[A-Z]+\b", source)):
        assert name in page, name


def test_every_event_is_in_the_reference(site: Site) -> None:
    page = site.text("reference/hooks")
    for name in EVENTS:
        assert name in page


def test_states_and_transitions_are_in_the_reference(site: Site) -> None:
    rows = site.rows("reference/states")
    for old, following in TRANSITIONS.items():
        assert [old, "final" if old in FINAL else "live", ", ".join(following) or "nothing"] in rows
        for new, cause in following.items():
            assert [old, new, cause] in rows


def test_the_diagram_draws_every_transition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    extension = importlib.import_module("mouso_reference")
    drawn = extension.diagram()
    for state in JobState:
        assert f">{state}</text>" in drawn
    common = {old: extension.common(extension.WAITING) for old in extension.WAITING}
    again = [state for state in FINAL if TRANSITIONS[state]]
    common |= {old: extension.common(again) for old in again}
    alone = {
        (old, new) for old, following in TRANSITIONS.items() for new in following if new not in common.get(old, {})
    }
    assert alone == set(extension.ROUTES)
    arrows = len(extension.common(extension.WAITING)) + len(extension.common(again)) + len(alone)
    assert drawn.count('class="arrow"') == arrows


def test_the_glossary_has_the_states_of_the_code() -> None:
    section = GLOSSARY.read_text(encoding="utf-8").partition("## States of a job")[2].partition("\n## ")[0]
    assert set(re.findall(r"^- \*\*(\w+)\*\*", section, re.MULTILINE)) == {str(state) for state in JobState}
    live, final = re.search(r"Live: ([\w, ]+)\. Final: ([\w, ]+)\.", section).groups()  # type: ignore[union-attr]  # else the test fails
    assert set(live.split(", ")) == {str(state) for state in LIVE}
    assert set(final.split(", ")) == {str(state) for state in FINAL}


# -- what the text mentions


def mentioned(page: Path) -> Iterator[str]:
    """Full names of Mouso's own things in inline code."""
    content = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for name in re.findall(r"`(mouso(?:\.\w+)+)(?:\([^`]*\))?`", content):
        if name.rpartition(".")[2] not in ("db", "service"):
            yield name


def resolve(name: str) -> Any:
    """The object of a full name."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise AttributeError(name)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_names_in_the_text_exist(page: Path) -> None:
    for name in mentioned(page):
        resolve(name)


def test_the_walk_of_a_job_names_its_functions() -> None:
    assert len(set(mentioned(DOCS / "explanation" / "architecture.md"))) > 25


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            path = target.partition("#")[0]
            assert not path or (page.parent / path).exists() or (DOCS / path).exists(), f"{page.name}: {target}"


def test_tables_of_the_store_are_explained() -> None:
    from mouso.brokers.sqlite import schema

    page = (DOCS / "explanation" / "sqlite.md").read_text(encoding="utf-8")
    for table in re.findall(r"CREATE TABLE (\w+)", schema._CREATE):
        assert f"| `{table}` |" in page


def test_missing_brokers_are_called_missing() -> None:
    """The day another broker arrives, README and guarantees must say so."""
    from mouso.urls import SCHEMES

    assert set(SCHEMES) == SHIPPED
    assert "not there yet" in (ROOT / "README.md").read_text(encoding="utf-8")
