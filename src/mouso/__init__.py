"""Background jobs that are never lost.

from mouso import Mouso

app = Mouso("shop")

@app.task
def add(x: int, y: int) -> int:
    return x + y

job = add.delay(4, 4)
job.get(timeout=10)
"""

from mouso.app import Mouso
from mouso.context import Context, StopRequested
from mouso.errors import (
    Cancel,
    Discard,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobRejected,
    JobUnknown,
    MousoError,
    Retry,
    Snooze,
)
from mouso.handle import JobHandle
from mouso.job import Job, JobState
from mouso.keys import Key
from mouso.retry import constant, exponential

__version__ = "0.1.0"

__all__ = [
    "Cancel",
    "Context",
    "Discard",
    "Job",
    "JobCancelled",
    "JobExpired",
    "JobFailed",
    "JobHandle",
    "JobRejected",
    "JobState",
    "JobUnknown",
    "Key",
    "Mouso",
    "MousoError",
    "Retry",
    "Snooze",
    "StopRequested",
    "constant",
    "exponential",
]
