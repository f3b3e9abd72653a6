"""An app with an isolated task; apart from the other jobs, because such an app has one more process."""

from benchmarks import slots
from mouso import Mouso

app = Mouso("bench")
_slots = slots.inherited()


@app.task(isolated=True)
def stamp_alone(number: int) -> int:
    """Notes when it started, in a process of its own."""
    _slots.stamp(number)
    return number


@app.task
def noop(number: int) -> int:
    """Counts itself."""
    _slots.done()
    return number
