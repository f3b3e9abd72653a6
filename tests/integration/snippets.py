"""Tasks that several tests write into their app module, and what those tests ask of them."""

from typing import Any

from tests.integration.harness import WAIT, Bench

SOUND = """
@app.task
def sound(n: int) -> int:
    return n

@app.task
async def sound_coroutine(n: int) -> int:
    return n
"""

PAUSES = """
@app.task
def pause(n: int, seconds: float) -> int:
    note("start", str(n))
    time.sleep(seconds)
    note("end", str(n))
    return n

@app.task
async def pause_coroutine(n: int, seconds: float) -> int:
    note("start", str(n))
    await asyncio.sleep(seconds)
    note("end", str(n))
    return n
"""

JOB = (
    PAUSES
    + """
@app.task
def job(n: int) -> int:
    note("start", str(n))
    return n

@app.task
async def block(seconds: float) -> int:
    '''Blocks the event loop of its child.'''
    note("block")
    time.sleep(seconds)
    note("unblock")
    return os.getpid()
"""
)

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


def started(bench: Bench) -> list[int]:
    """The numbers of the jobs that have started, in that order."""
    return [int(line.text) for line in bench.history("start")]


def one_of_each(source: str) -> str:
    """The same body as a task `plain` and as a task `coroutine`, beside the sound ones."""
    body = source.strip().replace("\n", "\n    ")
    task = "\n@app.task(attempts=1)\n"
    return f"{SOUND}{task}def plain():\n    {body}\n{task}async def coroutine():\n    {body}\n"


def still_sound(jobs: Any) -> None:
    """Other jobs of both kinds run; the app has the tasks of `SOUND`."""
    handles = [jobs.sound.delay(1), jobs.sound_coroutine.delay(2)]
    assert [handle.get(timeout=WAIT) for handle in handles] == [1, 2]
