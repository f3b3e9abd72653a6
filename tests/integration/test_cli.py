"""The ``mouso`` command as a process of its own: streams that are closed, terminals of any width, signals."""

import errno
import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from mouso.brokers.base import Update
from mouso.job import JobState, Progress, new_id
from tests.support import wait_until
from tests.unit.cli_kit import WORKER, Shop, opened

EVIL = "\x1b]0;owned\x07\x1b[31m[bold red]x[/]\u202e\x9b2J:smile:"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    with opened(tmp_path, monkeypatch, capsys) as shop:
        monkeypatch.setenv("MOUSO_APP", "shop:app")
        yield shop


def start(args: Sequence[str], **settings: Any) -> subprocess.Popen[str]:
    env = {**os.environ, **settings.pop("env", {})}
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "mouso", *args], text=True, env=env, **{**pipes, **settings})


def mouso(*args: str, **settings: Any) -> tuple[int, str, str]:
    """Runs a command; returns exit code, stdout and stderr."""
    with start(args, **settings) as process:
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err


def shell(line: str) -> tuple[int, str]:
    """Runs a line in a shell, ``mouso`` being the command; returns exit code and stderr."""
    code = f'mouso() {{ "{sys.executable}" -m mouso "$@"; }}\n{line}'
    done = subprocess.run(["bash", "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stderr


def on_terminal(*args: str, columns: int = 120, code: int = 0, **env: str) -> str:
    """What the command writes to a terminal of that width."""
    master, slave = pty.openpty()
    environment = {"COLUMNS": str(columns), "TERM": "xterm-256color", **env}
    process = start(args, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    with process, os.fdopen(master, "rb", buffering=0) as terminal:
        text = read_all(terminal)
        assert process.wait(20) == code, text
    return text


def read_all(terminal: IO[bytes]) -> str:
    chunks: list[bytes] = []
    try:
        while chunk := terminal.read(65_536):
            chunks.append(chunk)
    except OSError as error:
        if error.errno != errno.EIO:  # which only says that the other end was closed
            raise
    return b"".join(chunks).decode().replace("\r\n", "\n")


# -- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["jobs", "jobs --json", "queues", "--version", "--help", "enqueue add 1"])
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(shop: Shop, command: str, closed: str) -> None:
    shop.enqueue("a1")
    assert shell(f"mouso {command} {closed}") == (0, "")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_nothing_is_written_into_the_store_in_place_of_a_closed_stream(shop: Shop, closed: str) -> None:
    shop.write("chatty.py", "import os\nfrom shop import app\nprint('x' * 5000)\nos.write(1, b'y' * 5000)\n")
    assert shell(f"mouso enqueue chatty:app add 1 --id e1 {closed}")[0] == 0
    assert shop.state("e1") is JobState.AVAILABLE
    with sqlite3.connect(shop.folder / "mouso.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_errors_with_closed_streams(shop: Shop) -> None:
    assert shell("mouso job no1 >&-")[0] == 1
    assert shell("mouso job no1 2>&-") == (1, "")
    assert shell("mouso jbos <&- >&- 2>&-") == (2, "")


def test_a_reader_that_has_seen_enough(shop: Shop) -> None:
    shop.enqueue(*(f"job-number-{i}" for i in range(3000)))
    for options in ("--limit 3000", "--limit 3000 --json", "--limit 1"):
        code, err = shell(f"mouso jobs {options} | head -n 1 >/dev/null; exit ${{PIPESTATUS[0]}}")
        assert (code, err) == (0, "")
        code, err = shell(f"mouso jobs {options} | true; exit ${{PIPESTATUS[0]}}")
        assert (code, err) == (0, "")
    assert shell("mouso --help | true; exit ${PIPESTATUS[0]}") == (0, "")


def test_output_that_cannot_be_written(shop: Shop) -> None:
    shop.enqueue("a1")
    full = "mouso: error: cannot write to stdout: No space left on device"
    for command in ("jobs", "jobs --json", "job a1", "queues", "completion bash", "--help", "--version"):
        for buffered in ("", "1"):
            line = f"PYTHONUNBUFFERED={buffered} mouso {command} > /dev/full"
            assert shell(line) == (1, f"{full}\n")
    for options in ("", "--json"):
        name = f"stored{options}"
        stored = f"{full}; the job is stored, its id is {name}\n"
        assert shell(f"mouso enqueue add 1 --id {name} {options} > /dev/full") == (1, stored)
        assert shop.state(name) is JobState.AVAILABLE
    assert shell("mouso job no1 2> /dev/full")[0] == 1


# -- surroundings ----------------------------------------------------------------------------------------------------

PLAIN = {"LANG": "C", "LC_ALL": "C", "COLUMNS": "1", "TERM": "dumb", "PYTHONIOENCODING": ""}
ASCII = {**PLAIN, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # without what Python does to mend LANG=C


@pytest.mark.parametrize("args", [("jobs",), ("job", "a1"), ("queues",), ("workers",), ("dead",), ("--help",)])
@pytest.mark.parametrize("env", [PLAIN, ASCII], ids=["plain", "ascii"])
def test_a_bare_environment(shop: Shop, args: tuple[str, ...], env: dict[str, str]) -> None:
    shop.enqueue("a1", payload='{"x":"ä漢"}'.encode(), queue="größe")
    shop.join(name="wörker")
    code, out, err = mouso(*args, env=env)
    assert code == 0
    assert "Traceback" not in err
    assert out.isascii() or env is PLAIN
    if args == ("job", "a1"):
        assert ('x = "\\xe4\\u6f22"' if env is ASCII else 'x = "ä漢"') in out
        assert json.loads(mouso(*args, "--json", env=env)[1])["queue"] == "größe"


def test_errors_in_a_bare_environment(shop: Shop) -> None:
    code, out, err = mouso("enqueue", "größe", env=ASCII)
    assert (code, out) == (2, "")
    assert err.startswith("mouso: error: no task is called 'gr")
    assert err.isascii()


def test_the_current_directory_was_deleted(shop: Shop, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    env = {"PYTHONPATH": str(shop.folder), "PYTHONSAFEPATH": "1"}
    line = f'cd "{gone}" && rmdir "{gone}" && exec "$0" -m mouso "$@"'

    def from_nowhere(*args: str, **more: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["bash", "-c", line, sys.executable, *args],
            env={**os.environ, **more},
            capture_output=True,
            text=True,
            timeout=30,
        )
        gone.mkdir()
        return done.returncode, done.stdout, done.stderr

    assert from_nowhere("--version")[0] == 0
    code, _, err = from_nowhere("jobs")
    assert (code, err) == (
        2,
        "mouso: error: no module is called 'shop'; the current directory does not exist any more, go to another one\n",
    )
    assert from_nowhere("enqueue", "add", "1", "--id", "e1", **env) == (0, "e1\n", "")
    assert shop.state("e1") is JobState.AVAILABLE


def test_the_app_in_an_environment_variable_of_invalid_utf8(shop: Shop) -> None:
    code, out, err = mouso("jobs", env={"MOUSO_APP": os.fsdecode(b"shop\xff:app")})
    assert (code, out) == (2, "")
    assert err == "mouso: error: $MOUSO_APP: 'shop\\udcff:app' is not valid UTF-8\n"


def test_arguments_of_invalid_utf8(shop: Shop) -> None:
    bad = os.fsdecode(b"\xff")
    for args in (("job", bad), ("jobs", bad), ("enqueue", bad), ("enqueue", "add", bad), ("pause", bad), (bad,)):
        code, out, err = mouso(*args)
        assert (code, out) == (2, ""), err
        assert err.startswith("mouso: error: ")
        assert err.count("\n") == 1
    assert mouso("jobs", "--queue", bad)[0] in (0, 1, 2)


def test_the_script_and_the_module_are_the_same() -> None:
    script = Path(sys.executable).with_name("mouso")
    if not script.exists():
        pytest.skip("the command was not installed beside this Python")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == mouso("--version")[1]


# -- terminals -------------------------------------------------------------------------------------------------------


def evil(shop: Shop) -> None:
    payload = json.dumps({"x": EVIL}).encode()
    shop.bury("d1", message=EVIL, unique="[red]k", payload=payload)
    shop.enqueue("r1", payload=payload)
    (lease,) = shop.claim()
    shop.broker.report(WORKER, [Update(lease.key, lease.token, Progress(1, None, EVIL))])
    shop.join(name=EVIL, host=EVIL, version=EVIL, queues=(EVIL,))


@pytest.mark.parametrize("columns", [120, 1])
@pytest.mark.parametrize("args", [("jobs",), ("job", "d1"), ("job", "r1"), ("dead",), ("workers",), ("queues",)])
def test_job_data_never_steers_the_terminal(shop: Shop, args: tuple[str, ...], columns: int) -> None:
    evil(shop)
    text = on_terminal(*args, columns=columns)
    assert not any(sign in text for sign in ("\x1b]", "\x07", "\x9b", "\u202e", "\x1b[31m[bold"))


def test_markup_in_job_data_is_shown_as_it_is(shop: Shop) -> None:
    evil(shop)
    shop.enqueue("t1", task="[bold]t[:smile:]", payload=b"{}")
    assert "[bold]t[:smile:]" in on_terminal("jobs", "--state", "available", columns=200)
    text = on_terminal("job", "d1")
    assert "[bold red]x[/]" in text
    assert ":smile:" in text


def test_a_terminal_gets_colours_and_no_empty_columns(shop: Shop) -> None:
    shop.bury("d1")
    assert "\x1b[31mdead" in on_terminal("jobs")
    shop.enqueue("a1")
    text = on_terminal("jobs", "--state", "available", NO_COLOR="1")
    assert "ENQUEUED" in text
    assert "FAILED" not in text
    assert "REMARK" not in text
    assert "\x1b[3" not in text


@pytest.mark.parametrize("columns", [1, 39, 80, 500])
def test_ids_are_whole(shop: Shop, columns: int) -> None:
    (id_,) = shop.enqueue()
    assert id_ in on_terminal("jobs", columns=columns)


@pytest.mark.parametrize("columns", [40, 60, 80])
@pytest.mark.parametrize("args", [("jobs",), ("dead",), ("workers",), ("queues",)])
def test_no_title_is_broken(shop: Shop, args: tuple[str, ...], columns: int) -> None:
    shop.bury(id_ := new_id(), message="the mail server did not answer")
    shop.join(name="worker-1", host="host.example", queues=("mail", "default"))
    text = on_terminal(*args, columns=columns, NO_COLOR="1")
    words = re.sub(r"\x1b\[[0-9;]*m", "", text).split()
    titles = {word for word in words if word.isupper() and word.isalpha()}
    known = {"ID", "TASK", "QUEUE", "STATE", "FAILED", "ENQUEUED", "RAN", "REMARK", "DIED", "REASON", "ERROR", "OLDEST"}
    known |= {"NAME", "HOST", "PID", "RUNNING", "QUEUES", "STARTED", "SEEN", "VERSION"}
    assert titles
    assert titles <= known | {state.value.upper() for state in JobState}
    assert args[0] != "dead" or id_ in words


@pytest.mark.parametrize("columns", ["", "0", "-1", "abc", "²", "9" * 30, "9" * 5000])
def test_a_width_that_is_none(shop: Shop, columns: str) -> None:
    (id_,) = shop.enqueue()
    assert id_ in on_terminal("jobs", COLUMNS=columns, LINES=columns)
    assert "0 errors" in (text := on_terminal("doctor", COLUMNS=columns, LINES=columns))
    assert "no worker is alive" in text


def test_progress_is_shown_while_waiting(shop: Shop) -> None:
    shop.join()
    master, slave = pty.openpty()
    env = {"COLUMNS": "120", "TERM": "xterm-256color"}
    process = start(["enqueue", "add", "1", "--wait", "--id", "w1"], stdout=subprocess.PIPE, stderr=slave, env=env)
    os.close(slave)
    with process, os.fdopen(master, "rb", buffering=0) as terminal:
        (lease,) = wait_until(lambda: shop.claim(1), message="the job")
        shop.broker.report(WORKER, [Update(lease.key, lease.token, Progress(3, 10, "[b]half\x1b]way"))])
        shown = b""
        while b"[b]half" not in shown:
            shown += terminal.read(65_536)
        shop.settle(lease, result=b"42")
        shown += read_all(terminal).encode()
        assert process.stdout is not None
        assert process.stdout.read() == "42\n"
        assert process.wait(20) == 0
    assert b"\x1b]" not in shown


def test_a_destructive_command_asks_on_a_terminal(shop: Shop) -> None:
    shop.bury("d1")
    master, slave = pty.openpty()
    process = start(["dead", "delete", "--all"], stdin=slave, stdout=slave, stderr=slave, env={"TERM": "dumb"})
    os.close(slave)
    with process, os.fdopen(master, "r+b", buffering=0) as terminal:
        shown = b""
        while b"[y/N]" not in shown:
            shown += terminal.read(65_536)
        terminal.write(b"n\n")
        rest = read_all(terminal)
        assert process.wait(20) == 1
    assert b"delete 1 dead job for good?" in shown
    assert "nothing was done" in rest
    assert shop.state("d1") is JobState.DEAD


# -- signals and a broker that is gone -------------------------------------------------------------------------------


def test_ctrl_c_while_waiting_is_quiet_and_leaves_the_job(shop: Shop) -> None:
    shop.join()
    with start(["enqueue", "add", "1", "--wait", "--id", "w1"]) as process:
        wait_until(lambda: shop.state("w1") is not None, message="the job")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "")
    assert shop.state("w1") is JobState.AVAILABLE


def test_a_broker_that_is_gone_is_exit_code_75(shop: Shop) -> None:
    shop.broker.open()
    other = sqlite3.connect(shop.folder / "mouso.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    code, out, err = mouso("enqueue", "add", "1")
    other.close()
    assert (code, out) == (75, "")
    assert err.startswith("mouso: error: ")
    assert err.endswith("nothing was stored, try again\n")
    assert err.count("\n") == 1


def test_a_store_that_is_none(shop: Shop) -> None:
    shop.write("mouso.db", "no database\n" * 1000)
    for args in (("jobs",), ("migrate",), ("enqueue", "add", "1"), ("queues", "--json")):
        code, out, err = mouso(*args)
        assert (code, out) == (2, "")
        assert "is no intact SQLite database" in err
        assert err.count("\n") == 1


def test_a_store_whose_folder_went_away(shop: Shop) -> None:
    shop.write("far.py", "from mouso import Mouso\napp = Mouso(broker='sqlite:///data/x.db')\n")
    (shop.folder / "data").mkdir()
    assert mouso("jobs", "far:app", "--json")[1] == "[]\n"
    shutil.rmtree(shop.folder / "data")
    code, _, err = mouso("jobs", "far:app")
    assert code == 2
    assert f"the folder {shop.folder / 'data'} does not exist; create it" in err
