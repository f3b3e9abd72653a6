"""What becomes of the jobs of a child that died or must be killed.

* A job that only waited goes back untouched.
* The supervisor killed the child because of a job: that one gets its verdict, those beside it go back uncharged.
* The child died by itself and one job ran: that one is charged a crash, unless another one may have been the cause.
* Several ran: all are suspects and none is charged yet. Each runs again alone, in a child that runs nothing beside it,
  under the same claim; only the one under which that child dies is charged.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable

import msgspec

from mouso.brokers.base import EXIT_LOST
from mouso.clock import SYSTEM
from mouso.errors import ErrorInfo
from mouso.job import MAX_CRASHES, Charge, JobOptions, JobState, Lease, Outcome
from mouso.observe.logs import about
from mouso.retry import Backoff, Decision
from mouso.worker.board import number
from mouso.worker.frames import EXIT_STARVED, TaskInfo
from mouso.worker.launch import Exit, describe
from mouso.worker.memory import OomKills, of_programs, resident
from mouso.worker.outcomes import failure, release
from mouso.worker.process import ChildProcess
from mouso.worker.tripwire import ENDED_BY
from mouso.worker.usual import RunTimes

STUBBORN = 5.0
"""Seconds that a job has to end after it was asked to stop; then its process is killed."""
STUBBORN_ALONE = 1.0
"""Likewise for one that has its process for itself, so that nobody suffers from the kill."""

_MIB = 1 << 20
_LONG = 600.0
"""Seconds after which a job without a timeout is worth a line in the log."""
_UNUSUAL, _LEAST_UNUSUAL = 10, 10.0
"""So many times as long as 99 of 100 runs of its task is worth one, too, from so many seconds on."""

log = logging.getLogger("mouso.worker")


class Coroner:
    """Judges the jobs of children that died.

    Args:
        is_news: Whether a reason why a child died at its start is another one than the last time.

    Attributes:
        tasks: What the app registered.
        suspects: Jobs to run alone.
        usual: How long runs take.
    """

    def __init__(self, is_news: Callable[[str], bool] = lambda why: True) -> None:
        self._is_news = is_news
        self.tasks: dict[str, TaskInfo] = {}
        self.usual = RunTimes()
        self.suspects: deque[Lease] = deque()
        self._oom_kills = OomKills()

    def examine(self, child: ChildProcess, *, draining: bool) -> list[Outcome]:
        """Outcomes of all that a dead child held; suspects are kept for ``next_suspect`` instead."""
        running = {lease.key for lease in child.running()} or {lease.key for lease in child.unreported()}
        spared = child.killed or child.board.fenced
        outcomes, suspects = [], []
        for lease in child.leases.values():
            verdict = child.verdicts.get(lease.key) or self._spent(child, lease, ran=lease.key in running)
            if verdict is not None:
                outcomes.append(verdict)
            elif lease.key in running and not spared:
                suspects.append(lease)
            else:
                outcomes.append(release(lease))
        explained = bool(child.verdicts) or any(outcome.state is not JobState.AVAILABLE for outcome in outcomes)
        if suspects:
            how = self.describe(child.exit or Exit(None))
            what = f"job {suspects[0].id} ({suspects[0].task})" if len(suspects) == 1 else f"{len(suspects)} jobs"
            log.error("child %d died (%s) while %s ran", child.pid, how, what)
            # A job that has closed descriptors, or left no memory, may have ended before an innocent one finds out. It
            # is charged when it runs alone: a job may end its process with any exit code.
            doubtful = child.exit is not None and child.exit.code in (EXIT_LOST, EXIT_STARVED) and not child.spare
            if len(suspects) == 1 and not doubtful:
                outcomes.append(crash(suspects[0], how))
            elif draining:
                outcomes += [release(lease) for lease in suspects]
            else:
                self.suspects.extend(suspects)
        elif not (draining or spared or explained or child.left_in_peace or child.failure or child.heir):
            when = "nothing ran in it" if child.ready else "it was importing the app, which may have ended it"
            if child.ready or self._is_news(f"{describe(child.exit or Exit(None))}; {when}"):
                log.error("child %d died (%s); %s", child.pid, self.describe(child.exit or Exit(None)), when)
        _measure(outcomes, child)
        return outcomes

    def describe(self, found: Exit) -> str:
        """How a process ended, with what the system tells of its memory."""
        words = describe(found)
        if found.max_rss:
            words += f", at most {found.max_rss / (1 << 20):,.0f} MiB resident"
        if where := self._oom_kills.explain(killed=found.code == -signal.SIGKILL):
            words += f"; the kernel killed for want of memory (see {where})"
        if found.code == -ENDED_BY:
            words += "; it closed file descriptors that it had not opened, as os.closerange() does"
        return words

    def _spent(self, child: ChildProcess, lease: Lease, *, ran: bool) -> Outcome | None:
        """The verdict on a job that the kernel ended because it had used up its memory or its CPU time."""
        if child.limits is None or child.exit is None:
            return None
        if child.limits.max_memory is not None and child.exit.exhausted:
            used, most = (count / _MIB for count in (child.exit.exhausted, child.limits.max_memory))
            message = f"the attempt and its programs had {used:,.0f} MiB and needed more than their max_memory,"
            message += f" {most:,.0f} MiB,"
            return self._forced(lease, "MemoryError", message, "max_memory")
        if child.limits.max_cpu is None or child.exit.code != -signal.SIGXCPU or not ran:
            return None
        message = f"the attempt used more CPU than its max_cpu of {child.limits.max_cpu:g} s"
        return self._forced(lease, "TimeoutError", message, "max_cpu")

    def next_suspect(self) -> Lease | None:
        """A suspect to run alone."""
        return self.suspects.popleft() if self.suspects else None

    def release_suspects(self) -> list[Outcome]:
        """Gives back all suspects, for the shutdown."""
        outcomes = [release(lease) for lease in self.suspects]
        self.suspects.clear()
        return outcomes

    def overdue(self, child: ChildProcess, awake: float = 0.0) -> dict[int | str, Outcome]:
        """Verdicts on jobs that should have ended: their child must be killed.

        Args:
            awake: Since when worker and child could do anything about it, on the monotonic clock: they may have been
                stopped together.
        """
        notes = {note.number: note for note in child.board.read()}
        now_ns, now, awake_ns = time.monotonic_ns(), SYSTEM.monotonic(), int(awake * 1e9)
        verdicts: dict[int | str, Outcome] = {}
        unborn = child.limits is not None and not child.ready  # its job has not started, and may be told to stop
        if not (notes or unborn):
            return verdicts
        patience = STUBBORN if child.limits is None else STUBBORN_ALONE
        for lease in child.leases.values():
            note = notes.get(number(lease.key))
            if note is None and not unborn:
                continue
            if note is not None and not note.deadline and lease.key not in child.long:
                self._tell_long(child, lease, (now_ns - note.started) / 1e9)
            asked = child.stops.get(lease.key)
            if asked is not None and now - max(asked[0], awake) > patience:
                verdicts[lease.key] = cancelled(lease) if asked[1] == "cancelled" else release(lease)
            elif note is not None and note.deadline and now_ns > max(note.deadline, awake_ns) + patience * 1e9:
                timeout = (note.deadline - note.started) / 1e9
                verdicts[lease.key] = self._forced(
                    lease, "TimeoutError", f"the attempt took longer than its timeout of {timeout:g} s", "timeout"
                )
        return verdicts

    def _tell_long(self, child: ChildProcess, lease: Lease, ran: float) -> None:
        """Says, once, that a job without a timeout has run for long."""
        if ran < _LEAST_UNUSUAL:
            return
        if ran > _LONG:
            how = f"{_LONG / 60:.0f} minutes"
        elif (p99 := self.usual.p99(lease.task)) is not None and ran > _UNUSUAL * p99:
            how = f"{ran:.0f} s, and 99 of 100 runs of its task take less than {p99:.3g} s"
        else:
            return
        child.long.add(lease.key)
        log.warning(
            "job %s (%s) has run for %s; it has no timeout: if that is not meant, give its task one",
            lease.id, lease.task, how,
        )  # fmt: skip

    def overdrawn(self, child: ChildProcess) -> dict[int | str, Outcome]:
        """Verdicts on a job that has more memory than it may: its child must be killed."""
        if child.limits is None or child.limits.max_memory is None:
            return {}
        programs, most = of_programs(child.pid), child.limits.max_memory
        used = resident(child.pid) + programs
        if used <= most:
            return {}
        what = "attempt and its programs" if programs else "attempt"
        message = f"the {what} had {used / _MIB:,.0f} MiB resident, its max_memory is {most / _MIB:,.0f} MiB"
        return {lease.key: self._forced(lease, "MemoryError", message, "max_memory") for lease in child.leases.values()}

    def _forced(self, lease: Lease, kind: str, message: str, reason: str) -> Outcome:
        """A failed attempt that nobody but the supervisor can tell of."""
        attempt = lease.attempts + 1
        own = msgspec.json.decode(lease.options, type=JobOptions) if lease.options else JobOptions()
        task = self.tasks.get(lease.task)
        attempts = own.attempts or (task.attempts if task else 1)
        backoff = Backoff(*own.backoff) if own.backoff else (task.backoff if task else Backoff())
        decision = Decision(None, reason) if attempt >= attempts else Decision(backoff.delay(attempt), "")
        message += " and its process was killed"
        return failure(lease, decision, ErrorInfo(type=kind, message=message, attempt=attempt, reason=reason))


def _measure(outcomes: list[Outcome], child: ChildProcess) -> None:
    """Notes what is known of the runs that ended with their process."""
    notes = {note.number: note for note in child.board.read()}
    for outcome in outcomes:
        note = notes.get(number(outcome.key))
        if note is not None:
            outcome.run_seconds = (time.monotonic_ns() - note.started) / 1e9
            outcome.started_at = SYSTEM.now() - int(outcome.run_seconds * 1000)
            outcome.pid = child.pid
            if child.exit is not None:
                outcome.peak_memory = child.exit.max_rss or None
                outcome.cpu_seconds = (child.exit.cpu or None) if child.limits is not None else None


def crash(lease: Lease, how: str) -> Outcome:
    """The outcome of a job under which its process died."""
    crashes = lease.crashes + 1
    final = crashes >= MAX_CRASHES
    info = ErrorInfo(
        type="ProcessDied",
        message=f"the process that ran it died ({how}), crash {crashes} of {MAX_CRASHES}",
        attempt=lease.attempts + 1,
        reason="poison" if final else "crash",
    )
    if final:
        log.error("job %s (%s) is dead (poison): %s", lease.id, lease.task, info.message, extra=about(lease))
    outcome = release(lease)
    outcome.charge, outcome.error = Charge.CRASH, info
    if final:
        outcome.state, outcome.reason = JobState.DEAD, "poison"
    return outcome


def cancelled(lease: Lease) -> Outcome:
    """The outcome of a job whose process was killed because it was cancelled and went on."""
    outcome = release(lease)
    outcome.state, outcome.charge, outcome.reason = JobState.CANCELLED, Charge.NONE, "cancelled"
    return outcome
