"""Waits for jobs: one listener thread per app and process, however many callers wait."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable

from mouso.brokers.base import Broker, JobUpdate
from mouso.clock import SYSTEM

Callback = Callable[[JobUpdate | None], object]
"""Takes what is known of a job, or None when the listener was closed."""

_LINGER = 0.5
_RETRY = 0.2
_log = logging.getLogger("mouso.waiting")


class Subscription:
    """One caller's interest in one job; ``seen`` is the last update it was given."""

    __slots__ = ("callback", "job_id", "seen")

    def __init__(self, job_id: str, callback: Callback) -> None:
        self.job_id = job_id
        self.callback = callback
        self.seen: JobUpdate | None = None


class Listener:
    """Watches the jobs that somebody waits for. Its thread starts with the first and ends after the last."""

    def __init__(self, broker: Callable[[], Broker]) -> None:
        self._broker = broker
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def subscribe(self, job_id: str, callback: Callback) -> Subscription:
        """Calls ``callback`` (in the listener's thread) with what is known now and with every change."""
        if self._pid != os.getpid():
            self._reset()
        subscription = Subscription(job_id, callback)
        with self._changed:
            self._subscriptions.setdefault(job_id, []).append(subscription)
            self._closed = False
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="mouso-listener", daemon=True)
                thread.start()  # a Ctrl-C may come before it has, and then there is none to be joined
                self._thread = thread
            self._changed.notify()
        self._broker().interrupt()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Ends the interest."""
        with self._changed:
            others = self._subscriptions.get(subscription.job_id)
            if others and subscription in others:
                others.remove(subscription)
                if not others:
                    del self._subscriptions[subscription.job_id]

    def close(self) -> None:
        """Ends the thread; who still waits is told."""
        with self._changed:
            thread, self._closed = self._thread, True
            abandoned = [s for subscriptions in self._subscriptions.values() for s in subscriptions]
            self._subscriptions.clear()
            self._changed.notify()
        for subscription in abandoned:
            with contextlib.suppress(Exception):
                subscription.callback(None)
        if thread is not None and thread is not threading.current_thread():
            self._broker().interrupt()
            thread.join(5)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._subscriptions and not self._closed:
                    self._changed.wait(_LINGER)
                if not self._subscriptions:
                    self._thread = None
                    return
                waiting = {job_id: list(subscriptions) for job_id, subscriptions in self._subscriptions.items()}
            self._look(waiting)

    def _look(self, waiting: dict[str, list[Subscription]]) -> None:
        seen = {job_id: subscriptions[0].seen for job_id, subscriptions in waiting.items()}
        for job_id, subscriptions in waiting.items():
            if any(subscription.seen != seen[job_id] for subscription in subscriptions):
                seen[job_id] = None  # a newcomer has seen nothing yet
        try:
            updates = self._broker().watch(seen, timeout=1.0)
        except Exception as error:  # whatever it is, callers wait on: a dead listener would leave them hanging
            _log.debug("cannot look at jobs: %s", error)
            with self._changed:
                self._changed.wait(_RETRY)
            return
        for update in updates:
            for subscription in waiting[update.id]:
                if subscription.seen != update:
                    subscription.seen = update
                    with contextlib.suppress(Exception):  # a caller's closed event loop is the caller's affair
                        subscription.callback(update)


def remaining(deadline: float | None) -> float | None:
    """Seconds until a deadline on the monotonic clock, at least 0; None for never."""
    return None if deadline is None else max(deadline - SYSTEM.monotonic(), 0.0)
