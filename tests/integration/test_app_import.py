"""An app that cannot be imported ends the worker at once: one line that says what to do, exit code 2; 75 if only the
moment may be wrong."""

import os
import signal
from pathlib import Path

import pytest

from tests.integration.harness import WAIT, Bench
from tests.stalls import elapsed
from tests.support import wait_until

CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "raises": ("x = 1\nraise ValueError('no database')", ("jobs.py, line", "ValueError: no database")),
    "raises deep inside": ("def f(n):\n    return f(n - 1) if n else 1 / 0\nf(50)", ("jobs.py", "ZeroDivisionError")),
    "lines in the message": ("raise ValueError('one\\ntwo\\nthree')", ("ValueError: one two three",)),
    "a huge message": ("raise ValueError('x' * 10_000_000)", ("ValueError: xxx",)),
    "exits": ("sys.exit(5)", ("sys.exit(5)", "jobs.py, line", "__main__")),
    "exits well": ("sys.exit()", ("sys.exit()", "__main__")),
    "base exception": ("raise BaseException('base')", ("BaseException: base",)),
    "interrupts itself": ("raise KeyboardInterrupt", ("jobs.py, line", "KeyboardInterrupt")),
    "misses a library": ("import no_such_library", ("no_such_library", "install")),
    "misses a name": ("from os import no_such_name", ("no_such_name",)),
    "syntax": ("def broken(:\n", ("jobs.py, line", "SyntaxError")),
    "circular": ("import other", ("circular",)),
    "recursion": ("def f():\n    f()\nf()", ("RecursionError",)),
    "no tasks": ("", ("has no tasks", "@app.task")),
    "no app": ("del app", ("app",)),
    "another object": ("app = 5", ("int", "not a Mouso app")),
    "duplicate task": ("@app.task(name='a')\ndef f(): ...\n@app.task(name='a')\ndef g(): ...", ("'a'", "registered")),
    "a generator": ("@app.task\ndef f():\n    yield 1", ("generator", "return a list")),
    "bad option": ("@app.task(atempts=3)\ndef f(): ...", ("atempts", "attempts")),
    "os._exit": ("os._exit(9)", ("jobs:app", "exit code 9")),
    "segfault": ("import ctypes\nctypes.string_at(0)", ("jobs:app", "signal 11, SIGSEGV")),
    "abort": ("os.abort()", ("jobs:app", "signal 6, SIGABRT")),
    "kill": ("os.kill(os.getpid(), 9)", ("jobs:app", "signal 9, SIGKILL")),
    "memory broker": (
        "app = Mouso('jobs', broker='memory://')\n@app.task\ndef f(): ...",
        ("memory://", "sqlite:///mouso.db"),
    ),
    "no such folder": (
        "app = Mouso('jobs', broker='sqlite:////no/such/folder/jobs.db')\n@app.task\ndef f(): ...",
        ("/no/such/folder",),
    ),
    "no database": (
        "app = Mouso('jobs', broker='sqlite:///junk.db')\n@app.task\ndef f(): ...",
        ("junk.db", "no intact SQLite database"),
    ),
    "lifespan": (
        "@app.task\ndef f(): ...\n@app.lifespan\nasync def pool():\n    1 / 0\n    yield",
        ("'pool'", "ZeroDivisionError"),
    ),
    "no broker": ("from mouso.errors import BrokerUnavailable\nraise BrokerUnavailable('not there')", ("not there",)),
    "lifespan without its server": (
        "@app.task\ndef f(): ...\n@app.lifespan\nasync def pool():\n    raise ConnectionError('refused')\n    yield",
        ("'pool'", "ConnectionError: refused"),
    ),
    "lifespan exits": (
        "@app.task\ndef f(): ...\n@app.lifespan\nasync def pool():\n    raise SystemExit(3)\n    yield",
        ("'pool'", "SystemExit: 3"),
    ),
    "lifespan without yield": (
        "@app.task\ndef f(): ...\n@app.lifespan\nasync def pool():\n    if False:\n        yield",
        ("'pool'", "yield"),
    ),
}


LATER = {"segfault", "abort", "kill", "no broker", "lifespan", "lifespan exits", "lifespan without its server"}
"""What may have another end when it is tried again."""


@pytest.mark.parametrize("case", CASES)
def test_one_clear_message_and_the_exit_code(bench: Bench, case: str) -> None:
    source, words = CASES[case]
    path = bench.write("", "jobs")
    path.write_text(path.read_text() + source)
    bench.write("from jobs import defined_later\n", "other", header=False)
    (bench.folder / "junk.db").write_text("junk" * 1000)
    worker = bench.start("-p", "3")
    assert worker.wait() == (75 if case in LATER else 2), worker.log
    # Python itself may say that it dumped core; a module may print. Nothing else may be said.
    lines = [line for line in worker.log.splitlines() if "WAL-reset" not in line]
    assert len(lines) == 1, worker.log[:5000]
    assert len(lines[0]) < 1000
    for word in words:
        assert word in lines[0], lines[0]
    wait_until(lambda: not worker.survivors(), timeout=2, message="its children are gone")


@pytest.mark.parametrize("case", ["raises", "exits", "no app", "os._exit", "segfault", "kill", "lifespan"])
def test_a_preloaded_one_says_the_same(bench: Bench, case: str) -> None:
    source, words = CASES[case]
    path = bench.write("", "jobs")
    path.write_text(path.read_text() + source)
    worker = bench.start("-p", "2", "--preload")
    assert worker.wait() == (75 if case in LATER else 2), worker.log
    (line,) = [line for line in worker.log.splitlines() if "WAL-reset" not in line]
    for word in words:
        assert word in line, line
    wait_until(lambda: not worker.survivors(), timeout=2, message="its children are gone")


SLOW = """
if "mouso.worker" in " ".join(sys.orig_argv):
    note("importing")
    time.sleep(1.5)

@app.task
def job() -> int:
    return 1
"""


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_child_that_is_killed_at_the_first_import_is_replaced(bench: Bench, preload: bool, processes: int) -> None:
    jobs = bench.app(SLOW)
    worker = bench.start("-p", str(processes), *["--preload"][:preload])
    for line in bench.wait_for("importing", 1 if preload else processes)[:1]:
        os.kill(line.pid, signal.SIGKILL)
    bench.wait_ready(worker, processes)
    assert len(worker.children()) == processes
    assert jobs.job.delay().get(timeout=WAIT) == 1
    assert worker.log.count("1 child was killed at the import of the app, and replaced") == (not preload)
    assert "died" not in worker.log


def test_children_that_are_killed_again_and_again_at_the_first_import(bench: Bench) -> None:
    """Their successors wait a little longer each time; a worker that is stopped meanwhile ends well."""
    path = bench.write("", "jobs")
    path.write_text(path.read_text() + 'note("importing")\nos.kill(os.getpid(), 9)\n')
    worker = bench.start("-p", "1")
    assert worker.wait() == 75
    lines = bench.history("importing")
    assert len(lines) == 4
    assert lines[3].at - lines[1].at > 0.3
    (line,) = worker.log.splitlines()
    assert "jobs:app ended its process at import (signal 9, SIGKILL" in line
    worker = bench.start("-p", "1")
    bench.wait_for("importing", 6)
    assert worker.stop() == 0, worker.log
    assert "Traceback" not in worker.log
    wait_until(lambda: not worker.survivors(), timeout=2, message="its children are gone")


def test_an_import_that_hangs_can_be_stopped(bench: Bench) -> None:
    path = bench.write("", "jobs")
    path.write_text(path.read_text() + 'note("importing")\nthreading.Event().wait()\n')
    worker = bench.start("-p", "2")
    bench.wait_for("importing", count=2)
    at = worker.send(signal.SIGINT)
    assert worker.wait() == 0, worker.log
    assert elapsed(at) < 2.0
    wait_until(lambda: not worker.survivors(), timeout=2, message="its children are gone")


def test_what_the_app_prints_while_it_is_imported_is_left_alone(bench: Bench) -> None:
    jobs = bench.app(
        """
        print("loading the model", file=sys.stderr)

        @app.task
        def job() -> int:
            return 1
        """
    )
    worker = bench.worker(processes=2)
    assert jobs.job.delay().get(timeout=WAIT) == 1
    assert worker.log.count("loading the model") == 2, "each child imports the app once, the supervisor never"


BREAKABLE = """
async def refused():
    raise ConnectionError("the database is away")
    yield

if Path("broken").exists():
    print(time.monotonic(), file=open("tries", "a"), flush=True)
    {breaks}

@app.task
def job() -> int:
    return 1

@app.task
def dies() -> None:
    os._exit(1)
"""


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        ('raise ValueError("a bad deployment")', "a bad deployment"),
        ("os._exit(5)", "exit code 5, at most"),
    ],
)
def test_an_app_that_breaks_while_the_worker_runs(bench: Bench, breaks: str, told: str) -> None:
    """A child that dies cannot be replaced: the others go on, the log says why once, and it is tried less and less."""
    jobs = bench.app(BREAKABLE.format(breaks=breaks))
    worker = bench.worker(processes=2)
    (bench.folder / "broken").touch()
    handle = jobs.dies.options(attempts=1).delay()
    wait_until(lambda: told in worker.log, timeout=WAIT, message="the reason is in the log")
    assert ("it was importing the app, which may have ended it" in worker.log) == ("exit" in breaks)
    bench.wait_state(handle, "available", "running", "dead")
    wait_until(lambda: len(tries(bench)) >= 8, timeout=WAIT, message="it is tried again and again")
    assert tries(bench)[7] - tries(bench)[0] > 0.45, "in each round a child, a spare one and their template"
    assert worker.log.count(told) == 1
    (bench.folder / "broken").unlink()
    assert jobs.job.delay().get(timeout=WAIT) == 1
    assert bench.wait_final([handle], timeout=40)[0].reason == "poison"


def tries(bench: Bench) -> list[float]:
    """When the broken app was imported."""
    return [float(line) for line in (bench.folder / "tries").read_text().split()]


HASTY = """
import sys
if "mouso" in sys.orig_argv:
    import mouso.worker.fleet as fleet
    fleet._USELESS = 3.0
    fleet._SLOW_START = 3.0
"""


@pytest.mark.parametrize(
    ("breaks", "code"),
    [
        ('raise ValueError("a bad deployment")', 2),
        ("os._exit(5)", 2),
        ("os.kill(os.getpid(), signal.SIGKILL)", 75),
        ("app.lifespan(refused)", 75),
    ],
)
def test_a_worker_all_processes_of_which_break_ends(bench: Bench, breaks: str, code: int) -> None:
    """It says for how many jobs it has room, which is none; then it ends as if it had been started like that."""
    bench.app(BREAKABLE.format(breaks=breaks))
    (bench.folder / "sitecustomize.py").write_text(HASTY)
    worker = bench.worker(processes=4)
    (bench.folder / "broken").touch()
    for child in worker.children():
        os.kill(child, signal.SIGKILL)
    wait_until(lambda: [found.slots for found in bench.producer.workers()] == [0], timeout=WAIT, message="no slots")
    assert worker.wait(WAIT) == code
    assert "no process of this worker can start: " in worker.log
    assert worker.log.count("cannot start: ") + worker.log.count("importing the app, which may have ended it\n") == 1
    assert len(tries(bench)) < 12


def test_an_app_that_takes_long_to_load(bench: Bench) -> None:
    bench.app(
        """
        while Path("long").exists():
            time.sleep(0.01)

        @app.task
        def job() -> int:
            return 1
        """
    )
    (bench.folder / "sitecustomize.py").write_text(HASTY)
    (bench.folder / "long").touch()
    worker = bench.start("-p", "2")
    wait_until(
        lambda: "is not ready after 3 s: it has not loaded the app" in worker.log, timeout=WAIT, message="it is told"
    )
    wait_until(lambda: 'jobs.py", line' in worker.log, timeout=WAIT, message="so is where it is")
    (bench.folder / "long").unlink()
    bench.wait_ready(worker, 2)
    assert worker.log.count("is not ready after") == 1


WAITS = """
if "mouso.worker.template" in sys.orig_argv:
    Path("imports").write_text(str(os.getpid()))
    while not Path("go on").exists():
        time.sleep(0.01)
    {then}

@app.task(isolated=True)
def job() -> int:
    return 1
"""


def read(path: Path) -> str:
    """What a file contains; nothing if there is none yet."""
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    "then",
    ["pass", "raise ValueError('no')", "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"],
    ids=["fit", "broken", "with a thread"],
)
def test_a_worker_that_is_killed_while_its_template_imports_the_app(bench: Bench, then: str) -> None:
    bench.app(WAITS.format(then=then))
    worker = bench.worker()
    template = int(wait_until(lambda: read(bench.folder / "imports"), timeout=WAIT, message="it imports"))
    worker.send(signal.SIGKILL)
    worker.wait()
    (bench.folder / "go on").touch()
    wait_until(lambda: template not in worker.survivors(), timeout=WAIT, message="the template has ended")
    assert "Traceback" not in worker.log
    bench.worker()  # which removes what the other one has left
