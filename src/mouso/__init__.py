"""Background jobs that are never lost.

from mouso import Mouso

app = Mouso("shop")

@app.task
def add(x: int, y: int) -> int:
    return x + y

job = add.delay(4, 4)
job.get(timeout=10)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "Mouso": "app", "Context": "context", "StopRequested": "context", "JobHandle": "handle", "Job": "job",
    "JobState": "job", "Key": "keys", "constant": "retry", "exponential": "retry",
}  # fmt: skip
"""Where the public names are; those that are not here are in ``errors``."""


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that ``mouso`` on the command line starts at once."""
    if name not in __all__:
        raise AttributeError(f"module 'mouso' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"mouso.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


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
