"""What a worker has of RabbitMQ's queues: messages in its hands, the queues they come from, and how to fetch more."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from mouso.brokers.rabbitmq.letter import Letter
from mouso.brokers.rabbitmq.names import LEVELS, Names
from mouso.clock import SYSTEM


class Held:
    """A message that was delivered and is not acknowledged yet.

    Attributes:
        count: How often it was delivered before, by the server's account: and lost, or given back.
        seen: The same, with what newer servers count elsewhere.
        generation: The channel's number; its tag means nothing on another.
        key, token, worker: Of the claim; a key of 0 is none.
        moving: The publish of what comes after it, while that is under way.
    """

    __slots__ = ("count", "generation", "key", "letter", "moving", "seen", "since", "tag", "tap", "token", "worker")

    def __init__(self, letter: Letter, tap: Tap, tag: int, count: int, seen: int, generation: int) -> None:
        self.letter = letter
        self.tap = tap
        self.tag = tag
        self.count, self.seen = count, seen
        self.generation = generation
        self.since = SYSTEM.monotonic()
        self.key = self.token = 0
        self.worker = ""
        self.moving: Any = None


class Tap:
    """One quorum queue, as this worker sees it.

    Attributes:
        ready: What waits in the buffer, in the order to start it.
        out: How many messages of it are not acknowledged.
        consumer: The tag of its consumer, empty if it has none.
    """

    __slots__ = ("consumer", "name", "out", "prefetch", "queue", "ready")

    def __init__(self, queue: str, name: str) -> None:
        self.queue, self.name = queue, name
        self.ready: deque[Held] = deque()
        self.out = self.prefetch = 0
        self.consumer = ""


class Source:
    """A queue of Mouso's: its levels, the highest first.

    Attributes:
        pushed: Whether consumers are to be there; else it is fetched from.
        fetched: When it last was, on the monotonic clock.
    """

    __slots__ = ("fetched", "pushed", "queue", "taps")

    def __init__(self, queue: str, names: Names) -> None:
        self.queue = queue
        self.taps = [Tap(queue, names.work(queue, level)) for level in LEVELS]
        self.pushed = False  # what is there already comes in its order
        self.fetched = 0.0


class Fetch:
    """What is fetched, and from where.

    Attributes:
        empty: Names of queues that had nothing more.
        done: Set at its end.
    """

    def __init__(self, plan: list[tuple[list[Tap], int]], limit: int) -> None:
        self._plan = plan
        self._left = limit
        self.empty: set[str] = set()
        self.done = threading.Event()

    def next(self) -> Tap | None:
        """Whose turn it is."""
        while self._plan and self._left > 0:
            taps, share = self._plan[0]
            if share > 0:
                for tap in taps:
                    if tap.name not in self.empty:
                        return tap
            del self._plan[0]
        return None

    def got(self) -> None:
        """There was a message."""
        taps, share = self._plan[0]
        self._plan[0] = taps, share - 1
        self._left -= 1
