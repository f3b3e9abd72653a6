"""Runs the test suites on every supported Python that is found: `python -m tools.test_all [pytest options]`.

Each Python gets an environment of its own, `.venv-3.12` and so on. A version that is not installed is
named and does not fail the run; a version whose suites fail does.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13")


def candidates(version: str) -> Iterator[str]:
    """Yields where an interpreter of that version may be: this one, PATH, then pyenv's and uv's folders."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        yield os.path.realpath(sys.executable)
    if found := shutil.which(f"python{version}"):
        yield found
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for folder in (pyenv / "versions", Path.home() / ".local/share/uv/python"):
        yield from sorted(map(str, folder.glob(f"*{version}*/bin/python{version}")), reverse=True)


def is_version(python: str, version: str) -> bool:
    """Tells whether the interpreter starts (a pyenv shim may not) and is of that version."""
    show = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        answer = subprocess.run([python, "-c", show], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and answer.stdout.strip() == version


def find_python(version: str) -> str | None:
    """Returns the path of an interpreter of that version, or None."""
    return next((python for python in candidates(version) if is_version(python, version)), None)


def ready(environment: str, python: str) -> bool:
    """Makes the environment if it is missing or older than what it is made from; False if that failed."""
    stamp = ROOT / environment / ".ready-dev"
    inputs = [ROOT / "pyproject.toml", ROOT / "constraints/dev.txt"]
    if stamp.exists() and all(stamp.stat().st_mtime >= path.stat().st_mtime for path in inputs):
        return True
    made = subprocess.run(
        [python, "tools/bootstrap.py", environment, "--dev"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": python},
        check=False,
    )
    return made.returncode == 0


def run_suites(environment: str, options: Sequence[str]) -> bool:
    """Runs pytest in the environment; True if everything passed."""
    command = [f"{environment}/bin/pytest", "-n", "3", "--dist", "loadgroup", *options]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def main(options: Sequence[str]) -> int:
    """Runs every version in turn and prints one line for each; returns 1 if one failed or none was found."""
    results: dict[str, str] = {}
    for version in VERSIONS:
        python = find_python(version)
        if python is None:
            results[version] = "missing: no interpreter found"
            continue
        environment = f".venv-{version}"
        print(f"test-all: Python {version}", flush=True)
        if not ready(environment, python):
            results[version] = "failed: no environment"
        else:
            results[version] = "passed" if run_suites(environment, options) else "failed"
    for version, result in results.items():
        print(f"test-all: Python {version} {result}")
    failed = any(result.startswith("failed") for result in results.values())
    return 1 if failed or "passed" not in results.values() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
