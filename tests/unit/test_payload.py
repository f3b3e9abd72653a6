"""What must not reach a store never does, and what may comes back out of it as it was."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mouso import JobRejected, Mouso
from mouso.errors import ArgumentError, OptionError, PayloadTooDeep, PayloadTooLarge
from mouso.job import new_id
from mouso.task import Task


@pytest.fixture(params=["memory", "sqlite"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mouso]:
    url = f"sqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else f"memory://{new_id()}"
    with Mouso("shop", broker=url) as app:
        yield app


@pytest.fixture
def task(app: Mouso) -> Task[..., Any]:
    @app.task
    def log(value: Any, *rest: Any) -> None: ...

    return log


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def looped() -> Any:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    return loop


class Hostile:
    """Raises at whatever is done with it."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    def __hash__(self) -> int:
        raise RuntimeError("no")

    def __len__(self) -> int:
        raise RuntimeError("no")

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __getstate__(self) -> object:
        raise RuntimeError("no")

    def __reduce__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "value",
    [
        2**53 + 1,
        -(2**63),
        pytest.param(10**4000, id="4001 digits"),
        "a\0b",
        "\0",
        "\x1b[31m<script>alert(1)</script>\u202e",
        "🐁 größe \u2028",
        {"": {"a\0": [None, True, 1.5e-300]}},
        pytest.param(deep(190), id="190 levels"),
        pytest.param("x" * 1_000_000, id="almost 1 MiB"),
    ],
)
def test_it_comes_out_of_the_store_as_it_went_in(app: Mouso, task: Task[..., Any], value: Any) -> None:
    task.delay(value)
    (job,) = app.jobs()
    assert task.signature.decode(job.payload, job.codec) == ([value], {})


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (math.nan, ArgumentError),
        (math.inf, ArgumentError),
        ({"a": [-math.inf]}, ArgumentError),
        pytest.param(10**100_000, ArgumentError, id="100,001 digits"),
        ("\ud800", ArgumentError),
        ({"\udfff": 1}, ArgumentError),
        pytest.param(deep(1000), PayloadTooDeep, id="1,000 levels"),
        pytest.param(deep(100_000), PayloadTooDeep, id="100,000 levels"),
        (looped(), PayloadTooDeep),
        pytest.param("x" * (1 << 20), PayloadTooLarge, id="more than 1 MiB"),
        ({1: "a"}, ArgumentError),
        ({1: "a", "1": "b"}, ArgumentError),
        ({None: 1}, ArgumentError),
        ({(1, 2): 3}, ArgumentError),
        ({1, 2}, ArgumentError),
        (b"x", ArgumentError),
        (datetime(2030, 1, 1), ArgumentError),
        pytest.param(Hostile(), ArgumentError, id="hostile"),
        pytest.param([Hostile()], ArgumentError, id="hostile in a list"),
        pytest.param({"a": Hostile()}, ArgumentError, id="hostile in a mapping"),
        (object(), ArgumentError),
        (lambda: 1, ArgumentError),
        (open, ArgumentError),
        ((n for n in range(3)), ArgumentError),
        (ValueError("x"), ArgumentError),
        (1j, ArgumentError),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, type) else value.__name__,
)
def test_it_is_rejected_by_delay_and_nothing_is_stored(
    app: Mouso, task: Task[..., Any], value: Any, error: type[Exception]
) -> None:
    for attempt in (lambda: task.delay(value), lambda: task.delay(1, value), lambda: task.map([(1,), (value,)])):
        with pytest.raises(error) as caught:
            attempt()
        assert isinstance(caught.value, JobRejected)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
    assert app.jobs() == []


@pytest.mark.parametrize(
    "id", ["", "x" * 129, "x" * 1024, "a/b", "../a", "%00", "a\0", "'", '"', " ", "a b", "é", "e\u0301", 1, b"a", True]
)
def test_an_id_outside_the_charset_is_rejected(app: Mouso, task: Task[..., Any], id: Any) -> None:
    with pytest.raises(OptionError, match="use 1 to 128 of A-Z a-z 0-9"):
        task.options(id=id).delay(1)
    assert app.jobs() == []


@pytest.mark.parametrize("id", ["a", "A-Z_0.9:x", "x" * 128, "..", "-"])
def test_an_id_of_the_charset_is_stored_as_it_is(app: Mouso, task: Task[..., Any], id: str) -> None:
    assert task.options(id=id).delay(1).id == id
    assert app.job(id).refresh().record.id == id


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 101},
        {"priority": -101},
        {"priority": True},
        {"priority": 1.0},
        {"priority": "1"},
        {"priority": None},
        {"attempts": 0},
        {"attempts": -1},
        {"attempts": 10**9},
        {"attempts": True},
        {"attempts": None},
        {"delay": "soon"},
        {"delay": True},
        {"delay": math.nan},
        {"delay": timedelta.max},
        {"delay": 1e300},
        {"eta": datetime.min.replace(tzinfo=UTC)},
        {"eta": datetime.max.replace(tzinfo=UTC)},
        {"eta": datetime(2030, 1, 1)},
        {"eta": "2030-01-01"},
        {"expires": timedelta.max},
        {"expires": datetime(2030, 1, 1)},
        {"timeout": 0},
        {"queue": "a b"},
        {"codec": "pickle"},
        {"unique": ""},
    ],
    ids=str,
)
def test_an_option_out_of_range_is_rejected(app: Mouso, task: Task[..., Any], options: Any) -> None:
    with pytest.raises(OptionError, match=f"^task .*{next(iter(options))}") as caught:
        task.options(**options).delay(1)
    assert "\n" not in str(caught.value)
    assert app.jobs() == []


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({"priority": -100}, "available"),
        ({"priority": 100}, "available"),
        ({"attempts": 1_000_000}, "available"),
        ({"delay": -5}, "available"),
        ({"delay": timedelta.min}, "available"),
        ({"delay": 0}, "available"),
        ({"delay": timedelta(days=36_600)}, "scheduled"),
        ({"eta": datetime(1970, 1, 1, tzinfo=UTC)}, "available"),
        ({"eta": datetime(2262, 1, 1, tzinfo=UTC)}, "scheduled"),
        ({"expires": timedelta(days=36_600)}, "available"),
        ({"timeout": 1e9}, "available"),
    ],
    ids=str,
)
def test_an_option_at_its_limit_is_stored(app: Mouso, task: Task[..., Any], options: Any, state: str) -> None:
    task.options(**options).delay(1)
    (job,) = app.jobs()
    assert job.state == state
    assert job.priority == options.get("priority", 0)
