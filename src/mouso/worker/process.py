"""A child process as its supervisor sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from mouso.clock import SYSTEM
from mouso.config import one_line
from mouso.isolation import Limits
from mouso.job import TRANSITIONS, Charge, JobState, Lease, Outcome
from mouso.worker import frames
from mouso.worker.board import Board, number
from mouso.worker.launch import Exit, Process
from mouso.worker.proof import process_state

READ_AHEAD = 0.05
"""Seconds of work that a child is given beyond its free slots."""
MOST_AHEAD = 500
_PENALTY = 1.0
_WINDOW = 0.008
"""Busy seconds over which outcomes are counted: two that come close together are no rate."""
_READ = 64 << 10
_LAST_WORDS = 0.5
_SPEECHLESS = 1.0
_QUIET, _QUIET_AMID = 1.0, 0.2
"""Seconds without a message after which it is asked, when it holds jobs, and when it has begun a message."""
_CRUMB = 4096
_ENDS = frozenset(TRANSITIONS[JobState.RUNNING])


class Bear(Protocol):
    """Starts a process, given the descriptors of its socket and board, its slots and its limits."""

    def __call__(
        self, sock: int, board: int, slots: int, limits: Limits | None, *, copy: bool
    ) -> Awaitable[Process]: ...


log = logging.getLogger("mouso.worker")


class ChildProcess(asyncio.BufferedProtocol):
    """One child: its process, its socket, and the claims it holds.

    Args:
        slots: Jobs at once.
        on_message: Called with the child and each message.
        on_exit: Called once, with the child, when the process has ended.
        spare: It runs jobs alone, and ends after them.
        limits: It runs one job alone, within these.
        heir: It takes the place of another child as soon as it can work.

    Attributes:
        leases: Its claims that have no outcome yet, by key.
        tasks: What its version of the app can run.
        version: How often the app had been reloaded when it was started.
        failure: Why it could not load the app; empty if it could.
        ready: Whether it has said ``Hello``.
        arrived: Set when it is ready, or has ended before it was.
        verdicts: Outcomes decided for jobs because of which it was killed.
        killed: Whether the supervisor killed it for a reason that its running jobs have not to answer for.
        exit: How it ended; None while it lives.
        gone: Whether its death was handled.
        dismissed: Whether it was told to end, and ``dismissed_at`` when, on the monotonic clock.
        leaving: Whether it gets nothing more and ends after what it holds.
        jobs: How many it has ended.
        latest: The last outcome that it brought, until somebody has looked at it.
        long: The jobs of which it was told that they run long.
        deaf: Whether it has not answered and was relieved of what it had not started.
        stops: When which job was asked to stop, and why.
        stacks_lock: Held by who lets it write its stacks.
    """

    def __init__(
        self,
        slots: int,
        on_message: Callable[[ChildProcess, frames.ToSupervisor], None],
        on_exit: Callable[[ChildProcess], None],
        *,
        spare: bool = False,
        limits: Limits | None = None,
        heir: bool = False,
    ) -> None:
        self.started = SYSTEM.monotonic()
        self.slots = slots
        self.spare = spare
        self.limits = limits
        self.heir = heir
        self.tasks: frozenset[str] = frozenset()
        self.version = 0
        self.failure = ""
        self.leases: dict[int | str, Lease] = {}
        self._arrivals: dict[int | str, int] = {}
        self._arrived = 0
        self.ready = False
        self.verdicts: dict[int | str, Outcome] = {}
        self.killed = False
        self.gone = False
        self.dismissed = self.deaf = self.leaving = False
        self.dismissed_at = 0.0
        self.jobs = 0
        self.latest: Outcome | None = None
        self.long: set[int | str] = set()
        self._broken = False
        self._heard = self.started
        self._unanswered: float | None = None
        self.stops: dict[int | str, tuple[float, str]] = {}
        self.stacks_lock = asyncio.Lock()
        self.board = Board.create(2 * slots)
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
        self.arrived = asyncio.Event()
        self.exit: Exit | None = None
        self._process: Process | None = None
        self._waiter: asyncio.Task[None] | None = None

    async def spawn(self, bear: Bear) -> None:
        """Starts the process.

        Raises:
            OSError: The system does not let it.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = await bear(
                    theirs.fileno(), self.board.descriptor, self.slots, self.limits, copy=self.spare
                )
            except BaseException:
                ours.close()
                raise
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, sock=ours)
        self._transport = transport
        self._waiter = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        assert self._process is not None
        self.exit = await self._process.wait()
        with contextlib.suppress(TimeoutError):  # what it sent before it died is still being read
            await asyncio.wait_for(self._lost.wait(), _LAST_WORDS)
        self._on_exit(self)

    # -- asyncio.BufferedProtocol

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._broken:
            return
        try:
            for body in self._splitter.feed(memoryview(self._buffer)[:nbytes]):
                message = frames.to_supervisor.decode(body)
                self._heard, self._unanswered, self.deaf = SYSTEM.monotonic(), None, False
                self._on_message(self, message)
            if self._unanswered is not None and nbytes < _CRUMB and self._splitter.partial:
                # It was asked, and what it says is taken for a part of a frame, which comes in larger pieces.
                self.end_as_broken("it began a message that does not end")
        except (frames.Nonsense, msgspec.MsgspecError) as error:
            self.end_as_broken(f"it sent what is no message ({one_line(error)})")
        except MemoryError:
            self._end_unheard()

    def _end_unheard(self) -> None:
        """Ends it, as part of what it said is lost."""
        self._broken = True
        self.kill()
        log.error("child %d is killed: there is no memory to read what it sends; its jobs are released", self.pid)

    def connection_lost(self, error: BaseException | None) -> None:
        self._transport = None
        self._lost.set()
        if isinstance(error, MemoryError) and not self.killed:
            self._end_unheard()
        if self.exit is None:
            asyncio.get_running_loop().call_later(_SPEECHLESS, self.end_as_broken, "it closed its socket and lives on")

    def end_as_broken(self, why: str) -> None:
        """Ends a child that cannot be talked to; the jobs that run in it are as suspect as if it had died by itself."""
        if self.exit is None and not self.killed and not self._broken:
            self._broken = True
            log.error("child %d is broken and killed: %s", self.pid, why)
            if self._process is not None:
                self._process.kill()

    # -- talking

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def silence(self, passed: float) -> float:
        """Seconds for which it has not answered; asks it when it holds jobs, or has begun a message, and has not been
        heard for a while.

        Args:
            passed: How many of them are to be counted since it was asked for this last.
        """
        if self._unanswered is not None:
            self._unanswered += passed
            return self._unanswered
        amid = self._splitter.partial
        quiet = SYSTEM.monotonic() - self._heard > (_QUIET_AMID if amid else _QUIET)
        if self.ready and quiet and (self.leases or amid):
            self._unanswered = _QUIET_AMID - _QUIET if amid else 0.0  # a large message may take its time
            self.send(frames.Ping())
        return 0.0

    def leave(self) -> None:
        """Lets it end after what it holds; it gets nothing more."""
        self.leaving = True
        if not self.leases:
            self.dismiss()

    def dismiss(self) -> None:
        """Tells it to end."""
        if not self.dismissed:
            self.dismissed = self.leaving = True
            self.dismissed_at = SYSTEM.monotonic()
        self.send(frames.Exit())

    def send(self, message: frames.ToChild) -> None:
        """Sends a message; to a dead child it is lost, which its exit will settle."""
        frame = frames.encode(message)
        if self._transport is not None:
            try:
                self._transport.write(frame)
            except MemoryError:
                self._hang_up()
                raise

    def _hang_up(self) -> None:
        """Ends it, as half a message may be on its way."""
        self.kill()
        if self._transport is not None:
            loop, ours = asyncio.get_running_loop(), self._transport.get_extra_info("socket").fileno()
            # asyncio waits to write what it then could not keep, and abort() would leave that to the next socket.
            loop._remove_writer(ours)  # type: ignore[attr-defined]  # why: the public method refuses transports
            self._transport.abort()

    def assign(self, leases: Sequence[Lease]) -> bool:
        """Gives it jobs; returns False, and does not take them, if its death was handled already.

        Raises:
            MemoryError: There is none to send them; if it holds any of them all the same, it is killed.
        """
        if self.gone:
            return False
        if not self.leases:
            self._busy_since = SYSTEM.monotonic()
        noted = False
        try:
            parts = frames.portions(leases, _payload_size) if len(leases) > 32 else (leases,)
            ready = [frames.encode(frames.Jobs(part)) for part in parts]
            self._arrivals.update((lease.key, n) for n, lease in enumerate(leases, self._arrived + 1))
            noted = True
            self.leases.update((lease.key, lease) for lease in leases)
            self._arrived += len(leases)
            if self._transport is not None:
                for frame in ready:
                    self._transport.write(frame)
        except MemoryError:
            if noted or self.spare:  # a spare one would wait for its job for ever
                self._hang_up()
            raise
        return True

    def stop(self, key: int | str, reason: str) -> None:
        """Asks it to stop a job, unless it was asked for another reason before: ``cancelled`` or ``fenced``."""
        self.stops.setdefault(key, (SYSTEM.monotonic(), reason))
        self.send(frames.Stop(key, reason))

    def kill(self) -> None:
        """Ends it at once, with the programs that its jobs started, or as soon as it has been started."""
        self.killed = True
        if self._process is not None:
            self._process.kill()

    def signal(self, number: int, thread: int | None = None) -> None:
        """Sends it, or one of its threads, a signal; does nothing when it has ended."""
        if self._process is not None:
            self._process.signal(number, thread)

    async def ended(self) -> None:
        """Waits until the process is gone and its exit was handled."""
        if self._waiter is not None:
            await asyncio.shield(self._waiter)

    def stopped(self) -> bool:
        """Whether somebody has stopped it with a signal."""
        return process_state(self.pid) == "T"

    @property
    def left_in_peace(self) -> bool:
        """Whether it has ended because it was told to, as far as anybody can tell."""
        return self.dismissed and self.exit is not None and self.exit.code in (0, None)

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
        """Takes outcomes off its claims and learns how fast it is; returns those of claims it held.

        Raises:
            Nonsense: No running job can end so.
        """
        now = SYSTEM.monotonic()
        held = []
        for outcome in outcomes:
            lease = self.leases.get(outcome.key)
            if lease is None or lease.token != outcome.token:
                continue
            if outcome.state not in _ENDS or outcome.delay < 0:  # only a job that writes to the socket can do that
                raise frames.Nonsense(f"the outcome {outcome.state} of job {outcome.id}")
            del self.leases[outcome.key], self._arrivals[outcome.key]
            held.append(outcome)
        ran = [o.run_seconds for o in held if o.charge is not Charge.RELEASE]
        self._ended += len(ran)
        self.jobs += len(ran)
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
            self.latest = outcome
        if self.long:
            self.long.intersection_update(self.leases)
        return held

    def recall(self) -> int:
        """Forbids it to start what it was given so far; returns the arrival of the last of that, for `take_back`."""
        self.board.recall(self._arrived)
        return self._arrived

    def take_back(self, last: int) -> list[Lease]:
        """Takes what it has not started of what was recalled off its claims; to be called a moment after that."""
        reached = max(self.board.arrivals(), default=0)
        back = [lease for lease in self.leases.values() if reached < self._arrivals.get(lease.key, 0) <= last]
        for lease in back:
            del self.leases[lease.key], self._arrivals[lease.key]
        return back

    def unreported(self) -> list[Lease]:
        """The claims that were the last in their slots and have no outcome, whether they run or have ended."""
        last = set(self.board.arrivals())
        return [lease for lease in self.leases.values() if self._arrivals.get(lease.key) in last]

    def gave_back(self) -> None:
        """It had more than it could start: for a while it gets no more than it is seen to run."""
        self._no_ahead_until = SYSTEM.monotonic() + _PENALTY

    def well_fed(self, seconds: float) -> bool:
        """Whether it has no free slot and waiting jobs for at least so long."""
        return len(self.leases) >= self.slots + max(self._rate * seconds, 1)

    def room(self) -> int:
        """How many more jobs it may hold: free slots and what it should end within 50 ms."""
        if not self.ready or self.spare or self.deaf or self.leaving:
            return 0
        if SYSTEM.monotonic() < self._no_ahead_until:
            capacity = len(self.board.read()) or 1
        elif self._mean < READ_AHEAD:
            rate = min(self._rate, self.slots / max(self._mean, 1e-6))
            capacity = self.slots + min(int(rate * READ_AHEAD), MOST_AHEAD)
        else:
            capacity = self.slots
        return max(capacity - len(self.leases), 0)


def _payload_size(lease: Lease) -> int:
    return len(lease.payload)
