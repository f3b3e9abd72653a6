"""A process with a tripwire ends when it closes descriptors that are not its own, and not otherwise."""

import signal
import subprocess
import sys

import pytest

STRETCH = "import os, sys, time, subprocess\nfrom mouso.worker.tripwire import stretch\nstretch()\n"
SURVIVES = "time.sleep(0.05)\nprint('alive')"


def run(program: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", STRETCH + program], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "closing",
    [
        "os.closerange(3, 4096)",
        "os.closerange(3, 1 << 20)",
        "for n in range(3, 100):\n    try: os.close(n)\n    except OSError: pass",
        "from mouso.worker import tripwire; os.close(tripwire._ends[0])",
        "from mouso.worker import tripwire; os.close(tripwire._ends[1])",
        "from mouso.worker import tripwire; os.dup2(0, tripwire._ends[1])",
        "if os.fork() == 0: os._exit(0)\nos.wait()\nos.closerange(3, 4096)",
        "if os.fork() == 0: time.sleep(3); os._exit(0)\ntime.sleep(0.2); os.closerange(3, 4096)",
    ],
)
def test_closing_ends_it_at_once(closing: str) -> None:
    assert run(f"{closing}\n{SURVIVES}") == (-signal.SIGIO, "")


@pytest.mark.parametrize(
    "harmless",
    [
        "files = [open('/dev/null') for _ in range(50)]; [file.close() for file in files]",
        "subprocess.run(['true'], check=True)",
        "subprocess.run(['true'], check=True, close_fds=False)",
        "subprocess.run(['true'], check=True, preexec_fn=lambda: os.closerange(3, 4096))",
        "if os.fork() == 0: os.closerange(3, 4096); os._exit(0)\nassert os.wait()[1] == 0",
        "if os.fork() == 0: sys.exit(0)\nassert os.wait()[1] == 0",
        "import multiprocessing as m; p = m.get_context('fork').Process(target=print); p.start(); p.join()",
    ],
)
def test_what_does_not_concern_it(harmless: str) -> None:
    code, printed = run(f"{harmless}\n{SURVIVES}")
    assert (code, printed.strip()) == (0, "alive")


@pytest.mark.parametrize("end", ["sys.exit(3)", "os._exit(3)"])
def test_its_exit_code_is_its_own(end: str) -> None:
    assert run(end) == (3, "")
