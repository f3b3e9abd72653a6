"""The app whose jobs are measured; its broker is in $MOUSO_BROKER."""

import asyncio

from benchmarks import slots
from benchmarks.spin import spin
from mouso import Mouso

app = Mouso("bench")
_slots = slots.inherited()


@app.task
def noop(number: int) -> int:
    """Counts itself; its result is stored."""
    _slots.done()
    return number


@app.task
def stamp(number: int) -> int:
    """Notes when it started."""
    _slots.stamp(number)
    return number


@app.task
async def nap(seconds: float) -> None:
    """Sleeps, as a job that waits for a network does."""
    _slots.begin()
    await asyncio.sleep(seconds)
    _slots.done()


@app.task
def work(iterations: int) -> int:
    """Keeps a CPU busy."""
    _slots.begin()
    result = spin(iterations)
    _slots.done()
    return result
