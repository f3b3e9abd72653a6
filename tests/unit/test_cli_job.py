"""``mouso job``: the runs of a job, its log and its stack."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mouso.brokers.base import Update
from mouso.cli.output import size
from mouso.job import Charge, JobState, LogLine, encode_log
from tests.unit.cli_kit import WORKER, Shop, opened

EVIL = "\x1b]0;owned\x07\x1b[31m[bold red]x[/]\u202e\x9b2J:smile:"
TOOK: dict[str, Any] = {
    "started_at": 1_700_000_000_000,
    "run_seconds": 2.5,
    "cpu_seconds": 0.75,
    "peak_memory": 64 << 20,
    "pid": 4711,
}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    with opened(tmp_path, monkeypatch, capsys) as shop:
        monkeypatch.setenv("MOUSO_APP", "shop:app")
        yield shop


def log(*messages: str, left_out: int = 0) -> bytes:
    return encode_log([LogLine(1_700_000_000_123, "WARNING", message) for message in messages], left_out)


def ran_twice(shop: Shop, **more: Any) -> None:
    """A job that failed and then completed."""
    shop.enqueue("a1")
    (lease,) = shop.claim()
    shop.settle(lease, JobState.RETRYABLE, charge=Charge.ATTEMPT, **TOOK, **more)
    shop.broker.promote(10)
    (lease,) = shop.claim()
    shop.settle(lease, **TOOK, **more)


def fields(text: str) -> dict[str, str]:
    """The first line of each field."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition("  ")
        if name and not line.startswith(" "):
            found[name.strip()] = value.strip()
    return found


def test_what_the_last_run_took(shop: Shop) -> None:
    shop.enqueue("a1")
    shop.settle(shop.claim()[0], **TOOK)
    shown = fields(shop.ok("job", "a1"))
    assert shown["ran for"] == "2.5 s, 750 ms of CPU"
    assert shown["memory"] == "at most 64 MiB in its process"
    assert shown["worker"] == f"{WORKER}, process 4711"
    assert "2023-11-14 22:13:20 UTC" in shown["started"]
    assert "runs" not in shown
    assert "log" not in shown


def test_all_runs_if_there_are_several(shop: Shop) -> None:
    ran_twice(shop)
    text = shop.ok("job", "a1")
    assert fields(text)["runs"] == f"attempt 1 failed, 2.5 s, 750 ms of CPU, 64 MiB, process 4711, on {WORKER}"
    assert f"attempt 2 completed, 2.5 s, 750 ms of CPU, 64 MiB, process 4711, on {WORKER}" in text


def test_a_run_that_goes_on(shop: Shop) -> None:
    shop.enqueue("a1")
    (lease,) = shop.claim()
    shop.broker.report(WORKER, [Update(lease.key, lease.token, log=log("one", "two"))])
    shown = fields(shop.ok("job", "a1"))
    assert shown["runs"] == f"attempt 1 running, on {WORKER}"
    assert shown["log"] == "2 lines, see --logs"


def test_what_is_not_known_is_not_shown(shop: Shop) -> None:
    shop.enqueue("a1")
    shop.settle(shop.claim()[0], run_seconds=0.25)
    shown = fields(shop.ok("job", "a1"))
    assert (shown["ran for"], shown["worker"]) == ("250 ms", WORKER)
    assert {"memory", "started", "runs"} & set(shown) == set()


def test_the_log(shop: Shop) -> None:
    shop.enqueue("a1")
    shop.settle(shop.claim()[0], log=log("one", "two\n  more", left_out=1234), **TOOK)
    assert shop.ok("job", "a1", "--logs").splitlines() == [
        "… 1,234 earlier lines are not kept",
        "2023-11-14 22:13:20.123 WARNING  one",
        "2023-11-14 22:13:20.123 WARNING  two",
        "      more",
    ]


def test_the_logs_of_several_runs(shop: Shop) -> None:
    ran_twice(shop, log=log("hello"))
    assert [line for line in shop.ok("job", "a1", "--logs").splitlines() if line.startswith("--")] == [
        "-- attempt 1, failed",
        "-- attempt 2, completed",
    ]


def test_nothing_was_logged(shop: Shop) -> None:
    shop.enqueue("a1")
    assert shop.run("job", "a1", "--logs") == (
        0,
        "",
        "mouso: note: no run of this job has logged anything with ctx.log\n",
    )
    assert shop.ok("job", "a1", "--logs", "--json") == "[]\n"


def test_what_jobs_log_does_not_steer_the_terminal(shop: Shop) -> None:
    shop.enqueue("a1")
    (lease,) = shop.claim()
    shop.settle(lease, log=encode_log([LogLine(1, EVIL, f"{EVIL}\n{EVIL}")], 0), **TOOK)
    for text in (shop.ok("job", "a1", "--logs"), shop.ok("job", "a1", "--logs", "--json")):
        assert all(line.isprintable() for line in text.splitlines())


def test_runs_as_json(shop: Shop) -> None:
    ran_twice(shop, log=log("hello", left_out=2))
    document = json.loads(shop.ok("job", "a1", "--json"))
    assert document["cpu_seconds"] == 0.75
    first, second = document["runs"]
    assert first == TOOK | {
        "token": 1,
        "attempt": 1,
        "end": "failed",
        "worker": WORKER,
        "lines": [{"at": 1_700_000_000_123, "level": "WARNING", "message": "hello"}],
        "left_out": 2,
        "stack": None,
    }
    assert (second["token"], second["attempt"], second["end"]) == (2, 2, "completed")
    assert json.loads(shop.ok("job", "a1", "--logs", "--json")) == [first, second]


def test_a_stack_needs_a_running_job(shop: Shop) -> None:
    shop.enqueue("a1")
    assert shop.error(1, "job", "a1", "--stack") == "job a1 is available; only a job that runs has a stack"
    assert "no job has the id b1" in shop.error(1, "job", "b1", "--stack")
    assert "choose one of --logs and --stack" in shop.error(2, "job", "a1", "--stack", "--logs")


@pytest.mark.parametrize(("count", "text"), [(None, ""), (0, "0 MiB"), (64 << 20, "64 MiB"), (3 << 30, "3,072 MiB")])
def test_sizes(count: int | None, text: str) -> None:
    assert size(count) == text
