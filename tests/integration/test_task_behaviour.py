"""Whatever a task does, or a store holds, the worker lives, other jobs go on, and the store says what happened."""

import pickle
import time
from collections import Counter
from typing import Any

import pytest

from tests.integration.harness import WAIT, Bench
from tests.support import wait_until

SOUND = """
@app.task
def sound(n: int) -> int:
    return n

@app.task
async def sound_coroutine(n: int) -> int:
    return n

@app.task
def waits() -> str:
    note("waits")
    while not Path("go").exists():
        time.sleep(0.01)
    return "waited"

@app.task
async def waits_too() -> str:
    note("waits")
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    return "waited"
"""


def still_sound(bench: Bench, jobs: Any) -> None:
    """Other jobs of both kinds run."""
    handles = [jobs.sound.delay(1), jobs.sound_coroutine.delay(2)]
    assert [handle.get(timeout=WAIT) for handle in handles] == [1, 2]


def one_of_each(source: str) -> str:
    """The same body as a plain task and as a coroutine task."""
    body = source.strip().replace("\n", "\n    ")
    task = "\n@app.task(attempts=1)\n"
    return f"{SOUND}{task}def plain():\n    {body}\n{task}async def coroutine():\n    {body}\n"


# -- exceptions of all kinds


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
        # A coroutine cannot raise StopIteration: Python makes a RuntimeError of it.
        assert found.type == error or (found.type, error[:4]) == ("RuntimeError", "Stop")
        assert message in found.message or found.type == "RuntimeError"
    still_sound(bench, jobs)
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
    still_sound(bench, jobs)
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

@app.task
def reports(ctx: Context) -> str:
    ctx.progress(1, 2, "\\ud800")
    time.sleep(0.1)
    ctx.progress(float("nan"), float("inf"), "odd")
    time.sleep(0.1)
    ctx.progress(10**400, 10**30, "large")
    time.sleep(0.1)
    return "reported"

@app.task(attempts=1)
def reports_text(ctx: Context) -> None:
    ctx.progress("half")
"""
    )
    worker = bench.worker()
    children = worker.children()
    tasks = (jobs.exits, jobs.cancels, jobs.cancels_oddly, jobs.discards, jobs.reports, jobs.reports_text)
    records = bench.wait_final([task.delay() for task in tasks])
    assert [r.state for r in records] == ["dead", "cancelled", "cancelled", "dead", "completed", "dead"]
    assert records[5].errors[0].type in ("ValueError", "TypeError")
    still_sound(bench, jobs)
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
    still_sound(bench, jobs)
    assert worker.children() == children


# -- deaths

DEATHS = {
    "exit": ("os._exit(0)", "exit code 0"),
    "exit code": ("os._exit(7)", "exit code 7"),
    "killed": ("os.kill(os.getpid(), 9)", "signal 9, SIGKILL"),
    "segfault": ("import ctypes; ctypes.string_at(0)", "signal 11, SIGSEGV"),
    "abort": ("os.abort()", "signal 6, SIGABRT"),
}


@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_a_job_under_which_the_process_dies_is_poison_the_third_time(bench: Bench, how: str, kind: str) -> None:
    body, words = DEATHS[how]
    jobs = bench.app(one_of_each(f"note('start')\n{body}"))
    worker = bench.worker()
    worker.quiet = False
    record = bench.wait_final([getattr(jobs, kind).delay()])[0]
    assert (record.state, record.reason) == ("dead", "poison")
    assert (record.attempts, record.crashes) == (0, 3)
    assert [line.event for line in bench.history()] == ["start"] * 3
    assert len({line.pid for line in bench.history()}) == 3
    assert all(words in error.message for error in record.errors)
    assert [error.reason for error in record.errors] == ["crash", "crash", "poison"]
    still_sound(bench, jobs)


def test_poison_among_others_charges_nobody_else(bench: Bench) -> None:
    jobs = bench.app(
        SOUND
        + """
@app.task
def poison() -> None:
    note("poison")
    while len(list(Path().glob("beside-*"))) < 5:
        time.sleep(0.01)
    os.kill(os.getpid(), 9)

@app.task
def beside(n: int) -> int:
    note("beside", str(n))
    Path(f"beside-{n}").touch()
    time.sleep(0.5)
    return n

@app.task
async def beside_too(n: int) -> int:
    note("beside", str(n))
    Path(f"beside-{n}").touch()
    await asyncio.sleep(0.5)
    return n
"""
    )
    worker = bench.worker(processes=2, concurrency=8)
    worker.quiet = False
    others = [(jobs.beside if n % 2 else jobs.beside_too).delay(n) for n in range(5)]
    poison = jobs.poison.delay()
    flood = jobs.sound.map([(n,) for n in range(1000)])
    record = bench.wait_final([poison])[0]
    assert (record.state, record.reason, record.crashes, record.attempts) == ("dead", "poison", 3, 0)
    records = bench.wait_final([*others, *flood])
    assert {(r.state, r.attempts, r.crashes) for r in records} == {("completed", 0, 0)}
    # Once beside the others as one of many suspects, then three times alone.
    assert len(bench.history("poison")) <= 4


def test_several_poisons_at_once(bench: Bench) -> None:
    jobs = bench.app(
        SOUND
        + """
@app.task
def poison(n: int) -> None:
    note("poison", str(n))
    os._exit(n)
"""
    )
    worker = bench.worker(processes=2, concurrency=4)
    poisons = [jobs.poison.delay(n) for n in range(1, 4)]
    at = time.monotonic()
    flood = jobs.sound.map([(n,) for n in range(200)])
    bench.wait_final(flood)
    assert time.monotonic() - at < 4.0, "the deaths of poison do not stop the others"
    records = bench.wait_final([*poisons, *flood])
    assert Counter((r.state, r.reason, r.crashes) for r in records) == {
        ("dead", "poison", 3): 3,
        ("completed", "", 0): 200,
    }
    assert worker.alive


# -- what a task leaves behind


def test_threads_files_and_settings_that_are_left(bench: Bench) -> None:
    jobs = bench.app(
        SOUND
        + """
left = []

@app.task
def leaves() -> None:
    left.append(open("left", "w"))
    threading.Thread(target=time.sleep, args=(600,)).start()
    threading.Thread(target=lambda: 1 / 0).start()
    os.environ["LEFT"] = "1"
    os.umask(0o077)
    sys.stdout = sys.stderr = None

@app.task
def subprocess_left() -> None:
    import subprocess
    left.append(subprocess.Popen(["sleep", "3"]))
"""
    )
    worker = bench.worker()
    worker.quiet = False
    (child,) = worker.children()
    for _ in range(3):
        bench.wait_final([jobs.leaves.delay(), jobs.subprocess_left.delay()])
    still_sound(bench, jobs)
    assert worker.children() == [child]
    at = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - at < 3.0


def test_a_flood_on_stdout_holds_up_nothing(bench: Bench) -> None:
    jobs = bench.app(
        SOUND
        + """
@app.task
def floods() -> int:
    block = "x" * 65536
    for _ in range(400):
        sys.stdout.write(block)
    sys.stdout.flush()
    os.write(2, bytes(range(256)) * 100)
    return 400
"""
    )
    worker = bench.worker()
    handles = jobs.floods.map([()] * 4)
    still_sound(bench, jobs)
    assert [handle.get(timeout=WAIT) for handle in handles] == [400] * 4
    assert worker.log_file.stat().st_size > 4 * 400 * 65536
    worker.log_file.write_bytes(b"")


# -- what a task returns


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
    still_sound(bench, jobs)
    assert worker.children() == children


# -- the event loop


def test_asyncio_run_inside_a_task(bench: Bench) -> None:
    jobs = bench.app(
        SOUND
        + """
async def inner() -> int:
    await asyncio.sleep(0)
    return 5

@app.task
def plain() -> int:
    return asyncio.run(inner())

@app.task(attempts=1)
async def coroutine() -> int:
    return asyncio.run(inner())

@app.task(attempts=1)
async def closes() -> None:
    asyncio.get_running_loop().close()
"""
    )
    worker = bench.worker()
    children = worker.children()
    assert jobs.plain.delay().get(timeout=WAIT) == 5
    for task in (jobs.coroutine, jobs.closes):
        record = bench.wait_final([task.delay()])[0]
        assert record.errors[0].type == "RuntimeError"
    still_sound(bench, jobs)
    assert worker.children() == children


def test_a_task_that_cancels_every_task_of_its_loop(bench: Bench) -> None:
    """All coroutine jobs beside it fail an attempt, as if they had been cancelled by their own code; all is retried."""
    jobs = bench.app(
        SOUND
        + """
@app.task(attempts=1)
async def cancels_all() -> None:
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(0)

@app.task(backoff=constant(0))
async def beside() -> str:
    note("beside")
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    return "done"
"""
    )
    worker = bench.worker(concurrency=8)
    children = worker.children()
    beside = jobs.beside.map([()] * 3)
    bench.wait_for("beside", count=3)
    assert bench.wait_final([jobs.cancels_all.delay()])[0].errors[0].type == "asyncio.exceptions.CancelledError"
    (bench.folder / "go").touch()
    records = bench.wait_final(beside)
    assert [(r.state, r.attempts) for r in records] == [("completed", 1)] * 3
    still_sound(bench, jobs)
    assert worker.children() == children


def test_a_task_that_stops_its_loop_takes_its_process_along(bench: Bench) -> None:
    jobs = bench.app(
        SOUND
        + """
@app.task
async def stops() -> None:
    note("start")
    asyncio.get_running_loop().stop()
    await asyncio.sleep(60)
"""
    )
    worker = bench.worker()
    worker.quiet = False
    record = bench.wait_final([jobs.stops.delay()])[0]
    assert (record.state, record.reason, record.crashes) == ("dead", "poison", 3)
    still_sound(bench, jobs)


def test_a_task_that_blocks_the_loop_does_not_stop_functions(bench: Bench) -> None:
    jobs = bench.app(
        SOUND
        + """
@app.task
async def blocks() -> None:
    note("start")
    while not Path("go").exists():
        time.sleep(0.01)
"""
    )
    bench.worker(processes=1)
    handle = jobs.blocks.delay()
    bench.wait_for("start")
    assert jobs.sound.delay(1).get(timeout=WAIT) == 1
    late = jobs.sound_coroutine.delay(2)
    wait_until(lambda: late.record.releases + late.refresh().record.releases > 1, timeout=WAIT, message="given back")
    (bench.folder / "go").touch()
    assert late.get(timeout=WAIT) == 2
    handle.get(timeout=WAIT)
    assert (late.record.attempts, late.record.crashes) == (0, 0)


def test_exceptions_in_callbacks_and_forgotten_tasks(bench: Bench) -> None:
    jobs = bench.app(
        SOUND
        + """
@app.task
async def forgets() -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(lambda: 1 / 0)
    asyncio.create_task(fails())
    asyncio.create_task(asyncio.sleep(600))
    await asyncio.sleep(0.05)

async def fails():
    raise ValueError("nobody awaits this")
"""
    )
    worker = bench.worker()
    worker.quiet = False
    children = worker.children()
    assert jobs.forgets.delay().get(timeout=WAIT) is None
    still_sound(bench, jobs)
    assert worker.children() == children
    at = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - at < 3.0


# -- what the store may hold

ARGUMENTS = """
@app.task(attempts=1)
def typed(x: int, y: str = "y") -> int:
    note("ran")
    return x

@app.task(attempts=1)
async def typed_coroutine(x: int, y: str = "y") -> int:
    note("ran")
    return x

@app.task(attempts=1)
def nothing() -> None:
    note("ran")

@app.task(attempts=1)
def anything(x: object) -> object:
    note("anything")
    return None
"""

PAYLOADS: dict[str, bytes] = {
    "empty": b"",
    "blank": b"   ",
    "truncated": b'{"x": 1, "y": "te',
    "bit flipped": b'{"x": 1, "y"\xba "text"}',
    "random": bytes(range(255, 0, -3)),
    "zeros": bytes(64),
    "not UTF-8": b'{"x": 1, "y": "\xff\xfe"}',
    "list": b"[1, 2]",
    "null": b"null",
    "text": b'"text"',
    "number": b"5",
    "missing field": b'{"y": "text"}',
    "unknown field": b'{"x": 1, "z": 2}',
    "wrong type": b'{"x": "1"}',
    "wrong type too": b'{"x": 1, "y": null}',
    "huge integer": b'{"x": ' + b"9" * 5000 + b"}",
    "overflow": b'{"x": 1e400}',
    "NaN": b'{"x": NaN}',
    "trailing": b'{"x": 1}{"x": 2}',
    "byte order mark": b'\xef\xbb\xbf{"x": 1}',
    "pickle": pickle.dumps(print),
    "deep": b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"x":' * 100_000 + b"1" + b"}" * 100_000,
}


def test_payloads_that_do_not_decode_are_dead(bench: Bench) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    handles = {}
    for name, payload in PAYLOADS.items():
        for task in (jobs.typed, jobs.typed_coroutine):
            handle = handles[name, task.name] = task.delay(1)
            store_payload(bench, handle.id, payload)
    worker = bench.worker()
    children = worker.children()
    records = bench.wait_final(handles.values())
    for (name, _), record in zip(handles, records, strict=True):
        assert (record.state, record.reason) == ("dead", "bad_payload"), name
        assert (record.attempts, record.crashes) == (0, 0)
        assert record.errors[0].type == "BadPayload"
        assert len(record.errors[0].message) < 1000
        if name != "deep" and name != "deep objects":
            assert PAYLOADS[name][:4].hex(" ") in record.errors[0].message, name
    assert bench.history("ran") == []
    still_sound(bench, jobs)
    assert worker.children() == children
    # Mended and retried, it runs.
    handle = handles["truncated", "jobs.typed"]
    assert jobs.app.broker.retry([handle.id], payload=b'{"x": 7}') == ["retried"]
    assert handle.get(timeout=WAIT) == 7


def test_deep_payloads_for_a_task_that_takes_anything(bench: Bench) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    handles = [jobs.anything.delay(1), jobs.anything.delay(1)]
    store_payload(bench, handles[0].id, b'{"x": ' + b"[" * 500_000 + b"]" * 500_000 + b"}")
    store_payload(bench, handles[1].id, b'{"x": ' + b'{"a":' * 500_000 + b"1" + b"}" * 500_001)
    worker = bench.worker()
    children = worker.children()
    records = bench.wait_final(handles)
    assert [(r.state, r.reason) for r in records] == [("dead", "bad_payload")] * 2
    still_sound(bench, jobs)
    assert worker.children() == children


@pytest.mark.parametrize(
    "payload", [b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\x91" * 100_000, b"{}"]
)
def test_payloads_in_msgpack_that_do_not_decode(bench: Bench, payload: bytes) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    handle = jobs.typed.options(codec="msgpack").delay(1)
    store_payload(bench, handle.id, payload)
    bench.worker()
    record = bench.wait_final([handle])[0]
    assert (record.state, record.reason) == ("dead", "bad_payload")
    still_sound(bench, jobs)


def test_a_thousand_bad_payloads_in_a_row(bench: Bench) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    handles = jobs.typed.map([(n,) for n in range(600)]) + jobs.typed_coroutine.map([(n,) for n in range(2400)])
    bench.sql("UPDATE mouso_jobs SET payload = x'00'")
    worker = bench.worker(processes=1, concurrency=1000)
    children = worker.children()
    records = bench.wait_final(handles, timeout=40)
    assert {(r.state, r.reason) for r in records} == {("dead", "bad_payload")}
    still_sound(bench, jobs)
    assert worker.children() == children


@pytest.mark.parametrize("codec", ["pickle", "", "JSON", "json\0", "../json", "__class__", "\U0001f600" * 1000])
def test_an_unknown_codec(bench: Bench, codec: str) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    handle = jobs.typed.delay(1)
    bench.sql("UPDATE mouso_jobs SET codec = ?", codec)
    bench.worker()
    record = bench.wait_final([handle])[0]
    assert (record.state, record.reason) == ("dead", "bad_payload")
    assert "codec" in record.errors[0].message
    assert bench.history("ran") == []
    still_sound(bench, jobs)


OPTIONS: list[bytes] = [
    b"",
    b"garbage",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"attempts": "three"}',
    b'{"attempts": 1e999}',
    b'{"timeout": -1}',
    b'{"timeout": 1e300}',
    b'{"keep_result": 1e16}',
    b'{"keep_result": 1e300}',
    b'{"keep_result": -5}',
    b'{"backoff": [1, 2]}',
    b'{"backoff": [1, 2, 3, 1e308]}',
    b'{"backoff": [-1, 2, 3, 1]}',
    b'{"headers": [1]}',
    b'{"headers": {"a": 1}}',
    b'{"retry_on": "ValueError"}',
    b'{"retry_on": ["os.system", "__import__", "builtins.eval"], "discard_on": [null]}',
]


def test_options_that_do_not_decode_are_dead(bench: Bench) -> None:
    jobs = bench.app(SOUND + ARGUMENTS + "\n@app.task\ndef fails():\n    raise ValueError\n")
    handles = []
    for options in OPTIONS:
        for task in (jobs.nothing, jobs.fails):
            handles.append(task.delay())
            bench.sql("UPDATE mouso_jobs SET options = ? WHERE id = ?", options, handles[-1].id)
    worker = bench.worker()
    children = worker.children()
    records = bench.wait_final(handles)
    for options, record in zip([o for o in OPTIONS for _ in range(2)], records, strict=True):
        assert (record.state, record.reason) == ("dead", "bad_payload"), options
    assert bench.history("ran") == []
    still_sound(bench, jobs)
    assert worker.children() == children


def test_unknown_names_in_the_policy_are_compared_and_never_imported(bench: Bench) -> None:
    jobs = bench.app(SOUND + "\n@app.task\ndef fails():\n    raise ValueError\n")
    bench.write("import os\nos.system('touch imported')\nclass Error(ValueError): ...\n", "evil", header=False)
    handle = jobs.fails.delay()
    bench.sql("""UPDATE mouso_jobs SET options = CAST('{"retry_on": ["evil.Error", "os:system"]}' AS BLOB)""")
    bench.worker()
    assert bench.wait_final([handle])[0].reason == "not_retryable"
    assert not (bench.folder / "imported").exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "__import__",
        "jobs.__import__",
        "jobs.app",
        "builtins.eval",
        "jobs.Mouso",
        "evil.run",
        "",
        "../jobs",
        "\0",
    ],
)
def test_task_names_are_looked_up_and_never_imported(bench: Bench, name: str) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    bench.write("import os\nos.system('touch imported')\ndef run(): ...\n", "evil", header=False)
    handle = jobs.nothing.delay()
    bench.sql("UPDATE mouso_jobs SET task = ?", name)
    bench.worker()
    still_sound(bench, jobs)
    wait_until(lambda: jobs.app.jobs(parked=True), timeout=WAIT, message="parked")
    record = handle.refresh().record
    assert (record.state, record.parked, record.task) == ("available", True, name)
    assert bench.history("ran") == []
    assert not (bench.folder / "imported").exists()
    assert handle.cancel() == "cancelled"


NUMBERS = (-1, -(2**63), 2**62, 2**63 - 1)


@pytest.mark.parametrize("column", ["attempts", "crashes", "releases"])
def test_counters_that_cannot_be(bench: Bench, column: str) -> None:
    """Only the job itself is affected: it ends somehow, and the worker goes on."""
    jobs = bench.app(SOUND + ARGUMENTS + "\n@app.task(backoff=constant(0))\ndef fails():\n    raise ValueError\n")
    handles = []
    for number in NUMBERS:
        for task in (jobs.nothing, jobs.fails):
            handles.append(task.delay())
            bench.sql(
                f"UPDATE mouso_live SET {column} = ? WHERE seq = (SELECT seq FROM mouso_jobs WHERE id = ?)",
                number,
                handles[-1].id,
            )
    worker = bench.worker()
    still_sound(bench, jobs)
    records = bench.wait_final(handles)
    assert {record.state for record in records} <= {"completed", "dead"}
    still_sound(bench, jobs)
    assert worker.alive


@pytest.mark.parametrize("column", ["crashes", "releases"])
def test_counters_that_cannot_go_up(bench: Bench, column: str) -> None:
    """An outcome that the store would refuse for ever holds up nobody."""
    jobs = bench.app(
        SOUND
        + """
@app.task
def crashes() -> None:
    os._exit(1)

@app.task
def releases(ctx: Context) -> None:
    note("start")
    raise Snooze(60)
"""
    )
    handle = getattr(jobs, column).delay()
    bench.sql(f"UPDATE mouso_live SET {column} = ?", 2**63 - 1)
    bench.worker("--grace", "0.2")
    still_sound(bench, jobs)
    record = bench.wait_final([handle])[0]
    assert (record.state, record.reason) == ("dead", "bad_payload")


def test_numbers_that_cannot_be_in_other_columns(bench: Bench) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    handles = [jobs.nothing.delay() for _ in range(4)]
    for handle, (table, column, number) in zip(
        handles,
        (
            ("mouso_jobs", "enqueued_at", 2**63 - 1),
            ("mouso_jobs", "enqueued_at", -(2**63)),
            ("mouso_live", "priority", 2**63 - 1),
            ("mouso_live", "expires_at", 2**63 - 1),
        ),
        strict=True,
    ):
        where = "id = ?" if table == "mouso_jobs" else "seq = (SELECT seq FROM mouso_jobs WHERE id = ?)"
        bench.sql(f"UPDATE {table} SET {column} = ? WHERE {where}", number, handle.id)
    worker = bench.worker()
    bench.wait_final(handles)
    still_sound(bench, jobs)
    assert worker.alive


def test_text_that_is_not_utf8(bench: Bench) -> None:
    """A row that SQLite itself hands out as broken text affects that job only."""
    jobs = bench.app(SOUND + ARGUMENTS)
    broken = [jobs.nothing.delay(), jobs.nothing.delay()]
    bench.sql("UPDATE mouso_jobs SET task = CAST(x'6a6f62ff' AS TEXT) WHERE id = ?", broken[0].id)
    bench.sql("UPDATE mouso_jobs SET codec = CAST(x'ff' AS TEXT) WHERE id = ?", broken[1].id)
    bench.worker()
    still_sound(bench, jobs)


def test_a_type_of_the_app_that_fails_when_it_is_made(bench: Bench) -> None:
    jobs = bench.app(
        SOUND
        + """
from dataclasses import dataclass

@dataclass
class Nasty:
    how: str

    def __post_init__(self):
        if "mouso.worker.child" in sys.modules or any("mouso.worker.child" in part for part in sys.orig_argv):
            if self.how == "exits":
                sys.exit(1)
            raise RuntimeError("no such thing")

@app.task
def plain(nasty: Nasty) -> None:
    note("ran")

@app.task
async def coroutine(nasty: Nasty) -> None:
    note("ran")
"""
    )
    worker = bench.worker()
    worker.quiet = False
    children = worker.children()
    handles = [task.delay(jobs.Nasty(how)) for how in ("exits", "raises") for task in (jobs.plain, jobs.coroutine)]
    records = bench.wait_final(handles)
    assert {(r.state, r.reason) for r in records} == {("dead", "bad_payload")}
    assert bench.history("ran") == []
    still_sound(bench, jobs)
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
    still_sound(bench, jobs)
    assert worker.children() == children


def store_payload(bench: Bench, id: str, payload: bytes) -> None:
    bench.sql("UPDATE mouso_jobs SET payload = ? WHERE id = ?", payload, id)
