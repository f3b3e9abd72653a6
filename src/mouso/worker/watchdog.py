"""Watches the supervisor from outside its loop: by what it gets done, not by whether it lives.

A worker that is alive and does nothing is worse than a dead one, which is replaced. So a thread looks once a second
whether the loop has moved and whether calls of the broker come back. Standing still is told once; if it lasts, the
stacks are written to stderr and the process ends with the exit code 75, to be started anew by whoever started it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from types import FrameType
from typing import NamedTuple

from mouso.observe.outlet import put_stacks

EXIT_CODE = 75

log = logging.getLogger("mouso.worker")


class Patience(NamedTuple):
    """How long something may stand still.

    Attributes:
        look: Seconds between two looks.
        tell: Looks without progress until it is told.
        end: Looks without progress until the process is ended. Looks are counted, not seconds: a process that was
            stopped or suspended for an hour has had no chance to move.
    """

    look: float = 1.0
    tell: int = 10
    end: int = 60


_PATIENCE = Patience()


class Watchdog:
    """Ends the process if its loop or its calls stand still.

    Must be made in the thread of the loop.

    Attributes:
        calls: Calls that must come back, by a number of their own; whoever makes one notes it here meanwhile.
    """

    def __init__(self, patience: Patience = _PATIENCE) -> None:
        self._patience = patience
        self._loop_thread = threading.get_ident()
        self._moved = False
        self._loop_misses = 0
        self.calls: dict[int, str] = {}
        self._call_misses: dict[int, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="mouso-watchdog", daemon=True)
        self._thread.start()

    def moved(self) -> None:
        """The loop moves; to be called from it at least twice a second."""
        self._moved = True

    @property
    def stuck(self) -> str:
        """What stands still, in words; empty when all moves."""
        if self._loop_misses >= self._patience.tell:
            return "the supervisor's event loop does not move"
        for number, misses in list(self._call_misses.items()):
            if misses >= self._patience.tell:
                return f"the broker's {self.calls.get(number, 'call')} does not come back"
        return ""

    def close(self) -> None:
        """Stops watching."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._patience.look):
            self._look()

    def _look(self) -> None:
        self._loop_misses = 0 if self._moved else self._loop_misses + 1
        self._moved = False
        self._call_misses = {number: self._call_misses.get(number, -1) + 1 for number in list(self.calls)}
        worst = max(self._loop_misses, *self._call_misses.values(), 0)
        if worst == self._patience.tell:
            log.error("%s (%.0f s so far)%s", self.stuck, worst * self._patience.look, self._where())
        elif worst >= self._patience.end:
            log.critical(
                "%s for %.0f s; this worker ends with exit code %d, its jobs go to others",
                self.stuck, worst * self._patience.look, EXIT_CODE,
            )  # fmt: skip
            put_stacks()
            os._exit(EXIT_CODE)

    def _where(self) -> str:
        frame = sys._current_frames().get(self._loop_thread) if self._loop_misses else None
        return f": {place(frame)}" if frame is not None else ""


def place(frame: FrameType) -> str:
    """``file:line, in function`` where a thread is."""
    last = traceback.extract_stack(frame, limit=None)[-1]
    return f"{last.filename}:{last.lineno}, in {last.name}"
