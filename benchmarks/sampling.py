"""How the clients of Mouso and of the peers take their samples: the same code for all. Standard library only."""

import random
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from benchmarks.slots import Slots

_APART = 0.02
_WARM_UP = 10


class Timer:
    """Measures a block that enqueues ``jobs`` jobs."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._wall = self._cpu = 0.0

    def __enter__(self) -> Self:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wall, self._cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu

    def result(self) -> dict[str, float]:
        """Jobs per second and µs of CPU per job."""
        return {"rate": self._jobs / self._wall, "cpu": self._cpu / self._jobs * 1e6}


def latency(
    slots: Slots, starts: int, results: int, enqueue: Callable[[int], Any], wait: Callable[[Any], Any]
) -> dict[str, list[float]]:
    """Takes samples about 20 ms ± 25 % apart.

    Args:
        enqueue: Enqueues the job that stamps a number.
        results: How many results to wait for; 0 where nobody remembers them.
        wait: Waits for the result of what ``enqueue`` returned.

    Returns:
        Milliseconds: ``start`` from before the call to the job's first line, ``call`` of the call itself, ``result``
        from before the call to the value in the caller's hands.
    """
    began, calls, waits = [], [], []
    for number in range(_WARM_UP + starts):
        time.sleep(_APART * random.uniform(0.75, 1.25))
        now = time.monotonic_ns()
        enqueue(number)
        calls.append((time.monotonic_ns() - now) / 1e6)
        began.append(now)
        if number == _WARM_UP - 1:
            _await(slots, _WARM_UP)
    _await(slots, _WARM_UP + starts)
    for number in range(_WARM_UP + starts, _WARM_UP + starts + (_WARM_UP + results if results else 0)):
        time.sleep(_APART * random.uniform(0.75, 1.25))
        now = time.monotonic_ns()
        wait(enqueue(number))
        waits.append((time.monotonic_ns() - now) / 1e6)
    return {
        "start": [(slots.stamped(number) - now) / 1e6 for number, now in enumerate(began)][_WARM_UP:],
        "call": calls[_WARM_UP:],
        "result": waits[_WARM_UP:],
    }


def _await(slots: Slots, jobs: int) -> None:
    """Waits until the jobs 0 to ``jobs`` - 1 have started.

    Raises:
        TimeoutError: They have not within 20 s.
    """
    deadline = time.monotonic() + 20
    while not all(slots.stamped(number) for number in range(jobs)):
        if time.monotonic() > deadline:
            raise TimeoutError("some jobs did not start within 20 s")
        time.sleep(0.01)
