"""Workers of one process each, so many times: for peers whose worker is one process."""

import multiprocessing
import signal
import sys
from collections.abc import Callable


def forked(serve: Callable[[], None]) -> None:
    """Calls ``serve`` in as many processes as the command line says, until SIGTERM ends all of them."""
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=serve, daemon=True) for _ in range(int(sys.argv[1]))]
    for child in children:
        child.start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    for child in children:
        child.join()
