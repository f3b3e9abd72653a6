"""The names and arguments of all that Mouso has in a virtual host, and the way that a message takes.

A queue of Mouso's is five quorum queues, ``mouso.NAMESPACE.q.QUEUE.LEVEL``, one for each level of priority. A delay
is a ladder: quorum queues ``mouso.NAMESPACE.wait.N`` in which a message stays 2ⁿ s, each behind a topic exchange of
the same name. The routing key says in which it stays: its first words are the bits of the delay in seconds, the
highest first. Where a bit is set the exchange leads to its queue, else to the next exchange; the last, ``….due``,
knows the queues.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from msgspec.structs import replace

from mouso.brokers.rabbitmq.frames import Message
from mouso.brokers.rabbitmq.letter import Letter, encode

RUNGS = 28
"""Delays of up to 2²⁸ - 1 s in one go; longer ones are sent around again."""
LEVELS = range(4, -1, -1)
"""Levels of priority, the highest first."""
_UNUSED_MS = 24 * 3_600_000
_MOST = 120
_QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}
_SAFE: dict[str, Any] = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
"""RabbitMQ from 3.10: what moves on by itself is gone here only once it is stored there."""


def level_of(priority: int) -> int:
    """0..4 for -100..-51, -50..-1, 0, 1..50, 51..100."""
    return 2 if priority == 0 else (3 if priority <= 50 else 4) if priority > 0 else (1 if priority >= -50 else 0)


def rungs_for(hold: int) -> int:
    """How many steps the ladder must have for a delay of so many ms."""
    return min((hold // 1000).bit_length(), RUNGS)


def token(queue: str) -> str:
    """A queue's name as one word of a routing key: letters, digits, ``_`` and ``-``, all else as ``=XX``."""
    word = "".join(
        c if c.isascii() and (c.isalnum() or c in "_-") else "".join(f"={byte:02X}" for byte in c.encode())
        for c in queue
    )
    return word if len(word) <= _MOST else f"{word[:80]}={blake2b(queue.encode(), digest_size=16).hexdigest()}"


class Names:
    """The names of one namespace."""

    def __init__(self, namespace: str) -> None:
        self._prefix = f"mouso.{namespace}"
        self.dead = f"{self._prefix}.dead"
        self.facts = f"{self._prefix}.facts"
        self.news = f"{self._prefix}.news"
        self.due = f"{self._prefix}.due"
        self.nowhere = f"{self._prefix}.nowhere"
        self._work: dict[tuple[str, int], str] = {}

    def work(self, queue: str, level: int) -> str:
        """The quorum queue of one level of a queue."""
        name = self._work.get((queue, level))
        if name is None:
            name = self._work[queue, level] = f"{self._prefix}.q.{token(queue)}.{level}"
        return name

    def rung(self, number: int) -> str:
        """A step of the ladder: its exchange, and its queue; below the lowest is the exchange ``due``."""
        return f"{self._prefix}.wait.{number}" if number >= 0 else self.due

    def hold(self, worker: str) -> str:
        """A worker's own queue, and the exchange before it."""
        return f"{self._prefix}.hold.{worker}"

    # -- arguments, which never change once a queue is there

    work_arguments = _QUORUM
    dead_arguments = facts_arguments = _QUORUM

    def rung_arguments(self, number: int) -> dict[str, Any]:
        """Of a step of the ladder."""
        return {
            **_QUORUM,
            **_SAFE,
            "x-message-ttl": 1000 << number,
            "x-dead-letter-exchange": self.rung(number - 1),
        }

    def hold_arguments(self, stays: int) -> dict[str, Any]:
        """Of a worker's own queue: what comes back to it goes, after so many ms, to where it came from."""
        return {
            **_QUORUM,
            **_SAFE,
            "x-message-ttl": stays,
            "x-dead-letter-exchange": "",
            "x-expires": _UNUSED_MS,
        }

    # -- where messages go

    def bound(self, number: int, *, stays: bool) -> str:
        """The pattern of keys whose message stays at a step of the ladder, or goes past it."""
        return ".".join([*"*" * (RUNGS - 1 - number), "1" if stays else "0", "#"])

    def due_key(self, queue: str, level: int) -> str:
        """The end of the keys of delayed messages for a queue."""
        return f"{token(queue)}.{level}"

    def message(self, letter: Letter) -> Message:
        """The letter on its way to its queue; what its delay has in whole seconds is waited for on the ladder."""
        level = level_of(letter.priority)
        rungs = rungs_for(letter.hold)
        if not rungs:
            return Message("", self.work(letter.queue, level), letter.id, letter.task, encode(letter))
        whole = min(letter.hold // 1000, (1 << RUNGS) - 1)
        rest = replace(letter, hold=letter.hold - whole * 1000)
        key = f"{'.'.join(f'{whole:0{RUNGS}b}')}.{self.due_key(letter.queue, level)}"
        return Message(self.rung(rungs - 1), key, letter.id, letter.task, encode(rest))

    def dead_message(self, letter: Letter) -> Message:
        """The letter on its way to the dead letters."""
        return Message("", self.dead, letter.id, letter.task, encode(letter))
