"""The project's own checks: what they let pass, what they catch, and what they say."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools import bootstrap, check_house, check_size, test_all

# Put together here, so that this file passes the checks it is about.
IGNORE, NOQA = "# type: " + "ignore", "# no" + "qa"
HOME, REGISTRY = "/" + "home/someone/project", "py" + "pi.org"


@pytest.mark.parametrize(
    "comment",
    [
        "# an ordinary comment",
        f"{IGNORE}[attr-defined]  # why: the stubs lack it",
        f"{IGNORE}[arg-type, misc] — the stubs lack it",
        f"{NOQA}: S608  # why: the columns are constants",
        f"{NOQA}: S603, S607 git is on PATH",
        f"{IGNORE}[misc]  {NOQA}: B010  # why: the stubs lack it",
    ],
)
def test_a_suppression_with_code_and_reason_passes(comment: str) -> None:
    assert check_house.lacks_reason(comment) is None


@pytest.mark.parametrize(
    ("comment", "problem"),
    [
        (IGNORE, "name the codes"),
        (f"{IGNORE}  # why: the stubs lack it", "name the codes"),
        (NOQA, "name the codes"),
        (f"{IGNORE}[misc]", "say why"),
        (f"{IGNORE}[misc]  # why:", "say why"),
        (f"{NOQA}: S603, S607", "say why"),
        (f"{IGNORE}[misc]  {NOQA}: B010", "say why"),
    ],
)
def test_a_suppression_without_code_or_reason_is_caught(comment: str, problem: str) -> None:
    assert problem in (check_house.lacks_reason(comment) or "")


def test_only_comments_suppress() -> None:
    assert list(check_house.check_comments(f"text = '{IGNORE}'\n")) == []
    assert [line for line, _ in check_house.check_comments(f"a = 1\nb = a  {IGNORE}\n")] == [2]


@pytest.mark.parametrize(
    "code",
    [
        "pytest.skip('no server here')",
        "pytest.skip(reason='no server here')",
        "pytest.skip(f'no {server}')",
        "@pytest.mark.skip('later')\ndef f(): ...",
        "@pytest.mark.skipif(True, reason='no server')\ndef f(): ...",
        "pytest.param(1, marks=pytest.mark.xfail(reason='known', strict=True))",
        "queue.skip()",
    ],
)
def test_a_skip_with_a_reason_passes(code: str) -> None:
    assert list(check_house.check_skips(code)) == []


@pytest.mark.parametrize(
    "code",
    [
        "pytest.skip()",
        "pytest.skip('')",
        "@pytest.mark.skip\ndef f(): ...",
        "@pytest.mark.skipif(True)\ndef f(): ...",
        "pytest.param(1, marks=pytest.mark.xfail)",
        "pytest.mark.xfail(True)",
        "@unittest.skip\ndef f(): ...",
    ],
)
def test_a_skip_without_a_reason_is_caught(code: str) -> None:
    ((line, problem),) = check_house.check_skips(code)
    assert line == 1
    assert problem.startswith("say why: ")


@pytest.mark.parametrize("text", [f"open('{HOME}/x')", f"https://{REGISTRY}/simple", "cd /" + "root/x"])
def test_what_holds_on_one_machine_only_is_caught(text: str) -> None:
    assert len(list(check_house.check_text(f"fine\n{text}\n"))) == 1


@pytest.mark.parametrize(
    "text", ["https://example.com/home/page/", "$(DIR)/work/x", "src/work/x", "/tmp/x/", "~/work/x"]
)
def test_other_addresses_and_paths_pass(text: str) -> None:
    assert list(check_house.check_text(text)) == []


def test_a_lock_file_is_caught_by_its_name() -> None:
    assert list(check_house.check_file("web/package-lock.json", "{}"))
    assert not list(check_house.check_file("web/package.json", "{}"))


def test_the_whole_project_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / ".hidden").write_text(HOME + "/")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / "good.py").write_text("a = 1\n")
    assert check_house.main(tmp_path) == 0
    (tmp_path / "bad.py").write_text(f"a = 1\nb = 2  {NOQA}\n")
    assert check_house.main(tmp_path) == 1
    assert capsys.readouterr().out.splitlines()[1].startswith("bad.py:2: name the codes")


def test_in_a_checkout_untracked_files_count_and_ignored_ones_do_not(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for name, text in {".gitignore": "build/\n", "new.py": "", "build/made.py": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert check_house.project_files(tmp_path) == [".gitignore", "new.py"]


def function(lines: int, docstring: str = "") -> str:
    """Returns the source of a function that has so many lines beside its docstring."""
    return "def f():\n" + docstring + "    a = 1\n" * (lines - 1)


def test_a_function_may_have_sixty_lines_beside_its_docstring() -> None:
    docstring = '    """One.\n\n    Two.\n    """\n'
    assert list(check_size.check_file(Path("a.py"), function(60, docstring))) == []
    (problem,) = check_size.check_file(Path("a.py"), function(61, docstring))
    assert problem == "a.py:1: f() has 61 lines, at most 60: split it"


def test_a_file_may_have_seven_hundred_lines() -> None:
    assert list(check_size.check_file(Path("a.lua"), "x\n" * 700)) == []
    (problem,) = check_size.check_file(Path("a.lua"), "x\n" * 701)
    assert problem == "a.lua:1: 701 lines, at most 700: split the file"


def test_the_sizes_are_added_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package/a.py").write_text("a = 1\n\n# why\nb = 2\n")
    (tmp_path / "package/b.sql").write_text("select 1;\n")
    (tmp_path / "package/c.txt").write_text("not counted\n")
    assert check_size.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("1 modules, 5 lines (3 of code), longest ")
    (tmp_path / "package/long.py").write_text(function(61))
    assert check_size.main([str(tmp_path)]) == 1


def test_an_old_python_is_refused_in_one_line() -> None:
    bootstrap.check_python((3, 11), "python3")
    with pytest.raises(bootstrap.SetUpError, match=r"python3 is Python 3\.9, and Mouso needs 3.11 or newer"):
        bootstrap.check_python((3, 9), "python3")


def test_a_folder_that_is_not_writable_is_refused(tmp_path: Path) -> None:
    bootstrap.check_writable(tmp_path)
    with pytest.raises(bootstrap.SetUpError, match="is not writable: "):
        bootstrap.check_writable(tmp_path / "missing")


def test_the_log_tells_the_last_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for text, expected in [
        ("", "no output"),
        ("one\ntwo\n", "two"),
        ("ERROR: no such thing\nhint\n", "ERROR: no such thing"),
    ]:
        log.write_text(text)
        assert bootstrap.last_error(log) == expected


def test_an_interpreter_is_found_only_if_it_starts_and_has_the_version(tmp_path: Path) -> None:
    shim = tmp_path / "python3.99"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert test_all.is_version(sys.executable, here)
    assert not test_all.is_version(sys.executable, "3.99")
    assert not test_all.is_version(str(shim), "3.99")
    assert not test_all.is_version(str(tmp_path / "missing"), "3.99")
    assert test_all.find_python("3.99") is None
