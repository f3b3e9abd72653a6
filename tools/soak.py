"""Repeats tests with another seed each time: `python -m tools.soak [--times N | --minutes M] PYTEST-ARGUMENTS…`.

    python -m tools.soak --minutes 60 tests/chaos/test_kills.py
    python -m tools.soak --times 20 tests/chaos -k "freeze or deploy" -n 2

A round that fails leaves its output, and the command that repeats it, in `.tools/soak`; the others leave nothing.
Ends with 1 if any round failed, and with pytest's own code if there was nothing to run.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

SEED = "MOUSO_TEST_SEED"
FOLDER = Path(".tools/soak")
_FAILED = 1


def rounds(times: int, minutes: float | None) -> Iterator[int]:
    """Numbers of rounds: so many, or for so long."""
    end = None if minutes is None else time.monotonic() + 60 * minutes
    number = 0
    while number < times if end is None else time.monotonic() < end:
        number += 1
        yield number


def soak(times: int, minutes: float | None, arguments: Sequence[str]) -> int:
    """Runs the rounds; returns the exit code."""
    failed = 0
    for number in rounds(times, minutes):
        seed = random.SystemRandom().randrange(1_000_000)
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *arguments],
            env={**os.environ, SEED: str(seed)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        took = time.monotonic() - began
        if done.returncode not in (0, _FAILED):
            print(done.stdout)
            return done.returncode
        print(
            f"round {number}: {SEED}={seed}: {'ok' if done.returncode == 0 else 'FAILED'} in {took:.0f} s", flush=True
        )
        if done.returncode == _FAILED:
            failed += 1
            FOLDER.mkdir(parents=True, exist_ok=True)
            repeat = f"{SEED}={seed} {Path(sys.executable).name} -m pytest {' '.join(arguments)}"
            (FOLDER / f"{seed}.log").write_text(f"{repeat}\n\n{done.stdout}")
            print(f"  {FOLDER / f'{seed}.log'} has its output; to repeat it: {repeat}", flush=True)
    return _FAILED if failed else 0


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="tools.soak", description="Repeats tests with another seed each time.")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--times", type=int, default=10, help="how many rounds (10)")
    length.add_argument("--minutes", type=float, help="for how long")
    known, arguments = parser.parse_known_args()
    if not arguments:
        parser.error("say which tests, as for pytest: tests/chaos/test_kills.py")
    return soak(known.times, known.minutes, arguments)


if __name__ == "__main__":
    sys.exit(main())
