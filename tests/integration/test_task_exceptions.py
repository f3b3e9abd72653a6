"""Whatever a task raises, the worker lives, other jobs go on, and the store says what happened."""

import pytest

from mouso.job import Progress
from tests.integration.harness import Bench
from tests.integration.snippets import SOUND, one_of_each, still_sound


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("sys.exit(3)", "SystemExit", "the task called sys.exit(3)"),
        ("sys.exit()", "SystemExit", "the task called sys.exit(None)"),
        ("sys.exit('text')", "SystemExit", "the task called sys.exit('text')"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
        ("raise GeneratorExit", "GeneratorExit", ""),
        ("raise BaseException('base')", "BaseException", "base"),
        ("raise asyncio.CancelledError('self')", "asyncio.exceptions.CancelledError", "self"),
        ("raise StopIteration", "StopIteration", ""),
        ("raise StopIteration('value')", "StopIteration", "value"),
        ("raise StopAsyncIteration", "StopAsyncIteration", ""),
        ("raise ExceptionGroup('many', [ValueError(1), OSError(2)])", "ExceptionGroup", "many (2 sub-exceptions)"),
        ("raise TimeoutError('its own')", "TimeoutError", "its own"),
        ("raise MemoryError", "MemoryError", ""),
        ("raise UnicodeDecodeError('utf-8', b'\\xff', 0, 1, 'bad')", "UnicodeDecodeError", "'utf-8' codec can't"),
        ("raise ValueError('\\ud800 lone')", "ValueError", "? lone"),
        ("raise ValueError('\\0')", "ValueError", "\0"),
        ("import no_such_module", "ModuleNotFoundError", "No module named 'no_such_module'"),
    ],
)
def test_an_exception_is_a_failed_attempt(bench: Bench, body: str, error: str, message: str) -> None:
    jobs = bench.app(one_of_each(body))
    worker = bench.worker()
    children = worker.children()
    for task in (jobs.plain, jobs.coroutine):
        record = bench.wait_final([task.delay()])[0]
        assert (record.state, record.attempts, record.crashes) == ("dead", 1, 0)
        found = record.errors[0]
        if task is jobs.coroutine and error == "StopIteration":  # Python lets no coroutine raise it
            assert (found.type, found.message) == ("RuntimeError", "coroutine raised StopIteration")
        else:
            assert found.type == error
            assert found.message.startswith(message)
            assert bool(found.message) == bool(message)
    still_sound(jobs)
    assert worker.children() == children


@pytest.mark.parametrize("method", ["__str__", "__repr__", "__getattribute__"])
@pytest.mark.parametrize("raised", ["RuntimeError('broken')", "SystemExit(1)", "RecursionError()"])
def test_exceptions_whose_own_methods_raise(bench: Bench, method: str, raised: str) -> None:
    jobs = bench.app(
        one_of_each(
            f"""
class Nasty(Exception):
    def {method}(self, *_):
        raise {raised}
raise Nasty("hidden") from Nasty("cause")
"""
        )
    )
    worker = bench.worker()
    children = worker.children()
    for task in (jobs.plain, jobs.coroutine):
        record = bench.wait_final([task.delay()])[0]
        assert (record.state, record.attempts) == ("dead", 1)
        assert "Nasty" in record.errors[0].type + record.errors[0].message
    still_sound(jobs)
    assert worker.children() == children


def test_exit_codes_and_reasons_whose_repr_raises(bench: Bench) -> None:
    jobs = bench.app(
        SOUND
        + """
class Nasty:
    def __repr__(self):
        raise ValueError("no")
    __str__ = __repr__

@app.task(attempts=1)
def exits() -> None:
    sys.exit(Nasty())

@app.task
def cancels() -> None:
    raise Cancel(Nasty())

@app.task
async def cancels_oddly() -> None:
    raise Cancel("\\ud800")

@app.task
async def discards() -> None:
    raise Discard("\\ud800" * 10000)

REPORTS = [(1, 2, "\\ud800"), (float("nan"), float("inf"), "odd"), (10**400, 10**30, "large")]

@app.task
def reports(ctx: Context, number: int) -> str:
    ctx.progress(*REPORTS[number])
    return "reported"

@app.task(attempts=1)
def reports_text(ctx: Context) -> None:
    ctx.progress("half")
"""
    )
    worker = bench.worker()
    children = worker.children()
    tasks = (jobs.exits, jobs.cancels, jobs.cancels_oddly, jobs.discards, jobs.reports_text)
    records = bench.wait_final([task.delay() for task in tasks])
    assert [r.state for r in records] == ["dead", "cancelled", "cancelled", "dead", "dead"]
    assert records[4].errors[0].type in ("ValueError", "TypeError")
    reported = [bench.wait_final([jobs.reports.delay(number)])[0] for number in range(3)]
    assert [(r.state, r.progress) for r in reported] == [
        ("completed", Progress(1.0, 2.0, "?")),
        ("completed", Progress(0.0, None, "odd")),
        ("completed", Progress(0.0, 1e30, "large")),
    ]
    still_sound(jobs)
    assert worker.children() == children


def test_huge_messages_and_endless_chains_are_cut(bench: Bench) -> None:
    jobs = bench.app(
        SOUND
        + """
@app.task(attempts=1)
def huge() -> None:
    raise ValueError("x" * 50_000_000)

@app.task(attempts=1)
def recursion() -> None:
    recursion.function()

@app.task(attempts=1)
async def recursion_too() -> None:
    await recursion_too.function()

@app.task(attempts=1)
def chain() -> None:
    error = None
    for n in range(5000):
        following = ValueError(n)
        following.__cause__ = error
        error = following
    raise error

@app.task(attempts=1)
def cycle() -> None:
    first, second = ValueError(1), ValueError(2)
    first.__cause__, second.__cause__ = second, first
    raise first
"""
    )
    worker = bench.worker()
    children = worker.children()
    tasks = (jobs.huge, jobs.recursion, jobs.recursion_too, jobs.chain, jobs.cycle)
    records = bench.wait_final([task.delay() for task in tasks], timeout=60)
    assert [r.errors[0].type for r in records] == [
        "ValueError",
        "RecursionError",
        "RecursionError",
        *["ValueError"] * 2,
    ]
    for record in records:
        assert len(record.errors[0].message) <= 4096
        assert len(record.errors[0].traceback) <= 16400
    assert len(worker.log) < 100_000
    still_sound(jobs)
    assert worker.children() == children


def test_an_import_that_fails_only_in_the_worker(bench: Bench) -> None:
    jobs = bench.app(
        SOUND
        + """
@app.task(attempts=2, backoff=constant(0))
def needs() -> None:
    import a_library_that_only_the_producer_has
"""
    )
    worker = bench.worker()
    children = worker.children()
    record = bench.wait_final([jobs.needs.delay()])[0]
    assert (record.state, record.reason, record.attempts) == ("dead", "attempts", 2)
    assert "a_library_that_only_the_producer_has" in record.errors[0].message
    still_sound(jobs)
    assert worker.children() == children
