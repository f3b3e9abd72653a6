"""What a person reads when a command fails, and the exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback

import click

from mouso.config import one_line, printable
from mouso.errors import BrokerError, ConfigError, JobRejected, MousoError, StartError

FAILED, USAGE, TEMPORARY = 1, 2, 75
"""Exit codes; 75 is EX_TEMPFAIL of sysexits.h: whoever starts us may try again."""
_LONGEST = 1000
_NO_THREAD = "can't start new thread"
"""How Python words it; the error has no class of its own."""
_UNWRITTEN = (errno.EIO, errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""Without a file's name it can only be stdout: what a broker says is a ``BrokerError``, and stderr is nobody's loss."""


class Failed(Exception):
    """The command did not do (all of) what it was asked for; the text tells what."""


def report(error: Exception) -> int:
    """Writes one line about an error to stderr, after the traceback if ``$MOUSO_DEBUG`` is set.

    Returns:
        The exit code.
    """
    code, text = explain(error)
    if os.environ.get("MOUSO_DEBUG", "0") not in ("", "0"):
        text = (
            "".join(printable(line) + "\n" for line in "".join(traceback.format_exception(error)).splitlines()) + text
        )
    complain("error", text)
    return code


def note(text: str) -> None:
    """Writes a line to stderr that is worth knowing but no error."""
    complain("note", printable(text))


def complain(kind: str, text: str) -> None:
    """Writes to stderr; a stderr that cannot be written to is nobody's loss."""
    *before, line = text.splitlines() or [""]
    try:
        sys.stderr.write("".join(f"{one}\n" for one in [*before, f"mouso: {kind}: {line}"]))
        sys.stderr.flush()
    except OSError:
        pass


def explain(error: Exception) -> tuple[int, str]:
    """The exit code for an error, and one printable line."""
    match error:
        case click.UsageError():
            text = _shown(error.format_message())
            help_ = f"{error.ctx.command_path} --help" if error.ctx is not None else "mouso --help"
            return USAGE, f"{text.rstrip('.;')} (see '{help_}')"
        case click.ClickException():
            return error.exit_code, _shown(error.format_message())
        case ConfigError() | JobRejected():
            return USAGE, one_line(error)
        case BrokerError() | StartError():
            return TEMPORARY, one_line(error)
        case MousoError() | Failed():
            return FAILED, one_line(error)
        case OSError(filename=None, strerror=str() as reason) if error.errno in _UNWRITTEN:
            return FAILED, f"cannot write to stdout: {reason}"
        case OSError(strerror=str() as reason):
            what = f"{error.filename}: {reason}" if error.filename else reason
            return FAILED, _shown(what)
        case MemoryError():
            return TEMPORARY, "there is no memory left; free some, or raise the limit (ulimit -v, MemoryMax=)"
        case RuntimeError() if str(error) == _NO_THREAD:
            limits = "of processes and threads (ulimit -u, TasksMax=), or of memory (ulimit -v, MemoryMax=)"
            return TEMPORARY, f"the system lets no thread start; raise the limit {limits}"
        case _:
            hint = "set MOUSO_DEBUG=1 to see where"
            return FAILED, f"this should not happen: {type(error).__name__}: {one_line(error)}; {hint}"


def _shown(text: str) -> str:
    """One printable line; of one that repeats a value of any length, its beginning, and its end, which says more."""
    text = " ".join(text.split())
    return printable(text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}")
