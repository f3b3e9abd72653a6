"""A container of a test's own, without an engine: a root file system, a user and a process 1, as an image asks for.

1. `unshare` makes namespaces (mounts, processes, network), in which nothing of what follows is seen outside.
2. A new root gets the system's programs to read, the app in `/app`, Mouso in `/venv`, and `/data` and `/tmp` to write.
   All else can only be read.
3. The image's command becomes process 1 in it, as the image's user, with the image's variables, without any
   capability.

It takes root, the programs, and a Python that other users may run; `missing` says what there is not.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.integration.harness import ROOT
from tests.integration.own_systemd import LOOPBACK, PYTHON
from tests.support import wait_until

BOOT = """\
set -e
cd /
mount --make-rprivate /
R="$FOLDER/root"
mount -t tmpfs -o mode=755 tmpfs "$R"
for name in usr etc bin sbin lib lib64; do
    if [ -L "/$name" ]; then cp -P "/$name" "$R/$name"
    elif [ -d "/$name" ]; then mkdir "$R/$name"; mount --rbind "/$name" "$R/$name"
    fi
done
mkdir -p "$R/proc" "$R/dev" "$R/tmp" "$R/app" "$R/data" "$R/venv/bin" "$R/venv/site" "$R/venv/src"
mount -t proc proc "$R/proc"
mount --rbind /dev "$R/dev"
mount --bind "$SITE" "$R/venv/site"
mount --bind "$SOURCE" "$R/venv/src"
cp "$FOLDER"/app/* "$R/app/"
printf '#!/bin/sh\\nPYTHONPATH=/venv/src:/venv/site exec %s -m mouso "$@"\\n' "$PYTHON" > "$R/venv/bin/mouso"
ln -s "$PYTHON" "$R/venv/bin/python"
chmod a+x "$R/venv/bin/mouso"
chmod a+r "$R"/app/*
mount --bind "$FOLDER/data" "$R/data"
mount -t tmpfs -o mode=1777 tmpfs "$R/tmp"
mount -o remount,ro "$R"
"$PYTHON" "$FOLDER/loopback"
exec chroot "$R" env -i --chdir="$WORKDIR" $VARIABLES \\
    setpriv --reuid="$USER_ID" --regid="$USER_ID" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


def missing() -> str:
    """What this machine lacks for it; empty if nothing."""
    if os.geteuid() != 0:
        return "only root can make a container without an engine"
    for program in ("unshare", "nsenter", "chroot", "setpriv"):
        if shutil.which(program) is None:
            return f"there is no {program}"
    return "" if PYTHON.exists() else f"there is no {PYTHON}, which other users may run"


class Container:
    """One container.

    Args:
        folder: The test's.
        app: The source of `/app/shop.py`.
        command: What becomes process 1.
        variables: Its environment.
        user: The id that it runs under.
        workdir: Where it starts.
    """

    def __init__(
        self, folder: Path, app: str, command: Sequence[str], variables: Mapping[str, str], user: int, workdir: str
    ) -> None:
        self.folder = folder
        for name in ("root", "app", "data"):
            (folder / name).mkdir()
        os.chown(folder / "data", user, user)
        (folder / "app" / "shop.py").write_text(app)
        (folder / "boot").write_text(BOOT)
        (folder / "loopback").write_text(LOOPBACK)
        self._variables = dict(variables)
        self._user = user
        self._workdir = workdir
        site = next(Path(path) for path in sys.path if path.endswith("site-packages"))
        environment = {
            **os.environ, "FOLDER": str(folder), "SITE": str(site), "SOURCE": str(ROOT / "src"), "PYTHON": str(PYTHON),
            "VARIABLES": " ".join(f"{name}={value}" for name, value in variables.items()),
            "USER_ID": str(user), "WORKDIR": workdir,
        }  # fmt: skip
        with (folder / "log").open("wb") as log:
            self._unshare = subprocess.Popen(
                [
                    "unshare",
                    "--mount",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "--net",
                    "sh",
                    str(folder / "boot"),
                    *command,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def first(self) -> int:
        """The process id of its process 1 as it is seen from here; 0 before it is there."""
        assert self._unshare.poll() is None, self.log
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def run(self, *command: str, check: bool = True) -> str:
        """Runs a command inside, as an engine's `exec` does; returns what it printed."""
        done = subprocess.run(
            [
                "nsenter", "-t", str(self.first), "--mount", "--pid", "--net", "--root", "--wd",
                f"--setuid={self._user}", f"--setgid={self._user}", "env", "-i", f"--chdir={self._workdir}",
                *(f"{name}={value}" for name, value in self._variables.items()), *command,
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{shlex.join(command)}: {done.stdout}{done.stderr}\n{self.log}"
        return done.stdout.strip()

    def wait_serving(self) -> None:
        """Waits until the worker says so in its log."""
        wait_until(lambda: self.first and " serves " in self.log, timeout=30, message="the worker serves")

    def send(self, number: int) -> None:
        """Sends process 1 a signal."""
        os.kill(self.first, number)

    def wait(self) -> int:
        """Waits for the end; the exit code."""
        return self._unshare.wait(60)

    def close(self) -> None:
        """Ends it, from within: who has taken another user's rights is not killed with its parent."""
        if self._unshare.poll() is None and self.first:
            os.kill(self.first, signal.SIGKILL)
        self._unshare.kill()
        self._unshare.wait()
