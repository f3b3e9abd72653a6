"""What ``mouso doctor`` makes of workers, queues and jobs: each check is a function of what was seen, no more."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mouso import __version__
from mouso.brokers.base import LEASE_MS, Finding, Level, QueueInfo, Retention, WorkerInfo
from mouso.cli.output import span
from mouso.config import ProjectSettings, closest
from mouso.job import Job, JobOptions, JobState
from mouso.task import Task
from mouso.worker.proof import Identity, proven_dead

LONG = 600_000
"""ms after which a job that waits, or runs without a timeout, is worth a look."""
MOST_READ = 10_000
"""How many jobs of a kind are looked at."""
_DEPLOY = 60_000
_JUMP, _SLOW_START = 5_000, 30_000
_FUTURE = 2_000
_RECENT = 3_600_000
_NAMES = 5
_KUBERNETES = 30.0
_AFTER_GRACE = 3.0
_FEW_DESCRIPTORS = 1024
_OFTEN = 5

Facts = Iterator[Finding]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What there was to see.

    Attributes:
        now, steady: Wall clock and steady clock of this process, ms; see ``Clock``.
        here: This process, to tell which workers run on this host.
        tasks: What the app registers; None if it could not be imported.
        running, dead, available: Some of those jobs, the last enqueued first.
        parked: How many jobs are parked, by task and queue.
        newest: The job that was enqueued last.
        retention: What is kept, and for how long.
    """

    now: int
    steady: int
    here: Identity
    tasks: Mapping[str, Task[..., object]] | None = None
    settings: ProjectSettings = field(default_factory=ProjectSettings)
    queues: Sequence[QueueInfo] = ()
    workers: Sequence[WorkerInfo] = ()
    running: Sequence[Job] = ()
    dead: Sequence[Job] = ()
    available: Sequence[Job] = ()
    parked: Mapping[tuple[str, str], int] = field(default_factory=dict)
    newest: Job | None = None
    retention: Retention = field(default_factory=Retention)

    @property
    def alive(self) -> list[WorkerInfo]:
        """Workers whose lease holds and that are not proven dead."""
        return [worker for worker in self.workers if worker.lease_left and not proven_dead(worker, self.here)]

    def waiting(self, queue: QueueInfo) -> int:
        """Jobs of a queue that could start now and are not parked."""
        parked = sum(number for (_, name), number in self.parked.items() if name == queue.name)
        return max(queue.counts.get(JobState.AVAILABLE, 0) - parked, 0)


def workers(seen: Seen) -> Facts:
    """Who is alive, and who is lost."""
    alive = seen.alive
    if alive:
        slots = sum(worker.slots for worker in alive)
        yield Finding(Level.OK, "workers", f"{_count(len(alive), 'worker')} with {slots:,} slots: {_names(alive)}")
    else:
        yield from _nobody(seen)
    for worker in alive:
        if worker.tasks and not worker.slots:
            what = f"worker {worker.name} (process {worker.pid} on {worker.host}) has no process that takes jobs"
            remedy = "look at its log: its processes cannot load the app, or die; or it has just lost one"
            yield Finding(Level.WARNING, "workers", what, remedy)
    for worker in seen.workers:
        if worker in alive:
            continue
        who = f"worker {worker.name} (process {worker.pid} on {worker.host})"
        last = f"was last heard of {span(seen.now - worker.beat)} ago"
        if proven_dead(worker, seen.here):
            remedy = "look at its log for the reason; any worker gives its jobs back within seconds"
            yield Finding(Level.WARNING, "workers", f"{who} died and {last}", remedy)
        elif (worker.boot, worker.namespace) == (seen.here.boot, seen.here.namespace) and worker.started:
            remedy = "it is frozen, or its store hangs: look at its log, send it SIGQUIT for its stacks, restart it"
            yield Finding(Level.ERROR, "workers", f"{who} is alive, but its lease has ended: it {last}", remedy)
        else:
            remedy = "if its machine or container still runs, look at its log; any worker gives its jobs back"
            yield Finding(Level.WARNING, "workers", f"{who} is lost: it {last}", remedy)


def _nobody(seen: Seen) -> Facts:
    waiting = sum(queue.counts.get(JobState.AVAILABLE, 0) for queue in seen.queues)
    oldest = max((queue.oldest or 0 for queue in seen.queues), default=0)
    if not waiting:
        yield Finding(Level.INFO, "workers", "no worker is alive, and no job waits", "start one: mouso worker")
    else:
        level = Level.ERROR if oldest > _DEPLOY else Level.WARNING
        what = f"no worker is alive for {_count(waiting, 'job')}, the oldest of which waits for {span(oldest)}"
        yield Finding(level, "workers", what, "start one: mouso worker")


def versions(seen: Seen) -> Facts:
    """Whether all run the same Mouso and the same tasks."""
    by_version: defaultdict[str, list[WorkerInfo]] = defaultdict(list)
    for worker in seen.alive:
        by_version[worker.version or "unknown"].append(worker)
    each = ", ".join(f"{version} ({_names(who)})" for version, who in sorted(by_version.items()))
    if len(by_version) > 1:
        what = f"workers run different versions of Mouso: {each}"
        yield Finding(Level.WARNING, "versions", what, "finish the deploy: restart the older ones")
    elif by_version and __version__ not in by_version:
        what = f"workers run Mouso {each}, and this is {__version__}"
        yield Finding(Level.WARNING, "versions", what, "restart them, or run this in their environment")
    elif by_version:
        yield Finding(Level.OK, "versions", f"all workers run Mouso {__version__}")
    yield from _differences(seen)


def _differences(seen: Seen) -> Facts:
    """Tasks that one worker of an app knows and another does not; workers of another app have none in common."""
    alive = [worker for worker in seen.alive if worker.tasks]
    for i, worker in enumerate(alive):
        for other in alive[i + 1 :]:
            ours, theirs = set(worker.tasks), set(other.tasks)
            if ours & theirs and ours != theirs:
                what = f"workers {worker.name} and {other.name} differ in the tasks {_some(ours ^ theirs)}"
                yield Finding(Level.WARNING, "tasks", what, "finish the deploy: restart the one with the older code")
                return
    known = {name for worker in alive for name in worker.tasks}
    if seen.tasks is not None and known & seen.tasks.keys() and (new := seen.tasks.keys() - known):
        what = f"no worker knows the tasks {_some(new)}, which the app has here"
        yield Finding(Level.WARNING, "tasks", what, "restart the workers with this code")
    elif seen.tasks is not None:
        yield Finding(Level.OK, "tasks", f"the app has {_count(len(seen.tasks), 'task')}")


def parked(seen: Seen) -> Facts:
    """Jobs whose task no worker knows, or, where no worker has looked at them yet, not even the app."""
    by_task: Counter[str] = Counter()
    for (task, _), number in seen.parked.items():
        by_task[task] += number
    least = "at least " if by_task.total() >= MOST_READ else ""
    for task, number in by_task.most_common(_NAMES):
        what = f"{least}{_count(number, 'job')} of the task {task} cannot run: no worker knows it"
        yield _unknown(seen, task, what)
    if len(by_task) > _NAMES:
        what = f"jobs of {len(by_task) - _NAMES:,} more tasks cannot run: no worker knows them"
        yield Finding(Level.WARNING, "parked", what, "list them with mouso jobs --parked")
    known = {name for worker in seen.alive for name in worker.tasks} | by_task.keys()
    strange = {job.task for job in seen.available} - known - (seen.tasks or {}).keys()
    for task in sorted(strange)[:_NAMES] if seen.tasks else ():
        yield _unknown(seen, task, f"jobs of the task {task} wait, which neither a worker nor the app knows")


def _unknown(seen: Seen, task: str, what: str) -> Finding:
    if not seen.tasks:
        return Finding(Level.WARNING, "parked", what, "start a worker whose app has the task")
    if task in seen.tasks:
        return Finding(Level.WARNING, "parked", what, "restart the workers with this code, which knows it")
    hint = closest(task, seen.tasks)
    remedy = f"{hint} register it again under this name (name=), or cancel its jobs".lstrip()
    return Finding(Level.ERROR, "parked", what, remedy)


def queues(seen: Seen) -> Facts:
    """Queues that nobody serves, that are paused, or in which jobs wait for long."""
    served = seen.alive
    findings: list[Finding] = []
    for queue in seen.queues:
        waiting, soon = seen.waiting(queue), queue.counts.get(JobState.SCHEDULED, 0)
        soon += queue.counts.get(JobState.RETRYABLE, 0)
        since = f", the oldest for {span(queue.oldest)}" if waiting and queue.oldest else ""
        if queue.paused:
            level = Level.WARNING if waiting else Level.INFO
            what = f"queue {queue.name} is paused, and {_count(waiting, 'job')} in it could run{since}"
            findings.append(Finding(level, "queues", what, f"end the pause when it is time: mouso resume {queue.name}"))
        elif served and not any(not worker.queues or queue.name in worker.queues for worker in served):
            if waiting or soon:
                level = Level.ERROR if waiting and (queue.oldest or 0) > _DEPLOY else Level.WARNING
                what = f"no worker serves queue {queue.name}, which has {_count(waiting + soon, 'waiting job')}{since}"
                hint = closest(queue.name, {name for worker in served for name in worker.queues})
                remedy = f"{hint} start a worker with -Q {queue.name}, or without -Q".lstrip()
                findings.append(Finding(level, "queues", what, remedy))
        elif served and waiting and (queue.oldest or 0) > LONG:
            what = f"{_count(waiting, 'job')} in queue {queue.name} could run{since}"
            remedy = "add workers or slots, or look at what keeps those that are there: mouso jobs --state running"
            findings.append(Finding(Level.WARNING, "queues", what, remedy))
    yield from _most(findings, "queues", "list them with mouso queues")
    if not findings:
        waiting = sum(map(seen.waiting, seen.queues))
        yield Finding(Level.OK, "queues", f"{_count(len(seen.queues), 'queue')}, {_count(waiting, 'job')} could run")


def stuck(seen: Seen) -> Facts:
    """Running jobs of which nobody can say that they run, and those that may have run for long."""
    alive = {worker.id: worker for worker in seen.alive}
    lost = [job for job in seen.running if job.worker is None]
    if lost:
        what = f"{_count(len(lost), 'job')} running under no worker at all, such as {lost[0].id}"
        remedy = "find the program that writes to the store: nobody will give them back"
        yield Finding(Level.ERROR, "stuck", what, remedy)
    orphans = [job for job in seen.running if job.worker is not None and job.worker not in alive]
    if orphans:
        what = f"{_count(len(orphans), 'job')} running under workers that are gone, such as {orphans[0].id}"
        remedy = "a worker gives them back within 20 s" if alive else "start a worker, which gives them back"
        yield Finding(Level.WARNING, "stuck", what, remedy)
    backlogs = {queue.name: queue.oldest or 0 for queue in seen.queues}
    long = []
    for job in seen.running:
        if job.worker in alive and _without_timeout(job, seen.tasks) and backlogs.get(job.queue, 0) < LONG:
            most = seen.now - max(job.enqueued_at, alive[job.worker].started_at)
            if most > LONG:
                long.append((most, job))
    if long:
        most, job = max(long, key=lambda one: one[0])
        what = f"{_count(len(long), 'job')} without a timeout may have run for {span(LONG)} and more"
        what += f"; {job.id} ({job.task}) for up to {span(most)}"
        remedy = "if that is too long, look where it is (mouso job --stack), cancel it, and give the task a timeout="
        yield Finding(Level.WARNING, "stuck", what, remedy)
    if not (lost or orphans or long):
        yield Finding(Level.OK, "stuck", f"{_count(len(seen.running), 'running job')}, none of them stuck")


def returning(seen: Seen) -> Facts:
    """Jobs that come back again and again: perhaps each ends its whole worker, which nobody charges to a job."""
    found = [job for job in (*seen.running, *seen.available) if job.releases >= _OFTEN]
    if not found:
        yield Finding(Level.OK, "returning", f"no job has gone back to its queue {_OFTEN} times")
        return
    worst = max(found, key=lambda job: job.releases)
    what = f"{_count(len(found), 'job')} went back {_OFTEN} times and more"
    what += f", {worst.id} ({worst.task}) {worst.releases:,}"
    remedy = (
        "if it was not for as many deploys, it may kill its worker each time, as by using up the memory: see what ended"
        " the workers, then mouso cancel it, or run it isolated with max_memory="
    )
    yield Finding(Level.WARNING, "returning", what, remedy)


def _without_timeout(job: Job, tasks: Mapping[str, Task[..., object]] | None) -> bool:
    """Whether nothing ends a job that hangs; False when that cannot be told."""
    try:
        own = msgspec.json.decode(job.options, type=JobOptions) if job.options else JobOptions()
    except msgspec.MsgspecError:
        return False
    if own.timeout is not None:
        return own.timeout == 0
    task = None if tasks is None else tasks.get(job.task)
    return task is not None and task.settings.timeout is None


def dead(seen: Seen) -> Facts:
    """The dead-letter queue, and whether it grows."""
    number = sum(queue.counts.get(JobState.DEAD, 0) for queue in seen.queues)
    recent = [job for job in seen.dead if seen.now - (job.finished_at or 0) < _RECENT]
    if recent:
        kinds = Counter(f"{job.task} ({job.reason})" for job in recent)
        most = ", ".join(f"{count:,} × {kind}" for kind, count in kinds.most_common(3))
        what = f"at least {_count(len(recent), 'job')} died within the last hour: {most}"
        yield Finding(
            Level.WARNING, "dead", what, "look at them with mouso dead, mend the cause, then mouso dead retry"
        )
    elif number:
        what = f"{_count(number, 'dead job')}, none of which died within the last hour"
        yield Finding(Level.INFO, "dead", what, "look at them with mouso dead; retry or delete them")
    else:
        yield Finding(Level.OK, "dead", "no job is dead")
    if number > 0.9 * seen.retention.max_dead:
        what = (
            f"{number:,} dead jobs are nearly as many as are kept ({seen.retention.max_dead:,}): the eldest are deleted"
        )
        yield Finding(Level.WARNING, "dead", what, "retry or delete them, or raise max_dead")
    done = sum(n for queue in seen.queues for state, n in queue.counts.items() if state.final) - number
    if done > 0.99 * seen.retention.max_finished:
        what = f"{done:,} finished jobs are as many as are kept: results go before keep_finished is over"
        yield Finding(Level.INFO, "results", what, "raise max_finished, or keep fewer results (keep_result=)")


def clocks(seen: Seen) -> Facts:
    """This machine's wall clock against what workers and producers wrote."""
    findings: list[Finding] = []
    remedy = "let NTP or chrony slew the clock; jobs are due and expire by it, leases do not count by it"
    for worker in seen.alive:
        if jump := _since_beat(worker, seen) or _since_start(worker, seen):
            way = "forward" if jump > 0 else "back"
            what = f"the clock was set {way} by {span(abs(jump))} while worker {worker.name} ran"
            findings.append(Finding(Level.WARNING, "clock", what, remedy))
    if seen.newest is not None and seen.newest.enqueued_at - seen.now > _FUTURE:
        ahead = span(seen.newest.enqueued_at - seen.now)
        what = f"the last job, {seen.newest.id}, was enqueued {ahead} in the future"
        findings.append(Finding(Level.WARNING, "clock", what, remedy))
    yield from _most(findings, "clock", remedy)
    if not findings:
        yield Finding(Level.OK, "clock", "the clock agrees with what workers and producers wrote")


def _since_beat(worker: WorkerInfo, seen: Seen) -> int:
    """ms that the wall clock went more than the steady one since a worker's last heartbeat; 0 if hardly any."""
    jump = (seen.now - worker.beat) - (LEASE_MS - worker.lease_left)
    return jump if abs(jump) > _JUMP else 0


def _since_start(worker: WorkerInfo, seen: Seen) -> int:
    """Likewise, between the start and the last heartbeat of a worker of this boot."""
    if not (worker.started and worker.started_at and worker.boot == seen.here.boot):
        return 0
    lived = seen.steady - (LEASE_MS - worker.lease_left) - worker.started * 1000 // os.sysconf("SC_CLK_TCK")
    jump = (worker.beat - worker.started_at) - lived
    return jump if abs(jump) > _SLOW_START else 0


def limits(seen: Seen) -> Facts:
    """What the workers of this host may open and write."""
    for worker in seen.alive:
        if (worker.boot, worker.namespace) != (seen.here.boot, seen.here.namespace) or not worker.started:
            continue
        found = _process_limits(worker.pid)
        length = found.get("Max file size")
        if length is not None:
            what = f"worker {worker.name} cannot write files of more than {length:,} bytes, the store included"
            yield Finding(Level.WARNING, "limits", what, "raise its limit (ulimit -f, LimitFSIZE=)")
        descriptors, used = found.get("Max open files"), _open_files(worker.pid)
        if descriptors is not None and (descriptors < _FEW_DESCRIPTORS or used > 0.8 * descriptors):
            what = f"worker {worker.name} has {used:,} of {descriptors:,} files open"
            level = Level.WARNING if used > 0.5 * descriptors else Level.INFO
            yield Finding(level, "limits", what, "raise its limit (ulimit -n, LimitNOFILE=)")


def _process_limits(pid: int) -> dict[str, int]:
    """The soft limits of a process, without those that are unlimited."""
    try:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    except OSError:
        return {}
    rows = [(line[:26].strip(), line[26:].split()) for line in lines]
    return {name: int(values[0]) for name, values in rows if values and values[0].isdecimal()}


def _open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def settings(seen: Seen) -> Facts:
    """Settings of the project that do not go together with their surroundings."""
    grace = seen.settings.grace
    if grace is not None and grace + _AFTER_GRACE > _KUBERNETES:
        there = "KUBERNETES_SERVICE_HOST" in os.environ
        what = f"grace = {grace:g} in pyproject.toml, and Kubernetes kills a pod after {_KUBERNETES:g} s by default"
        remedy = f"set terminationGracePeriodSeconds (or TimeoutStopSec=) to {grace + 10:g} or more"
        yield Finding(Level.WARNING if there else Level.INFO, "settings", what, remedy)


CHECKS: Sequence[Callable[[Seen], Iterable[Finding]]] = (
    workers,
    versions,
    parked,
    queues,
    stuck,
    returning,
    dead,
    clocks,
    limits,
    settings,
)


def _most(findings: Sequence[Finding], check: str, remedy: str) -> Facts:
    """The worst findings of one kind, and how many more there are."""
    order = list(Level)
    worst = sorted(findings, key=lambda finding: -order.index(finding.level))
    yield from worst[:_NAMES]
    if len(worst) > _NAMES:
        yield Finding(worst[_NAMES].level, check, f"{len(worst) - _NAMES:,} more of the same kind", remedy)


def _names(found: Sequence[WorkerInfo]) -> str:
    return _some([worker.name for worker in found])


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more."""
    every = sorted(set(names))
    more = f" and {len(every) - _NAMES:,} more" if len(every) > _NAMES else ""
    return ", ".join(every[:_NAMES]) + more


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
