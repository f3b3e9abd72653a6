"""What a supervisor counts, and what Prometheus reads of it.

Counting is cheap: one call for each exchange with the broker, a few additions for each job in it. What can be looked up
at any time (slots, memory, the age of the heartbeat) is not counted but handed to ``render``, as a ``Snapshot``.

Names of queues and tasks become labels, so there is a bound: the first 100 pairs of queue and task, and the first 100
queues, are told apart; all others are counted together as ``other``.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mouso.clock import SYSTEM
from mouso.job import Charge, JobState, Lease, Outcome
from mouso.observe.page import Histogram, Page
from mouso.observe.processes import Usage

MOST_LABELS = 100
OTHER = "other"
JOB_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
EXCHANGE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Snapshot(NamedTuple):
    """What a worker is at one moment.

    Attributes:
        id, name, version: Of the worker; empty before the broker knows it.
        ready: Whether it serves.
        slots, busy: Jobs that it can run at once, and that run.
        held: Claimed jobs that have not started.
        unsettled: Outcomes that the broker has not stored yet.
        children, children_ready: Its processes, and those of them that take jobs.
        restarts: Children that were replaced, by the cause of their end; few causes.
        broker_up, outages, outage_seconds: Whether the broker answers, how often and how long it did not.
        renewed_ago: Seconds since the broker renewed the lease; None before the first time.
        lease_left: Seconds for which the lease still holds; None like that.
        started_at: ms since the epoch.
        supervisor, family: What the supervisor has used, and its children together.
        largest: Resident bytes of the largest child; None where the system does not tell.
    """

    id: str
    name: str
    version: str
    ready: bool
    slots: int
    busy: int
    held: int
    unsettled: int
    children: int
    children_ready: int
    restarts: Mapping[str, int]
    broker_up: bool
    outages: int
    outage_seconds: float
    renewed_ago: float | None
    lease_left: float | None
    started_at: int
    supervisor: Usage
    family: Usage
    largest: int | None


class _Kind:
    """The jobs of one task in one queue."""

    __slots__ = ("ends", "run")

    def __init__(self) -> None:
        self.ends: dict[tuple[JobState, Charge], int] = {}
        self.run = Histogram(JOB_SECONDS)


class _Claims:
    """What was claimed from one queue."""

    __slots__ = ("count", "wait")

    def __init__(self) -> None:
        self.count = 0
        self.wait = Histogram(JOB_SECONDS)


class Metrics:
    """The counters of one worker."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._claims: dict[str, _Claims] = {}
        self._exchanges = Histogram(EXCHANGE_SECONDS)
        self._fenced = 0
        self._family_cpu = 0.0

    # -- what happens

    def exchanged(self, seconds: float, stored: Sequence[Outcome], leases: Sequence[Lease], fenced: int = 0) -> None:
        """One exchange with the broker took so long, stored these outcomes, brought these jobs, and refused some."""
        self._exchanges.add(seconds)
        self._fenced += fenced
        if stored:
            self._count_outcomes(stored)
        if leases:
            self._count_claims(leases)

    def _count_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        queue = task = None
        kind = _Kind()
        for outcome in outcomes:
            if outcome.task != task or outcome.queue != queue:
                queue, task = outcome.queue, outcome.task
                kind = self._kinds.get((queue, task)) or self._new_kind(queue, task)
            end = outcome.state, outcome.charge
            kind.ends[end] = kind.ends.get(end, 0) + 1
            if outcome.run_seconds:
                kind.run.add(outcome.run_seconds)

    def _count_claims(self, leases: Sequence[Lease]) -> None:
        now = SYSTEM.now()
        queue = None
        claims = _Claims()
        for lease in leases:
            if lease.queue != queue:
                queue = lease.queue
                claims = self._claims.get(queue) or self._new_claims(queue)
            claims.count += 1
            if lease.token == 1:  # how long a job waits for its second run is up to its back-off
                claims.wait.add(max(now - lease.enqueued_at, 0) / 1000)

    def _new_kind(self, queue: str, task: str) -> _Kind:
        key = (queue, task) if len(self._kinds) < MOST_LABELS else (OTHER, OTHER)
        return self._kinds.setdefault(key, _Kind())

    def _new_claims(self, queue: str) -> _Claims:
        key = queue if len(self._claims) < MOST_LABELS else OTHER
        return self._claims.setdefault(key, _Claims())

    # -- what is told

    def render(self, now: Snapshot) -> str:
        """Everything, in Prometheus's text format."""
        page = Page()
        self._render_jobs(page)
        self._render_broker(page, now)
        _render_worker(page, now)
        self._render_processes(page, now)
        return page.text()

    def _render_jobs(self, page: Page) -> None:
        kinds = [({"queue": queue, "task": task}, kind) for (queue, task), kind in self._kinds.items()]
        ends = [(labels, *end, count) for labels, kind in kinds for end, count in kind.ends.items()]
        page.counter("mouso_jobs_total", "Runs and claims that ended, by the state that they brought their job to.",
                     [({**labels, "state": state}, count) for labels, state, _, count in ends])  # fmt: skip
        page.counter("mouso_job_retries_total", "Runs that failed and will be repeated.",
                     [(labels, count) for labels, state, _, count in ends if state is JobState.RETRYABLE])  # fmt: skip
        page.counter("mouso_job_crashes_total", "Runs under which the process died.",
                     [(labels, count) for labels, _, charge, count in ends if charge is Charge.CRASH])  # fmt: skip
        page.counter("mouso_job_releases_total", "Claims that were given back, uncharged.",
                     [(labels, count) for labels, _, charge, count in ends if charge is Charge.RELEASE])  # fmt: skip
        page.counter("mouso_outcomes_fenced_total", "Outcomes that came too late: the job had been taken over.",
                     [({}, self._fenced)])  # fmt: skip
        page.histogram("mouso_job_run_seconds", "How long runs took.", [(labels, kind.run) for labels, kind in kinds])
        claims = [({"queue": queue}, claims) for queue, claims in self._claims.items()]
        page.counter("mouso_job_claims_total", "Jobs that were claimed.",
                     [(labels, each.count) for labels, each in claims])  # fmt: skip
        page.histogram("mouso_job_wait_seconds", "Time from enqueue to first claim, a wanted delay included.",
                       [(labels, each.wait) for labels, each in claims])  # fmt: skip

    def _render_broker(self, page: Page, now: Snapshot) -> None:
        page.gauge("mouso_broker_up", "Whether the broker answers.", int(now.broker_up))
        page.counter("mouso_broker_outages_total", "Times that the broker stopped answering.", [({}, now.outages)])
        page.counter("mouso_broker_outage_seconds_total", "Time in which the broker did not answer.",
                     [({}, now.outage_seconds)])  # fmt: skip
        page.histogram("mouso_broker_exchange_seconds", "How long exchanges with the broker took.",
                       [({}, self._exchanges)])  # fmt: skip
        page.gauge("mouso_heartbeat_age_seconds", "Time since the broker last renewed the lease.", now.renewed_ago)
        page.gauge("mouso_lease_left_seconds", "Time for which the lease still holds.", now.lease_left)

    def _render_processes(self, page: Page, now: Snapshot) -> None:
        # Two clocks measure the living and the dead: the sum may step back by a hair, which would read as a restart.
        self._family_cpu = max(self._family_cpu, now.family.cpu or 0.0)
        page.counter("mouso_children_cpu_seconds_total", "CPU time of all children so far.", [({}, self._family_cpu)])
        page.gauge("mouso_children_resident_memory_bytes", "Resident memory of the children.", now.family.memory)
        page.gauge("mouso_child_resident_memory_max_bytes", "Resident memory of the largest child.", now.largest)
        if now.supervisor.cpu is not None:
            page.counter("process_cpu_seconds_total", "CPU time of the supervisor.", [({}, now.supervisor.cpu)])
        page.gauge("process_resident_memory_bytes", "Resident memory of the supervisor.", now.supervisor.memory)
        page.gauge("process_open_fds", "Open file descriptors of the supervisor.", now.supervisor.files)
        page.gauge("process_start_time_seconds", "When the worker started, since the epoch.", now.started_at / 1000)


def _render_worker(page: Page, now: Snapshot) -> None:
    build = {"version": now.version, "python": platform.python_version()}
    page.gauge("mouso_build_info", "The versions that run.", 1, build)
    page.gauge("mouso_worker_info", "Who the worker is.", 1 if now.id else None, {"id": now.id, "name": now.name})
    page.gauge("mouso_worker_ready", "Whether the worker serves.", int(now.ready))
    page.gauge("mouso_slots", "Jobs that can run at once.", now.slots)
    page.gauge("mouso_slots_busy", "Jobs that run.", now.busy)
    page.gauge("mouso_jobs_held", "Claimed jobs that have not started.", now.held)
    page.gauge("mouso_outcomes_unsettled", "Outcomes that the broker has not stored yet.", now.unsettled)
    page.gauge("mouso_children", "Child processes.", now.children)
    page.gauge("mouso_children_ready", "Child processes that take jobs.", now.children_ready)
    page.counter("mouso_child_restarts_total", "Children that ended and were replaced, by the cause of their end.",
                 [({"cause": cause}, count) for cause, count in now.restarts.items()])  # fmt: skip
