"""Jobs that ruin the process that runs them, and a source of tasks for each of their ways.

A hostile job notes `evil` first. One that is hostile `once` is sound from its second run on; the others never are.
"""

import ctypes
import os
import signal
import socket
import stat
import struct
import time
from pathlib import Path

from mouso import Context
from mouso.job import JobState, Outcome
from mouso.worker import frames
from tests.chaos.journal import record

_CREDENTIALS = struct.Struct("3i")
_LENGTH = struct.Struct(">I")

SOURCE = """
from tests.chaos import hostile

@app.task(timeout=None)
def evil(ctx: Context, way: str, once: bool) -> int:
    with run() as token:
        if hostile.turn(ctx, once):
            time.sleep(0.01)
            hostile.do(way, ctx)
        return token

@app.task
async def evil_coroutine(ctx: Context, way: str, once: bool) -> int:
    with run() as token:
        if hostile.turn(ctx, once):
            await asyncio.sleep(0.01)
            hostile.do(way, ctx)
        return token

@app.task
def returns_twice(ctx: Context) -> int:
    record("start")
    if os.fork() == 0:
        return -1
    record("end")
    return ctx.token
"""

RUINOUS = {
    "signals": ("segfault", "abort", "kill"),
    "exits": ("exit", "half and death", "fork and death"),
    "descriptors": ("close",),
    "messages": ("garbage", "nonsense", "forged state"),
}
"""Ways after which the process is dead, or of no use any more and killed."""
MUTE = ("half", "huge")
"""Ways in which it goes on and can no longer be understood."""
VAIN = ("forged token", "forged job")
"""Ways that do no harm."""


def turn(ctx: Context, once: bool) -> bool:
    """Whether the job is hostile this time."""
    mark = Path(f"jobs.db-{ctx.job_id}")
    if once and mark.exists():
        return False
    mark.touch()
    record("evil")
    return True


def do(way: str, ctx: Context) -> None:
    """Does harm to this process."""
    match way:
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "abort":
            os.abort()
        case "close":
            os.closerange(3, 4096)
        case "garbage":
            supervisor().sendall(b"\xff" * 64)
        case "nonsense":
            supervisor().sendall(_LENGTH.pack(3) + b"abc")
        case "forged state":
            _forge(ctx, ctx.key, ctx.token, JobState.PENDING)
        case "forged token":
            _forge(ctx, ctx.key, ctx.token + 1, JobState.COMPLETED)
        case "forged job":
            _forge(ctx, int(ctx.key) + 100_000, 1, JobState.DEAD)
        case "half and death":
            supervisor().sendall(_LENGTH.pack(5000) + b"half of it")
            os._exit(4)
        case "fork and death":
            if os.fork() == 0:
                time.sleep(2.0)
                os._exit(0)
            os._exit(5)
        case "half":
            supervisor().sendall(_LENGTH.pack(5000) + b"half of it")
        case "huge":
            supervisor().sendall(_LENGTH.pack(200 << 20) + b"the begin of it")
        case _:
            raise AssertionError(way)


def supervisor() -> socket.socket:
    """The socket on which this process talks to its supervisor: made by its parent, or by that of the template."""
    parent = os.getppid()
    grandparent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
    for descriptor in range(3, 256):
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            found = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue
        credentials = found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if found.family == socket.AF_UNIX and _CREDENTIALS.unpack(credentials)[0] in (parent, grandparent):
            return found
        found.close()
    raise AssertionError("there is no socket of the supervisor's")


def _forge(ctx: Context, key: int | str, token: int, state: JobState) -> None:
    """Tells the supervisor an outcome that is none."""
    outcome = Outcome(key, token, ctx.job_id, ctx.task, ctx.queue, state)
    supervisor().sendall(frames.encode(frames.Outcomes([outcome])))
