"""``mouso enqueue``."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mouso.clock import SYSTEM
from mouso.errors import ErrorInfo
from mouso.job import Job, JobOptions, JobState
from tests.support import wait_until
from tests.unit.cli_kit import Shop, opened


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    with opened(tmp_path, monkeypatch, capsys) as shop:
        monkeypatch.setenv("MOUSO_APP", "shop:app")
        yield shop


def stored(shop: Shop, *args: str) -> Job:
    """The job that the command stored."""
    (job,) = shop.broker.get([shop.ok("enqueue", *args).strip()])
    assert job is not None
    return job


@pytest.mark.parametrize(
    ("args", "payload"),
    [
        (("add", "2", "3"), b'{"x":2,"y":3}'),
        (("shop.add", "2"), b'{"x":2}'),
        (("add", "-2", "-30"), b'{"x":-2,"y":-30}'),
        (("add", "--kwargs", '{"x": 1, "y": 2}'), b'{"x":1,"y":2}'),
        (("add", "1", "--kwargs", '{"y": 2}'), b'{"x":1,"y":2}'),
        (("send", '"a@b.c"'), b'{"to":"a@b.c"}'),
        (
            ("send", '"x"', "--kwargs", '{"at": "2030-01-31T08:00:00Z"}'),
            b'{"to":"x","at":"2030-01-31T08:00:00Z"}',
        ),
        (("send", '"\\u00e4"'), '{"to":"ä"}'.encode()),
    ],
)
def test_arguments(shop: Shop, args: tuple[str, ...], payload: bytes) -> None:
    assert stored(shop, *args).payload == payload


def test_arguments_in_another_codec(shop: Shop) -> None:
    job = stored(shop, "pack", '{"a": 1}')
    assert (job.codec, msgspec.msgpack.decode(job.payload)) == ("msgpack", {"data": {"a": 1}})


def test_the_task_decides_the_queue_unless_told(shop: Shop) -> None:
    assert stored(shop, "send", '"x"').queue == "mail"
    assert stored(shop, "send", '"x"', "--queue", "low").queue == "low"


def test_options(shop: Shop) -> None:
    job = stored(
        shop, "add", "1", "--priority", "-5", "--id", "order:1", "--unique", "k", "--attempts", "3", "--timeout", "1m"
    )
    assert (job.priority, job.id, job.unique) == (-5, "order:1", "k")
    assert job.options is not None
    assert msgspec.json.decode(job.options, type=JobOptions) == JobOptions(attempts=3, timeout=60.0)
    assert shop.ok("enqueue", "add", "1", "--id", "order:1") == "order:1\n"


def test_times(shop: Shop) -> None:
    job = stored(shop, "add", "1", "--delay", "1h30m", "--expires", "2d")
    assert job.state is JobState.SCHEDULED
    assert job.due is not None
    assert job.expires_at is not None
    assert abs(job.due - SYSTEM.now() - 5_400_000) < 60_000
    assert abs(job.expires_at - SYSTEM.now() - 172_800_000) < 60_000
    job = stored(shop, "add", "1", "--eta", "2030-01-31T08:00+01:00", "--expires", "2030-02-01T00:00:00Z")
    assert (job.due, job.expires_at) == (1_896_073_200_000, 1_896_134_400_000)


@pytest.mark.parametrize(
    "args",
    [
        ('"u"', "s3cr3t-raw"),
        ('"u"', '"s3cr3t \\ud800"'),
        ('"u"', '["s3cr3t", 1e400]'),
        ('"u"', '"s3cr3t'),
        ('"u"', '"x"', "s3cr3t-1", "s3cr3t-2"),
        ('"u"', "--kwargs", '{"password": ["s3cr3t", 1e400]}'),
        ('"u"', "--kwargs", '{"password": "s3cr3t \\ud800"}'),
    ],
)
def test_what_is_hidden_is_not_quoted_when_it_cannot_be_read(shop: Shop, args: tuple[str, ...]) -> None:
    shop.write(
        "bank.py",
        "from mouso import Context\nfrom shop import app\n@app.task\n"
        "def pay(ctx: Context, user: str, password: str, *secrets: str) -> None: ...\n",
    )
    assert "s3cr3t" not in shop.error(2, "enqueue", "bank:app", "pay", *args)
    assert "argument 1 'two' is no JSON" in shop.error(2, "enqueue", "bank:app", "pay", "two", "s3cr3t")


def test_as_json(shop: Shop) -> None:
    document = json.loads(shop.ok("enqueue", "add", "1", "--json"))
    assert set(document) == {"id", "task"}
    assert shop.state(document["id"]) is JobState.AVAILABLE


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("add", "two"), "argument 1 'two' is no JSON; for a text write '\"two\"'"),
        (("add", "1", "it's"), 'argument 2 "it\'s" is no JSON'),
        (("add", "{x: 1}"), "argument 1 is no JSON"),
        (("add", "NaN"), "argument 1 'NaN' is no JSON"),
        (("add", "-Infinity"), "argument 1 '-Infinity' is no JSON"),
        (("add", ""), "argument 1 '' is no JSON"),
        (("add", "[" * 100_000), "argument 1 is nested too deep; give it fewer levels"),
        (("add", '"\\ud800"'), "holds half a character"),
        (("add", "1", "--attempts", "99999999999"), "attempts=99999999999 is out of range"),
        (("add", "1e400"), "argument 1 1e400: number out of range"),
        (("add", "1" * 20_000), "1: integer value out of range"),
        (("add", "--kwargs", '{"x": [1e400]}'), "--kwargs: number out of range"),
        (("add", '"two"'), "task shop.add: argument 'x': Expected `int`, got `str`"),
        (("add", "1.5"), "task shop.add: argument 'x': Expected `int`, got `float`"),
        (("add",), "task shop.add: missing a required argument: 'x'; it takes (x: int, y: int = 1)"),
        (("add", "1", "2", "3"), "task shop.add: too many positional arguments"),
        (("add", "1", "--kwargs", '{"x": 1}'), "task shop.add: multiple values for argument 'x'"),
        (("add", "1", "--kwargs", '{"z": 1}'), "task shop.add: got an unexpected keyword argument 'z'"),
        (("add", "1", "--kwargs", "[1]"), "--kwargs must be a JSON object"),
        (("send", '"x"', "--kwargs", '{"ctx": 1}'), "unexpected keyword argument 'ctx'"),
        (("ad", "1"), "no task is called 'ad'"),
        (("shop.ad", "1"), "did you mean 'shop.add'?"),
        (("shpo:app", "add", "1"), "no module is called 'shpo' in"),
        (("os.system", '"ls"'), "no task is called 'os.system'"),
        (("__import__", '"os"'), "no task is called '__import__'"),
        (("add", "1", "--quue", "x"), "no option is called '--quue'; did you mean '--queue'?"),
        (("add", "1", "--priorty=3"), "no option is called '--priorty'; did you mean '--priority'?"),
        (("add", "1", "-z"), "no option is called '-z'"),
        (("add", "--", "1", "--wait"), "--wait stands behind '--', among the job's arguments; put it before"),
        (("add", "1", "--priority", "101"), "priority=101 is out of range; use a whole number from -100 to 100"),
        (("add", "1", "--priority", "high"), "--priority 'high' is no whole number"),
        (("add", "1", "--priority", "9" * 5000), "is no whole number"),
        (("add", "1", "--attempts", "0"), "attempts=0 is out of range"),
        (("add", "1", "--attempts", "1.5"), "--attempts '1.5' is no whole number"),
        (("add", "1", "--delay", "soon"), "delay='soon' is no duration"),
        (("add", "1", "--delay", "nan"), "delay='nan'"),
        (("add", "1", "--timeout", "0"), "timeout='0' leaves no time to run"),
        (("add", "1", "--eta", "tomorrow"), "--eta 'tomorrow' is no time"),
        (("add", "1", "--eta", "2030-01-31T08:00"), "has no time zone; add +01:00, or Z for UTC"),
        (("add", "1", "--eta", "0001-01-01T00:00:00Z"), "lies outside the years 1970 to 2262"),
        (("add", "1", "--eta", "10000-01-01T00:00:00Z"), "is no time"),
        (("add", "1", "--expires", "2030-13-01"), "--expires '2030-13-01' is no time"),
        (("add", "1", "--delay", "1s", "--eta", "2030-01-31T08:00Z"), "delay= and eta= exclude each other"),
        (("add", "1", "--queue", "a b"), "queue name 'a b' is not usable"),
        (("add", "1", "--id", "a/b"), "is no job id"),
        (("add", "1", "--unique", "\x1b"), "is no key"),
        (("add", "1", "--wait", "--wait-timeout", "soon"), "'soon' is no duration"),
        (("add", "--kwargs", '{"x": 1, "y": 2, "x": 3}'), "--kwargs has the name 'x' twice; give each argument once"),
        (("send", '"' + "x" * (1 << 20) + '"'), "the arguments take 1,048,"),
    ],
)
def test_what_is_refused_is_not_stored(shop: Shop, args: tuple[str, ...], text: str) -> None:
    assert text in shop.error(2, "enqueue", *args)
    assert shop.ok("jobs", "--json") == "[]\n"


# -- waiting ---------------------------------------------------------------------------------------------------------


def meanwhile(shop: Shop, act: Callable[[Any], None]) -> threading.Thread:
    """A thread that plays the worker: it claims the next job and does something to it."""

    def work() -> None:
        act(*wait_until(lambda: shop.claim(1), message="a job to claim"))

    shop.join()
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_wait_prints_the_result(shop: Shop) -> None:
    thread = meanwhile(shop, lambda lease: shop.settle(lease, result=b'{"n":[5,"\xc3\xa4"]}'))
    assert json.loads(shop.ok("enqueue", "add", "1", "--wait")) == {"n": [5, "ä"]}
    thread.join()


def test_wait_prints_null_for_no_result(shop: Shop) -> None:
    thread = meanwhile(shop, lambda lease: shop.settle(lease))
    assert shop.ok("enqueue", "add", "1", "--wait", "--wait-timeout", "1m", "--json") == "null\n"
    thread.join()


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (JobState.DEAD, "(shop.add) is dead (attempts): ValueError: two lines"),
        (JobState.CANCELLED, "(shop.add) was cancelled: attempts"),
        (JobState.EXPIRED, "(shop.add) expired while it waited to run"),
    ],
)
def test_wait_for_a_job_that_does_not_complete(shop: Shop, state: JobState, text: str) -> None:
    error = ErrorInfo(type="ValueError", message="two\nlines", traceback="long", attempt=1)
    thread = meanwhile(shop, lambda lease: shop.settle(lease, state, reason="attempts", error=error))
    assert text in shop.error(1, "enqueue", "add", "1", "--wait")
    thread.join()


def test_wait_is_over(shop: Shop) -> None:
    shop.join()
    text = shop.error(1, "enqueue", "add", "1", "--wait-timeout", "10ms")
    assert "was not final within 0.01 s; is a worker running?" in text


def test_wait_prints_the_job_where_there_is_no_result(shop: Shop) -> None:
    result = shop.run("enqueue", "add", "1", "--wait-timeout", "10ms", "--json")
    assert result.code == 1
    assert json.loads(result.out)["state"] == "available"
    assert "was not final" in result.err


def test_wait_without_a_worker_says_so(shop: Shop) -> None:
    result = shop.run("enqueue", "add", "1", "--wait-timeout", "10ms")
    assert result.code == 1
    assert result.err.splitlines()[0] == "mouso: note: no worker is running yet; the job waits for one"
