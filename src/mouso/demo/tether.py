"""A ``mouso`` command that ends with whoever started it: ``python -m mouso.demo.tether worker APP …``.

Its stdin is a pipe from the demo. However the demo ends (kill -9 included), the pipe ends too, and the worker is asked
to stop as Ctrl-C would ask it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from mouso.cli import main


def _stop_at_the_end_of_stdin() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_at_the_end_of_stdin, name="mouso-demo-tether", daemon=True).start()
    sys.exit(main())
