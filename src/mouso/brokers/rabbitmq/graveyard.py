"""The dead letters: jobs that failed for good or were not started in time, with their reasons and errors."""

from __future__ import annotations

from collections.abc import Callable, Collection

from mouso.brokers.rabbitmq.frames import Message
from mouso.brokers.rabbitmq.letter import Letter, decode
from mouso.brokers.rabbitmq.sending import Sending
from mouso.brokers.rabbitmq.shelf import Piece, Shelf, Verdict


class Graveyard:
    """The queue of dead letters."""

    def __init__(self, sending: Sending) -> None:
        self._sending = sending
        self._shelf = Shelf(sending.publisher, sending.publisher, sending.topology, sending.names.dead)

    def letters(self, deadline: float) -> list[Letter]:
        """All of them, the first that died first."""
        self._sending.topology.base(deadline)
        found: list[Letter] = []

        def keep(pieces: list[Piece]) -> Verdict:
            found.extend(decode(piece.body) for piece in pieces)
            return Verdict()

        self._shelf.visit(keep, deadline)
        return found

    def size(self, deadline: float) -> int:
        """How many there are."""
        found = self._sending.topology.size(self._sending.names.dead, deadline)
        return found[0] if found else 0

    def move(self, ids: Collection[str], change: Callable[[Letter], Letter] | None, deadline: float) -> set[str]:
        """Takes letters out, once what they are changed to is stored; returns the ids of those that were there.

        Args:
            change: Makes the job that is to run again; None if nothing is left of it.
        """
        wanted, found = set(ids), set[str]()
        for letter in self.letters(deadline):  # their queues are made first: it cannot be done meanwhile
            if letter.id in wanted and change is not None:
                self._sending.topology.queue(letter.queue, deadline)

        def act(pieces: list[Piece]) -> Verdict:
            gone: list[Piece] = []
            sent: list[Message] = []
            for piece in pieces:
                letter = decode(piece.body)
                if letter.id in wanted:
                    gone.append(piece)
                    found.add(letter.id)
                    if change is not None:
                        sent.append(self._sending.names.message(change(letter)))
            return Verdict(gone, sent)

        self._shelf.visit(act, deadline)
        return found

    def prune(self, died_before: int, most: int, limit: int, deadline: float) -> int:
        """Removes those that died before an instant, and those over a number, the first first; returns how many."""
        size, pruned = self.size(deadline), 0

        def past(pieces: list[Piece]) -> Verdict:
            nonlocal pruned
            over = size - most
            gone = [
                piece
                for place, piece in enumerate(pieces)
                if place < over or (decode(piece.body).finished_at or 0) <= died_before
            ]
            pruned = len(gone)
            return Verdict(gone)

        if size:
            self._shelf.visit(past, deadline, limit)
        return pruned
