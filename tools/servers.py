"""Installs the servers that the tests start for themselves: ``python -m tools.servers``.

As root on Debian or Ubuntu, by apt, and so that none of them is started. Else it says what to install; the tests that
need what is missing are then skipped, and fail where ``$CI`` is set.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

PACKAGES: Mapping[str, str] = {
    "redis-server": "redis-server",
    "postgres": "postgresql",
    "initdb": "postgresql",
    "pgbouncer": "pgbouncer",
    "rabbitmq-server": "rabbitmq-server",
    "epmd": "rabbitmq-server",
}
"""Each program, and the package of Debian that has it."""
_POLICY = Path("/usr/sbin/policy-rc.d")
_MINUTES = 10


def find(program: str) -> str | None:
    """The path of a server's program, which Debian may keep out of ``$PATH``; the newest version of several.

    In ``/usr/sbin`` Debian has a rabbitmq-server that changes the user; the one that does not comes first.
    """
    folders = ["/usr/lib/rabbitmq/bin", os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    return shutil.which(program, path=os.pathsep.join([*map(str, versions), *folders]))


def missing() -> list[str]:
    """The packages to install."""
    return sorted({package for program, package in PACKAGES.items() if find(program) is None})


@contextmanager
def _not_started(policy: Path) -> Iterator[None]:
    """Lets packages start no service meanwhile, as policy-rc.d(8) is asked."""
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


def _apt(arguments: Sequence[str]) -> str:
    """Runs apt-get; returns what went wrong, in a line, or nothing."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    command = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120", *arguments]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_MINUTES * 60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if not done.returncode:
        return ""
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("E:", "W:"))]
    return said[0] if said else f"exit code {done.returncode}"


def install(packages: Sequence[str]) -> str:
    """Installs packages; returns what went wrong, in a line, or nothing."""
    with _not_started(_POLICY):
        arguments = ["install", "--no-install-recommends", *packages]
        return _apt(arguments) and (_apt(["update"]) or _apt(arguments))


def main() -> int:
    """Installs what is missing; returns 0, also when that cannot be: most tests need none of it."""
    packages = missing()
    if not packages:
        return 0
    command = f"apt-get install {' '.join(packages)}"
    if os.geteuid() or shutil.which("apt-get") is None:
        print(f"servers: tests of {', '.join(packages)} are skipped; to run them: sudo {command}", file=sys.stderr)
        return 0
    print(f"servers: {command}", flush=True)
    wrong = install(packages)
    if wrong or missing():
        print(
            f"servers: {', '.join(missing())} could not be installed ({wrong or 'apt-get said nothing'}); tests that"
            " need it are skipped",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
