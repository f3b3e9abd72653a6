"""What jobs print and log: lines with the id of their job, bounded, and everything else untouched."""

import io
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import pytest

from mouso.context import CURRENT, Context
from mouso.worker import output
from mouso.worker.output import Allowance, Tap, tag_records, tap_output
from tests.support import wait_until


class Pipe:
    """A pipe with a text stream at its writing end, and what has come out of it so far."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self.reading, writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.stream: TextIO = os.fdopen(writing, "w", encoding=encoding)

    def read(self) -> str:
        parts = []
        while True:
            try:
                part = os.read(self.reading, 1 << 20)
            except BlockingIOError:
                break
            if not part:
                break
            parts.append(part)
        return b"".join(parts).decode("utf-8", "surrogateescape")

    def close(self) -> None:
        os.close(self.reading)
        with suppress(OSError):
            self.stream.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


@pytest.fixture
def tap(pipe: Pipe) -> Iterator[Tap]:
    made = Tap(pipe.stream, Allowance())
    yield made
    made._outlet.close()


@contextmanager
def running(id: str = "job-1") -> Iterator[Context]:
    """Code below a job."""
    context = Context(job_id=id, task="shop.work", queue="mail", attempt=2)
    token = CURRENT.set(context)
    try:
        yield context
    finally:
        CURRENT.reset(token)
        if context.printed is not None:
            context.printed.end()


# -- taps


def test_each_line_of_a_job_has_its_id(pipe: Pipe, tap: Tap) -> None:
    with running():
        print("one", 2, file=tap)
        print("three\nfour", file=tap)
        print(file=tap)
    assert pipe.read() == "[job-1] one 2\n[job-1] three\n[job-1] four\n[job-1] \n"


def test_what_no_job_prints_is_left_alone(pipe: Pipe, tap: Tap) -> None:
    print("no", end="", file=tap)
    print("body", file=tap)
    tap.flush()
    assert pipe.read() == "nobody\n"


def test_a_line_is_passed_on_when_it_ends(pipe: Pipe, tap: Tap) -> None:
    with running() as context:
        print("half", end=" ", flush=True, file=tap)
        assert pipe.read() == ""
        print("whole", file=tap)
        assert pipe.read() == "[job-1] half whole\n"
        print("the rest", end="", file=tap)
        assert context.printed is not None
        context.printed.end()
        assert pipe.read() == "[job-1] the rest\n"
        context.printed.end()
        assert pipe.read() == ""


def test_lines_of_several_jobs_do_not_mix(pipe: Pipe, tap: Tap) -> None:
    def work(id: str) -> None:
        with running(id):
            for n in range(200):
                for part in ("a", "b", f"{n}"):
                    tap.write(part)
                tap.write("\n")

    threads = [threading.Thread(target=work, args=(f"job-{k}",)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = pipe.read().splitlines()
    for k in range(4):
        assert [line for line in lines if f"job-{k}" in line] == [f"[job-{k}] ab{n}" for n in range(200)]


def test_a_line_that_names_its_job_is_not_tagged_again(pipe: Pipe, tap: Tap) -> None:
    with running():
        print("INFO job=job-1 started", file=tap)
    assert pipe.read() == "INFO job=job-1 started\n"


def test_a_line_that_does_not_end_is_broken(pipe: Pipe, tap: Tap) -> None:
    with running() as context:
        tap.write("x" * (2 * output.LONGEST + 500))
        assert pipe.read() == f"[job-1] {'x' * output.LONGEST}\n" * 2
        assert context.printed is not None
        context.printed.end()
        assert pipe.read() == f"[job-1] {'x' * 500}\n"
        tap.write("y" * (output.LONGEST + 1) + "\n")
        assert pipe.read() == f"[job-1] {'y' * output.LONGEST}\n[job-1] y\n"


def test_a_progress_bar_shows_its_last_state(pipe: Pipe, tap: Tap) -> None:
    with running() as context:
        for n in range(1000):
            tap.write(f"\r{n} of 1000")
        tap.write("\n")
        tap.write("dos\r\n")
        assert context.printed is not None
    assert pipe.read() == "[job-1] 999 of 1000\n[job-1] dos\n"


def test_a_flood_is_bounded_and_counted(pipe: Pipe, tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    text = []
    monkeypatch.setattr(output, "BURST", 10_000)
    monkeypatch.setattr(output, "RATE", 0)
    small = Tap(pipe.stream, Allowance())
    small._allowance._left = 10_000
    with running():
        for n in range(2000):
            small.write(f"line {n}\n")
            text.append(pipe.read())
    lines = "".join(text) + pipe.read()
    kept = [line for line in lines.splitlines() if "] line " in line]
    assert kept == [f"[job-1] line {n}" for n in range(len(kept))]
    assert 9_900 < sum(len(line) + 1 for line in kept) <= 10_000
    assert f"[job-1] {2000 - len(kept):,} lines of output were left out here" in lines


def test_after_a_flood_lines_come_through_again(pipe: Pipe, tap: Tap) -> None:
    with running():
        tap._allowance._left = 0
        tap._allowance._at = 1e12  # no time passes
        tap.write("lost\n" * 3)
        tap._allowance._left = output.BURST
        tap.write("found\n")
        assert pipe.read() == "[job-1] 3 lines of output were left out here\n[job-1] found\n"


def test_a_reader_that_does_not_read_holds_up_nobody(pipe: Pipe, tap: Tap) -> None:
    done = threading.Event()

    def flood() -> None:
        with running():
            for _ in range(3000):
                tap.write("x" * 100 + "\n")
        done.set()

    thread = threading.Thread(target=flood)
    thread.start()
    wait_until(done.is_set, timeout=10)
    thread.join()
    assert 30_000 < len(pipe.read()) < 70_000  # as much as a pipe holds
    with running():
        tap.write("there you are\n")
    assert pipe.read().endswith("] there you are\n")


def test_a_reader_that_is_gone_harms_no_job(pipe: Pipe, tap: Tap) -> None:
    with running():
        os.close(pipe.reading)
        pipe.reading = os.dup(0)
        tap.write("into the void\n")


@pytest.mark.parametrize("junk", ["\udcff", "é", "日本", "\0", "\u2028"])
def test_whatever_a_line_holds(junk: str) -> None:
    made = Pipe("ascii")
    with running():
        Tap(made.stream, Allowance()).write(f"a{junk}b\n")
    assert made.read() == f"[job-1] a{junk.encode('ascii', 'backslashreplace').decode()}b\n"
    made.close()


def test_bytes_take_the_same_way(pipe: Pipe, tap: Tap) -> None:
    with running():
        assert tap.buffer.write(b"raw \xff bytes\n") == 12
        tap.buffer.write(memoryview(b"and views\n"))
    assert pipe.read() == "[job-1] raw � bytes\n[job-1] and views\n"
    tap.buffer.write(b"nobody's")
    tap.buffer.flush()
    assert pipe.read() == "nobody's"


def test_a_tap_is_a_stream_like_any_other(pipe: Pipe, tap: Tap) -> None:
    assert isinstance(tap, io.TextIOBase)
    assert (tap.fileno(), tap.isatty(), tap.encoding) == (pipe.stream.fileno(), False, "utf-8")
    assert (tap.writable(), tap.readable(), tap.closed) == (True, False, False)
    assert tap.errors == pipe.stream.errors
    assert tap.name == pipe.stream.name
    assert tap.buffer.fileno() == pipe.stream.fileno()
    tap.reconfigure(line_buffering=True)
    with running():
        tap.close()
        assert tap.write("still here\n") == 11
        tap.writelines(["a\n", "b\n"])
        with pytest.raises(TypeError):
            tap.write(b"no text")  # type: ignore[arg-type]  # why: what a wrong call gets
    assert pipe.read() == "[job-1] still here\n[job-1] a\n[job-1] b\n"


def test_where_logs_are_json_lines_are_too(pipe: Pipe) -> None:
    tap = Tap(pipe.stream, Allowance(), "stderr", output.as_json)
    with running():
        tap.write('\x1b[31m"é"\n')
    (line,) = pipe.read().splitlines()
    entry = json.loads(line)
    assert (entry["message"], entry["logger"], entry["level"]) == ('\x1b[31m"é"', "stderr", "info")
    assert (entry["job_id"], entry["task"], entry["queue"], entry["attempt"]) == ("job-1", "shop.work", "mail", 2)
    assert line.isascii()


def test_taps_stand_for_the_process_streams_once(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", pipe.stream)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(os, "register_at_fork", lambda **_: None)
    tap_output()
    tapped: Any = sys.stdout
    assert isinstance(tapped, Tap)
    assert sys.stderr is None
    with running():
        print("hello")
    assert pipe.read() == "[job-1] hello\n"


def test_streams_without_a_descriptor_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stand_in)
    monkeypatch.setattr(sys, "stderr", stand_in)
    tap_output()
    assert sys.stdout is stand_in


# -- log records


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[logging.LogRecord]]:
    """The records of two loggers, tagged as in a child."""
    monkeypatch.setattr(logging.Logger, "makeRecord", logging.Logger.makeRecord)
    tag_records()
    found: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    handler = Keep()
    loggers = [logging.getLogger(name) for name in ("shop", "mouso.job")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel("INFO")
    yield found
    for logger in loggers:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def test_a_record_below_a_job_tells_which(records: list[logging.LogRecord]) -> None:
    with running():
        logging.getLogger("shop").info("hello")
    logging.getLogger("shop").info("nobody")
    inside, outside = records
    formatted = logging.Formatter("%(job_id)s %(task)s %(queue)s %(attempt)d %(message)s").format(inside)
    assert formatted == "job-1 shop.work mail 2 hello"
    assert not hasattr(outside, "job_id")


def test_an_extra_of_the_caller_stands(records: list[logging.LogRecord]) -> None:
    with running():
        logging.getLogger("shop").info("hello", extra={"task": "my own", "other": 1})
    assert (vars(records[0])["task"], vars(records[0])["other"]) == ("my own", 1)
    assert vars(records[0])["job_id"] == "job-1"


def test_a_record_of_the_jobs_own_logger_is_no_conflict(records: list[logging.LogRecord]) -> None:
    with running() as context:
        context.log.warning("hello %s", "you", extra={"user": 7})
    facts = vars(records[0])
    assert (records[0].getMessage(), facts["job_id"], facts["attempt"], facts["user"]) == ("hello you", "job-1", 2, 7)
