"""Processes that jobs fork are the jobs' own: a signal ends them, and those of the worker go on."""

import os
import signal
import sys
from contextlib import suppress

import pytest

from tests.integration.harness import WAIT, Bench

FORKS = """
import multiprocessing

forking = multiprocessing.get_context("fork")

def square(n: int) -> int:
    return n * n

def pool() -> list[int]:
    with forking.Pool(2) as workers:
        return workers.map(square, [1, 2, 3])

def linger() -> None:
    # Python may see a signal that comes just before a sleep only after it.
    for _ in range(600):
        time.sleep(0.1)

def ended(process, end) -> list[object]:
    process.start()
    end(process)
    # Not by join(): where another thread starts a process meanwhile, that may take the exit code of this one, which
    # then counts as alive until that thread goes on (multiprocessing.process._cleanup; without Mouso, too).
    for _ in range(500):
        if process.exitcode is not None:
            break
        time.sleep(0.01)
    alive = process.is_alive()
    process.kill()
    return [alive, process.exitcode]

def terminate() -> list[object]:
    return ended(forking.Process(target=time.sleep, args=(60,)), forking.Process.terminate)

def interrupt() -> list[object]:
    reader, writer = forking.Pipe()

    def wait() -> None:
        try:
            writer.send("there")
            linger()
        except KeyboardInterrupt:
            os._exit(3)

    def end(process) -> None:
        reader.recv()
        os.kill(process.pid, signal.SIGINT)

    return ended(forking.Process(target=wait), end)

def own_handler() -> list[object]:
    reader, writer = forking.Pipe()

    def nested() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(4))
        inner = os.fork()
        if inner == 0:
            writer.send(os.getpid())
            linger()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))

    return ended(forking.Process(target=nested), lambda process: os.kill(reader.recv(), signal.SIGTERM))

def returns() -> str:
    pid = os.fork()
    if pid == 0:
        return "what nobody shall see"
    return f"exit code {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"

def exits() -> list[int]:
    codes = []
    for how in (0, 3, None, "a word", ValueError("wrong")):
        pid = os.fork()
        if pid == 0 and isinstance(how, ValueError):
            raise how
        if pid == 0:
            sys.exit(how)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return codes

def blocked() -> list[int]:
    terminate()
    return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

ALL = {each.__name__: each for each in (pool, terminate, interrupt, own_handler, returns, exits, blocked)}

@app.task(timeout=60)
def plain(what: str) -> object:
    return ALL[what]()

@app.task(isolated=True, timeout=60)
def isolated(what: str) -> object:
    return ALL[what]()

@app.task
async def coroutine(what: str) -> object:
    return ALL[what]()
"""

FOUND = {
    "pool": [1, 4, 9],
    "terminate": [False, -signal.SIGTERM],
    "interrupt": [False, 3],
    "own_handler": [False, 4],
    "returns": "exit code 0",
    "exits": [0, 3, 0, 1, 1],
    "blocked": [],
}


HANDLED = {"interrupt", "own_handler"}
"""What needs a handler in Python, rather than what the system does by default."""
DEAF = sys.version_info[:2] == (3, 13)
"""In a fork of a thread, Python 3.13.0 runs some handlers of signals never, without Mouso, too: of 24 tries three."""


@pytest.mark.parametrize("kind", ["plain", "isolated", "coroutine"])
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_what_a_job_forks_can_be_ended(bench: Bench, kind: str, preload: tuple[str, ...]) -> None:
    jobs = bench.app(FORKS)
    worker = bench.worker(*preload, concurrency=2)
    children = worker.children()
    task = getattr(jobs, kind)
    found = {what: value for what, value in FOUND.items() if not (DEAF and what in HANDLED and kind != "coroutine")}
    handles = {what: [task.delay(what) for _ in range(10 if what == "pool" else 3)] for what in found}
    for what, expected in found.items():
        for handle in handles[what]:
            assert handle.get(timeout=3 * WAIT) == expected, what
    assert set(children) <= set(worker.children()), "none of them died"
    worker.quiet = False  # each fork that ended by an error has shown it
    assert worker.log.count("Traceback (most recent call last)") == worker.log.count("ValueError: wrong") == 3
    assert worker.log.count("a word") == 3
    assert " is dead" not in worker.log, "what a fork does is not what the job does"


def test_signals_pass_by_what_runs_jobs_and_its_copies(bench: Bench) -> None:
    """From the moment in which they are made until their interpreter ends."""
    jobs = bench.app(FORKS)
    worker = bench.worker("--preload", processes=2)
    own = {*worker.children(), *worker.templates()}
    handles = [jobs.isolated.delay("terminate") for _ in range(20)]
    pids = set()
    while not all(handle.state.final for handle in handles):
        for pid in (*worker.children(), *worker.templates()):
            pids.add(pid)
            for number in (signal.SIGTERM, signal.SIGINT):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
    assert len(pids) > 5
    assert [(record.state, record.crashes) for record in bench.wait_final(handles)] == [("completed", 0)] * 20
    assert own <= {*worker.children(), *worker.templates()}


def test_what_the_app_forks_when_it_is_imported(bench: Bench) -> None:
    jobs = bench.app(FORKS + '\nfound = terminate() if "mouso.worker" in " ".join(sys.orig_argv) else None\n'
                     "\n@app.task\ndef tells() -> object:\n    return found\n")  # fmt: skip
    for preload in ((), ("--preload",)):
        worker = bench.worker(*preload)
        assert jobs.tells.delay().get(timeout=WAIT) == FOUND["terminate"]
        assert worker.stop() == 0
