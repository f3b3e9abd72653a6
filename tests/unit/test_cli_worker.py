"""``mouso worker``: what it hands to the worker, and what it refuses."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import mouso.worker
from mouso.worker import WorkerOptions
from tests.unit.cli_kit import Shop, opened


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    with opened(tmp_path, monkeypatch, capsys) as shop:
        yield shop


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[WorkerOptions]:
    """Takes the place of the worker."""
    calls: list[WorkerOptions] = []

    def run(options: WorkerOptions) -> int:
        calls.append(options)
        return 0

    monkeypatch.setattr(mouso.worker, "run", run)
    return calls


def test_defaults(shop: Shop, given: list[WorkerOptions]) -> None:
    shop.ok("worker", "shop:app")
    assert given == [WorkerOptions(app="shop:app", folder=str(shop.folder))]


def test_the_app_is_not_imported_here(shop: Shop, given: list[WorkerOptions]) -> None:
    shop.write("bad.py", "raise SystemExit('imported')")
    shop.ok("worker", "bad:app")
    assert given[0].app == "bad:app"


def test_every_option(shop: Shop, given: list[WorkerOptions]) -> None:
    line = "-A shop:app -Q mail=3,default --strict -p 4 -c 16 --grace 1m --name w1 --log-level DEBUG"
    shop.ok("worker", *line.split(), "--health", "[::1]:9808", "--log-format", "JSON")
    assert given == [
        WorkerOptions(
            app="shop:app",
            folder=str(shop.folder),
            queues=(("mail", 3), ("default", 1)),
            strict=True,
            processes=4,
            concurrency=16,
            grace=60.0,
            name="w1",
            log_level="debug",
            log_format="json",
            health="[::1]:9808",
        )
    ]


def test_the_settings_are_the_defaults(shop: Shop, given: list[WorkerOptions], monkeypatch: pytest.MonkeyPatch) -> None:
    shop.write(
        "pyproject.toml",
        '[tool.mouso]\napp = "shop:app"\nprocesses = 2\nconcurrency = 3\nqueues = "a=2,b"\ngrace = 0\n',
    )
    (shop.folder / "docs").mkdir()
    monkeypatch.chdir(shop.folder / "docs")
    shop.ok("worker")
    shop.ok("worker", "-p", "9", "-Q", "c")
    assert given[0] == WorkerOptions(
        app="shop:app", folder=str(shop.folder), processes=2, concurrency=3, queues=(("a", 2), ("b", 1)), grace=0.0
    )
    assert (given[1].processes, given[1].concurrency, given[1].queues) == (9, 3, (("c", 1),))


def test_the_exit_code_is_the_workers(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mouso.worker, "run", lambda options: 75)
    assert shop.run("worker", "shop:app").code == 75


@pytest.mark.parametrize(
    "value", ["0", "-1", "abc", "1e9", "1025", "NaN", "1.5", "", " ", "٣", "9" * 5000, "0x2", "\udcff"]
)
def test_processes(shop: Shop, given: list[WorkerOptions], value: str) -> None:
    assert "use a whole number from 1 to 1,024 (see 'mouso worker --help')" in shop.error(
        2, "worker", "shop:app", "--processes", value
    )
    assert given == []


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("-p=0",), "--processes '=0'"),
        (("-c", "0"), "--concurrency '0': use a whole number from 1 to 10,000"),
        (("-c", "10001"), "--concurrency '10001'"),
        (("--grace", "-1"), "--grace '-1': use 0 to 86,400 seconds, or a text such as 5m"),
        (("--grace", "NaN"), "--grace 'NaN'"),
        (("--grace", "inf"), "--grace 'inf'"),
        (("--grace", "2d"), "--grace '2d'"),
        (("--grace", "soon"), "--grace 'soon'"),
        (("-Q", "mail=0"), "the weight of queue 'mail' is '0'; use a whole number from 1 to 1000"),
        (("-Q", "mail=1001"), "the weight of queue 'mail'"),
        (("-Q", "mail,,x"), "names an empty queue"),
        (("-Q", ""), "names an empty queue"),
        (("-Q", "a,a"), "stands twice"),
        (("-Q", "a b"), "queue name 'a b' is not usable"),
        (("--strict",), "--strict needs the queues in their order"),
        (("--name", ""), "--name '': use 1 to 100 printable characters"),
        (("--name", "a\x1b"), "use 1 to 100 printable characters"),
        (("--name", "x" * 101), "use 1 to 100 printable characters"),
        (("--log-level", "debgu"), "--log-level 'debgu': did you mean 'debug'?"),
        (("--log-level", "x"), "there are debug, info, warning, error"),
        (("--log-format", "jsn"), "--log-format 'jsn': did you mean 'json'?"),
        (("--log-format", ""), "--log-format '': there are text, json"),
        (("--health", "9808"), "--health '9808' is no HOST:PORT; write for example 127.0.0.1:9808"),
        (("--health", "localhost:99999"), "--health 'localhost:99999' is no HOST:PORT; the port is a number from 0 to"),
        (("--health", ""), "--health '' is no HOST:PORT"),
        (("--proceses", "2"), "Did you mean '--processes'?"),
        (("extra",), "'extra' is one argument too many"),
    ],
)
def test_what_is_refused(shop: Shop, given: list[WorkerOptions], args: tuple[str, ...], text: str) -> None:
    assert text in shop.error(2, "worker", "shop:app", *args)
    assert given == []


def test_the_options_of_children(shop: Shop, given: list[WorkerOptions]) -> None:
    line = "--preload --max-jobs-per-child 1000 --max-memory-per-child 500MB --autoscale 1,8 --reload"
    shop.ok("worker", "shop:app", *line.split())
    shop.ok("worker", "shop:app", "--max-memory-per-child", str(1 << 30), "--autoscale", "3,3")
    first, second = given
    assert (first.preload, first.reload, first.autoscale) == (True, True, (1, 8))
    assert (first.max_jobs_per_child, first.max_memory_per_child) == (1000, 500 << 20)
    assert (second.max_memory_per_child, second.autoscale) == (1 << 30, (3, 3))


MALFORMED = ["", " ", "x", "-1", "1.5", "NaN", "inf", "1e9", "٣", "0x2", "9" * 5000, "\udcff"]


@pytest.mark.parametrize("value", [*MALFORMED, "0"])
def test_max_jobs_per_child(shop: Shop, given: list[WorkerOptions], value: str) -> None:
    message = shop.error(2, "worker", "shop:app", "--max-jobs-per-child", value)
    assert "--max-jobs-per-child " in message
    assert "use a whole number from 1 to 999,999,999" in message
    assert given == []


@pytest.mark.parametrize("value", [word for word in MALFORMED if word != "1.5"])
def test_max_memory_per_child(shop: Shop, given: list[WorkerOptions], value: str) -> None:
    message = shop.error(2, "worker", "shop:app", "--max-memory-per-child", value)
    assert "--max-memory-per-child=" in message
    assert "is no size; use a number of bytes, or a text such as 500MB or 2GiB" in message
    assert given == []


@pytest.mark.parametrize("value", ["4194304T", "20000000T", str(1 << 62)])
def test_more_memory_than_a_machine_has(shop: Shop, given: list[WorkerOptions], value: str) -> None:
    message = shop.error(2, "worker", "shop:app", "--max-memory-per-child", value)
    assert f"--max-memory-per-child='{value}' is more than any machine has; use less than 4,194,304T" in message
    assert given == []


@pytest.mark.parametrize("value", ["0", "1", "15MB", "1.5", str((16 << 20) - 1)])
def test_less_memory_than_a_child_has(shop: Shop, given: list[WorkerOptions], value: str) -> None:
    message = shop.error(2, "worker", "shop:app", "--max-memory-per-child", value)
    assert f"--max-memory-per-child '{value}': a child needs 16MiB or more" in message
    assert given == []


@pytest.mark.parametrize(
    "value", [*MALFORMED, "1", "1,", ",8", "1,8,9", "0,8", "8,1", "1,1025", "-1,8", "1,x", "1-8", "a,b", "1.0,2", "٣,٤"]
)
def test_autoscale(shop: Shop, given: list[WorkerOptions], value: str) -> None:
    message = shop.error(2, "worker", "shop:app", "--autoscale", value)
    assert "--autoscale " in message
    assert "use MIN,MAX with 1 <= MIN <= MAX <= 1,024, such as 1,8" in message
    assert given == []


def test_autoscale_says_how_many_there_are(shop: Shop, given: list[WorkerOptions]) -> None:
    message = shop.error(2, "worker", "shop:app", "--autoscale", "1,8", "-p", "4")
    assert "--autoscale says how many processes there are; leave --processes out" in message
    shop.write("pyproject.toml", "[tool.mouso]\nprocesses = 2\n")
    shop.ok("worker", "shop:app", "--autoscale", "1,8")
    assert [options.autoscale for options in given] == [(1, 8)]


def test_no_app(shop: Shop, given: list[WorkerOptions]) -> None:
    assert "no app is named" in shop.error(2, "worker")
    assert "is no app path; did you mean 'src.shop:app'?" in shop.error(2, "worker", "src/shop.py")
