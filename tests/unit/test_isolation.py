"""The options of isolated tasks: what they may be, and what is said of anything else."""

import math
from datetime import timedelta
from typing import Any

import pytest

from mouso import Mouso
from mouso.errors import OptionError
from mouso.isolation import IO_PRIORITIES, OPTIONS, Limits, limits, size

MIB = 1 << 20


@pytest.fixture
def app() -> Mouso:
    return Mouso("isolation", broker="memory://isolation")


# -- sizes


@pytest.mark.parametrize(
    ("value", "bytes_"),
    [
        (0, 0),
        (1, 1),
        (500_000_000, 500_000_000),
        ("0", 0),
        ("1", 1),
        ("7B", 7),
        ("1k", 1 << 10),
        ("1K", 1 << 10),
        ("1KB", 1 << 10),
        ("1KiB", 1 << 10),
        ("200MB", 200 * MIB),
        ("200 mb", 200 * MIB),
        ("  200MB ", 200 * MIB),
        ("1.5GiB", 1536 * MIB),
        ("0.5M", MIB // 2),
        ("2T", 2 << 40),
    ],
)
def test_sizes(value: object, bytes_: int) -> None:
    assert size(value, "max_memory") == bytes_


@pytest.mark.parametrize(
    "value",
    [
        *["", " ", "x", "MB", "-1", "-1MB", "1 2", "1e9", "1,5GB", ".5M", "1.", "5PB", "5MiBs", "0x10", "٣MB", "inf"],
        *["9" * 21, "9" * 5000 + "MB"],
        *[None, True, False, -1, 1.5, math.inf, math.nan, b"1MB", [1], {}, object(), timedelta(1)],
    ],
)
def test_what_is_no_size(value: object) -> None:
    with pytest.raises(
        ValueError, match="is no size; use a number of bytes, or a text such as 500MB or 2GiB"
    ) as raised:
        size(value, "max_memory")
    assert str(raised.value).startswith("max_memory=")
    assert len(str(raised.value)) < 300


# -- limits


def test_a_task_is_not_isolated_unless_it_says_so() -> None:
    assert limits({}) is None
    assert limits({"isolated": False}) is None
    assert limits({"isolated": False, "max_memory": None, "max_cpu": None, "nice": None, "io_priority": None}) is None


def test_the_defaults_limit_nothing() -> None:
    assert limits({"isolated": True}) == Limits()
    assert (
        limits({"isolated": True, "max_memory": None, "max_cpu": None, "nice": None, "io_priority": None}) == Limits()
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_memory": "500MB"}, Limits(max_memory=500 * MIB)),
        ({"max_memory": 16 * MIB}, Limits(max_memory=16 * MIB)),
        ({"max_cpu": 1}, Limits(max_cpu=1.0)),
        ({"max_cpu": "10m"}, Limits(max_cpu=600.0)),
        ({"max_cpu": timedelta(hours=1)}, Limits(max_cpu=3600.0)),
        ({"nice": 0}, Limits()),
        ({"nice": 19}, Limits(nice=19)),
        *[({"io_priority": word}, Limits(io_priority=word)) for word in IO_PRIORITIES],
    ],
)
def test_limits(given: dict[str, Any], expected: Limits) -> None:
    assert limits({"isolated": True, **given}) == expected


WRONG = [
    ("isolated", 1, "neither True nor False"),
    ("isolated", None, "neither True nor False"),
    ("isolated", "yes", "neither True nor False"),
    ("max_memory", "lots", "is no size"),
    ("max_memory", True, "is no size"),
    ("max_memory", 1.5, "is no size"),
    ("max_memory", -1, "is no size"),
    ("max_memory", 1 << 62, "is more than any machine has; use less than 4,194,304T"),
    ("max_memory", "4194304T", "is more than any machine has; use less than 4,194,304T"),
    ("max_memory", "20000000T", "is more than any machine has; use less than 4,194,304T"),
    ("max_memory", 0, "less than a Python process needs; use 16MiB or more"),
    ("max_memory", "15.9MiB", "less than a Python process needs"),
    ("max_cpu", 0, "leaves no time to run"),
    ("max_cpu", "0s", "leaves no time to run"),
    ("max_cpu", -1, "max_cpu"),
    ("max_cpu", "soon", "max_cpu"),
    ("max_cpu", math.nan, "max_cpu"),
    ("max_cpu", math.inf, "max_cpu"),
    ("max_cpu", [], "max_cpu"),
    ("nice", -1, "use a whole number from 0 to 19"),
    ("nice", 20, "use a whole number from 0 to 19"),
    ("nice", 1.0, "use a whole number from 0 to 19"),
    ("nice", True, "use a whole number from 0 to 19"),
    ("nice", "5", "use a whole number from 0 to 19"),
    ("io_priority", "Low", "is none of normal, low, idle"),
    ("io_priority", "realtime", "is none of normal, low, idle"),
    ("io_priority", 7, "is none of normal, low, idle"),
    ("io_priority", ["low"], "is none of normal, low, idle"),
]


@pytest.mark.parametrize(("name", "value", "words"), WRONG)
def test_wrong_values_are_told_where_they_are_written(app: Mouso, name: str, value: object, words: str) -> None:
    given: dict[str, Any] = {"isolated": True, name: value}
    with pytest.raises(OptionError) as raised:
        app.task(name="work", **given)(lambda: None)
    message = str(raised.value)
    assert message.startswith("task work: ")
    assert name in message
    assert words in message
    assert "\n" not in message
    assert not app.tasks


@pytest.mark.parametrize(("name", "value"), [("nice", ""), ("nice", False), ("io_priority", ""), ("io_priority", 0)])
def test_what_is_false_is_not_taken_for_nothing(app: Mouso, name: str, value: object) -> None:
    given: dict[str, Any] = {"isolated": True, name: value}
    with pytest.raises(OptionError, match=name):
        app.task(name="work", **given)(lambda: None)


@pytest.mark.parametrize(
    ("name", "value"), [("max_memory", "1GB"), ("max_cpu", 5), ("nice", 5), ("nice", 0), ("io_priority", "low")]
)
@pytest.mark.parametrize("isolated", [{}, {"isolated": False}])
def test_limits_need_a_process_of_their_own(app: Mouso, name: str, value: object, isolated: dict[str, Any]) -> None:
    given: dict[str, Any] = {name: value, **isolated}
    with pytest.raises(OptionError, match=f"{name}= limits a process; it needs isolated=True"):
        app.task(name="work", **given)(lambda: None)


@pytest.mark.parametrize("name", OPTIONS)
def test_they_are_the_tasks_and_not_a_jobs(app: Mouso, name: str) -> None:
    task = app.task(name="work", isolated=True)(lambda: None)
    given: dict[str, Any] = {name: True}
    with pytest.raises(OptionError, match=f"{name}= belongs to the task; give it to app.task"):
        task.options(**given)


def test_the_task_keeps_them(app: Mouso) -> None:
    @app.task(isolated=True, max_memory="64MB", max_cpu="2s", nice=3, io_priority="idle", timeout=5)
    def work() -> None: ...

    assert work.settings.limits == Limits(64 * MIB, 2.0, 3, "idle")
    assert work.settings.timeout == 5
    work()  # a plain call runs here
