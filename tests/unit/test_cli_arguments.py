"""Which argument is the APP."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mouso.cli.base import AppCommand
from tests.unit.cli_kit import Shop, opened

ID = "019a2f3e-7c40-7c1d-9d5e-3f1f6c0f8a11"
JOBS = AppCommand("jobs")
JOB = AppCommand("job", values="ID")
CANCEL = AppCommand("cancel", values="ID...")
ENQUEUE = AppCommand("enqueue", values="TASK [JSON]...")
DEAD = AppCommand("dead", values="[list|retry|delete] [ID]...", words=("list", "retry", "delete"))


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    with opened(tmp_path, monkeypatch, capsys) as shop:
        yield shop


def split(command: AppCommand, line: str, app: str | None = None) -> tuple[str | None, list[str]]:
    target = command.split(line.split(), app)
    return target.path, target.values


ALWAYS = [
    (JOBS, "", (None, [])),
    (JOBS, "shop:app", ("shop:app", [])),
    (JOBS, "shop", ("shop", [])),
    (JOBS, "shpo:app", ("shpo:app", [])),
    (JOBS, "a/b.py", ("a/b.py", [])),
    (JOB, f"shop:app {ID}", ("shop:app", [ID])),
    (JOB, f"shop {ID}", ("shop", [ID])),
    (JOB, f"shpo:app {ID}", ("shpo:app", [ID])),
    (JOB, "shop:app order:17", ("shop:app", ["order:17"])),
    (JOB, "shop:app", ("shop:app", [])),
    (JOB, ID, (None, [ID])),
    (CANCEL, f"shop:app {ID} {ID}", ("shop:app", [ID, ID])),
    (CANCEL, "shop:app shop:app", ("shop:app", ["shop:app"])),
    (CANCEL, f"{ID} {ID}", (None, [ID, ID])),
    (CANCEL, "order:17 order:18", (None, ["order:17", "order:18"])),
    (CANCEL, "shop.py:app x", ("shop.py:app", ["x"])),
    (CANCEL, "./shop.py:app x", (None, ["./shop.py:app", "x"])),
    (ENQUEUE, "shop:app shop.add 1 2", ("shop:app", ["shop.add", "1", "2"])),
    (ENQUEUE, "shop:app", ("shop:app", [])),
    (ENQUEUE, "add 1", (None, ["add", "1"])),
    (DEAD, "shop:app", ("shop:app", [])),
    (DEAD, "shop:app retry", ("shop:app", ["retry"])),
    (DEAD, "shpo:app retry", ("shpo:app", ["retry"])),
    (DEAD, f"retry {ID}", (None, ["retry", ID])),
    (DEAD, "lst", (None, ["lst"])),
]


@pytest.mark.parametrize(("command", "line", "expected"), ALWAYS)
@pytest.mark.parametrize("default", [None, "shop:app"])
def test_with_and_without_an_app_in_the_settings(
    monkeypatch: pytest.MonkeyPatch,
    default: str | None,
    command: AppCommand,
    line: str,
    expected: tuple[str | None, list[str]],
) -> None:
    if default is not None:
        monkeypatch.setenv("MOUSO_APP", default)
    assert split(command, line) == expected


@pytest.mark.parametrize(
    ("command", "line", "without", "default"),
    [
        (CANCEL, "order:abc x", ("order:abc", ["x"]), (None, ["order:abc", "x"])),
        (CANCEL, "order:abc", (None, ["order:abc"]), (None, ["order:abc"])),
        (CANCEL, f"shop {ID}", ("shop", [ID]), (None, ["shop", ID])),
        (ENQUEUE, "shop add 1", ("shop", ["add", "1"]), (None, ["shop", "add", "1"])),
        (ENQUEUE, "mail:send 1", ("mail:send", ["1"]), (None, ["mail:send", "1"])),
    ],
)
def test_the_settings_decide(
    monkeypatch: pytest.MonkeyPatch,
    command: AppCommand,
    line: str,
    without: tuple[str | None, list[str]],
    default: tuple[str | None, list[str]],
) -> None:
    assert split(command, line) == without
    monkeypatch.setenv("MOUSO_APP", "shop:app")
    assert split(command, line) == default


@pytest.mark.parametrize("command", [JOBS, JOB, CANCEL, ENQUEUE, DEAD])
def test_with_the_option_no_argument_is_the_app(command: AppCommand) -> None:
    assert split(command, "shop:app x", "other:app") == ("other:app", ["shop:app", "x"])


def test_every_way_works_from_end_to_end(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.enqueue("a", "b", "order:17", "shop:app")
    assert shop.ok("cancel", "shop:app", "a") == "a  cancelled\n"
    assert shop.ok("cancel", "b", "-A", "shop:app") == "b  cancelled\n"
    assert shop.ok("cancel", "--app", "shop:app", "shop:app") == "shop:app  cancelled\n"
    monkeypatch.setenv("MOUSO_APP", "shop:app")
    assert shop.ok("cancel", "order:17") == "order:17  cancelled\n"
    assert len(shop.run("jobs", "--json").json) == 4
    monkeypatch.delenv("MOUSO_APP")
    shop.write("pyproject.toml", '[tool.mouso]\napp = "shop:app"\n')
    assert len(shop.run("jobs", "--json").json) == 4
    assert "no job has the id" in shop.error(1, "job", "order:18")


def test_a_name_is_never_run_or_imported_beyond_the_app(shop: Shop) -> None:
    shop.write("evil.py", "raise SystemExit('imported')")
    assert "no task is called 'evil.f'" in shop.error(2, "enqueue", "shop:app", "evil.f")
    assert "no task is called 'os.system'" in shop.error(2, "enqueue", "shop:app", "os.system", '"true"')
