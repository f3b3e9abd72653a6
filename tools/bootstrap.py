"""Makes a virtual environment with Mouso in it: `python3 tools/bootstrap.py .venv [--dev]`.

It needs Python 3.11 or newer and pip, nothing else. `python -m venv` is tried first; where Debian has
taken ensurepip out, virtualenv is put into `.tools/` and used instead. Every failure is one line that
says what to do. The syntax stays readable to old interpreters, so that they can say they are too old.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = "constraints/dev.txt"
MINIMUM = (3, 11)


class SetUpError(Exception):
    """The environment cannot be made; the message is the line that the user reads."""


def check_python(version, executable):
    # type: (tuple[int, ...], str) -> None
    """Raises SetUpError if the interpreter is too old."""
    if tuple(version[:2]) < MINIMUM:
        raise SetUpError(
            "%s is Python %d.%d, and Mouso needs 3.11 or newer: run 'make PYTHON=python3.12'"
            % (executable, version[0], version[1])
        )


def check_writable(folder):
    # type: (Path) -> None
    """Raises SetUpError if no environment can be made in the folder."""
    if not os.access(str(folder), os.W_OK | os.X_OK):
        raise SetUpError("%s is not writable: run make in a copy of the project that is yours" % folder)


def say(text):
    # type: (str) -> None
    print("set-up: " + text, flush=True)


def run(command, log):
    # type: (list[str], Path) -> bool
    """Runs a command in the project's root, its output appended to the log; True if it succeeded."""
    with log.open("ab") as out:
        out.write(("\n$ " + " ".join(command) + "\n").encode())
        out.flush()
        return subprocess.run(command, cwd=str(ROOT), stdout=out, stderr=out, check=False).returncode == 0


def last_error(log):
    # type: (Path) -> str
    """The log's last line that starts with ERROR or error:, without that word; else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    text = (errors or lines or ["no output"])[-1]
    return text[:200]


def make_environment(environment, log):
    # type: (Path, Path) -> None
    """Makes the virtual environment, by venv or by virtualenv, unless a working one is there."""
    python = environment / "bin" / "python"
    if python.exists() and run([str(python), "-m", "pip", "--version"], log):
        return
    say("making %s with Python %d.%d.%d" % (environment.name, *sys.version_info[:3]))
    if run([sys.executable, "-m", "venv", "--clear", str(environment)], log):
        return
    shutil.rmtree(str(environment), ignore_errors=True)
    say("this Python has no venv; fetching virtualenv into .tools")
    target = ROOT / ".tools"
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--upgrade", "--target", str(target)]
    made = run([*pip, "-c", "constraints/bootstrap.txt", "virtualenv"], log) and run(
        [
            sys.executable,
            "-c",
            "import sys; sys.path.insert(0, sys.argv.pop(1)); import virtualenv.__main__ as m; m.run()",
            str(target),
            "-q",
            "--no-periodic-update",
            str(environment),
        ],
        log,
    )
    if not made:
        raise SetUpError(
            "no virtual environment can be made (%s): install python3-venv or pip, then run make again"
            % last_error(log)
        )


def install(environment, dev, log):
    # type: (Path, bool, Path) -> None
    """Installs Mouso (editable); with dev, every extra and the dev group too."""
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "-qq", "-c", CONSTRAINTS]
    if dev:
        say("installing Mouso with every extra and the development tools (a minute or less)")
        # A newer pip first: groups came with pip 25.1.
        done = run([*pip, "pip"], log) and run([*pip, "--group", "dev", "-e", ".[all]"], log)
    else:
        say("installing Mouso")
        done = run([*pip, "-e", "."], log)
    if not done:
        raise SetUpError(
            "pip failed (%s): check the network or PIP_INDEX_URL, then run make again; all of it is in %s"
            % (last_error(log), log.relative_to(ROOT))
        )


def main():
    # type: () -> int
    """Runs the set-up; 0 when the environment is ready, 1 after one line on stderr."""
    parser = argparse.ArgumentParser(description="Makes a virtual environment with Mouso in it.")
    parser.add_argument("environment", help="folder, relative to the project's root")
    parser.add_argument("--dev", action="store_true", help="with every extra and the development tools")
    options = parser.parse_args()
    environment = ROOT / options.environment
    log = ROOT / (options.environment + ".log")
    # pip in an isolated build reads its constraints from here (newer pips: the second one).
    os.environ["PIP_CONSTRAINT"] = os.environ["PIP_BUILD_CONSTRAINT"] = CONSTRAINTS
    os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    began = time.monotonic()
    try:
        check_python(sys.version_info[:2], os.environ.get("PYTHON") or sys.executable)
        check_writable(ROOT)
        log.write_bytes(b"")
        make_environment(environment, log)
        install(environment, options.dev, log)
    except SetUpError as error:
        print("set-up: error: %s" % error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up: interrupted; run make again to go on", file=sys.stderr)
        return 1
    (environment / (".ready-dev" if options.dev else ".ready")).touch()
    if options.dev:
        (environment / ".ready").touch()
    say("ready in %.0f s" % (time.monotonic() - began))
    return 0


if __name__ == "__main__":
    sys.exit(main())
