"""What the demo measures in a file, and which files it finds."""

import os
from pathlib import Path

import pytest

from mouso.demo.measure import MOST_BYTES, FileFacts, TooLarge, measure, measure_text
from mouso.demo.source import Unreadable, WrongFolder, find_files


def of(text: str) -> FileFacts:
    return measure_text("file.py", text)


@pytest.mark.parametrize(
    ("body", "complexity"),
    [
        ("pass", 1),
        ("if a: pass", 2),
        ("if a: pass\n elif b: pass\n else: pass", 3),
        ("for a in b: pass\n else: pass", 2),
        ("while a and b or c: pass", 4),
        ("return a if b else c", 2),
        ("return [x for x in y if x if z]", 4),
        ("try: pass\n except A: pass\n except B: pass\n finally: pass", 3),
        ("match a:\n  case 1: pass\n  case [b] if b: pass\n  case _: pass", 3),
        ("return lambda: a or b", 2),
        ("with a: assert b", 1),
    ],
)
def test_complexity_counts_the_decisions(body: str, complexity: int) -> None:
    assert of(f"def f():\n {body}\n").complexities == [complexity]


def test_a_function_inside_another_counts_for_itself() -> None:
    facts = of(
        "if a: pass\n"
        "class C:\n"
        "    def outer(self):\n"
        "        async def inner():\n"
        "            if a: pass\n"
        "            if b: pass\n"
        "        if c: pass\n"
        "        return inner\n"
        "def last(): pass\n"
    )
    assert facts.complexities == [2, 3, 1]
    assert [(f.name, f.line, f.lines) for f in facts.functions] == [
        ("C.outer.inner", 4, 3),
        ("C.outer", 3, 6),
        ("last", 9, 1),
    ]
    assert facts.classes == 1


def test_every_line_is_of_one_kind() -> None:
    facts = of(
        '"""A module.\n\nIts text.\n"""\n'
        "# a comment\n"
        "import os  # not a line of comment\n"
        "\n"
        'TEXT = """no\n# docstring"""\n'
        "def f():\n"
        "    'docs'\n"
        "    # in a function\n"
        "    return (1,\n\n        2)"
    )
    assert (facts.lines, facts.code, facts.docs, facts.comments, facts.blank) == (15, 6, 5, 2, 2)


def test_imports_are_top_level_names() -> None:
    assert of("import os.path, re\nfrom a.b import c\nfrom . import d\nfrom .e import f\n").imports == ["a", "os", "re"]


def test_an_empty_file_has_nothing() -> None:
    facts = of("")
    assert (facts.lines, facts.code, facts.blank, facts.complexities) == (0, 0, 0, [])


def test_deep_nesting_does_not_exhaust_the_stack() -> None:
    deep = "\n".join(f"{' ' * n}if a:" for n in range(90)) + f"\n{' ' * 90}pass"
    assert of(f"def f():\n {deep.replace(chr(10), chr(10) + ' ')}\n").complexities == [91]


def test_a_file_is_decoded_as_it_declares(tmp_path: Path) -> None:
    file = tmp_path / "latin.py"
    file.write_bytes(b"# -*- coding: latin-1 -*-\r\nx = '\xe9'\r\n")
    assert (measure(str(file)).lines, measure(str(file)).size) == (2, file.stat().st_size)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"def f(:\n", SyntaxError),
        (b"print 'hello'\n", SyntaxError),
        (b"x = '\xff'\n", SyntaxError),
        (b"x = 1\0\n", SyntaxError),
        (b"# coding: no-such-code\n", SyntaxError),
        (bytes(range(256)), SyntaxError),
        (b"#" * (MOST_BYTES + 1), TooLarge),
    ],
)
def test_what_is_not_python_is_refused(tmp_path: Path, content: bytes, error: type[Exception]) -> None:
    file = tmp_path / "file.py"
    file.write_bytes(content)
    with pytest.raises((error, ValueError)):
        measure(str(file))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "dead.py").symlink_to("nowhere.py")
    (tmp_path / "loop.py").symlink_to("loop.py")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "up").symlink_to("..")
    assert [Path(path).name for path in find_files(tmp_path)] == ["dead.py", "loop.py", "pipe.py"]
    for path in [*find_files(tmp_path), str(tmp_path / "folder.py")]:
        with pytest.raises(Unreadable, match=r"No such file|Too many levels|not a regular"):
            measure(path)


def test_hidden_folders_and_caches_are_left_out(tmp_path: Path) -> None:
    for name in ("a/one.py", "a/two.txt", ".git/x.py", "__pycache__/y.py", "lib/site-packages/z.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_files(tmp_path) == [str(tmp_path / "a/one.py")]


def test_a_wrong_folder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (
        ("none", "No such file"),
        ("file.py", "is a file"),
        ("empty", "no Python"),
        ("loop", "loop|many"),
    ):
        with pytest.raises(WrongFolder, match=f"{name}.*({reason})"):
            find_files(tmp_path / name)
