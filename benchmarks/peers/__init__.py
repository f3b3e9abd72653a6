"""Other job systems, in an environment of their own, `.venv-bench`, made of constraints/bench.txt at the first use."""

import os
import subprocess
import sys
from pathlib import Path

from tools import bootstrap

ENVIRONMENT = ".venv-bench"
PINS = "constraints/bench.txt"
_NAMES = ("huey", "dramatiq", "celery", "pgqueuer", "procrastinate", "redis", "asyncpg", "psycopg")


def python() -> Path:
    """The interpreter of the peers' environment, made or brought up to date if need be.

    Raises:
        SystemExit: It cannot be made; holds the line that says why.
    """
    environment, log = bootstrap.ROOT / ENVIRONMENT, bootstrap.ROOT / f"{ENVIRONMENT}.log"
    stamp, pins = environment / ".ready", bootstrap.ROOT / PINS
    interpreter = environment / "bin" / "python"
    if stamp.exists() and stamp.stat().st_mtime >= pins.stat().st_mtime:
        return interpreter
    os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    try:
        log.write_bytes(b"")
        bootstrap.make_environment(environment, log)
        if not bootstrap.run([str(interpreter), "-m", "pip", "install", "-qq", "-r", PINS], log):
            raise bootstrap.SetUpError(f"pip failed ({bootstrap.last_error(log)}); all of it is in {log.name}")
    except bootstrap.SetUpError as error:
        sys.exit(f"benchmarks: error: {error}")
    stamp.touch()
    return interpreter


def versions(interpreter: Path) -> dict[str, str]:
    """The versions of the peers, and of what they reach their servers with."""
    listing = subprocess.run(
        [str(interpreter), "-m", "pip", "freeze"], capture_output=True, text=True, check=True, cwd=bootstrap.ROOT
    ).stdout
    found = dict(line.split("==", 1) for line in listing.splitlines() if "==" in line)
    return {name: found[name] for name in _NAMES}
