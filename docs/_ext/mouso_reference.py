"""Makes the tables and diagrams of the reference from the code, so that they cannot differ from it.

It also puts the finishing touches to what sphinx-click makes of the commands.

Directives: ``mouso-options``, ``mouso-settings``, ``mouso-events``, ``mouso-errors``, ``mouso-states``,
``mouso-transitions``, ``mouso-redis-keys``, ``mouso-redis-rights`` and ``mouso-diagram``. None takes arguments.
"""

from __future__ import annotations

import inspect
import itertools
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from mouso import errors
from mouso.brokers.redis import keys as redis_keys
from mouso.brokers.redis import rights as redis_rights
from mouso.config import LIMITS, ProjectSettings
from mouso.events import EVENTS
from mouso.job import FINAL, LIVE, TRANSITIONS, JobState
from mouso.options import Options

Row = Sequence[str]

WAITING = [s for s in JobState if s in LIVE and s is not JobState.RUNNING]
"""States drawn inside one frame: what they have in common is drawn once, from the frame."""
PLACES = {
    JobState.PENDING: (90, 96),
    JobState.SCHEDULED: (90, 236),
    JobState.AVAILABLE: (300, 96),
    JobState.RETRYABLE: (300, 176),
    JobState.RUNNING: (580, 96),
    JobState.COMPLETED: (790, 96),
    JobState.EXPIRED: (90, 386),
    JobState.CANCELLED: (300, 386),
    JobState.DEAD: (580, 386),
}
"""Centre of each state's box in the diagram, which is 880 × 450."""
WIDTH, HEIGHT = 110, 36
ROUTES: dict[tuple[JobState, JobState], tuple[str, tuple[int, int]]] = {
    (JobState.PENDING, JobState.AVAILABLE): ("M145,96 H241", (193, 88)),
    (JobState.PENDING, JobState.SCHEDULED): ("M90,114 V214", (96, 140)),
    (JobState.SCHEDULED, JobState.AVAILABLE): ("M132,218 L252,118", (198, 192)),
    (JobState.RETRYABLE, JobState.AVAILABLE): ("M300,158 V118", (316, 141)),
    (JobState.AVAILABLE, JobState.RUNNING): ("M355,102 H521", (438, 118)),
    (JobState.RUNNING, JobState.AVAILABLE): ("M525,90 H359", (438, 82)),
    (JobState.RUNNING, JobState.COMPLETED): ("M635,96 H731", (685, 88)),
    (JobState.RUNNING, JobState.RETRYABLE): ("M548,114 C530,160 470,176 359,176", (478, 166)),
    (JobState.RUNNING, JobState.SCHEDULED): ("M562,114 C540,226 470,236 149,236", (478, 226)),
    (JobState.RUNNING, JobState.DEAD): ("M590,114 V364", (600, 300)),
    (JobState.RUNNING, JobState.CANCELLED): ("M578,114 C570,300 470,340 342,366", (470, 330)),
    (JobState.RUNNING, JobState.EXPIRED): ("M570,114 C540,300 330,330 124,366", (0, 0)),
}
"""Path of each arrow that is drawn by itself, and where its label stands; (0, 0) for a label told in the table only."""


def keys(docstring: str, section: str) -> dict[str, str]:
    """The entries of a Google section, ``a, b: text`` counting for both; continued lines are joined."""
    body = inspect.cleandoc(docstring).partition(f"{section}:\n")[2]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in body.splitlines():
        if line and not line.startswith(" "):
            break
        entry = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            found.update(dict.fromkeys(names, entry[2]))
        elif line.strip():
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
    return found


def annotation(hint: Any) -> str:
    """An annotation as a reader writes it."""
    text = hint if isinstance(hint, str) else inspect.formatannotation(hint)
    return re.sub(r"\b(?:typing|collections\.abc|datetime|mouso\.\w+)\.(?=\w)", "", text)


def option_rows() -> Iterator[Row]:
    """Name, type and meaning of each option; those that are explained together share a row."""
    texts = keys(Options.__doc__ or "", "Keys")
    for text, names in itertools.groupby(Options.__annotations__, key=texts.__getitem__):
        group = list(names)
        hints = {Options.__annotations__[name] for name in group}
        kinds = [hint.__forward_arg__ if isinstance(hint, typing.ForwardRef) else hint for hint in hints]
        yield ", ".join(f"``{n}``" for n in group), ", ".join(f"``{annotation(k)}``" for k in kinds), text


def setting_rows() -> Iterator[Row]:
    """Name, type and meaning of each key of ``[tool.mouso]``."""
    texts = keys(ProjectSettings.__doc__ or "", "Attributes")
    for name, hint in typing.get_type_hints(ProjectSettings).items():
        kind = next(kind for kind in typing.get_args(hint) if kind is not type(None))
        yield f"``{name}``", f"``{kind.__name__}``", texts[name]
    low, high = LIMITS["weight"]
    yield "", "", f"A queue's weight is {low}..{high:,}."


def event_rows() -> Iterator[Row]:
    """Name and meaning of each event."""
    for name, meaning in EVENTS.items():
        yield f"``{name}``", meaning


def error_classes(base: type = errors.MousoError) -> Iterator[type]:
    """A class and all below it, as a tree is read."""
    yield base
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from error_classes(child)


def state_rows() -> Iterator[Row]:
    """Each state, its kind, and what may follow."""
    for state in JobState:
        following = ", ".join(f"``{new}``" for new in TRANSITIONS[state]) or "nothing"
        yield f"``{state}``", "final" if state in FINAL else "live", following


def transition_rows() -> Iterator[Row]:
    """From, to and cause of each transition."""
    for old, following in TRANSITIONS.items():
        for new, cause in following.items():
            yield f"``{old}``", f"``{new}``", cause


def redis_key_rows() -> Iterator[Row]:
    """Each key of a namespace in Redis, its type, and what it holds."""
    for name, key in redis_keys.KEYS.items():
        yield f"``{name}``", key.kind.replace("none", "channel"), key.holds


def redis_right_rows() -> Iterator[Row]:
    """What each role must be allowed to do in Redis."""
    for role in redis_rights.ROLES:
        yield role, f"``{redis_rights.rule(role)}``"


# -- the diagram -----------------------------------------------------------------------------------------------------


def common(states: Sequence[JobState]) -> dict[JobState, str]:
    """The transitions out of the group that all of the states have, with the same cause."""
    first = TRANSITIONS[states[0]]
    return {
        new: cause
        for new, cause in first.items()
        if new not in states and all(TRANSITIONS[s].get(new) == cause for s in states)
    }


def diagram() -> str:
    """The states and every transition as SVG; it fails when one has no place in it."""
    drawn: set[tuple[JobState, JobState]] = set()
    parts = [frame(15, 62, 352, 206, "waiting"), frame(15, 352, 630, 68, "an operator may retry it", below=True)]
    arrows: list[tuple[str, str, tuple[int, int]]] = []
    for new, cause in common(WAITING).items():
        x = PLACES[new][0]
        arrows.append((f"M{x},268 V364", cause, (x + 6, 318)))
        drawn |= {(old, new) for old in WAITING}
    again = [s for s in FINAL if TRANSITIONS[s]]
    for new, cause in common(again).items():
        arrows.append((f"M15,386 H6 V30 H{PLACES[new][0]} V74", f"{cause}", (130, 24)))
        drawn |= {(old, new) for old in again}
    for old, following in TRANSITIONS.items():
        for new, cause in following.items():
            if (old, new) not in drawn:
                path, place = ROUTES[old, new]
                arrows.append((path, cause, place))
    parts += [f'<path class="arrow" d="{path}" marker-end="url(#tip)"/>' for path, _, _ in arrows]
    parts += [label(cause, place) for _, cause, place in arrows if place != (0, 0)]
    parts += [box(state) for state in JobState]
    return (
        '<svg class="mouso-diagram" viewBox="0 0 880 450" role="img" xmlns="http://www.w3.org/2000/svg">'
        "<title>States of a job and the transitions between them</title>"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path class="tip" d="M0,0 L8,4 L0,8 z"/></marker></defs>{"".join(parts)}</svg>'
    )


def frame(x: int, y: int, width: int, height: int, text: str, *, below: bool = False) -> str:
    """A dashed frame with a caption."""
    caption = f'<text class="caption" x="{x + width - 8}" y="{y + height + 16 if below else y - 7}">{text}</text>'
    return f'<rect class="frame" x="{x}" y="{y}" width="{width}" height="{height}" rx="10"/>{caption}'


def box(state: JobState) -> str:
    """A state."""
    x, y = PLACES[state]
    kind = "final" if state in FINAL else "live"
    return (
        f'<g class="state {kind}"><rect x="{x - WIDTH // 2}" y="{y - HEIGHT // 2}" width="{WIDTH}" height="{HEIGHT}"'
        f' rx="8"/><text x="{x}" y="{y + 5}">{state}</text></g>'
    )


def label(text: str, place: tuple[int, int]) -> str:
    """What causes a transition; beside a vertical arrow it starts there, else it is centred."""
    kind = "label" if place[0] in {x + 6 for x, _ in PLACES.values()} | {600, 316} else "label middle"
    return f'<text class="{kind}" x="{place[0]}" y="{place[1]}">{escape(text)}</text>'


# -- directives ------------------------------------------------------------------------------------------------------


class Table(SphinxDirective):
    """A table made by a function."""

    titles: Sequence[str]
    rows: Callable[[], Iterator[Row]]

    def run(self) -> list[nodes.Node]:
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: auto", ""]
        for row in [self.titles, *type(self).rows()]:
            for number, cell in enumerate(row):
                lines.append(f"   {'*' if number == 0 else ' '} - {cell}")
        return parse(self, lines)


def parse(directive: SphinxDirective, lines: Sequence[str]) -> list[nodes.Node]:
    """Lines of reStructuredText as nodes, whatever the page's own language."""
    from myst_parser.mocking import MockState

    if isinstance(directive.state, MockState):
        text = "\n".join(["```{eval-rst}", *lines, "```"])
        return list(directive.parse_text_to_nodes(text))
    node = nodes.container()
    directive.state.nested_parse(StringList(list(lines), "generated"), 0, node)
    return list(node.children)


class Errors(SphinxDirective):
    """The tree of exceptions, and each class below it."""

    def run(self) -> list[nodes.Node]:
        tree = (errors.__doc__ or "").partition("\n\n")[2].rstrip()
        lines = ["::", "", *(f"   {line}" for line in tree.splitlines()), ""]
        for base in (errors.MousoError, errors.JobControl):
            for cls in error_classes(base):
                lines += [f".. autoexception:: mouso.errors.{cls.__name__}", "   :show-inheritance:", ""]
        lines += [".. autoclass:: mouso.errors.ErrorInfo", ""]
        return parse(self, lines)


class Diagram(SphinxDirective):
    """The states as a picture."""

    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", diagram(), format="html")]


def drop_arguments(app: Sphinx, context: object, lines: list[str]) -> None:
    """Leaves out the list of arguments, which says no more than the line of usage above it."""
    lines.clear()


def show_example(app: Sphinx, context: object, lines: list[str]) -> None:
    """Shows the example at the end of a command's help as code."""
    text = "\n".join(lines).strip()
    if text.startswith("Example: "):
        lines[:] = [".. rubric:: Example", "", ".. code-block:: sh", "", f"   {text.removeprefix('Example: ')}", ""]


def table(name: str, titles: Sequence[str], rows: Callable[[], Iterator[Row]]) -> type[Table]:
    """A directive class for one table."""
    return type(name, (Table,), {"titles": titles, "rows": staticmethod(rows)})


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directives."""
    app.add_directive("mouso-options", table("OptionsTable", ("Option", "Type", "Meaning"), option_rows))
    app.add_directive("mouso-settings", table("SettingsTable", ("Key", "Type", "Meaning"), setting_rows))
    app.add_directive("mouso-events", table("EventsTable", ("Event", "Meaning"), event_rows))
    app.add_directive("mouso-states", table("StatesTable", ("State", "Kind", "May become"), state_rows))
    app.add_directive("mouso-transitions", table("TransitionsTable", ("From", "To", "Cause"), transition_rows))
    app.connect("sphinx-click-process-arguments", drop_arguments)
    app.connect("sphinx-click-process-epilog", show_example)
    app.add_directive("mouso-redis-keys", table("RedisKeysTable", ("Key", "Type", "Holds"), redis_key_rows))
    app.add_directive("mouso-redis-rights", table("RedisRightsTable", ("Role", "Rules"), redis_right_rows))
    app.add_directive("mouso-errors", Errors)
    app.add_directive("mouso-diagram", Diagram)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
