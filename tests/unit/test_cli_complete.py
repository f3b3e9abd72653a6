"""What the shell offers when the tab key is pressed."""

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


def test_the_script_asks_through_the_environment(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MOUSO_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "mouso enqueue shop.a")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert shop.ok() == "plain,shop.add\n"
