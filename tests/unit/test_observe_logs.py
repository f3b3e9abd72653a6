"""The worker's log: text for people, one JSON object per line for programs."""

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest

from mouso.job import Lease
from mouso.observe.logs import FORMATS, about, log_to_stderr

LEASE = Lease(7, 3, "an-id", "shop.send", "mail", b"{}", "json", 2, 0, 0, 0, None, None)


Begin = Callable[..., io.StringIO]


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Calls `log_to_stderr` with a stream in the place of stderr, and returns that; all is put back afterwards.

    To be called in the test itself: pytest has handlers of its own for what is set up before.
    """
    logger = logging.getLogger("mouso")
    before = (list(logger.handlers), logger.level, logger.propagate)

    def begin(form: str = "text", level: str = "info") -> io.StringIO:
        stream = io.StringIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            log_to_stderr(level, form)
        return stream

    yield begin
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)


LOG = logging.getLogger("mouso.worker")


def one(stderr: io.StringIO) -> dict[str, object]:
    """The only line."""
    text = stderr.getvalue()
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    entry = json.loads(text)
    assert isinstance(entry, dict)
    return entry


def test_every_line_says_when_where_and_what(begin: Begin) -> None:
    stderr = begin("json")
    LOG.warning("child %d died", 42)
    entry = one(stderr)
    at = datetime.fromisoformat(str(entry.pop("time")))
    assert at.utcoffset() == timedelta(0)
    assert abs((datetime.now(at.tzinfo) - at).total_seconds()) < 60
    assert isinstance(entry.pop("pid"), int)
    assert entry == {"level": "warning", "logger": "mouso.worker", "message": "child 42 died"}


def test_the_time_is_that_of_rfc_3339(begin: Begin) -> None:
    stderr = begin("json")
    record = LOG.makeRecord(LOG.name, logging.INFO, "f", 1, "m", (), None)
    record.created = 1_700_000_000.0
    LOG.handle(record)
    assert one(stderr)["time"] == "2023-11-14T22:13:20.000Z"


def test_a_line_about_a_job_names_it(begin: Begin) -> None:
    stderr = begin("json")
    LOG.error("failed", extra=about(LEASE))
    entry = one(stderr)
    assert {name: entry[name] for name in ("job_id", "task", "queue", "attempt")} == {
        "job_id": "an-id", "task": "shop.send", "queue": "mail", "attempt": 3,
    }  # fmt: skip


def test_only_known_fields_of_a_record_are_taken(begin: Begin) -> None:
    stderr = begin("json")

    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError

    LOG.info("m", extra={"password": "s3cret", "task": Hostile(), "queue": None})
    assert set(one(stderr)) == {"time", "level", "logger", "message", "pid"}


def test_an_exception_is_a_field(begin: Begin) -> None:
    stderr = begin("json")
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        LOG.exception("it failed", stack_info=True)
    entry = one(stderr)
    assert str(entry["exception"]).startswith("Traceback (most recent call last):\n")
    assert str(entry["exception"]).endswith("ValueError: first\nsecond")
    assert "test_an_exception_is_a_field" in str(entry["stack"])
    assert entry["message"] == "it failed"


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("\x1b[31mred\r\n{}\x00\x07", "\x1b[31mred\r\n{}\x00\x07"),
        ("née 北京 \U0001f600", "née 北京 \U0001f600"),
        ("a lone \udcff surrogate \ud83d", "a lone \\udcff surrogate \\ud83d"),
        ("\x7f\x80\x9b\u202e\u2028", "\x7f\x80\x9b\u202e\u2028"),
        ('","level":"fake', '","level":"fake'),
        ("%d %s", "%d %s"),
    ],
    ids=ascii,
)
def test_whatever_is_said_a_line_is_printable_ascii(begin: Begin, said: str, read: str) -> None:
    stderr = begin("json")
    LOG.info("%s", said, extra={"job_id": said})
    line = stderr.getvalue().removesuffix("\n")
    assert line.isascii()
    assert line.isprintable()
    assert (one(stderr)["message"], one(stderr)["job_id"]) == (read, read)
    # A reader that is strict about surrogates takes it too.
    json.dumps(json.loads(line), ensure_ascii=False).encode()


def test_a_call_with_wrong_arguments_is_still_one_line(begin: Begin) -> None:
    stderr = begin("json")
    LOG.info("%d jobs", "many")
    assert one(stderr)["message"] == "'%d jobs' ('many',)"


def test_a_stream_that_fails_stops_nobody(begin: Begin, capsys: pytest.CaptureFixture[str]) -> None:
    stream = begin()
    stream.close()
    LOG.error("nobody reads this")
    assert "I/O operation on closed file" in capsys.readouterr().err


def test_text_is_for_people(begin: Begin) -> None:
    stream = begin()
    logging.getLogger("mouso.job").error("job \x1b[31mred\nforged line", extra=about(LEASE))
    logging.getLogger("mouso.job").debug("not at this level")
    assert stream.getvalue().endswith(f" ERROR    [{LEASE.id}] job \\x1b[31mred\\nforged line\n")
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("form", FORMATS)
def test_root_and_other_loggers_are_left_alone(begin: Begin, form: str) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    stream = begin(form, "debug")
    assert (list(root.handlers), root.level) == before
    logging.getLogger("shop").info("not ours")
    assert stream.getvalue() == ""
    assert not logging.getLogger("mouso").propagate


def test_a_traceback_for_people_steers_no_terminal(begin: Begin) -> None:
    stream = begin()
    try:
        raise ValueError("first\x1b[31m\nsecond\x9b")
    except ValueError:
        LOG.exception("it failed")
    assert stream.getvalue().endswith("\nValueError: first\\x1b[31m\nsecond\\x9b\n")


@pytest.mark.parametrize("form", FORMATS)
def test_what_has_no_end_is_cut(begin: Begin, form: str) -> None:
    stream = begin(form)
    LOG.error("%s", f"begin{'x' * 1_000_000}end", exc_info=ValueError(f"{'y' * 1_000_000}over"))
    said = stream.getvalue()
    assert len(said) < 40_000
    for part in ("beginx", "983,624 characters", "xend", "yover"):
        assert part in said
