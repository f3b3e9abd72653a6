"""The seam between Mouso and a store: one protocol, at job verbs.

Every verb is plain blocking code, one atomic step, and safe to call from several threads. No SQL, client
object or client exception crosses the seam: what goes wrong is ``BrokerUnavailable`` (nothing happened) or
``OutcomeUnknown`` (repeat it with the same ids). The ``Guarantees`` of each verb are the sentences that
``mouso.testing.conformance`` tests on every broker; ``brokers/memory.py`` is the executable form of them.

"Now" is always the broker's own clock.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from mouso.job import Job, JobState, Lease, Outcome, Progress, RunInfo


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker can do; a task that needs more is refused when it is declared.

    Attributes:
        unique: It knows a job that it has had before: by a unique key, or by its id.
        inspect: It can look for jobs that wait or run, and act on them; without it, on dead ones only.
        results: It remembers what became of a job, and what it returned.
        shared: Other processes see the same jobs.
        remote: Jobs are stored by a server: who waits for it has its CPU to itself.
        transactional: ``enqueue`` can join a caller's transaction, and a job can end in one of its own.
    """

    name: str
    delay: bool = True
    priority: bool = True
    unique: bool = True
    inspect: bool = True
    results: bool = True
    workflows: bool = False
    limits: bool = False
    push: bool = True
    transactional: bool = False
    shared: bool = True
    remote: bool = False


class Script(StrEnum):
    """SQL for administrators: the statements of ``migrate``, and roles with the least rights they need."""

    SCHEMA = "schema"
    ROLES = "roles"


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long finished jobs stay: by age (ms) and by count, whichever ends first."""

    finished: int = 24 * 3_600_000
    dead: int = 30 * 24 * 3_600_000
    max_finished: int = 1_000_000
    max_dead: int = 100_000


class Enqueued(msgspec.Struct, frozen=True):
    """What became of one job handed to ``enqueue``.

    Attributes:
        id: The job that is stored: the caller's, or the one that holds its id or unique key.
        created: False when that job was there before.
    """

    id: str
    created: bool


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker asks for.

    Attributes:
        limit: At most so many jobs, 0..10,000.
        shares: Queues in the order to serve them, each with how many of ``limit`` it may take before the others
            had their turn; what then is left over goes to the queues in the same order. None: every queue, equally.
        tasks: Names that the worker can run; None for all.
    """

    limit: int
    shares: Sequence[tuple[str, int]] | None = None
    tasks: frozenset[str] | None = None


class Exchange(msgspec.Struct, kw_only=True):
    """What one ``exchange`` did.

    Attributes:
        leases: Claimed jobs, in the order to start them.
        fenced: Keys of outcomes that changed nothing because their token no longer held.
        parked: Names of tasks whose jobs were set aside because no live worker knows them.
        next_due: ms until the earliest scheduled or retryable job is due (0: already), None for none.
    """

    leases: list[Lease]
    fenced: list[int | str] = []
    parked: list[str] = []
    next_due: int | None = None


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as it describes itself; one row per incarnation.

    Attributes:
        id: 16 hexadecimal digits, new at every start.
        name: For people; need not be unique.
        boot, namespace, started: Boot id, pid namespace and the process's start time (clock ticks since boot); with
            ``pid`` they prove whether a process of this host is still the same one.
        queues: Served queues, or empty for all.
        tasks: Names it can run.
        slots: Jobs it can run at once; 0 while none of its processes takes jobs.
        beat: When the broker last heard of it, ms since the epoch; set by the broker.
        lease_left: ms until its lease ends; set by the broker.
    """

    id: str
    name: str
    host: str
    pid: int
    boot: str = ""
    namespace: str = ""
    started: int = 0
    started_at: int = 0
    version: str = ""
    queues: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    slots: int = 0
    running: int = 0
    beat: int = 0
    lease_left: int = 0


class Command(msgspec.Struct, frozen=True):
    """What a worker is told at a heartbeat: ``cancel`` the claim ``key``/``token``, report its ``stack``, or ``rejoin``
    (it was reaped)."""

    kind: str
    key: int | str = 0
    token: int = 0


class Update(msgspec.Struct, array_like=True, gc=False):
    """News of one running claim; what is None stays as it is.

    Attributes:
        log: All that is kept of its log so far, from ``encode_log``.
        stack: Where it is, at most ``MAX_STACK`` characters.
    """

    key: int | str
    token: int
    progress: Progress | None = None
    log: bytes | None = None
    stack: str | None = None


class JobUpdate(msgspec.Struct, frozen=True):
    """What a waiting caller sees of a job; ``state`` is None for an unknown id."""

    id: str
    state: JobState | None
    attempts: int = 0
    progress: Progress | None = None


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to list. None does not narrow; ``after`` is the id of the last job of the page before."""

    states: frozenset[JobState] | None = None
    queue: str | None = None
    task: str | None = None
    parked: bool | None = None
    limit: int = 100
    after: str | None = None


class QueueInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A queue: how many jobs in which state, whether it is paused, and how long its oldest available job waits (ms)."""

    name: str
    counts: Mapping[JobState, int]
    paused: bool = False
    paused_until: int | None = None
    oldest: int | None = None


class CancelResult(StrEnum):
    """What ``cancel`` did."""

    CANCELLED = "cancelled"
    REQUESTED = "requested"
    DONE = "done"
    UNKNOWN = "unknown"


class RetryResult(StrEnum):
    """What ``retry`` did."""

    RETRIED = "retried"
    LIVE = "live"
    DONE = "done"
    CONFLICT = "conflict"
    UNKNOWN = "unknown"


class DeleteResult(StrEnum):
    """What ``delete`` did."""

    DELETED = "deleted"
    RUNNING = "running"
    UNKNOWN = "unknown"


class Level(StrEnum):
    """How bad a finding is, in this order; an error needs somebody now."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Finding(msgspec.Struct, frozen=True):
    """What somebody who looked for trouble has found.

    Attributes:
        check: What was looked at: one word, the same in every version, such as ``disk``.
        what: What there is, with its values; one sentence without its full stop.
        remedy: What to do about it, likewise; empty where there is nothing to do.
    """

    level: Level
    check: str
    what: str
    remedy: str = ""


class Diagnosis(msgspec.Struct, frozen=True):
    """What ``diagnose`` returns.

    Attributes:
        findings: What was found in the store itself.
        view: A broker on the same store whose ``get``, ``find``, ``queues`` and ``workers`` leave it as it is, too; the
            caller closes it. None if the store cannot be read.
    """

    findings: list[Finding]
    view: Broker | None


LEASE_MS = 15_000
"""How long a worker's lease holds without a heartbeat."""

EXIT_LOST = 77
"""With which a worker's process ends that cannot use the store any more: what runs in it need not be to blame."""
BATCH = 1000
"""The most jobs, ids or outcomes that callers hand over in one call."""


class Transaction(Protocol):
    """A transaction that a running job's own statements share with its end.

    Attributes:
        connection: What the job's statements go through.
    """

    connection: Any

    def settle(self, worker: str, outcome: Outcome, progress: Progress | None) -> bool:
        """Applies an outcome, and the run's last progress, as part of the transaction.

        Returns:
            Whether it was applied; False if it was fenced, as in ``Broker.exchange``.

        Raises:
            CapabilityError: The job has committed or rolled back by itself.
            BrokerUnavailable: It failed; the transaction cannot be committed.
        """
        ...

    def commit(self) -> Coroutine[Any, Any, None]:
        """Commits, and closes the connection. Nothing is awaited but what the connection itself has as a coroutine.

        Raises:
            BrokerUnavailable: It was certainly not committed.
            OutcomeUnknown: It may have been.
            Exception: The error of a connection that is not of Mouso's making.
        """
        ...

    def roll_back(self) -> Coroutine[Any, Any, None]:
        """Undoes it, and closes the connection; what fails about that is no error, as the transaction is lost then."""
        ...


class Broker(Protocol):
    """A store of jobs. See the module's text for what holds for every verb."""

    @property
    def url(self) -> str:
        """The broker's URL with the password left out."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    def notices(self) -> list[str]:
        """What an operator should know about this store, one sentence each; empty when all is well."""
        ...

    def open(self) -> None:
        """Connects, creates an empty store's schema, and brings an older one up to date or says who has to do it.

        Raises:
            ConfigError: The URL leads to something that is no store of jobs or cannot be used.
            SchemaError: The schema is newer than this version of Mouso, or older and for ``migrate`` to change; both
                versions are named.
            BrokerUnavailable: It cannot be reached.

        Guarantees:
            Calling it again does nothing. Every other verb opens by itself.
        """
        ...

    def close(self) -> None:
        """Lets go of connections, files and threads.

        Guarantees:
            Calling it again does nothing. A later verb opens again. Nothing stored is lost.
        """
        ...

    def migrate(self) -> tuple[int, int]:
        """Brings the schema up to date and returns its version before and after.

        Guarantees:
            Two at once: one does it, the other finds it done.
        """
        ...

    def sql(self, what: Script) -> str:
        """What an administrator may run instead of letting Mouso do it; nothing is connected to.

        Raises:
            CapabilityError: The store has no SQL, or nobody but Mouso to run it.
        """
        ...

    # -- producers

    def enqueue(self, jobs: Sequence[Job], *, connection: object | None = None, timeout: float = 5.0) -> list[Enqueued]:
        """Stores jobs and wakes a worker.

        Args:
            jobs: 0..1,000 jobs. ``delay`` and ``ttl`` count from now; ``due`` and ``expires_at`` are taken as they are.
            connection: The caller's own open transaction to join, on a ``transactional`` broker.
            timeout: Total deadline in seconds.

        Returns:
            One ``Enqueued`` per job, in order.

        Raises:
            CapabilityError: ``connection`` is of the wrong kind or the broker takes none.
            BrokerUnavailable, OutcomeUnknown: See the module.

        Guarantees:
            All are stored or none. A job that is due later is scheduled, any other available.
            An id that is stored already, in any state, changes nothing and is reported as not created.
            A unique key that is held changes nothing and reports its holder. One of scope ``queued`` is held until the
            job is first claimed; one of scope ``live`` until it is final; one of scope ``period`` for that long from
            its enqueue.
            A job that waits past its expiry holds no key of scope ``queued`` or ``live``: it expires in the same step
            in which another takes it. One that runs keeps it.
            With ``connection`` the jobs exist if and only if the caller commits; from then on a claim finds them,
            whether or not anything has rung.
        """
        ...

    # -- workers: only the supervisor calls these

    def wait(self, timeout: float) -> bool:
        """Blocks until there may be something new for a worker of this store, or for ``timeout`` seconds.

        Returns:
            Whether something rang: a hint, true too often rather than too seldom.

        Guarantees:
            An enqueue, retry, resume or cancel by any process that was committed after the last ``wait`` began
            ends it, unless ``capabilities.push`` is false. ``interrupt`` ends it.
        """
        ...

    def interrupt(self) -> None:
        """Makes a ``wait`` or ``watch`` of this broker object return at once; the next one if none is under way."""
        ...

    def exchange(self, worker: str, outcomes: Sequence[Outcome], want: Want) -> Exchange:
        """Settles outcomes, then claims jobs, in one step.

        Raises:
            ValueError: An outcome's state is none of ``TRANSITIONS[RUNNING]``; nothing changes.

        Guarantees:
            An outcome is applied if its token is the job's last claim, which this worker made, and the job is still
            running under it; else it changes nothing and its key is in ``fenced``. Applying adds 1 to the charged
            counter and stores result, reason and error with the new state, and with the run what it took and logged.
            A job is claimed by one worker only, however many ask at once. Claiming adds 1 to ``claims``.
            Inside a queue higher priority goes first, then what was enqueued first; a released or retried job keeps
            its place.
            A paused queue and an expired job are not claimed. No more than ``want.limit`` jobs are claimed.
            Every queue gets its share when all have enough; what one leaves, others take.
            A job whose task is not in ``want.tasks`` is never claimed; if no known worker knows it, this one included,
            it is parked and named. It stays available and is claimed like any other once a worker that knows it has
            heartbeat.
            Repeating it with the same outcomes reports them as fenced and changes nothing more.
        """
        ...

    def heartbeat(self, worker: WorkerInfo) -> list[Command]:
        """Announces a worker or renews its lease for 15 s.

        Returns:
            ``cancel`` for each of its running claims that somebody asked to cancel (at every heartbeat until it is
            settled), ``stack`` for each whose stack was asked for (until it is reported); ``rejoin`` first if the
            worker had been known and reaped.

        Guarantees:
            Parked jobs whose task it knows are available to it again.
        """
        ...

    def report(self, worker: str, updates: Sequence[Update]) -> list[int | str]:
        """Stores progress, logs and stacks of running claims of this worker; returns the keys whose token did not hold.

        Guarantees:
            The last progress, log and stack of a claim win; repeating an update changes nothing more. Fenced updates
            change nothing.
        """
        ...

    def reconcile(self, worker: str, held: Sequence[tuple[int | str, int]]) -> list[int | str]:
        """Brings the store and a worker to one mind about what it runs, such as after an exchange of unknown outcome.

        Args:
            held: Key and token of every claim that the worker knows of; no ``exchange`` of it may be under way.

        Returns:
            The keys in ``held`` that are not its running claims: their jobs were taken over or have ended.

        Guarantees:
            Its running claims that are not in ``held`` go back as in ``retire``; those in ``held`` are not touched.
            Idempotent.
        """
        ...

    def retire(self, worker: str) -> int:
        """Forgets a worker that has left or is proven dead; returns how many claims went back.

        Guarantees:
            Its running jobs are available again, their ``releases`` one higher, nothing else charged; one with a cancel
            requested is cancelled. An unknown worker is no error.
        """
        ...

    def transaction(self, connection: object | None = None) -> Transaction:
        """Begins a transaction in which a running job ends.

        Args:
            connection: The caller's, in no transaction yet, and from now on the transaction's unless this raises; None
                for a new one of the broker's own driver.

        Raises:
            CapabilityError: ``connection`` is of the wrong kind, or the broker takes none.
            BrokerUnavailable: It cannot be begun.

        Guarantees:
            What ``settle`` applies becomes so with the commit and not without; a fenced outcome changes nothing and
            leaves the transaction as it is.
        """
        ...

    # -- upkeep: any supervisor, any time, at most ``limit`` jobs

    def promote(self, limit: int) -> int:
        """Makes due jobs available and expires waiting jobs past their expiry; returns how many changed.

        Guarantees:
            Idempotent. Earliest due first. A running job is not touched.
        """
        ...

    def reap(self, limit: int) -> list[str]:
        """Retires workers whose lease has ended; returns their ids.

        Guarantees:
            A worker whose lease holds is not touched. Claims go back as in ``retire``, in several calls if there are
            more than ``limit``; the worker is named by the call that gave back the last one.
        """
        ...

    def prune(self, limit: int, retention: Retention) -> int:
        """Deletes finished jobs past their retention; returns how many.

        Guarantees:
            Live jobs are not touched. A result with its own ``keep`` goes by that age. Oldest enqueued first.
            More than ``max_finished`` (``max_dead``) are cut down to it.
        """
        ...

    # -- operators and waiting callers

    def cancel(self, ids: Sequence[str]) -> list[CancelResult]:
        """Cancels jobs.

        Guarantees:
            A waiting job is cancelled in this step and never starts. A running one is asked to stop: the wish is
            stored, reaches its worker at the next heartbeat, and also holds when the claim is released, snoozed or
            fails: the job is cancelled then.
            A job that completes all the same stays completed. A final job is left as it is (``done``).
            Nothing is stored for an unknown id.
        """
        ...

    def retry(self, ids: Sequence[str], *, payload: bytes | None = None) -> list[RetryResult]:
        """Makes dead, cancelled and expired jobs available again, with their attempts and crashes back at 0.

        Args:
            payload: Replaces the arguments.

        Guarantees:
            Scheduled and retryable jobs are due now. Other live jobs are left alone (``live``), completed ones too
            (``done``).
            ``claims`` and past errors are kept; expiry, result, reason and a cancel request are cleared.
            A job whose unique key another job holds by now is left alone (``conflict``). One that waits past its
            expiry lets go of it as in ``enqueue``.
        """
        ...

    def ask_stack(self, id: str) -> bool:
        """Asks for the stack of a running job; returns False, and asks nobody, if it does not run.

        Guarantees:
            The wish is stored and holds for this claim only: its worker is told at each heartbeat until a stack is
            reported. A stack that was reported before is forgotten, so one that is there is new.
        """
        ...

    def delete(self, ids: Sequence[str]) -> list[DeleteResult]:
        """Removes jobs and all that is kept of them.

        Guarantees:
            A running job is left alone (``running``).
        """
        ...

    def pause(self, queue: str, until: int | None = None) -> None:
        """Stops claims from a queue, until ``resume`` or until an instant.

        Guarantees:
            Idempotent. Jobs can still be enqueued; running ones go on. The queue need not exist yet.
        """
        ...

    def resume(self, queue: str) -> None:
        """Ends a pause. Idempotent."""
        ...

    def purge(self, queue: str, limit: int) -> int:
        """Removes up to ``limit`` waiting jobs of a queue for good; returns how many.

        Guarantees:
            Running and finished jobs are left alone. Unique keys are free again.
        """
        ...

    def get(self, ids: Sequence[str]) -> list[Job | None]:
        """Reads jobs with everything that is known of them, None for each unknown id."""
        ...

    def runs(self, id: str) -> list[RunInfo]:
        """What is known of the runs of a job, oldest first; empty for an unknown id.

        Guarantees:
            Runs that ended, and those that logged something or whose stack was taken; of one that failed or was given
            back only while it is among the last ``KEPT_RUNS`` claims. They stay as long as the job.
        """
        ...

    def find(self, where: JobFilter) -> list[Job]:
        """Lists jobs without ``errors``, the last enqueued first.

        Guarantees:
            At most ``limit``. Following ``after`` from page to page lists every job that stays as it is once.
        """
        ...

    def queues(self) -> list[QueueInfo]:
        """Every queue that ever had a job or was paused, by name."""
        ...

    def workers(self) -> list[WorkerInfo]:
        """Workers that are known, by start."""
        ...

    def diagnose(self, *, retention: Retention, full: bool = False) -> Diagnosis:
        """Looks for what is wrong with the store, or about to be: its place, its files, its integrity, its upkeep.

        Args:
            retention: What ``prune`` is given.
            full: Look at all that is stored, however long it takes.

        Guarantees:
            Nothing is changed or created, not even a store that does not exist. A store that cannot be used,
            whatever is the matter with it, is a finding, not an exception.
        """
        ...

    def watch(self, seen: Mapping[str, JobUpdate | None], timeout: float) -> list[JobUpdate]:
        """Waits until a job differs from what the caller has seen of it.

        Args:
            seen: 1..10,000 ids, each with the update last returned for it, or None.
            timeout: Seconds to wait when nothing differs yet.

        Returns:
            The updates that differ; empty when the time is over.

        Guarantees:
            A change that is there already returns at once. No final state is missed. An unknown id is a change once.
        """
        ...
