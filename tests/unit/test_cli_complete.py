"""What the shell offers when the tab key is pressed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from mouso.cli import COMMANDS, cli
from tests.unit.cli_kit import Shop, opened


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    with opened(tmp_path, monkeypatch, capsys) as shop:
        monkeypatch.setenv("MOUSO_APP", "shop:app")
        yield shop


def offered(line: str) -> list[str]:
    """The completions of the last word of a line."""
    *args, incomplete = line.split(" ")
    return [item.value for item in ShellComplete(cli, {}, "mouso", "_X").get_completions(args, incomplete)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("jo", ["jobs", "job"]),
        ("--v", ["--version"]),
        ("jobs --ta", ["--task"]),
        ("enqueue ", ["shop.add", "shop.pack", "shop.send"]),
        ("enqueue shop.a", ["shop.add"]),
        ("enqueue shop:app shop.s", ["shop.send"]),
        ("enqueue -A shop:app shop.s", ["shop.send"]),
        ("enqueue shop.add ", []),
        ("enqueue se", ["send"]),
        ("jobs --task a", ["add"]),
        ("enqueue s", ["shop.add", "shop.pack", "shop.send"]),
        ("pause ", ["default", "mail"]),
        ("purge shop:app m", ["mail"]),
        ("jobs --queue ", ["default", "mail"]),
        ("jobs --task shop.s", ["shop.send"]),
        ("jobs --state d", ["dead"]),
        ("dead ", ["list", "retry", "delete"]),
        ("dead shop:app r", ["retry"]),
        ("cancel ", []),
        ("jobs nothing:app --queue ", []),
        ("jobs -A broken:app --task ", []),
        ("migrate ", []),
    ],
)
def test_completions(shop: Shop, capsys: pytest.CaptureFixture[str], line: str, words: list[str]) -> None:
    shop.enqueue("a1")
    shop.enqueue("m1", queue="mail")
    shop.write("broken.py", "print('noise')\nraise SystemExit('no')\n")
    assert offered(line) == words
    assert capsys.readouterr() == ("", "")


def test_every_command_is_offered_without_importing_any(shop: Shop) -> None:
    assert offered("") == list(COMMANDS)


def test_no_store_is_made_by_pressing_tab(shop: Shop) -> None:
    assert offered("pause ") == []
    assert offered("jobs --queue ") == []
    assert not (shop.folder / "mouso.db").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script(shop: Shop, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    assert "_MOUSO_COMPLETE" in shop.ok("completion", shell)
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    assert "_MOUSO_COMPLETE" in shop.ok("completion")


def test_a_shell_that_is_unknown(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert "no completion for the shell 'tcsh'; write bash, zsh or fish" in shop.error(2, "completion")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("mouso enqueue shop.a", "plain,shop.add\n"),
        ("mouso enqueue shop:app shop.a", "plain,shop.add\n"),
        ("mouso enqueue -A shop:app ad", "plain,add\n"),
        ("mouso purge shop:app a:b", "plain,b\n"),
        ("mouso dead shop:app ", "plain,list\nplain,retry\nplain,delete\n"),
        ("mouso jobs shop:app --task=shop.a", "plain,shop.add\n"),
    ],
)
def test_the_script_of_bash_asks_through_the_environment(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    shop.enqueue("a1", queue="a:b")
    monkeypatch.setenv("_MOUSO_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_LINE", line)
    assert shop.ok() == said


def test_bash_completes_after_an_app(shop: Shop) -> None:
    """Its own words end at each colon."""
    script = shop.ok("completion", "bash")
    line = "mouso enqueue shop:app shop.p and more"
    program = f"""{script}
        mouso() {{ {sys.executable} -m mouso "$@"; }}
        env() {{ while [[ $1 == *=* ]]; do export "$1"; shift; done; "$@"; }}
        COMP_LINE='{line}' COMP_POINT={len(line) - len(" and more")}
        _mouso_completion mouso
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", program], capture_output=True, text=True, cwd=shop.folder, check=True
    )
    assert done.stdout == "shop.pack\n"
