"""The demo's report: one well-formed page that needs nothing else, whatever the files are called."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mouso import Job
from mouso.demo.charts import Rect, area, columns, squarify
from mouso.demo.measure import FileFacts, FunctionFacts
from mouso.demo.page import make_page, write_page
from mouso.demo.summary import Failure, Summary, summarize
from mouso.job import JobState

NASTY = "<script>alert('&')</script>\"\x1b[31m\x00\ud800"


def facts(path: str = "/code/pkg/a.py", *complexities: int, licence: str = "MIT") -> FileFacts:
    return FileFacts(
        path=path,
        size=100,
        lines=10,
        code=6,
        docs=1,
        comments=2,
        blank=1,
        classes=1,
        complexities=list(complexities),
        functions=[FunctionFacts(name=f"f{c}", line=1, lines=3, complexity=c) for c in complexities],
        imports=["__future__", "os"],
        licence=licence,
    )


def job(number: int = 1, attempts: int = 0) -> Job:
    return Job(
        id=f"demo-{number}",
        task="t",
        state=JobState.COMPLETED,
        attempts=attempts,
        finished_at=1000 * number,
        run_seconds=0.01 * number,
    )


def summary(*results: tuple[Job, FileFacts], failures: list[Failure] | None = None) -> Summary:
    return summarize("/code", results, failures or [], len(failures or []))


def test_results_are_added_up() -> None:
    found = summary(
        (job(9, attempts=1), facts("/code/b/x.py", 1, 5)),
        (job(1), facts("/code/a.py", 3, licence="BSD")),
        failures=[Failure("/code/bad.py", "demo-3", "SyntaxError: no")],
    )
    assert [fact.path for fact in found.facts] == ["a.py", "b/x.py"]
    assert (found.name, found.files, found.lines, found.functions, found.classes) == ("code", 2, 20, 3, 2)
    assert (found.retried, found.dead, found.failures[0].path) == (1, 1, "bad.py")
    assert [placed.function.complexity for placed in found.worst] == [5, 3, 1]
    assert found.imports == Counter(os=2)
    assert found.licences == Counter(MIT=1, BSD=1)
    assert found.line_kinds() == {"code": 12, "docstrings": 2, "comments": 4, "blank": 2}
    assert found.ended == [0, 2000], "a pause between two demos is no working time"
    assert "2 files of code" in found.as_text()


def test_the_page_is_well_formed_and_shows_the_numbers() -> None:
    results = [(job(n), facts(f"/code/p{n % 50}/f{n}.py", n % 60, 1)) for n in range(1, 400)]
    page = make_page(summary(*results, failures=[Failure("/code/bad.py", "demo-3", "SyntaxError: no")]))
    tree = ElementTree.fromstring(page)
    content = "".join(tree.itertext())
    for text in ("399", "3,990", "798", "bad.py", "SyntaxError: no", "p1/f1.py"):
        assert text in content
    assert len(list(tree.iter("{http://www.w3.org/2000/svg}svg"))) == 6


def test_the_page_needs_no_network() -> None:
    page = make_page(summary((job(), facts("/code/a.py", 1))))
    assert set(re.findall(r"https?://[^\"\s]*", page)) == {
        "http://www.w3.org/1999/xhtml",
        "http://www.w3.org/2000/svg",
    }, "names of the formats, which nobody fetches"
    assert not re.search(r"<script|<link|@import|url\(|src=", page)
    assert "prefers-color-scheme: dark" in page


def test_file_names_are_data() -> None:
    nasty = replace(facts(f"/code/{NASTY}/{NASTY}.py", 99), imports=[NASTY], licence=NASTY)
    found = summary((job(), nasty), failures=[Failure(f"/code/{NASTY}", "demo-3", NASTY)])
    page = make_page(replace(found, name=NASTY, root=NASTY))
    ElementTree.fromstring(page.encode("utf-8", "replace"))
    assert "<script" not in page
    assert "\x1b" not in page


def test_no_result_at_all_makes_a_page() -> None:
    tree = ElementTree.fromstring(make_page(summary()))
    assert "Empty: every file could be analysed." in "".join(tree.itertext())


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write_page(summary((job(), facts())), tmp_path / "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@given(st.lists(st.floats(0.01, 1e6), max_size=40), st.floats(1, 2000), st.floats(1, 2000))
def test_a_treemap_gives_everybody_his_share(values: list[float], width: float, height: float) -> None:
    places = squarify(sorted(values, reverse=True), Rect(0, 0, width, height))
    assert len(places) == len(values)
    for place, value in zip(places, sorted(values, reverse=True), strict=True):
        share = width * height * value / sum(values)
        assert place.width * place.height == pytest.approx(share, rel=1e-3, abs=1e-3)
        assert place.x >= -1e-6
        assert place.y >= -1e-6
        assert place.x + place.width <= width * (1 + 1e-6) + 1e-6
        assert place.y + place.height <= height * (1 + 1e-6) + 1e-6


def test_charts_of_nothing_are_pictures_too() -> None:
    for picture in (columns([], "none"), area([], "none", "jobs/s", "0 s"), area([0.0], "none", "jobs/s", "0 s")):
        ElementTree.fromstring(picture)
