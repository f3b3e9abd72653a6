"""What a caller gets to see of a job: progress, results of all kinds, and errors in their place."""

import time
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from mouso import JobFailed, JobUnknown
from mouso.brokers.base import Retention
from mouso.errors import ResultError, ResultTimeout
from mouso.handle import JobHandle
from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import one_of_each, still_sound
from tests.support import wait_until

# -- progress and watching


def test_progress_is_seen_while_it_runs(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        async def steps(ctx: Context) -> str:
            for n in range(1, 4):
                ctx.progress(n, 3, f"step {n}")
                while not Path(f"go-{n}").exists():
                    await asyncio.sleep(0.01)
            return "done"
        """
    )
    bench.worker()
    handle: JobHandle[str] = jobs.steps.delay()
    seen: list[tuple[str, Any]] = []
    for update in handle.watch(timeout=WAIT):
        seen.append((str(update.state), update.progress))
        if update.progress is not None:
            (bench.folder / f"go-{int(update.progress.done)}").touch()
    assert seen[-1][0] == "completed"
    steps = [progress for _, progress in seen if progress is not None]
    assert [p.message for p in dict.fromkeys(steps)] == ["step 1", "step 2", "step 3"]
    assert (steps[-1].done, steps[-1].total) == (3, 3)
    assert handle.progress == steps[-1]


def test_a_single_report_is_seen_at_once(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def reports(ctx: Context, n: int) -> None:
            ctx.progress(n, None, "only once")
            while not Path("go").exists():
                time.sleep(0.01)
        """
    )
    bench.worker(concurrency=20)
    handles = jobs.reports.map([(n,) for n in range(20)])
    wait_until(lambda: all(handle.progress for handle in handles), timeout=WAIT, message="every report has arrived")
    assert [handle.record.progress.done for handle in handles] == list(range(20))
    (bench.folder / "go").touch()
    bench.wait_final(handles)


def test_what_get_raises(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def job() -> int:
            return 1
        """
    )
    handle = jobs.job.delay()
    with pytest.raises(ResultTimeout, match="worker"):
        handle.get(timeout=0.1)
    with pytest.raises(TimeoutError):
        handle.get(timeout=0.1)
    with pytest.raises(JobUnknown):
        jobs.app.job("nobody").get(timeout=1)
    bench.worker()
    assert handle.get(timeout=WAIT) == 1


# -- arguments and results

VALUES = """
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

class Colour(Enum):
    RED = "red"

@dataclass
class Point:
    x: int
    y: float

class Pair(NamedTuple):
    left: str
    right: int

class Film(TypedDict):
    title: str
    year: int

@app.task
def text(value: str) -> str:
    return value

@app.task
def binary(value: bytes) -> bytes:
    return value

@app.task
def number(value: Decimal) -> Decimal:
    return value

@app.task
def instant(value: datetime) -> datetime:
    return value

@app.task
async def day(value: date) -> date:
    return value

@app.task
def span(value: timedelta) -> timedelta:
    return value

@app.task
def uuid(value: UUID) -> UUID:
    return value

@app.task
def colour(value: Colour) -> Colour:
    return value

@app.task
def point(value: Point) -> Point:
    return value

@app.task
def pair(value: Pair) -> Pair:
    return value

@app.task
def film(value: Film) -> Film:
    return value

@app.task
def path(value: Path) -> Path:
    return value

@app.task
def many(value: dict[str, list[Point | None]]) -> dict[str, list[Point | None]]:
    return value

@app.task
def anything(value: object) -> object:
    return value

@app.task
def spread(*values: int, **names: str) -> list[object]:
    return [values, names]

@app.task
def empty(value: str) -> None:
    return None
"""


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_arguments_and_results_of_all_kinds(bench: Bench, codec: str) -> None:
    jobs = bench.app(VALUES)
    bench.worker()
    values: list[tuple[str, Any]] = [
        ("text", "Grüße \0 \u2028 \U0001f600"),
        ("text", ""),
        ("binary", bytes(range(256))),
        ("binary", b""),
        ("number", Decimal("0.1000")),
        ("instant", datetime.fromisoformat("2026-11-20T10:00:00.123456+01:00")),
        ("day", date(2026, 2, 28)),
        ("span", timedelta(days=-1, microseconds=5)),
        ("uuid", UUID(int=5)),
        ("colour", jobs.Colour.RED),
        ("point", jobs.Point(1, 2.5)),
        ("pair", jobs.Pair("a", 0)),
        ("film", {"title": "Alien", "year": 1979}),
        ("path", Path("/tmp/x")),
        ("many", {"": [], "a": [jobs.Point(0, 0.0), None]}),
        ("empty", "x"),
    ]
    plain: list[Any] = [None, True, 0, 1, 127, 128, 255, -1, 2**53 + 1, 2**63 - 1, -(2**63), 0.5, -0.0, 1e308]
    plain += [[], {}, [[[]]], "\0", [0, 0], {"\0": 0}]
    values += [("anything", value) for value in plain]
    handles = [getattr(jobs, name).options(codec=codec).delay(value) for name, value in values]
    handles.append(jobs.spread.options(codec=codec).delay(1, 2, a="b"))
    bench.wait_final(handles)
    for (name, value), handle in zip(values, handles, strict=False):
        result = handle.get(timeout=WAIT)
        expected: Any = None if name == "empty" else value
        assert result == expected, name
        assert type(result) is type(expected), name
    assert handles[-1].get() == [[1, 2], {"a": "b"}]


def test_results_that_are_not_kept_or_kept_shortly(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task(keep_result=False)
        def not_kept() -> object:
            return object()

        @app.task(keep_result="1s")
        def kept_shortly() -> int:
            return 1
        """
    )
    bench.worker()
    handle = jobs.not_kept.delay()
    assert handle.get(timeout=WAIT) is None
    assert handle.record.result is None
    handle = jobs.kept_shortly.delay()
    assert handle.get(timeout=WAIT) == 1
    kept = jobs.not_kept.delay()
    bench.wait_final([kept])
    finished = handle.record.finished_at

    def gone() -> bool:
        jobs.app.broker.prune(1000, Retention())  # as the worker does every ten seconds
        return bool(jobs.app.broker.get([handle.id]) == [None])

    wait_until(gone, timeout=WAIT, message="the job is deleted with its result")
    assert time.time() * 1000 - finished >= 1000, "and not before its time"
    with pytest.raises(JobUnknown):
        handle.get(timeout=1)
    assert kept.refresh().state == "completed", "others stay"


def test_a_result_that_json_cannot_hold_is_refused(bench: Bench) -> None:
    """JSON has no NaN; as `null` it would come back as something else than was returned."""
    jobs = bench.app(
        """
        @app.task
        def job() -> float:
            return float("nan")

        @app.task
        def untyped():
            return [1, float("inf")]
        """
    )
    bench.worker()
    for handle in (jobs.job.delay(), jobs.untyped.delay()):
        record = bench.wait_final([handle])[0]
        assert (record.state, record.reason) == ("dead", "bad_result")


def test_the_largest_result(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def size(n: int) -> str:
            note("ran", str(n))
            return "x" * n
        """
    )
    bench.worker()
    limit = (1 << 20) - 2  # the quotes count
    fits, too_large = jobs.size.delay(limit), jobs.size.delay(limit + 1)
    assert len(fits.get(timeout=WAIT)) == limit
    with pytest.raises(JobFailed, match="1,048,577 bytes, the limit is 1,048,576"):
        too_large.get(timeout=WAIT)
    assert too_large.refresh().record.reason == "bad_result"
    assert sorted(int(line.text) for line in bench.history("ran")) == [limit, limit + 1], "each ran once"


def test_a_result_that_no_longer_fits_its_annotation(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def job() -> str:
            return "not a number"

        @app.task
        def other() -> int:
            return "not a number"
        """
    )
    bench.worker()
    handle, refused = jobs.job.delay(), jobs.other.delay()
    assert [job.state for job in bench.wait_final([handle, refused])] == ["completed", "dead"]
    assert refused.record.reason == "bad_result"
    jobs.job.signature = jobs.other.signature  # a later version
    with pytest.raises(ResultError, match="annotation"):
        handle.get(timeout=WAIT)


@pytest.mark.parametrize(
    "body",
    [
        "return (n for n in range(3))",
        "return asyncio.sleep(0)",
        "return object()",
        "return lambda: 1",
        "loop = []; loop.append(loop); return loop",
        "loop = {}; loop['a'] = loop; return loop",
        "deep = []\nfor _ in range(100_000):\n    deep = [deep]\nreturn deep",
        "return 'x' * (2 << 20)",
        "return {1, 2, object()}",
        "return float('nan')",
        "return {10 ** 5000: 1, (1, 2): object()}",
        "return '\\ud800'",
        "return {('a', 'b'): object()}",
    ],
)
def test_a_result_that_cannot_be_stored_fails_once(bench: Bench, body: str) -> None:
    source = one_of_each(f"note('start')\n{body}").replace("attempts=1", "attempts=5")
    jobs = bench.app(source)
    worker = bench.worker()
    worker.quiet = False
    children = worker.children()
    for task in (jobs.plain, jobs.coroutine):
        record = bench.wait_final([task.delay()])[0]
        assert (record.state, record.reason, record.attempts) == ("dead", "bad_result", 1)
    assert len(bench.history("start")) == 2
    still_sound(jobs)
    assert worker.children() == children
