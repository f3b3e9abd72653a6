"""Notes which of Mouso's functions a process calls, to be put in its way as `sitecustomize`.

SIGUSR1 begins anew, SIGUSR2 writes what was called since, as JSON `[[file, function], …]`, to
`$MOUSO_TEST_CALLS-<pid>`.
"""

import json
import os
import signal
import sys
import threading
from types import CodeType, FrameType
from typing import Any

PACKAGE = f"{os.sep}mouso{os.sep}"


def of_mouso(code: CodeType) -> tuple[str, str] | None:
    """File (inside the package) and function; a comprehension counts as part of the function that it stands in."""
    _, found, inside = code.co_filename.rpartition(PACKAGE)
    if not found or code.co_name == "<module>":
        return None
    name = code.co_qualname
    while name.endswith("comp>") or name.endswith("<genexpr>"):
        name = name.rpartition(".<locals>.")[0]
    return inside, name


class Recorder:
    """Collects code objects while it is installed."""

    def __init__(self) -> None:
        self.codes: set[CodeType] = set()

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.codes.add(frame.f_code)

    def calls(self) -> set[tuple[str, str]]:
        """What of Mouso was called since the last `clear`."""
        return {call for code in list(self.codes) if (call := of_mouso(code)) is not None}


def install() -> None:
    """Records from now on, in all threads of this process."""
    recorder = Recorder()
    place = f"{os.environ['MOUSO_TEST_CALLS']}-{os.getpid()}"

    def begin(*_: object) -> None:
        recorder.codes.clear()
        write(f"{place}-begun", "")

    def end(*_: object) -> None:
        write(place, json.dumps(sorted(recorder.calls())))

    def write(path: str, text: str) -> None:
        with open(f"{path}.new", "w") as file:
            file.write(text)
        os.replace(f"{path}.new", path)

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    threading.setprofile(recorder.profile)
    sys.setprofile(recorder.profile)


if __name__ == "sitecustomize" and "MOUSO_TEST_CALLS" in os.environ:
    install()
