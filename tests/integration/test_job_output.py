"""What jobs of a real worker print and log: lines with their id, bounded, and the worker unharmed."""

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import SOUND, still_sound
from tests.stalls import elapsed
from tests.support import wait_until

TASKS = (
    SOUND
    + """
import logging, subprocess, contextlib, io, warnings
logging.basicConfig(level="INFO", format="%(name)s %(levelname)s %(message)s")
print("at import")

@app.task
def prints(text: str) -> None:
    print(text)
    print("to stderr", file=sys.stderr)
    print("no end", end="")

@app.task
async def prints_coroutine(text: str) -> None:
    print("begin", end=" ")
    await asyncio.sleep(0.05)
    print(text)

@app.task
def logs(text: str) -> None:
    logging.getLogger("shop").info(text)
    logging.warning("root %s", text)

@app.task
def thread(text: str) -> None:
    from contextvars import copy_context
    worker = threading.Thread(target=copy_context().run, args=(print, text))
    worker.start()
    worker.join()

@app.task
def fails_in_pieces() -> None:
    print("begun", end="")
    raise ValueError("no")

@app.task
def streams() -> list[object]:
    with contextlib.redirect_stdout(io.StringIO()) as caught:
        print("caught")
    subprocess.run([sys.executable, "-c", "print('from a program')"], stdout=sys.stdout, check=True)
    return [caught.getvalue(), sys.stdout.fileno(), sys.stderr.fileno(), sys.stdout.isatty(), sys.stdout.encoding]

@app.task
def flood(mib: int, kind: str) -> float:
    began = time.monotonic()
    note("start")
    piece = {"lines": "x" * 99 + "\\\\n", "endless": "x" * 100}.get(kind, "")
    for _ in range(mib):
        if kind == "binary":
            sys.stdout.buffer.write(os.urandom(1 << 20))
        else:
            sys.stdout.write(piece * ((1 << 20) // 100))
    return time.monotonic() - began
"""
)
ISOLATED = """
@app.task(isolated=True)
def isolated(text: str) -> None:
    print(text)
    logging.getLogger("shop").info("logged alone")
"""


@pytest.fixture
def jobs(bench: Bench) -> Any:
    return bench.app(TASKS)


def has(bench: Bench, *lines: str) -> None:
    """Waits until the worker's output has these lines, whole."""
    worker = bench.workers[-1]
    for line in lines:
        wait_until(lambda line=line: line in worker.log.splitlines(), timeout=WAIT, message=line)  # type: ignore[misc]  # why: binds the loop variable


def test_printed_lines_carry_the_id_of_their_job(bench: Bench, jobs: Any) -> None:
    bench.worker()
    plain, coroutine, thread = (
        jobs.prints.delay("hello"),
        jobs.prints_coroutine.delay("there"),
        jobs.thread.delay("you"),
    )
    bench.wait_final([plain, coroutine, thread])
    has(bench, f"[{plain.id}] hello", f"[{plain.id}] to stderr", f"[{plain.id}] no end")
    has(bench, f"[{coroutine.id}] begin there", f"[{thread.id}] you", "at import")


def test_log_lines_of_any_logger_carry_it_too(bench: Bench, jobs: Any) -> None:
    bench.worker()
    handle = jobs.logs.delay("hello")
    bench.wait_final([handle])
    has(bench, f"[{handle.id}] shop INFO hello", f"[{handle.id}] root WARNING root hello")


def test_a_job_in_a_process_of_its_own(bench: Bench) -> None:
    jobs = bench.app(TASKS + ISOLATED)
    bench.start("-p", "1")
    handle = jobs.isolated.delay("alone")
    bench.wait_final([handle])
    has(bench, f"[{handle.id}] alone", f"[{handle.id}] shop INFO logged alone")


def test_a_job_in_a_copy_of_the_template(bench: Bench, jobs: Any) -> None:
    bench.start("-p", "1", "--preload")
    handles = [jobs.prints.delay("hello"), jobs.logs.delay("there")]
    bench.wait_final(handles)
    has(bench, f"[{handles[0].id}] hello", f"[{handles[1].id}] shop INFO there")
    assert bench.workers[-1].log.splitlines().count("at import") == 1


def test_the_last_line_of_a_failed_run_is_shown(bench: Bench, jobs: Any) -> None:
    bench.worker()
    handle = jobs.fails_in_pieces.options(attempts=1).delay()
    bench.wait_final([handle])
    has(bench, f"[{handle.id}] begun")


def test_streams_work_as_ever(bench: Bench, jobs: Any) -> None:
    bench.worker()
    handle = jobs.streams.delay()
    assert handle.get(timeout=WAIT) == ["caught\n", 1, 2, False, "utf-8"]
    has(bench, "from a program")


def test_raw_output_is_left_alone(bench: Bench, jobs: Any) -> None:
    bench.worker("--output", "raw")
    handle = jobs.prints.delay("hello")
    bench.wait_final([handle])
    has(bench, "hello", "to stderr")
    assert handle.id not in bench.workers[-1].log


def test_with_logs_as_json_printed_lines_are_json(bench: Bench, jobs: Any) -> None:
    worker = bench.worker("--log-format", "json")
    handle = jobs.prints.delay("hello")
    bench.wait_final([handle])

    def printed() -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in worker.log.splitlines() if line.startswith("{")]
        return [entry for entry in entries if entry.get("job_id") == handle.id]

    wait_until(lambda: len(printed()) >= 3, timeout=WAIT)
    assert [(entry["logger"], entry["message"], entry["task"]) for entry in printed()] == [
        ("stdout", "hello", "jobs.prints"),
        ("stderr", "to stderr", "jobs.prints"),
        ("stdout", "no end", "jobs.prints"),
    ]


@pytest.mark.parametrize("kind", ["lines", "endless", "binary"])
def test_a_flood_is_bounded_and_other_jobs_go_on(bench: Bench, jobs: Any, kind: str) -> None:
    worker = bench.worker()
    (child,) = worker.children()
    before = peak(child)
    handle = jobs.flood.delay(100, kind)
    bench.wait_for("start")
    still_sound(jobs)
    took = handle.get(timeout=60)
    size = worker.log_file.stat().st_size
    assert size < (2 << 20) + (took + 5) * (1 << 20)
    assert peak(child) - before < 64 << 20
    wait_until(lambda: f"[{handle.id}] " in worker.log.splitlines()[-1] or "were left out" in worker.log, timeout=WAIT)
    assert worker.children() == [child]


def peak(pid: int) -> int:
    """The most bytes that a process has had resident."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def test_nobody_reads_the_output(bench: Bench, jobs: Any) -> None:
    """A pipe that is full and stays so: jobs that print go on, and so does the worker."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "mouso", "worker", "jobs:app", "-p", "1", "-c", "2", "--log-level", "error"]
    with subprocess.Popen(
        command, cwd=bench.folder, env=bench.environment(), stdout=writing, stderr=subprocess.DEVNULL
    ) as process:
        os.close(writing)
        try:
            began = time.monotonic()
            flood = jobs.flood.delay(2, "lines")
            assert flood.get(timeout=WAIT) < 10
            still_sound(jobs)
            assert elapsed(began) < WAIT
        finally:
            process.terminate()
            assert process.wait(WAIT) == 0
            os.close(reading)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_streams_that_were_closed_before_the_worker_began(bench: Bench, closed: tuple[int, ...]) -> None:
    """Its children have the null device in their place, and no file of theirs gets the number of one."""
    jobs = bench.app(
        SOUND
        + """
@app.task
def writes() -> list[str]:
    print("x" * 5000, flush=True)
    for descriptor in (1, 2):
        os.write(descriptor, b"y" * 5000)
    sound.delay(3)
    return [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in (0, 1, 2)]
"""
    )
    command = [sys.executable, "-m", "mouso", "worker", "jobs:app", "-p", "1"]
    worker = bench.program(f"import os\nfor fd in {closed}: os.close(fd)\nos.execv({command[0]!r}, {command!r})")
    bench.wait_ready(worker)
    streams = jobs.writes.delay().get(timeout=WAIT)
    assert [streams[descriptor] for descriptor in closed] == ["/dev/null"] * len(closed)
    still_sound(jobs)
    assert bench.sql("PRAGMA integrity_check") == [("ok",)]
