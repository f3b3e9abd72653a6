"""What all workers and tools have to know beside the jobs: which queues there are, and which of them are paused.

A fact is told through a fanout exchange: to the workers that listen, and to a quorum queue for those who come later.
Who reads that queue takes out what newer facts have replaced, so that anybody may tell again what is known.
"""

from __future__ import annotations

import msgspec

from mouso.brokers.rabbitmq.frames import Message
from mouso.brokers.rabbitmq.names import Names
from mouso.brokers.rabbitmq.shelf import Piece, Shelf, Verdict


class Fact(msgspec.Struct, frozen=True, array_like=True):
    """One fact; later ones count.

    Attributes:
        kind: ``queue`` (it exists), ``pause`` or ``resume``.
        until: When a pause ends, ms since the epoch; None for never.
    """

    kind: str
    queue: str
    until: int | None = None


_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Fact)


class Facts:
    """What is known.

    Attributes:
        queues: Every queue that ever had a job or was paused.
        pauses: When the pause of each paused queue ends, None for never.
    """

    def __init__(self) -> None:
        self.queues: frozenset[str] = frozenset()
        self.pauses: dict[str, int | None] = {}

    def learn(self, fact: Fact) -> None:
        """Takes a fact over."""
        if fact.queue not in self.queues:
            self.queues |= {fact.queue}
        if fact.kind == "pause":
            self.pauses[fact.queue] = fact.until
        elif fact.kind == "resume":
            self.pauses.pop(fact.queue, None)

    def paused(self, queue: str, now: int) -> bool:
        """Whether a queue is paused."""
        until = self.pauses.get(queue, 0)
        return until is None or now < until


def encode(names: Names, fact: Fact) -> Message:
    """A fact on its way to everybody."""
    return Message(names.news, "", "", fact.kind, _encoder.encode(fact))


def decode(body: bytes) -> Fact | None:
    """The fact that a message tells, if it is one."""
    try:
        return _decoder.decode(body)
    except msgspec.MsgspecError:
        return None


def read(shelf: Shelf, deadline: float) -> Facts:
    """All facts that there are by now."""
    facts = Facts()

    def learn(pieces: list[Piece]) -> Verdict:
        kept: dict[tuple[str, bool], Piece] = {}
        gone: list[Piece] = []
        for piece in pieces:
            fact = decode(piece.body)
            if fact is None:
                gone.append(piece)
                continue
            facts.learn(fact)
            about = fact.queue, fact.kind == "queue"
            if about in kept:
                gone.append(kept[about])
            kept[about] = piece
        return Verdict(gone)

    shelf.visit(learn, deadline)
    return facts
