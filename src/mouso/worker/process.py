"""A child process as its supervisor sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from mouso.clock import SYSTEM
from mouso.job import Charge, Lease, Outcome
from mouso.worker import WorkerOptions, frames
from mouso.worker.board import Board, number

READ_AHEAD = 0.05
"""Seconds of work that a child is given beyond its free slots."""
MOST_AHEAD = 500
_PENALTY = 1.0
_WINDOW = 0.008
"""Busy seconds over which outcomes are counted: two that come close together are no rate."""
_READ = 64 << 10
_LAST_WORDS = 0.5


class ChildProcess(asyncio.BufferedProtocol):
    """One child: its process, its socket, and the claims it holds.

    Args:
        on_message: Called with the child and each message.
        on_exit: Called once, with the child, when the process has ended.
        spare: It runs suspects only, and ends after them.

    Attributes:
        leases: Its claims that have no outcome yet, by key.
        ready: Whether it has said ``Hello``.
        alone: The suspect that it runs by itself.
        verdicts: Outcomes decided for jobs because of which it was killed.
        killed: Whether the supervisor killed it.
        gone: Whether its death was handled.
        stops: When which job was asked to stop.
    """

    def __init__(
        self,
        options: WorkerOptions,
        on_message: Callable[[ChildProcess, frames.ToSupervisor], None],
        on_exit: Callable[[ChildProcess], None],
        *,
        spare: bool = False,
    ) -> None:
        self.spare = spare
        self.leases: dict[int | str, Lease] = {}
        self.ready = False
        self.alone: int | str | None = None
        self.verdicts: dict[int | str, Outcome] = {}
        self.killed = False
        self.gone = False
        self.stops: dict[int | str, float] = {}
        self.started = SYSTEM.monotonic()
        self.board = Board.create(2 * options.concurrency)
        self._options = options
        self._on_message = on_message
        self._on_exit = on_exit
        self._splitter = frames.Splitter()
        self._buffer = bytearray(_READ)
        self._rate = 0.0
        self._mean = 0.0
        self._busy = self._run_seconds = 0.0
        self._busy_since = self.started
        self._ended = 0
        self._no_ahead_until = 0.0
        self._transport: asyncio.WriteTransport | None = None
        self._lost = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._waiter: asyncio.Task[None] | None = None

    async def spawn(self) -> None:
        """Starts the process."""
        options = self._options
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # or a file called random.py in the current directory would stand in for the library's
                "-m",
                "mouso.worker.child",
                str(theirs.fileno()),
                str(self.board.descriptor),
                str(options.concurrency),
                str(options.grace),
                options.log_level,
                options.app,
                options.folder or os.getcwd(),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self.board.descriptor),
                start_new_session=True,
            )
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, sock=ours)
        self._transport = transport
        self._waiter = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        assert self._process is not None
        await self._process.wait()
        with contextlib.suppress(TimeoutError):  # what it sent before it died is still being read
            await asyncio.wait_for(self._lost.wait(), _LAST_WORDS)
        self._on_exit(self)

    # -- asyncio.BufferedProtocol

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        for body in self._splitter.feed(memoryview(self._buffer)[:nbytes]):
            self._on_message(self, frames.to_supervisor.decode(body))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._lost.set()

    # -- talking

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        return None if self._process is None else self._process.returncode

    def send(self, message: frames.ToChild) -> None:
        """Sends a message; to a dead child it is lost, which its exit will settle."""
        if self._transport is not None:
            self._transport.write(frames.encode(message))

    def assign(self, leases: Sequence[Lease]) -> bool:
        """Gives it jobs; returns False, and does not take them, if its death was handled already."""
        if self.gone:
            return False
        if not self.leases:
            self._busy_since = SYSTEM.monotonic()
        self.leases.update((lease.key, lease) for lease in leases)
        if self._transport is not None:
            for part in frames.portions(leases, _payload_size) if len(leases) > 32 else (leases,):
                self._transport.write(frames.encode(frames.Jobs(part)))
        return True

    def kill(self) -> None:
        """Ends it at once."""
        self.killed = True
        self._signal(signal.SIGKILL)

    def dump(self) -> None:
        """Makes it write the stacks of its threads to stderr."""
        self._signal(signal.SIGQUIT)

    def _signal(self, number: int) -> None:
        # Not Process.send_signal: that looks first whether the process has ended, and so takes the exit code away from
        # asyncio, which then reports 255.
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def ended(self) -> None:
        """Waits until the process is gone and its exit was handled."""
        if self._waiter is not None:
            await asyncio.shield(self._waiter)

    def close(self) -> None:
        """Lets go of socket and board."""
        if self._transport is not None:
            self._transport.close()
        self.board.close()

    # -- what it holds

    def running(self) -> list[Lease]:
        """The claims that it has started and not ended."""
        numbers = {note.number for note in self.board.read()}
        return [lease for lease in self.leases.values() if number(lease.key) in numbers]

    def take(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Takes outcomes off its claims and learns how fast it is; returns those of claims it held."""
        now = SYSTEM.monotonic()
        held = [o for o in outcomes if self.leases.pop(o.key, None) is not None]
        ran = [o.run_seconds for o in held if o.charge is not Charge.RELEASE]
        self._ended += len(ran)
        self._run_seconds += sum(ran)
        self._busy += now - self._busy_since
        self._busy_since = now
        if self._ended and self._busy >= _WINDOW:
            weight = 0.5 if self._rate else 1.0
            self._rate += weight * (self._ended / self._busy - self._rate)
            self._mean += weight * (self._run_seconds / self._ended - self._mean)
            self._busy, self._ended, self._run_seconds = 0.0, 0, 0.0
        for outcome in held:
            self.stops.pop(outcome.key, None)
        if self.alone is not None and self.alone not in self.leases:
            self.alone = None
        return held

    def gave_back(self) -> None:
        """It had more than it could start: for a while it gets no more than it is seen to run."""
        self._no_ahead_until = SYSTEM.monotonic() + _PENALTY

    def well_fed(self, seconds: float) -> bool:
        """Whether it has no free slot and waiting jobs for at least so long."""
        return len(self.leases) >= self._options.concurrency + max(self._rate * seconds, 1)

    def room(self) -> int:
        """How many more jobs it may hold: free slots and what it should end within 50 ms."""
        if not self.ready or self.spare or self.alone is not None:
            return 0
        if SYSTEM.monotonic() < self._no_ahead_until:
            capacity = len(self.board.read()) or 1
        elif self._mean < READ_AHEAD:
            rate = min(self._rate, self._options.concurrency / max(self._mean, 1e-6))
            capacity = self._options.concurrency + min(int(rate * READ_AHEAD), MOST_AHEAD)
        else:
            capacity = self._options.concurrency
        return max(capacity - len(self.leases), 0)


def _payload_size(lease: Lease) -> int:
    return len(lease.payload)
