"""The judge of a chaos test: compares what the jobs wrote, what the store says and what was done to the processes.

It knows nothing of the engine. A job may start again only if something explains it: its failure, which its row counts,
or a fault that reached the process it ran in. Everything else is a violation, in words that a person can follow.

1. The journal is cut into runs: a job, under a token, in a process.
2. Each job is compared with its row: lost, altered, miscounted, completed by nobody.
3. Its runs are gone through in order: each but the first needs an explanation, and no two may overlap.
4. Each fault is looked at: how long until the jobs that it cut off started again.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from statistics import median

from mouso.job import Job, JobState
from tests.chaos.journal import Line
from tests.stalls import elapsed

EARLIEST_TAKEOVER = 9.0
"""Seconds: a lease of 15, renewed every five at the latest, with a second to spare."""
_ENDS = ("end", "fail", "stop")
_UNLEARNED = 0.2
_ENOUGH = 5
_SHOWN = 20


_HELD_UP = "stayed locked by another transaction for 5 s"


@dataclass(frozen=True, slots=True)
class Expected:
    """What must become of an accepted job.

    Attributes:
        states: In which it may end.
        failures: How many attempts fail; None for any number.
        innocent: Nothing it does can kill a process.
    """

    states: frozenset[str] = frozenset({"completed"})
    failures: int | None = 0
    innocent: bool = True


@dataclass(slots=True)
class Fault:
    """Something that was done, and to whom. Times are seconds on the monotonic clock.

    Attributes:
        at, until: When its effects on the processes began and were over.
        pids, supervisors: The children that it reached, by themselves or by their supervisor.
        unsettled: For how long before `at` a run may have ended without being stored.
        kills: It ended its processes, so that a job which ran alone in one may be charged a crash.
        lease: It kept a worker from the store for longer than its lease, so that its jobs run elsewhere.
        overlaps: Its children cannot stop them before that, so that they may run twice at once.
        limit: Seconds within which what it cut off must start again; None for no limit.
        patience: By how many seconds half of it may be later than that, however idle the machine is.
    """

    name: str
    at: float
    until: float
    pids: frozenset[int] = frozenset()
    supervisors: frozenset[int] = frozenset()
    unsettled: float = 0.5
    kills: bool = False
    lease: bool = False
    overlaps: bool = False
    limit: float | None = None
    patience: float = 0.0

    def reached(self, run: "Run") -> bool:
        """Whether it can be why a run did not count."""
        if run.pid not in self.pids and run.supervisor not in self.supervisors:
            return False
        return run.start <= self.until and (run.end is None or run.end >= self.at - self.unsettled)


@dataclass(slots=True)
class Run:
    """One run of a job.

    Attributes:
        end: When it said so; None if it never did.
        how: `end`, `fail` or `stop`; empty if it never said so.
    """

    job: str
    token: int
    attempt: int
    pid: int
    supervisor: int
    start: float
    end: float | None = None
    how: str = ""


@dataclass(slots=True)
class Case:
    """All that the judge looks at.

    Attributes:
        accepted: What was promised of each job, by id.
        unknown: Ids of enqueues of which nobody learned whether they were stored.
        rows: Every job of the store, by id.
        results: What the completed ones returned: each the token of its run.
        deaths: When a process was seen alive for the last time, by id, of those that have ended.
        slack: Seconds that a busy machine may add to a limit.
        crowd: How many times as much as it can do the machine has to do; at least 1.
    """

    accepted: Mapping[str, Expected]
    rows: Mapping[str, Job]
    results: Mapping[str, object]
    lines: Sequence[Line]
    faults: Sequence[Fault] = ()
    deaths: Mapping[int, float] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()
    keys: Mapping[str, Sequence[str]] = field(default_factory=dict)
    slack: float = 1.0
    crowd: float = 1.0


@dataclass(slots=True)
class Verdict:
    """What the judge found.

    Attributes:
        violations: One sentence each.
        again: How many runs were not the first of their job.
        waits: Of each kind of fault the seconds that each job had to wait which it cut off.
        limits: Of each kind of fault the seconds within which they must start again.
    """

    violations: list[str] = field(default_factory=list)
    again: int = 0
    waits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    limits: dict[str, float] = field(default_factory=dict)

    @property
    def recoveries(self) -> str:
        """How long jobs had to wait after each kind of fault, for reading."""
        shown = (f"{name} {median(took):.2f} s, {max(took):.2f} s at most" for name, took in self.waits.items())
        return ", ".join(shown) or "-"

    def __str__(self) -> str:
        more = len(self.violations) - _SHOWN
        shown = self.violations[:_SHOWN] + ([f"… and {more} more"] if more > 0 else [])
        return "\n".join(shown)


def judge(case: Case) -> Verdict:
    """Goes through every job and every fault."""
    verdict = Verdict()
    runs = _runs(case.lines, verdict)
    events = Counter(line.job for line in case.lines if line.event == "completed")
    verdict.violations += [f"{job}: completed {n} times, by its events" for job, n in events.items() if n > 1]
    for job in case.accepted.keys() - case.rows.keys():
        verdict.violations.append(f"{job}: lost: it was accepted and is not in the store")
    for job in case.rows.keys() - case.accepted.keys() - case.unknown:
        verdict.violations.append(f"{job}: nobody enqueued it")
    for job in runs.keys() - case.rows.keys():
        verdict.violations.append(f"{job}: it ran and is not in the store")
    for job, row in case.rows.items():
        own = runs.get(job, [])
        _check_row(row, case.accepted.get(job, Expected()), own, case, verdict)
        _check_runs(row, own, case, verdict)
        _check_recovery(own, case, verdict)
    _check_typical(case, verdict)
    _check_keys(case, runs, verdict)
    return verdict


def _runs(lines: Iterable[Line], verdict: Verdict) -> dict[str, list[Run]]:
    """Every run by job, in the order of their starts."""
    found: dict[tuple[str, int, int], Run] = {}
    for line in lines:
        key = (line.job, line.token, line.pid)
        run = found.get(key)
        if line.event == "start":
            if run is not None:
                verdict.violations.append(f"{line.job}: claim {line.token} was started twice in process {line.pid}")
                continue
            found[key] = Run(line.job, line.token, line.attempt, line.pid, line.supervisor, line.at)
        elif line.event in _ENDS:
            if run is None or run.how:
                verdict.violations.append(f"{line.job}: claim {line.token} has one {line.event!r} too many")
                continue
            run.end, run.how = line.at, line.event
    by_job: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(found.values(), key=lambda run: run.start):
        by_job[run.job].append(run)
    return by_job


def _check_row(row: Job, expected: Expected, runs: list[Run], case: Case, verdict: Verdict) -> None:
    """The row by itself, and with the runs that it counts."""
    say = verdict.violations.append
    counters = f"attempts={row.attempts} crashes={row.crashes} releases={row.releases} claims={row.claims}"
    if not row.state.final:
        say(f"{row.id}: lost: it is {row.state} for ever ({counters})")
        return
    if str(row.state) not in expected.states:
        say(f"{row.id}: it is {row.state} ({row.reason}) instead of {' or '.join(sorted(expected.states))}")
    last = 1 if row.state is JobState.COMPLETED else 0
    if row.claims != row.attempts + row.crashes + row.releases + last:
        say(f"{row.id}: its counters do not add up: {counters}")
    if runs and max(run.token for run in runs) > row.claims:
        say(f"{row.id}: it ran under a token that was never given out ({counters})")
    fails = {run.token for run in runs if run.how == "fail"}
    if row.attempts > len(fails):
        say(f"{row.id}: charged {row.attempts} attempts, but only {len(fails)} runs failed")
    # A commit that the disk holds up for 5 s holds up all who write: what a job that enqueues says then is right.
    held_up = sum(_HELD_UP in error.message for error in row.errors)
    if expected.failures is not None and row.attempts - held_up != expected.failures:
        why = "; ".join(f"{error.type}: {error.message}" for error in row.errors)
        say(f"{row.id} ({row.task}): charged {row.attempts} attempts instead of {expected.failures}: {why}")
    # A hostile job may come to its end and have ruined its process all the same.
    cut = [run for run in runs if _died_under(run, case) or (run.pid in case.deaths and not expected.innocent)]
    if row.crashes > len(cut) or (row.crashes and not any(fault.kills for fault in case.faults)):
        say(f"{row.id}: charged {row.crashes} crashes, but a process died under it {len(cut)} times")
    if row.state is JobState.COMPLETED:
        winners = [run for run in runs if run.token == row.claims and run.how == "end"]
        if not winners:
            say(f"{row.id}: completed under claim {row.claims}, of which no run came to its end")
        if case.results.get(row.id) != row.claims:
            say(f"{row.id}: its result is {case.results.get(row.id)!r}, not that of claim {row.claims}")


def _died_under(run: Run, case: Case) -> bool:
    """Whether the process ended before the run, or before anybody can have learned of the run's end."""
    death = case.deaths.get(run.pid)
    return death is not None and (run.end is None or run.end > death - _UNLEARNED)


def _check_runs(row: Job, runs: list[Run], case: Case, verdict: Verdict) -> None:
    """Explanations for every run but the first, and no two at once."""
    verdict.again += max(len(runs) - 1, 0)
    for number, run in enumerate(runs[1:], 1):
        before = runs[number - 1]
        if not _explained(before, run, case.faults):
            verdict.violations.append(
                f"{row.id}: started again without a reason: claim {before.token} in process {before.pid}"
                f" {_ended(before)}, claim {run.token} in process {run.pid} began at {run.start:.3f}"
            )
        for earlier in runs[:number]:
            over = _over(earlier, case)
            if over > run.start and not _may_overlap(earlier, run, case.faults):
                verdict.violations.append(
                    f"{row.id}: two runs at once for {min(over, runs[-1].start + 99) - run.start:.3f} s: claim"
                    f" {earlier.token} in process {earlier.pid}, claim {run.token} in process {run.pid}"
                )
    winner = next((run for run in runs if run.token == row.claims and run.how == "end"), None)
    for run in runs if winner is not None and row.state is JobState.COMPLETED else ():
        assert winner is not None
        assert winner.end is not None
        if run.token < winner.token and run.start > winner.end and not _late(run, case.faults):
            verdict.violations.append(f"{row.id}: started after it had completed, in process {run.pid}")


def _over(run: Run, case: Case) -> float:
    """Until when it surely went on."""
    return run.end if run.end is not None else case.deaths.get(run.pid, inf)


def _explained(before: Run, run: Run, faults: Sequence[Fault]) -> bool:
    if before.how == "fail" and run.token > before.token and run.attempt == before.attempt + 1:
        return True
    if any(fault.reached(before) and run.start >= fault.at for fault in faults):
        return True
    return run.token < before.token and _late(run, faults)


def _late(run: Run, faults: Sequence[Fault]) -> bool:
    """Whether its worker was out of reach: what it claimed before it may start under a token that is worth nothing."""
    return any(fault.lease and fault.reached(run) for fault in faults)


def _may_overlap(earlier: Run, run: Run, faults: Sequence[Fault]) -> bool:
    return any(
        fault.overlaps
        and run.start >= fault.at + EARLIEST_TAKEOVER
        and (fault.reached(earlier) or (run.token < earlier.token and fault.reached(run)))
        for fault in faults
    )


def _ended(run: Run) -> str:
    return f"said {run.how!r} at {run.end:.3f}" if run.end is not None else "never said its end"


def _check_keys(case: Case, runs: Mapping[str, list[Run]], verdict: Verdict) -> None:
    """Jobs that share a unique key run one after the other."""
    for key, jobs in case.keys.items():
        own = sorted((run for job in jobs for run in runs.get(job, [])), key=lambda run: run.start)
        for before, run in pairwise(own):
            if run.job != before.job and _over(before, case) > run.start:
                verdict.violations.append(f"{run.job}: ran beside {before.job}, which holds the key {key}")


def _check_recovery(runs: Sequence[Run], case: Case, verdict: Verdict) -> None:
    """How long a job that a fault cut off had to wait."""
    for run, after in pairwise(runs):
        faults = [fault for fault in case.faults if fault.at <= after.start and fault.reached(run)]
        fault = max(faults, key=lambda fault: fault.at, default=None)
        if fault is None or (run.end is not None and run.end < fault.at):
            continue
        if run.how == "fail" and after.attempt > run.attempt:
            continue
        took = elapsed(fault.at, after.start)
        verdict.waits[fault.name].append(took)
        if fault.limit is not None:
            verdict.limits[fault.name] = fault.limit + fault.patience
        if fault.limit is not None and took > fault.limit + case.slack:
            verdict.violations.append(
                f"{run.job}: started again {took:.2f} s after {fault.name}, not within {fault.limit:g} s"
            )


def _check_typical(case: Case, verdict: Verdict) -> None:
    """A busy machine may hold up some of the jobs; half of them must start within the limit itself."""
    for name, limit in verdict.limits.items():
        waits = verdict.waits[name]
        if len(waits) >= _ENOUGH and median(waits) > limit * case.crowd:
            verdict.violations.append(
                f"half of {len(waits)} jobs started again {median(waits):.2f} s after {name} or later, not {limit:g} s"
            )
