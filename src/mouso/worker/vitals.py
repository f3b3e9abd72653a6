"""What is told of a worker while it lives: to probes and Prometheus, and to the service manager that started it.

* Live: the loop turns, for it answers, and the pump makes its steps. The broker has no part in it: a worker that is
  restarted because the broker is away is no better off.
* Ready: the broker answers, the lease is renewed, a child takes jobs, and the worker is not about to stop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from mouso.brokers.base import LEASE_MS, WorkerInfo
from mouso.clock import SYSTEM
from mouso.config import counted
from mouso.observe.health import HealthServer, listen, parse_address
from mouso.observe.metrics import Metrics, Snapshot
from mouso.observe.notify import Notifier
from mouso.observe.processes import family_usage, own_usage
from mouso.worker import WorkerOptions
from mouso.worker.fleet import Fleet
from mouso.worker.pump import Line, Pump
from mouso.worker.watchdog import Watchdog

_LOOK, _LOOK_UNREADY = 1.0, 0.05
_STALLED = 20.0
"""Seconds without a step of the pump, which makes one a second even when there is nothing to do."""
_OVERDUE = 10.0
"""Seconds without a renewal of the lease, which is due every five."""

log = logging.getLogger("mouso.worker")


class Vitals:
    """The signs of life of one worker.

    Attributes:
        metrics: What the pump counts in; None if nobody can read it.

    Raises:
        ConfigError: The address for health cannot be listened on.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self.metrics = Metrics() if options.health else None
        self._sockets = listen(parse_address(options.health)) if options.health else []
        self._notifier = Notifier.from_environment()
        self._server: HealthServer | None = None
        self._fleet: Fleet
        self._pump: Pump
        self._watchdog: Watchdog
        self._line: Line | None = None
        self._info: WorkerInfo | None = None
        self._renewed: Callable[[], int]
        self._stopping = False
        self._told_stuck = False

    # -- the worker's life

    def begin(self, fleet: Fleet, pump: Pump, watchdog: Watchdog) -> None:
        """The worker starts; what is asked for is answered from now on."""
        self._fleet, self._pump, self._watchdog = fleet, pump, watchdog
        if self.metrics is not None:
            self._server = HealthServer(self._sockets, self.stalled, self.unready, self._metrics)
            self._server.start()
            log.info("health is answered at %s", ", ".join(f"http://{a}" for a in self._server.addresses))

    def joined(self, line: Line, info: WorkerInfo, renewed: Callable[[], int]) -> None:
        """The broker knows the worker.

        Args:
            renewed: When the lease was renewed last, on ``SYSTEM.steady()``.
        """
        self._line, self._info, self._renewed = line, info, renewed

    def stopping(self) -> None:
        """The worker has begun to stop."""
        self._stopping = True
        self._notifier.stopping()

    def end(self) -> None:
        """Nothing is answered any more."""
        if self._server is not None:
            self._server.close()
        self._notifier.close()

    async def watch(self) -> None:
        """Keeps the service manager informed, until it is cancelled."""
        ready = False
        next_tick = SYSTEM.monotonic()
        while self._notifier.active:
            self._notifier.status(self.status())
            if not ready and not self.unready():
                ready = True
                self._notifier.ready()
            pause = _LOOK if ready else _LOOK_UNREADY
            if self._notifier.interval is not None:
                if SYSTEM.monotonic() >= next_tick and not self._stuck():
                    self._notifier.tick()
                    next_tick = SYSTEM.monotonic() + self._notifier.interval
                pause = min(pause, max(next_tick - SYSTEM.monotonic(), self._notifier.interval / 4))
            await asyncio.sleep(pause)

    def _stuck(self) -> bool:
        """Whether the service manager should think that the worker is dead; the first time is told."""
        why = self._watchdog.stuck or self.stalled()
        if why and not self._told_stuck:
            log.error("the service manager is not told that the worker lives: %s", why)
        self._told_stuck = bool(why)
        return self._told_stuck

    # -- what is told

    def stalled(self) -> str:
        """Why the worker makes no progress of its own; empty if it does."""
        age = self._pump.idle_seconds
        return f"the pump has made no step for {age:.0f} s" if age > _STALLED else ""

    def unready(self) -> str:
        """Why the worker does not serve; empty if it does."""
        if self._stopping:
            return "the worker is stopping"
        if self._line is None:
            return "the worker is starting"
        if self._line.down_since is not None:
            return "the broker does not answer"
        if self._renewed_ago() > _OVERDUE:
            return f"the lease was not renewed for {self._renewed_ago():.0f} s"
        if not self._fleet.census().ready:
            return "no child process is ready"
        return ""

    def status(self) -> str:
        """A sentence on how the worker is."""
        census = self._fleet.census()
        if self._stopping:
            return f"stopping: {counted(census.running, 'running job')}"
        if why := self.unready():
            return why
        ready, wanted = census.ready, self._fleet.size
        return f"serving with {ready} of {wanted} processes" if ready < wanted else "serving"

    def _renewed_ago(self) -> float:
        return max(SYSTEM.steady() - self._renewed(), 0) / 1000

    def _metrics(self) -> str:
        assert self.metrics is not None
        census, line, info = self._fleet.census(), self._line, self._info
        renewed_ago = None if line is None else self._renewed_ago()
        family, largest = family_usage(census.pids)
        return self.metrics.render(
            Snapshot(
                id=info.id if info else "",
                name=info.name if info else "",
                version=info.version if info else "",
                ready=not self.unready(),
                slots=self._fleet.slots if info else 0,
                busy=census.running,
                held=census.held,
                unsettled=self._pump.unsettled,
                children=len(census.pids),
                children_ready=census.ready,
                restarts=self._fleet.restarts,
                broker_up=line is not None and line.down_since is None,
                outages=line.outages if line else 0,
                outage_seconds=line.outage_seconds if line else 0.0,
                renewed_ago=renewed_ago,
                lease_left=None if renewed_ago is None else max(LEASE_MS / 1000 - renewed_ago, 0.0),
                started_at=info.started_at if info else 0,
                supervisor=own_usage(),
                family=family,
                largest=largest,
            )
        )
