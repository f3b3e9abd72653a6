"""``mouso cancel``, ``retry``, ``delete``, ``dead``, ``pause``, ``resume``, ``purge`` and ``migrate``."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import msgspec
import pytest

from mouso.brokers.base import BATCH
from mouso.brokers.sqlite import schema
from mouso.cli import bulk
from mouso.clock import SYSTEM
from mouso.errors import ErrorInfo
from mouso.job import Charge, JobState
from tests.unit.cli_kit import Shop, opened


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    with opened(tmp_path, monkeypatch, capsys) as shop:
        monkeypatch.setenv("MOUSO_APP", "shop:app")
        yield shop


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Makes stdin a person who types this."""

    class Person(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Person(text))


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, call: Callable[[], object]) -> str:
    """What a call writes to a terminal of that width, without colours."""

    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    for name, value in (("COLUMNS", str(columns)), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    call()
    return click.unstyle(terminal.getvalue())


# -- cancel, retry, delete -------------------------------------------------------------------------------------------


def test_cancel(shop: Shop) -> None:
    shop.bury("d1")
    shop.enqueue("r1")
    shop.claim()
    shop.enqueue("a1")
    assert shop.ok("cancel", "a1", "r1") == "a1  cancelled\nr1  requested\n"
    assert shop.state("a1") is JobState.CANCELLED
    assert shop.run("cancel", "d1") == (1, "d1  done\n", "mouso: error: it is final already: d1\n")
    result = shop.run("cancel", "d1", "no1", "no2", "r1")
    assert result.out == "d1  done\nno1  unknown\nno2  unknown\nr1  requested\n"
    assert result.err == "mouso: error: 3 of 4 jobs were left as they are: 1 done, 2 unknown\n"
    assert result.code == 1


def test_cancel_as_json(shop: Shop) -> None:
    shop.enqueue("a1")
    result = shop.run("cancel", "a1", "no1", "--json")
    assert result.code == 1
    assert result.json == [{"id": "a1", "result": "cancelled"}, {"id": "no1", "result": "unknown"}]
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("command", ["cancel", "retry", "delete", "job"])
def test_an_id_that_cannot_be_one_changes_nothing(shop: Shop, command: str) -> None:
    shop.enqueue("a1")
    args = ("../x",) if command == "job" else ("a1", "../x")
    assert "id='../x' is no job id; use 1 to 128 of" in shop.error(2, command, *args)
    assert shop.state("a1") is JobState.AVAILABLE


def test_an_id_given_twice_counts_once(shop: Shop) -> None:
    shop.enqueue("a1")
    assert shop.ok("delete", "a1", "a1") == "a1  deleted\n"


def test_retry(shop: Shop) -> None:
    shop.bury("d1", "d2")
    shop.enqueue("s1", delay=60_000)
    shop.enqueue("a1")
    assert shop.ok("retry", "d1", "s1", "a1").splitlines()[0] == "d1  retried"
    assert [shop.state(id_) for id_ in ("d1", "s1", "a1")] == [JobState.AVAILABLE] * 3
    (job,) = shop.broker.get(["d1"])
    assert job is not None
    assert job.attempts == 0
    assert shop.error(1, "retry", "no1") == "no job has this id: no1"


def test_retry_of_a_completed_job_and_of_a_unique_key_in_use(shop: Shop) -> None:
    shop.bury("d1", unique="k")
    shop.enqueue("c1")
    for lease in shop.claim():
        shop.settle(lease)
    shop.enqueue("u1", unique="k")
    assert shop.error(1, "retry", "c1") == "it is final already: c1"
    assert shop.error(1, "retry", "d1") == "another job holds its unique key: d1"


def test_retry_with_other_arguments(shop: Shop) -> None:
    shop.bury("d1")
    assert shop.ok("retry", "d1", "--payload", '{"x": 40}') == "d1  retried\n"
    assert json.loads(shop.ok("job", "d1", "--json"))["arguments"] == {"x": 40}
    (lease,) = shop.claim()
    assert lease.payload == b'{"x":40}'


def test_retry_with_other_arguments_keeps_the_codec(shop: Shop) -> None:
    shop.bury("d1", task="shop.pack", codec="msgpack", payload=msgspec.msgpack.encode({"data": {}}))
    shop.ok("retry", "d1", "--payload", '{"data": {"a": 1}}')
    (lease,) = shop.claim()
    assert msgspec.msgpack.decode(lease.payload) == {"data": {"a": 1}}


@pytest.mark.parametrize("command", [("retry",), ("dead", "retry")])
@pytest.mark.parametrize(
    ("payload", "code", "text"),
    [
        ("{", 2, "--payload is no JSON"),
        ("[1]", 2, "--payload must be a JSON object"),
        ("3", 2, "--payload must be a JSON object"),
        ('{"z": 1}', 2, "task shop.add has no parameter 'z'"),
        ('{"x": "two"}', 2, "task shop.add: argument 'x': Expected `int`, got `str`"),
        ("{}", 2, "task shop.add: Object missing required field `x`"),
        ('{"x": NaN}', 2, "--payload is no JSON"),
        ("[" * 100_000, 2, "--payload must be a JSON object"),
        ('{"x":' * 100_000, 2, "--payload is nested too deep"),
        ("\udcff", 2, "--payload must be a JSON object"),
    ],
)
def test_other_arguments_that_do_not_fit(
    shop: Shop, command: tuple[str, ...], payload: str, code: int, text: str
) -> None:
    shop.bury("d1")
    assert text in shop.error(code, *command, "d1", "--payload", payload)
    assert shop.state("d1") is JobState.DEAD


def test_other_arguments_go_with_one_job_of_a_known_task(shop: Shop) -> None:
    shop.bury("d1", "d2")
    shop.bury("o1", task="shop.old")
    assert "exactly one ID" in shop.error(2, "retry", "d1", "d2", "--payload", "{}")
    assert "exactly one ID" in shop.error(2, "dead", "retry", "--all", "--payload", "{}")
    assert "exactly one ID" in shop.error(2, "dead", "--payload", "{}")
    assert "no task is called 'shop.old'" in shop.error(2, "retry", "o1", "--payload", "{}")
    assert "no job has the id no1" in shop.error(1, "retry", "no1", "--payload", "{}")


def test_delete(shop: Shop) -> None:
    shop.enqueue("r1")
    shop.claim()
    shop.enqueue("a1")
    assert shop.ok("delete", "a1") == "a1  deleted\n"
    assert shop.state("a1") is None
    assert shop.error(1, "delete", "r1") == "it is running; cancel it first: r1"


def test_many_ids_go_in_batches(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"job-{i}" for i in range(2 * BATCH + 1)]
    sizes = []

    def verb(batch: Sequence[str]) -> list[JobState]:
        sizes.append(len(batch))
        return [JobState.DEAD] * len(batch)

    assert [id_ for id_, _ in bulk.act(ids, verb, "testing")] == ids
    assert sizes == [BATCH, BATCH, 1]


# -- dead ------------------------------------------------------------------------------------------------------------


def test_dead_lists_dead_jobs_only(shop: Shop) -> None:
    shop.bury("d1", queue="mail")
    shop.bury("d2")
    shop.enqueue("a1")
    for args in (("dead",), ("dead", "list"), ("dead", "shop:app"), ("dead", "shop:app", "list")):
        assert [job["id"] for job in json.loads(shop.ok(*args, "--json"))] == ["d2", "d1"]
    assert [job["id"] for job in json.loads(shop.ok("dead", "--queue", "mail", "--json"))] == ["d1"]
    assert [job["id"] for job in json.loads(shop.ok("dead", "--limit", "1", "--json"))] == ["d2"]
    assert shop.run("dead", "--task", "shop.send").err == "mouso: note: no job is dead\n"


def test_dead_shows_the_last_error(shop: Shop) -> None:
    shop.bury("d1", queue="mail", message="\n  no route to host\nsecond line")
    shop.bury("d2", message="")
    header, *lines = shop.ok("dead").splitlines()
    assert header.split() == ["ID", "DIED", "TASK", "QUEUE", "FAILED", "REASON", "ERROR"]
    assert [line.split(maxsplit=8) for line in lines] == [
        ["d2", "0", "s", "ago", "shop.add", "default", "1", "attempts", "ValueError"],
        ["d1", "0", "s", "ago", "shop.add", "mail", "1", "attempts", "ValueError: no route to host"],
    ]


def test_dead_as_json_has_the_whole_error(shop: Shop) -> None:
    message = "first\nsecond " + "x" * 1000
    shop.bury("d1", message=message)
    (job,) = shop.run("dead", "--json").json
    assert (job["id"], job["reason"], job["arguments"]) == ("d1", "attempts", {"x": 2, "y": 3})
    assert (job["error"]["type"], job["error"]["message"]) == ("ValueError", message)
    assert job["error"]["traceback"].startswith("File x\n")


def test_dead_shows_the_failure_that_came_last(shop: Shop) -> None:
    shop.enqueue("d1")
    for attempt, state in ((1, JobState.AVAILABLE), (2, JobState.DEAD)):
        (lease,) = shop.claim()
        shop.settle(lease, state, error=ErrorInfo(type="OSError", message=f"attempt {attempt}"), charge=Charge.ATTEMPT)
    assert shop.ok("dead").splitlines()[1].endswith("OSError: attempt 2")


def test_a_dead_job_without_a_record_of_its_failure(shop: Shop) -> None:
    shop.enqueue("d1")
    shop.settle(shop.claim()[0], JobState.DEAD, reason="poison")
    assert shop.ok("dead").splitlines()[1].endswith("poison")
    assert shop.run("dead", "--json").json[0]["error"] is None


@pytest.mark.parametrize(
    ("columns", "titles"),
    [
        (200, ["ID", "DIED", "TASK", "QUEUE", "FAILED", "REASON", "ERROR"]),
        (95, ["ID", "DIED", "TASK", "QUEUE", "FAILED", "ERROR"]),
        (90, ["ID", "DIED", "TASK", "QUEUE", "ERROR"]),
        (70, ["ID", "TASK", "ERROR"]),
        (60, ["ID", "TASK", "ERROR"]),
    ],
)
def test_dead_on_a_terminal(shop: Shop, monkeypatch: pytest.MonkeyPatch, columns: int, titles: list[str]) -> None:
    """Each job is one line where there is room for its id and its error; what is less telling is left out."""
    (id_,) = shop.enqueue()
    shop.settle(
        shop.claim()[0], JobState.DEAD, reason="discarded",
        error=ErrorInfo(type="ValueError", message="\x1b[31m[red]漢字 " + "x" * 300), charge=Charge.ATTEMPT,
    )  # fmt: skip
    text = on_terminal(monkeypatch, columns, lambda: shop.run("dead"))
    lines = text.splitlines()
    assert lines[0].split() == titles
    assert all(len(line) <= columns for line in lines)
    assert id_ in lines[1]
    if columns >= 70:
        assert len(lines) == 2
        assert "ValueError: \\x1b[31m" in lines[1]
        assert lines[1].rstrip().endswith("…")


def test_dead_retry_and_delete_by_id(shop: Shop) -> None:
    shop.bury("d1", "d2", "d3")
    assert shop.ok("dead", "retry", "d1") == "d1  retried\n"
    assert shop.ok("dead", "retry", "d2", "--payload", '{"x": 9}') == "d2  retried\n"
    assert shop.ok("dead", "delete", "d3") == "d3  deleted\n"
    assert [lease.payload for lease in shop.claim()] == [b'{"x":2,"y":3}', b'{"x":9}']


@pytest.mark.parametrize("action", ["retry", "delete"])
def test_dead_leaves_other_jobs_alone(shop: Shop, action: str) -> None:
    shop.bury("d1")
    shop.enqueue("a1")
    assert shop.error(1, "dead", action, "d1", "a1") == "job a1 is available, not dead; nothing was done"
    assert shop.error(1, "dead", action, "d1", "no1") == "no job has the id no1; nothing was done"
    assert (shop.state("d1"), shop.state("a1")) == (JobState.DEAD, JobState.AVAILABLE)


def test_dead_retry_all_in_the_order_they_came(shop: Shop) -> None:
    ids = [f"d{i}" for i in range(BATCH // 4 + 30)]
    shop.bury(*ids)
    shop.bury("m1", queue="mail")
    assert shop.ok("dead", "retry", "--all", "--queue", "default") == f"{len(ids)} retried\n"
    assert shop.state("m1") is JobState.DEAD
    assert [lease.id for lease in shop.claim()] == ids
    assert shop.run("dead", "retry", "--all", "--task", "add", "--json").json == {"retried": 1}
    assert shop.ok("dead", "retry", "--all") == "0 retried\n"


def test_dead_retry_all_tells_what_stayed(shop: Shop) -> None:
    shop.bury("d1", unique="k")
    shop.bury("d2")
    shop.enqueue("u1", unique="k")
    result = shop.run("dead", "retry", "--all")
    assert result == (1, "1 retried\n", "mouso: error: not all jobs were retried: 1 conflict\n")


def test_dead_delete_all_asks(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.bury(*(f"d{i}" for i in range(1200)))
    text = shop.error(2, "dead", "delete", "--all")
    assert text.startswith("delete 1,200 dead jobs for good? add --yes")
    answer(monkeypatch, "n\n")
    result = shop.run("dead", "delete", "--all")
    assert (result.code, result.out) == (1, "")
    assert result.err.endswith("mouso: error: nothing was done\n")
    answer(monkeypatch, "")
    assert shop.run("dead", "delete", "--all").code == 130
    assert shop.state("d1") is JobState.DEAD
    answer(monkeypatch, "y\n")
    result = shop.run("dead", "delete", "--all")
    assert (result.code, result.out) == (0, "1,200 deleted\n")
    assert shop.state("d1") is None
    shop.bury("x1")
    assert shop.run("dead", "delete", "--all", "--yes", "--json").json == {"deleted": 1}
    assert shop.ok("dead", "delete", "--all") == "0 deleted\n"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("retrry",), "'mouso dead' has no action 'retrry'; did you mean 'retry'?"),
        (("zzz-",), "there are list, retry, delete"),
        (("retry",), "name the IDs to retry, or give --all"),
        (("delete",), "name the IDs to delete, or give --all"),
        (("delete", "--queue", "mail"), "name the IDs to delete, or give --all"),
        (("retry", "d1", "--all"), "give IDs or --all, not both"),
        (("retry", "d1", "--task", "add"), "--task and --queue go with --all"),
        (("list", "d1"), "'list' takes no IDs; for one job: mouso job d1"),
    ],
)
def test_dead_used_wrongly(shop: Shop, args: tuple[str, ...], text: str) -> None:
    shop.bury("d1")
    assert text in shop.error(2, "dead", *args)
    assert shop.state("d1") is JobState.DEAD


# -- queues ----------------------------------------------------------------------------------------------------------


def test_pause_and_resume(shop: Shop) -> None:
    shop.enqueue("m1", queue="mail")
    assert shop.ok("pause", "mail") == "mail  paused\n"
    assert shop.claim() == []
    assert shop.ok("resume", "mail") == "mail  resumed\n"
    assert len(shop.claim()) == 1
    assert shop.ok("pause", "mail", "--for", "10m").startswith("mail  paused until 20")
    (queue,) = shop.broker.queues()
    assert queue.paused_until is not None
    assert 590_000 < queue.paused_until - SYSTEM.now() <= 600_000
    assert json.loads(shop.ok("pause", "mail", "--json")) == {"queue": "mail", "paused": True}
    assert json.loads(shop.ok("resume", "mail", "--json")) == {"queue": "mail", "paused": False}


@pytest.mark.parametrize("action", ["list", "retry --all", "delete --all --yes"])
def test_dead_jobs_of_what_is_mistyped(shop: Shop, action: str) -> None:
    shop.bury("m1", queue="mail")
    hints = {"--queue mial": "no queue is called 'mial'; did", "--task shop.ad": "no task is called 'shop.ad'; did"}
    for option, hint in hints.items():
        assert shop.error(1, "dead", *action.split(), *option.split()).startswith(f"{hint} you mean ")
    assert shop.state("m1") == JobState.DEAD


def test_queues_that_are_mistyped(shop: Shop) -> None:
    shop.enqueue("m1", queue="mail")
    hint = "no queue is called 'mial'; did you mean 'mail'?"
    assert shop.error(1, "resume", "mial") == hint
    assert shop.error(1, "purge", "mial", "--yes") == hint
    assert shop.run("pause", "mial") == (0, "mial  paused\n", f"mouso: note: {hint}\n")  # it may come to be
    for command in ("pause", "resume", "purge"):
        assert "queue name '../x' is not usable" in shop.error(2, command, "../x")


@pytest.mark.parametrize("duration", ["abc", "nan", "200y", "1e99"])
def test_pause_for_no_duration(shop: Shop, duration: str) -> None:
    assert "--for=" in shop.error(2, "pause", "mail", "--for", duration)


def test_purge(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.enqueue("r1", queue="mail")
    shop.claim()
    shop.bury("d1", queue="mail")
    shop.enqueue(*(f"a{i}" for i in range(999)), queue="mail")
    shop.enqueue("s1", "s2", queue="mail", delay=60_000)
    shop.enqueue("o1")
    text = shop.error(2, "purge", "mail")
    assert text.startswith("delete 1,001 waiting jobs of queue 'mail' for good? add --yes")
    answer(monkeypatch, "y\n")
    result = shop.run("purge", "mail")
    assert (result.code, result.out) == (0, "1,001 deleted\n")
    assert [shop.state(id_) for id_ in ("r1", "d1", "a1", "s1", "o1")] == [
        JobState.RUNNING,
        JobState.DEAD,
        None,
        None,
        JobState.AVAILABLE,
    ]
    assert shop.ok("purge", "mail") == "0 deleted\n"
    assert shop.run("purge", "default", "--yes", "--json").json == {"queue": "default", "purged": 1}


# -- migrate ---------------------------------------------------------------------------------------------------------


def test_migrate(shop: Shop) -> None:
    url = f"sqlite:///{shop.folder / 'mouso.db'}"
    assert shop.ok("migrate") == f"{url}: schema version 0, now {schema.VERSION}\n"
    assert shop.ok("migrate") == f"{url}: schema version {schema.VERSION}, up to date\n"
    assert json.loads(shop.ok("migrate", "--json")) == {
        "broker": url,
        "before": schema.VERSION,
        "after": schema.VERSION,
    }
