"""`python -m benchmarks [NAME …] [--runs 5] [--quick] [--dir FOLDER]`: measures, shows, and keeps the results."""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import date
from pathlib import Path

from benchmarks import (
    backlog,
    cpu_bound,
    drain,
    enqueue,
    io_bound,
    latency,
    machine,
    memory,
    peers,
    rabbitmq,
    recycling,
    report,
    servers,
)
from benchmarks.plan import Plan
from benchmarks.results import Row
from benchmarks.rig import ROOT, Folders

BENCHMARKS: Mapping[str, Callable[[Plan], list[Row]]] = {
    "drain": drain.run,
    "enqueue": enqueue.run,
    "latency": latency.run,
    "io": io_bound.run,
    "cpu": cpu_bound.run,
    "backlog": backlog.run,
    "memory": memory.run,
    "recycling": recycling.run,
    "redis": servers.redis,
    "postgres": servers.postgres,
    "rabbitmq": rabbitmq.run,
}
_SHARED = Path("/dev/shm")
_BUSY = 0.3
_IN_MEMORY = {"tmpfs", "ramfs"}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures Mouso against its targets.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--runs", type=int, default=5, help="how often each is measured (default 5)")
    parser.add_argument("--quick", action="store_true", help="one run of a tenth of the work; nothing is kept")
    parser.add_argument("--dir", type=Path, help="where to put the files; must be on a real disk")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    return options


def _parent(given: Path | None) -> Path:
    """A folder on a disk: the one given, else the system's, else the project's."""
    candidates = [given] if given else [Path(tempfile.gettempdir()), ROOT]
    for folder in candidates:
        if folder.is_dir() and machine.file_system(folder) not in _IN_MEMORY:
            return folder
    sys.exit(f"benchmarks: error: {candidates[0]} is no folder on a disk; choose another with --dir")


def main() -> int:
    """Runs what was asked for."""
    options = _options()
    machine.check()
    names = [name for name in BENCHMARKS if name in (options.names or BENCHMARKS)]
    servers.check(names)
    python = peers.python()
    runs = 1 if options.quick else options.runs
    command = " ".join(["python -m benchmarks", *options.names, f"--runs {runs}"])
    missed = 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends servers and workers, as Ctrl-C does
    tempfile.tempdir = str(_parent(options.dir))  # the servers' folders too
    with (
        tempfile.TemporaryDirectory(prefix="mouso-bench-") as disk,
        tempfile.TemporaryDirectory(
            prefix="mouso-bench-", dir=_SHARED if os.access(_SHARED, os.W_OK) else disk
        ) as memory_,
        ExitStack() as running,
    ):
        folders = Folders(Path(disk), Path(memory_))
        plan = Plan(folders=folders, runs=runs, quick=options.quick, peers=python, servers=running)
        facts = machine.facts(plan.folders.disk, peers.versions(python))
        print("; ".join(f"{key}: {value}" for key, value in facts.items()), flush=True)
        if os.getloadavg()[0] > _BUSY:
            print("benchmarks: warning: the machine is busy with other work; the numbers will mean little", flush=True)
        for name in names:
            began = time.monotonic()
            rows = BENCHMARKS[name](plan)
            seconds = round(time.monotonic() - began)
            missed += sum(row.verdict.startswith("missed") for row in rows)
            print(f"\n{name}: {seconds} s\n{report.show(rows)}", flush=True)
            if not options.quick:
                about = {"command": command, "date": str(date.today()), "runs": runs, "seconds": seconds}
                report.keep(name, rows, {**about, "machine": facts}, list(BENCHMARKS))
    print(f"\n{missed} of the targets missed" + ("; nothing is kept of a quick run" if options.quick else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
