"""The ``mouso`` command as a whole: start-up, help, errors and exit codes."""

import importlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mouso import __version__
from mouso.cli import COMMANDS, SECTIONS, cli, main
from mouso.cli.interrupt import quiet_interrupts
from mouso.cli.report import Failed, explain
from mouso.errors import (
    ArgumentError,
    BadPayload,
    BrokerUnavailable,
    ConfigError,
    JobUnknown,
    OptionError,
    OutcomeUnknown,
    PayloadTooLarge,
    ResultTimeout,
    SchemaError,
    StartError,
)
from tests.unit.cli_kit import SHOP, Shop, opened

BUILT = [name for name, entry in COMMANDS.items() if entry.module.startswith("mouso.cli.")]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    with opened(tmp_path, monkeypatch, capsys) as shop:
        yield shop


# -- start-up and help -----------------------------------------------------------------------------------------------


def test_version(shop: Shop) -> None:
    assert shop.ok("--version") == f"mouso {__version__}\n"


def test_the_version_needs_no_more_than_click() -> None:
    code = (
        "import sys, mouso; before = set(sys.modules); import mouso.cli; mouso.cli.main(['--version']);"
        "new = set(sys.modules) - before;"
        "few = {'mouso.cli', 'mouso.cli.interrupt'};"
        "print([m for m in new - few if m.startswith(('mouso.', 'rich', 'asyncio', 'sqlite3'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"mouso {__version__}", "[]"]


def test_a_listing_that_nobody_looks_at_needs_no_rich(shop: Shop) -> None:
    code = "import sys, mouso.cli; mouso.cli.main(['jobs', 'shop:app']); print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=shop.folder)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",)])
def test_help_names_every_command(shop: Shop, args: tuple[str, ...]) -> None:
    text = shop.ok(*args)
    for section, commands in SECTIONS.items():
        assert f"{section}:\n" in text
        assert all(f"  {name} " in text for name in commands)
    assert "Exit codes: 0 done, 1 failed, 2 wrong usage" in text


@pytest.mark.parametrize("name", BUILT)
def test_help_of_a_command(shop: Shop, name: str) -> None:
    text = shop.ok(name, "--help")
    assert text.startswith(f"Usage: mouso {name} ")
    assert "Example: " in text
    assert f"mouso {name}" in text.partition("Example: ")[2].replace("$(mouso", "mouso")


@pytest.mark.parametrize("name", BUILT)
def test_the_short_help_agrees_with_the_command(name: str) -> None:
    entry = COMMANDS[name]
    command = getattr(importlib.import_module(entry.module), entry.attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help
    assert entry.help.split()[0].rstrip(",") == command.help.split()[0].rstrip(",")


def test_every_option_has_a_help_text() -> None:
    for name in BUILT:
        entry = COMMANDS[name]
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.help, f"{name} {param.name}"


# -- wrong usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("jbos",), "no command is called 'jbos'; did you mean 'jobs'? (see 'mouso --help')"),
        (("zzzzz",), "no command is called 'zzzzz'; there are worker, "),
        (("\x1b[31m",), "no command is called '\\x1b[31m'"),
        (("x" * 100_000,), "no command is called 'xxx"),
        (("--verison",), "Did you mean '--version'? (see 'mouso --help')"),
        (("jobs", "--quue", "x"), "Did you mean '--queue'? (see 'mouso jobs --help')"),
        (("jobs", "--queue"), "requires an argument"),
        (("jobs", "--queue"), "(see 'mouso jobs --help')"),
        (("jobs", "shop:app", "extra"), "'extra' is one argument too many (see 'mouso jobs --help')"),
        (("jobs", "--limit", "0"), "--limit '0': use a whole number from 1 to 10,000 (see 'mouso jobs --help')"),
        (("jobs", "--limit", "1e9"), "--limit '1e9': use a whole number from 1 to 10,000"),
        (("jobs", "--limit", "x" * 100_000), "use a whole number from 1 to 10,000"),
        (("jobs", "shop:app", "--state", "x" * 100_000), "x…; there are pending"),
        (("demo", "x" * 100_000), "x … "),
        (("demo", "-p", "abc"), "--processes 'abc': use a whole number from 1 to 64"),
        (("jobs", "shop:app", "--task", "\udcff"), "task='\\udcff' can be none's"),
        (("jobs", "shop:app", "--queue", "\udcff"), "queue='\\udcff' can be none's"),
        (("jobs", "shop:app", "--after", "\udcff"), "after='\\udcff' can be none's"),
        (("dead", "shop:app", "delete", "--all", "--task", "\udcff", "--yes"), "task='\\udcff' can be none's"),
        (("job", "shop:app"), "ID is missing (see 'mouso job --help')"),
        (("pause", "shop:app"), "QUEUE is missing"),
        (("pause", "shop:app", "a", "b"), "'b' is one argument too many"),
        (("cancel", "shop:app"), "ID is missing"),
        (("enqueue", "shop:app"), "TASK is missing"),
        (("completion", "cmd"), "'cmd' is not one of"),
        (("jobs",), "no app is named"),
        (("cancel", "019a2f3e"), "no app is named"),
        (("jobs", "shpo:app"), "no module is called 'shpo'"),
        (("jobs", "shop:ap"), "did you mean 'app'?"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(shop: Shop, args: tuple[str, ...], text: str) -> None:
    said = shop.error(2, *args)
    assert text in said
    assert len(said) < 1200


@pytest.mark.parametrize(
    "line",
    [
        "jobs", "job a", "queues", "workers", "doctor", "enqueue add 1", "cancel a", "retry a",
        "delete a", "dead", "dead retry --all --yes", "pause mail", "resume mail", "purge mail", "migrate",
    ],
)  # fmt: skip
def test_a_store_that_lives_in_this_process_alone_is_refused(shop: Shop, line: str) -> None:
    shop.write("inner.py", SHOP.replace('"shop",', '"shop", "memory://x",'))
    command, *rest = line.split()
    message = shop.error(2, command, "inner:app", *rest)
    assert message == "memory://x lives inside one process; name a store such as sqlite:///mouso.db"


def test_the_settings_are_wrong(shop: Shop) -> None:
    shop.write("pyproject.toml", "[tool.mouso]\nap = 'shop:app'\n")
    assert "unknown key tool.mouso.ap; did you mean 'app'?" in shop.error(2, "jobs")
    shop.ok("enqueue", "shop:app", "add", "1")  # who names the app needs no settings


def test_the_environment_holds_a_bad_url(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOUSO_BROKER", "redis//u:secret@x")
    text = shop.error(2, "jobs", "shop:app")
    assert "shop.py, line 5: $MOUSO_BROKER: the broker URL 'redis//u:***@x' has no scheme" in text


# -- exit codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (SchemaError("x"), 2),
        (OptionError("x"), 2),
        (ArgumentError("x"), 2),
        (PayloadTooLarge("x"), 2),
        (click.UsageError("x"), 2),
        (click.BadParameter("x"), 2),
        (BrokerUnavailable("x"), 75),
        (OutcomeUnknown("x"), 75),
        (StartError("x"), 75),
        (MemoryError(), 75),
        (RuntimeError("can't start new thread"), 75),
        (JobUnknown("x"), 1),
        (ResultTimeout("x"), 1),
        (BadPayload("x"), 1),
        (Failed("x"), 1),
        (OSError(28, "No space left on device"), 1),
        (RuntimeError("x"), 1),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    found, text = explain(error)
    assert found == code
    assert text.isprintable()


@pytest.mark.parametrize("text", ["two\nlines", "bell \x07", "\x1b]0;title\x07", "\u202egnp.exe"])
def test_an_error_is_one_printable_line(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def invoke(ctx: click.Context) -> None:
        raise ConfigError(text)

    monkeypatch.setattr(cli, "invoke", invoke)
    assert main([]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()


def test_a_defect_says_how_to_see_more(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def invoke(ctx: click.Context) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(cli, "invoke", invoke)
    assert main([]) == 1
    assert capsys.readouterr().err == (
        "mouso: error: this should not happen: ZeroDivisionError: oops; set MOUSO_DEBUG=1 to see where\n"
    )
    monkeypatch.setenv("MOUSO_DEBUG", "1")
    assert main([]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.splitlines()[-1].startswith("mouso: error: ")


def test_debugging_shows_the_apps_own_traceback(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.write("broken.py", "raise RuntimeError('boom')\n")
    assert "broken.py, line 1: RuntimeError: boom" in shop.error(2, "jobs", "broken:app")
    monkeypatch.setenv("MOUSO_DEBUG", "1")
    result = shop.run("jobs", "broken:app")
    assert result.code == 2
    assert "    raise RuntimeError('boom')\n" in result.err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_ctrl_c_is_quiet(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def invoke(ctx: click.Context) -> None:
        raise error

    monkeypatch.setattr(cli, "invoke", invoke)
    assert main([]) == 130
    assert capsys.readouterr() == ("", "")


_INTERRUPTED = """
import os, signal, sys
import mouso

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from mouso.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("module", ["click", "click.core", "mouso.cli.show", "mouso.cli.base", "shop"])
def test_ctrl_c_while_modules_are_imported_is_quiet(shop: Shop, module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, module, "jobs", "shop:app"],
        capture_output=True, text=True, cwd=shop.folder, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("module", ["mouso.cli.worker", "mouso.worker", "mouso.worker.supervisor"])
def test_ctrl_c_while_a_worker_is_imported_ends_it_well(shop: Shop, module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, module, "worker", "shop:app"],
        capture_output=True, text=True, cwd=shop.folder, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_who_handles_ctrl_c_goes_on_to_do_so() -> None:
    def handler(number: int, frame: object) -> None: ...

    before = signal.getsignal(signal.SIGINT)
    try:
        for mine in (handler, signal.SIG_IGN, signal.default_int_handler):
            signal.signal(signal.SIGINT, mine)
            with quiet_interrupts():
                assert (signal.getsignal(signal.SIGINT) is mine) is (mine is not signal.default_int_handler)
            assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_may_be_run_in_a_thread(shop: Shop) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["jobs", "shop:app"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_what_the_app_prints_when_imported_stays_out_of_the_answer(shop: Shop) -> None:
    shop.write("noisy.py", "print('hello from the app')\nfrom shop import app\n")
    result = shop.run("jobs", "noisy:app", "--json")
    assert (result.code, result.json) == (0, [])
    assert result.err == "hello from the app\n"


def test_a_broker_that_does_not_answer(shop: Shop) -> None:
    import sqlite3

    shop.broker.open()
    other = sqlite3.connect(shop.folder / "mouso.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert "nothing was stored, try again" in shop.error(75, "enqueue", "shop:app", "add", "1")
    other.close()


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        ("worker", signal.SIGTERM, 0),
        ("worker", signal.SIGINT, 0),
        ("jobs", signal.SIGTERM, -signal.SIGTERM),
        ("jobs", signal.SIGINT, 130),
    ],
)
def test_a_worker_that_is_told_to_end_before_it_has_started(command: str, number: int, code: int) -> None:
    program = (
        "import os, signal, sys, time, mouso.cli\n"
        f"mouso.cli._run = lambda given: (os.kill(os.getpid(), {number}), time.sleep(30))\n"
        "sys.exit(mouso.cli.main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", program, command, "shop:app"], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
