"""CPU-bound work of a known amount, and bare processes that do it: `python -m benchmarks.spin JOBS ITERATIONS`."""

import sys
from time import monotonic, perf_counter


def spin(iterations: int) -> int:
    """Works; 50 ms are about a million iterations."""
    x = 1
    for _ in range(iterations):
        x = (x * 1_103_515_245 + 12_345) & 0x7FFFFFFF
    return x


def calibrate(seconds: float) -> int:
    """Iterations that take so long here, by the fastest of five tries."""
    trial = 200_000
    best = float("inf")
    for _ in range(5):
        began = perf_counter()
        spin(trial)
        best = min(best, perf_counter() - began)
    return int(trial * seconds / best)


def main() -> None:
    """Says `ready`, waits for a line, works, and prints when it began and ended (s, CLOCK_MONOTONIC)."""
    jobs, iterations = int(sys.argv[1]), int(sys.argv[2])
    print("ready", flush=True)
    sys.stdin.readline()
    began = monotonic()
    for _ in range(jobs):
        spin(iterations)
    print(began, monotonic(), flush=True)


if __name__ == "__main__":
    main()
