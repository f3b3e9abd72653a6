"""A task under which its process dies: the worker lives, other jobs go on, and nobody else is charged."""

import time
from collections import Counter
from collections.abc import Sequence

import pytest

from tests.integration.harness import Bench
from tests.integration.snippets import PAUSES, SOUND, one_of_each, still_sound
from tests.stalls import elapsed
from tests.support import crowd

DEATHS = {
    "exit": ("os._exit(0)", "exit code 0"),
    "exit code": ("os._exit(7)", "exit code 7"),
    "killed": ("os.kill(os.getpid(), 9)", "signal 9, SIGKILL"),
    "segfault": ("import ctypes; ctypes.string_at(0)", "signal 11, SIGSEGV"),
    "abort": ("os.abort()", "signal 6, SIGABRT"),
    "closed descriptors": ("os.closerange(3, 4096)", "; it closed file descriptors that it had not opened"),
    "closed sockets": (
        "for name in os.listdir('/proc/self/fd'):\n"
        "    if os.path.exists(path := f'/proc/self/fd/{name}') and os.readlink(path).startswith('socket:'):\n"
        "        os.close(int(name))",
        "; it closed file descriptors that it had not opened",
    ),
    "closed one by one": ("[os.close(int(name)) for name in os.listdir('/proc/self/fd')[3:]]", "; it closed file"),
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
    still_sound(jobs)


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
@pytest.mark.parametrize("code", [70, 71, 75, 76, 77])
def test_the_exit_codes_of_mousos_own_processes_excuse_no_job(bench: Bench, code: int, preload: Sequence[str]) -> None:
    """A job may end its process with that of a child that is broken, starved, was fenced or has lost its store, too."""
    end = f"os._exit({code})"
    isolated = f"@app.task(isolated=True)\ndef isolated() -> None:\n    note('start')\n    {end}\n"
    jobs = bench.app(one_of_each(f"note('start')\n{end}") + isolated)
    worker = bench.worker(*preload)
    worker.quiet = False
    handles = [jobs.plain.delay(), jobs.coroutine.delay(), jobs.isolated.delay()]
    others = jobs.sound.map([(n,) for n in range(20)])
    records = bench.wait_final([*handles, *others])
    assert [(r.state, r.reason, r.attempts, r.crashes) for r in records[:3]] == [("dead", "poison", 0, 3)] * 3
    assert {(r.state, r.attempts, r.crashes) for r in records[3:]} == {("completed", 0, 0)}
    starts = Counter(line.job for line in bench.history("start"))
    assert all(3 <= starts[handle.id] <= 4 for handle in handles), "the first time, another one may have been to blame"
    assert worker.log.count(f"died (exit code {code}") >= 9


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
    assert elapsed(at) < 4.0 * crowd(), "the deaths of poison do not stop the others"
    records = bench.wait_final([*poisons, *flood])
    assert Counter((r.state, r.reason, r.crashes) for r in records) == {
        ("dead", "poison", 3): 3,
        ("completed", "", 0): 200,
    }
    assert worker.alive


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
    still_sound(jobs)


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_arguments_under_which_the_process_dies_are_poison(bench: Bench, kind: str) -> None:
    jobs = bench.app(
        SOUND
        + """
from dataclasses import dataclass

@dataclass
class Trap:
    armed: bool

    def __post_init__(self) -> None:
        if self.armed and "pytest" not in sys.modules:
            os._exit(9)

@app.task
def plain(trap: Trap) -> None: ...

@app.task
async def coroutine(trap: Trap) -> None: ...
"""
    )
    worker = bench.worker()
    worker.quiet = False
    record = bench.wait_final([getattr(jobs, kind).delay(jobs.Trap(True))])[0]
    assert (record.state, record.reason, record.crashes) == ("dead", "poison", 3)
    still_sound(jobs)


def test_who_runs_after_a_job_that_closed_descriptors_is_not_charged(bench: Bench) -> None:
    """The one that finds out runs alone then, and is innocent all the same: it is tried again before it is charged."""
    jobs = bench.app(
        SOUND
        + """
@app.task
def closes() -> int:
    sound.delay(0)
    closed = 0
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.path.exists(path) and os.readlink(path).startswith(app.broker.url.removeprefix("sqlite:///")):
            os.close(int(name))
            closed += 1
    return closed

@app.task(attempts=1)
def enqueues(n: int) -> str:
    return sound.delay(n).id
"""
    )
    worker = bench.worker(processes=1, concurrency=1)
    worker.quiet = False
    for n in range(3):
        assert jobs.closes.delay().get(timeout=20) >= 5
        handle = jobs.enqueues.delay(n)
        [record] = bench.wait_final([handle])
        assert (record.state, record.attempts, record.crashes) == ("completed", 0, 0)
    assert worker.log.count("has closed file descriptors that SQLite was using") == 3
    still_sound(jobs)


@pytest.mark.parametrize("size", [5000, 200 << 20])
def test_a_message_that_does_not_end_is_noticed_when_the_child_is_asked(bench: Bench, size: int) -> None:
    """What it says from then on is taken for the rest of that message; nobody's outcome may wait for long."""
    jobs = bench.app(
        PAUSES
        + f"""
from tests.chaos.hostile import supervisor

@app.task
def half() -> None:
    note("half")
    supervisor().sendall(({size}).to_bytes(4, "big") + b"half of it")
"""
    )
    worker = bench.worker(processes=2)
    worker.quiet = False
    jobs.half.delay()
    others = [jobs.pause.delay(n, 0.3) for n in range(6)]
    [half] = bench.wait_for("half")
    records = bench.wait_final(others)
    last = max(line.at for line in bench.history("end"))
    assert {(record.state, record.attempts, record.crashes) for record in records} == {("completed", 0, 0)}
    assert elapsed(half.at, last) < 2.5 * crowd()
    assert "it began a message that does not end" in worker.log
