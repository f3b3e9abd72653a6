"""Whatever a task does to its process, its output or the event loop, the worker lives and other jobs go on."""

from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import SOUND, still_sound
from tests.support import wait_until

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
    left.append(subprocess.Popen(["sh", "-c", "until [ -e go ]; do sleep 0.1; done"]))
"""
    )
    worker = bench.worker()
    worker.quiet = False
    (child,) = worker.children()
    for _ in range(3):
        bench.wait_final([jobs.leaves.delay(), jobs.subprocess_left.delay()])
    still_sound(jobs)
    assert worker.children() == [child]
    assert worker.stop() == 0
    (bench.folder / "go").touch()


CHANGES = """
import locale, resource, signal, socket, subprocess

@app.task
def surroundings() -> list[object]:
    umask = os.umask(0)
    os.umask(umask)
    return [
        os.getcwd(), umask, os.environ.get("LEFT"), socket.getdefaulttimeout(), sys.getrecursionlimit(),
        sys.stdout is None, resource.getrlimit(resource.RLIMIT_CORE)[0], signal.getitimer(signal.ITIMER_PROF)[0] > 0,
    ]

def change() -> None:
    os.chdir("/")
    os.umask(0o027)
    os.environ["LEFT"] = "1"
    sys.stdout = None
    socket.setdefaulttimeout(0.001)
    sys.setrecursionlimit(400)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, 3600)

@app.task
def changes() -> None:
    change()

@app.task(isolated=True)
def changes_its_own() -> None:
    change()

@app.task
async def changes_handlers() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
"""


def test_what_a_job_changes_stays_for_those_after_it_and_harms_nothing(bench: Bench) -> None:
    jobs = bench.app(SOUND + CHANGES)
    worker = bench.worker()
    children = worker.children()
    assert jobs.changes.delay().get(timeout=WAIT) is None
    assert jobs.surroundings.delay().get(timeout=WAIT) == ["/", 0o027, "1", 0.001, 400, True, 0, True]
    assert jobs.changes_handlers.delay().get(timeout=WAIT) is None
    still_sound(jobs)
    assert worker.children() == children
    assert worker.stop() == 0


def test_what_an_isolated_job_changes_ends_with_it(bench: Bench) -> None:
    jobs = bench.app(SOUND + CHANGES)
    bench.worker()
    before = jobs.surroundings.delay().get(timeout=WAIT)
    assert jobs.changes_its_own.delay().get(timeout=WAIT) is None
    assert jobs.surroundings.delay().get(timeout=WAIT) == before


def test_jobs_that_wait_for_jobs_on_the_last_slot(bench: Bench) -> None:
    """They are warned, and a timeout frees the slot; without one nothing could."""
    jobs = bench.app(
        SOUND
        + """
@app.task(attempts=1)
def waits() -> int:
    return sound.delay(1).get(timeout=0.5)

@app.task(attempts=1)
async def waits_as_coroutine() -> int:
    return await sound.delay(1).aget(timeout=0.5)
"""
    )
    worker = bench.worker(concurrency=1)
    for task in (jobs.waits, jobs.waits, jobs.waits_as_coroutine):
        record = bench.wait_final([task.delay()])[0]
        assert (record.state, record.errors[0].type) == ("dead", "mouso.errors.ResultTimeout")
    still_sound(jobs)
    assert worker.log.count("and holds its slot meanwhile") == 2, "once for each task"


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
    still_sound(jobs)
    assert [handle.get(timeout=WAIT) for handle in handles] == [400] * 4
    worker.quiet = False  # up to 100 MB are no message of a failed test
    assert worker.stop() == 0
    log = worker.log_file.read_bytes()
    assert b"x" * 1000 in log
    assert b"Traceback" not in log


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
    still_sound(jobs)
    assert worker.children() == children


def test_a_task_that_cancels_every_task_of_its_loop(bench: Bench) -> None:
    """It fails; the coroutine jobs beside it go back, and are charged nothing."""
    jobs = bench.app(
        SOUND
        + """
@app.task(attempts=1)
async def cancels_all() -> None:
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(0)

@app.task(attempts=1)
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
    assert [(r.state, r.attempts, r.releases) for r in records] == [("completed", 0, 1)] * 3
    assert worker.log.count("was cancelled by another one of its process (jobs.cancels_all), and goes back") == 3
    still_sound(jobs)
    assert worker.children() == children


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
    wait_until(lambda: late.refresh().record.releases >= 1, timeout=WAIT, message="given back")
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
    still_sound(jobs)
    assert worker.children() == children
    assert worker.stop() == 0
