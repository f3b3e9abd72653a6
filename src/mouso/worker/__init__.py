"""The worker: a supervisor that talks to the broker, and child processes that run the jobs."""

from __future__ import annotations

import msgspec


class Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """When a worker with ``autoscale`` starts or ends a child.

    Attributes:
        look: Seconds between two looks.
        wait: Seconds for which all slots must have been taken, and a job have waited, before one more is started.
        quiet: Seconds for which one less must have been enough before one ends.
        step: Seconds between two changes.
        fill: How much of the slots that would be left may be taken for one less to be enough, 0..1.
        pressure: None is started when the machine is shorter of CPUs than this, 0..1.
        reserve: None is started when less than this part of the memory would be left, 0..1.
    """

    look: float = 1.0
    wait: float = 1.0
    quiet: float = 30.0
    step: float = 3.0
    fill: float = 0.75
    pressure: float = 0.4
    reserve: float = 0.05


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What ``mouso worker`` was asked for.

    Attributes:
        app: ``module:attribute``, as ``loading.load_app`` takes it.
        queues: Queues to serve with their weights; None for all.
        strict: Serve them in the order given, the next only when the one before is empty.
        processes: Children; None for the usable CPUs.
        concurrency: Jobs at once in each child.
        grace: Seconds that running jobs get at shutdown.
        name: For people; None for ``host:pid``.
        folder: Where the app is imported from; empty for the current directory.
        log_level: Of the ``mouso`` loggers.
        log_format: ``text`` or ``json``.
        output: ``tagged`` puts the job's id before each line that a job prints, ``raw`` leaves it as it is.
        health: ``HOST:PORT`` where ``/live``, ``/ready`` and ``/metrics`` are answered; None for nowhere.
        preload: Children are copies of a process that has imported the app, and share its memory.
        max_jobs_per_child: A child is replaced after so many jobs; None for never.
        max_memory_per_child: A child is replaced when it has more than so many bytes resident; None for never.
        autoscale: Fewest and most children; None for always ``processes``.
        scaling: When ``autoscale`` changes their number.
        reload: Children are replaced when the app's code changes.
    """

    app: str
    queues: tuple[tuple[str, int], ...] | None = None
    strict: bool = False
    processes: int | None = None
    concurrency: int = 8
    grace: float = 25.0
    name: str | None = None
    folder: str = ""
    log_level: str = "info"
    log_format: str = "text"
    output: str = "tagged"
    health: str | None = None
    preload: bool = False
    max_jobs_per_child: int | None = None
    max_memory_per_child: int | None = None
    autoscale: tuple[int, int] | None = None
    scaling: Scaling = Scaling()
    reload: bool = False


def run(options: WorkerOptions) -> int:
    """Runs a worker until it is told to stop; returns its exit code.

    Must be called in the main thread: it handles SIGTERM, SIGINT, SIGHUP and SIGQUIT, and leaves them ignored, so that
    one that comes late does not change the exit code; a program that goes on sets its own handlers again.
    """
    from mouso.worker.supervisor import main

    return main(options)
