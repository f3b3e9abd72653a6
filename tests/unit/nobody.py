"""Code that runs without root's rights, to see what an ordinary user would."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DROP = """
import os, sys
import mouso.brokers.sqlite, mouso.cli.report, mouso.cli.show, mouso.loading
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""


@contextmanager
def visible_folder() -> Iterator[Path]:
    """A folder that every user may look into (pytest's own are closed to others); only its owner may write there."""
    with tempfile.TemporaryDirectory(prefix="mouso-test-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        try:
            yield folder
        finally:
            folder.chmod(0o755)


def as_nobody(code: str, folder: Path) -> str:
    """What the code prints, run in the folder by a user who owns nothing; without root's rights, by the caller."""
    done = subprocess.run(
        [sys.executable, "-c", _DROP + code], cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
