"""``mouso jobs``, ``job``, ``queues`` and ``workers``: what a program gets, and what a person sees."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mouso.brokers.base import Update, Want
from mouso.cli.output import Column, ago, span, write_json, write_table
from mouso.clock import SYSTEM
from mouso.job import JobOptions, JobState, Progress
from tests.unit.cli_kit import WORKER, Shop, opened

EVIL = "\x1b]0;owned\x07\x1b[31m[bold red]x[/]\u202e\x9b2J:smile:"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    with opened(tmp_path, monkeypatch, capsys) as shop:
        monkeypatch.setenv("MOUSO_APP", "shop:app")
        yield shop


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_jobs_as_a_table(shop: Shop) -> None:
    shop.bury("d1", queue="mail")
    shop.enqueue("a1", "a2")
    header, *lines = shop.ok("jobs").splitlines()
    assert header.split() == ["ID", "TASK", "QUEUE", "STATE", "FAILED", "ENQUEUED", "RAN", "REMARK"]
    assert [line.split()[:4] for line in lines] == [
        ["a2", "shop.add", "default", "available"],
        ["a1", "shop.add", "default", "available"],
        ["d1", "shop.add", "mail", "dead"],
    ]
    assert " s ago" in lines[0]
    assert lines[2].split()[4:] == ["1", "0", "s", "ago", "250", "ms", "attempts"]
    assert header.index("STATE") == lines[0].index("available")
    assert lines[2][: header.index("FAILED") + len("FAILED")].endswith("     1")  # numbers are aligned to the right


def test_jobs_as_json(shop: Shop) -> None:
    shop.enqueue("a1", payload=b'{"x":2,"y":null}', queue="mail", priority=7)
    (job,) = json.loads(shop.ok("jobs", "--json"))
    assert job["id"] == "a1"
    assert job["arguments"] == {"x": 2, "y": None}
    assert (job["task"], job["queue"], job["priority"], job["state"], job["parked"]) == (
        "shop.add",
        "mail",
        7,
        "available",
        False,
    )
    assert abs(job["enqueued_at"] - SYSTEM.now()) < 60_000
    assert "payload" not in job


def test_nothing_to_list(shop: Shop) -> None:
    assert shop.run("jobs") == (0, "", "mouso: note: no job matches\n")
    assert shop.ok("jobs", "--json") == "[]\n"


def test_jobs_narrowed(shop: Shop) -> None:
    shop.bury("d1", "d2", queue="mail")
    shop.enqueue("a1")
    shop.enqueue("s1", delay=60_000)
    shop.enqueue("m1", task="shop.send", payload=b'{"to":"x"}')

    def ids(*args: str) -> list[str]:
        return [job["id"] for job in json.loads(shop.ok("jobs", "--json", *args))]

    assert ids() == ["m1", "s1", "a1", "d2", "d1"]
    assert ids("--state", "dead") == ["d2", "d1"]
    assert ids("--state", "dead", "--state", "scheduled") == ids("--state", "dead,scheduled") == ["s1", "d2", "d1"]
    assert ids("--queue", "mail") == ["d2", "d1"]
    assert ids("--task", "shop.send") == ids("--task", "send") == ["m1"]
    assert ids("--limit", "2") == ["m1", "s1"]
    assert ids("--limit", "2", "--after", "s1") == ["a1", "d2"]
    assert ids("--parked") == []
    assert "nobody" in shop.error(1, "jobs", "--after", "nobody")


def test_parked_jobs(shop: Shop) -> None:
    shop.enqueue("p1", task="old.task", payload=b"{}")
    shop.join(tasks=("shop.add",))
    shop.broker.exchange(WORKER, (), Want(limit=1, tasks=frozenset({"shop.add"})))
    assert shop.run("jobs", "--parked", "--json").json[0]["parked"] is True
    assert "no worker knows its task" in shop.ok("jobs", "--parked")
    assert "old.task (no worker knows it)" in shop.ok("job", "p1")


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("--state", "ded"), 2, "error: no state is called 'ded'; did you mean 'dead'?"),
        (("--state", "zzz"), 2, "error: no state is called 'zzz'; there are pending, scheduled"),
        (("--queue", "mial"), 1, "error: no queue is called 'mial'; did you mean 'mail'?"),
        (("--queue", "zzz"), 1, "error: no queue is called 'zzz'; there are mail"),
        (("--task", "shop.ad"), 1, "error: no task is called 'shop.ad'; did you mean 'shop.add'?"),
    ],
)
def test_names_that_are_mistyped(shop: Shop, args: tuple[str, ...], code: int, text: str) -> None:
    shop.enqueue("m1", queue="mail")
    result = shop.run("jobs", *args, "--json")
    assert result.code == code
    assert result.err.startswith(f"mouso: {text}")
    assert result.err.count("\n") == 1
    assert result.out == ""


@pytest.mark.parametrize("line", ["--task add", "--task shop.send", "--queue mail", "--task old.task --queue default"])
def test_a_name_that_is_known_and_has_no_such_job_is_no_mistake(shop: Shop, line: str) -> None:
    shop.enqueue("p1", task="old.task", payload=b"{}")
    assert shop.run("jobs", *line.split(), "--state", "dead") == (0, "", "mouso: note: no job matches\n")
    assert shop.run("dead", "list", *line.split()) == (0, "", "mouso: note: no job is dead\n")
    assert shop.ok("dead", "retry", "--all", *line.split()) == "0 retried\n"


def test_jobs_of_a_task_that_the_app_does_not_know_are_listed(shop: Shop) -> None:
    shop.enqueue("p1", task="old.task", payload=b"{}")
    assert "p1" in shop.ok("jobs", "--task", "old.task")


# -- job -------------------------------------------------------------------------------------------------------------


def test_everything_about_a_dead_job(shop: Shop) -> None:
    options = msgspec.json.encode(JobOptions(attempts=3, timeout=5.0))
    shop.bury("d1", unique="key", options=options, message="first line\nsecond")
    text = shop.ok("job", "d1")
    fields = dict(line.split(maxsplit=1) for line in text.splitlines() if line[:1].isalpha())
    assert fields["job"] == "d1"
    assert fields["state"] == "dead (attempts)"
    assert fields["queue"] == "default, priority 0"
    assert fields["ran"] == "for    250 ms"
    assert fields["counters"] == "1 claims, 1 failed attempts, 0 crashes, 0 releases"
    assert fields["unique"] == "key (live)"
    assert fields["options"] == '{"attempts":3,"timeout":5.0}'
    assert fields["arguments"] == "x = 2"
    assert "\n           y = 3\n" in text
    assert fields["failure"].startswith("attempt 1, ")
    assert fields["error"] == "ValueError: first line"
    assert "\n             first line\n           second\n" in text
    assert " ago (20" in fields["enqueued"]
    assert fields["enqueued"].endswith(" UTC)")

    document = json.loads(shop.ok("job", "d1", "--json"))
    assert document["options"] == {"attempts": 3, "timeout": 5.0}
    assert document["errors"][0]["type"] == "ValueError"
    assert document["errors"][0]["traceback"] == "File x\n  first line\nsecond"
    assert document["result"] is None

    shop.bury("d2", message="")
    (silent,) = [one for one in json.loads(shop.ok("dead", "--json")) if one["id"] == "d2"]
    assert silent["error"]["message"] == ""
    assert json.loads(shop.ok("job", "d2", "--json"))["errors"][0]["message"] == ""


def test_a_completed_job_shows_its_result(shop: Shop) -> None:
    shop.enqueue("c1")
    (lease,) = shop.claim()
    shop.settle(lease, result=b'{"sum":[5]}', run_seconds=61.5)
    text = shop.ok("job", "c1")
    assert 'result     {"sum":[5]}' in text
    assert "ran for    1.0 min" in text
    assert json.loads(shop.ok("job", "c1", "--json"))["result"] == {"sum": [5]}


def test_a_running_job_shows_its_progress(shop: Shop) -> None:
    shop.enqueue("r1")
    (lease,) = shop.claim()
    shop.broker.report(WORKER, [Update(lease.key, lease.token, Progress(3, 10, "rendering"))])
    assert "progress   3/10 rendering" in shop.ok("job", "r1")
    assert shop.ok("jobs").splitlines()[1].endswith("3/10 rendering")
    assert json.loads(shop.ok("job", "r1", "--json"))["progress"] == {"done": 3, "total": 10, "message": "rendering"}
    shop.broker.cancel(["r1"])
    assert "running, cancel requested" in shop.ok("job", "r1")


def test_scheduled_and_expiring(shop: Shop) -> None:
    shop.enqueue("s1", delay=3_630_000, ttl=90_000_000)
    assert shop.ok("jobs").splitlines()[1].endswith("in 1 h")
    text = shop.ok("job", "s1")
    assert "due        in 1 h (20" in text
    assert "expires    in 1 d (20" in text


def test_msgpack_and_payloads_that_do_not_decode(shop: Shop) -> None:
    shop.enqueue("m1", task="shop.pack", codec="msgpack", payload=msgspec.msgpack.encode({"data": {1: b"\0\xff"}}))
    shop.enqueue("x1", payload=b"\xff\xfe{")
    shop.enqueue("l1", payload=b"[1, 2]")
    shop.enqueue("e1", codec="msgpack", payload=msgspec.msgpack.encode(msgspec.msgpack.Ext(5, b"x")))
    assert json.loads(shop.ok("job", "m1", "--json"))["arguments"] == {"data": {"1": "AP8="}}
    assert "codec      msgpack" in shop.ok("job", "m1")
    assert "undecodable" in json.loads(shop.ok("job", "x1", "--json"))["arguments"]
    assert "undecodable" in shop.ok("job", "x1")
    assert "arguments  [1,2]" in shop.ok("job", "l1")
    shop.ok("job", "e1")
    assert len(json.loads(shop.ok("jobs", "--json"))) == 4


@pytest.mark.parametrize(
    ("id_", "code", "text"),
    [
        ("nothing", 1, "no job has the id nothing; it was deleted, its retention is over, or the"),
        ("a/b", 2, "id='a/b' is no job id"),
        ("x" * 129, 2, "is no job id"),
        ("\x1b[31m", 2, "is no job id"),
        ("%00", 2, "is no job id"),
    ],
)
def test_a_job_that_is_not_there(shop: Shop, id_: str, code: int, text: str) -> None:
    assert text in shop.error(code, "job", id_)
    assert shop.run("job", id_, "--json").out == ""


# -- hostile content -------------------------------------------------------------------------------------------------


def evil(shop: Shop) -> None:
    payload = json.dumps({"x": EVIL}).encode()
    shop.bury("d1", message=EVIL, unique="[red]k", payload=payload)
    shop.enqueue("r1", payload=payload)
    (lease,) = shop.claim()
    shop.broker.report(WORKER, [Update(lease.key, lease.token, Progress(1, None, EVIL))])


@pytest.mark.parametrize("args", [("jobs",), ("job", "d1"), ("job", "r1"), ("dead",), ("workers",), ("queues",)])
def test_job_data_never_steers_a_terminal(shop: Shop, args: tuple[str, ...]) -> None:
    evil(shop)
    shop.join(name=EVIL, host=EVIL, version=EVIL, queues=(EVIL,))
    for text in (shop.ok(*args), shop.ok(*args, "--json")):
        assert all(line.isprintable() for line in text.splitlines()), repr(text)


# -- queues and workers ----------------------------------------------------------------------------------------------


def test_queues(shop: Shop) -> None:
    shop.bury("d1", queue="mail")
    shop.enqueue(*(f"a{i}" for i in range(1200)))
    shop.broker.pause("mail", None)
    shop.broker.pause("slow", SYSTEM.now() + 3_600_000)
    header, *lines = shop.ok("queues").splitlines()
    assert header.split() == ["QUEUE", "AVAILABLE", "RUNNING", "DEAD", "OLDEST"]
    assert lines[0].split()[:4] == ["default", "1,200", "0", "0"]
    assert lines[1].split() == ["mail", "0", "0", "1", "paused"]
    assert lines[2].split()[:5] == ["slow", "0", "0", "0", "paused,"]
    assert lines[2].endswith("goes on in 59 min")
    mail = json.loads(shop.ok("queues", "--json"))[1]
    assert mail["counts"]["dead"] == 1
    assert set(mail["counts"]) == set(JobState)
    assert mail["paused"] is True


def test_workers(shop: Shop) -> None:
    assert shop.run("workers").err == "mouso: note: no worker is alive\n"
    shop.join(queues=("mail", "default"), version="0.1.0", started_at=SYSTEM.now() - 7_200_000)
    shop.enqueue("r1")
    shop.broker.exchange(WORKER, (), Want(limit=1))
    header, line = shop.ok("workers").splitlines()
    assert header.split() == ["NAME", "HOST", "PID", "RUNNING", "QUEUES", "STARTED", "SEEN", "VERSION"]
    assert line.split() == ["w1", "here", "42", "1/8", "mail,", "default", "2", "h", "ago", "0", "s", "ago", "0.1.0"]
    (worker,) = json.loads(shop.ok("workers", "--json"))
    assert (worker["id"], worker["running"], worker["queues"]) == (WORKER, 1, ["mail", "default"])


# -- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1000, "1 s"),
        (1500, "1.5 s"),
        (59_000, "59 s"),
        (60_000, "1 min"),
        (90_000, "1.5 min"),
        (7_200_000, "2 h"),
        (86_400_000 * 40, "40 d"),
        (-5, "0 ms"),
    ],
)
def test_span(ms: int, text: str) -> None:
    assert span(ms) == text


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (None, ""),
        (1_000_000, "0 s ago"),
        (997_000, "3 s ago"),
        (1_000_999, "in 0 s"),
        (1_120_000, "in 2 min"),
        (0, "16 min ago"),
    ],
)
def test_ago(at: int | None, text: str) -> None:
    assert ago(at, 1_000_000) == text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_in_every_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    document = {"a": "ä漢😀", "b": "\x9b\u2028\u202e\x7f\x1b", "c": [float("nan"), 2**63, None]}
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    write_json(document)
    text = raw.getvalue().decode(encoding)
    assert json.loads(text) == {**document, "c": [None, 2**63, None]}
    assert all(line.isprintable() for line in text.splitlines())
    assert ("ä漢😀" in text) is (encoding == "utf-8")


def test_a_name_of_unusual_length_widens_its_own_row_only(capsys: pytest.CaptureFixture[str]) -> None:
    """One that another program has written would fill a terminal otherwise, as often as there are rows."""
    write_table([Column("ID"), Column("TASK"), Column("STATE")], [("a", "x" * 5000, "dead"), ("b", "y", "dead")], "")
    lines = capsys.readouterr().out.splitlines()
    assert [len(line) for line in lines] == [311, 5010, 310]
    assert lines[1].endswith("x  dead")
