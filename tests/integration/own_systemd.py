"""A systemd of a test's own, as process 1 of its own namespaces: units run as they do on a server.

1. `unshare` makes namespaces (mounts, processes, cgroups, network), in which nothing of what follows is seen outside.
2. Over `/srv`, `/run`, `/var/lib` and `/etc/passwd` lie the test's own: the app in `/srv/shop`, and its user `shop`.
3. The real systemd starts there and knows the test's units only.
4. `systemctl`, and any other command, enters with `nsenter`.
5. When `unshare` is killed, all of it ends.

It takes root, the programs, and a Python that other users may run; `missing` says what there is not.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.integration.harness import ROOT
from tests.support import wait_until

SYSTEMD = Path("/lib/systemd/systemd")
PYTHON = Path(f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}")
USER = 61_184
"""The id of the user `shop`: one of those that systemd keeps for dynamic users, so nobody has it."""
TARGETS = ("sysinit", "basic", "shutdown", "network", "multi-user", "start")
CGROUPS = Path("/sys/fs/cgroup")

BOOT = """\
set -e
cd /
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /srv
mkdir -p /srv/shop/.venv/bin /srv/shop/.venv/site /srv/shop/.venv/src /srv/test
mount --bind "$FOLDER" /srv/test
mount --bind "$SITE" /srv/shop/.venv/site
mount --bind "$SOURCE" /srv/shop/.venv/src
cp /srv/test/app/* /srv/shop/
printf '#!/bin/sh\\nPYTHONPATH=/srv/shop/.venv/src:/srv/shop/.venv/site exec %s -m mouso "$@"\\n' "$PYTHON" \\
    > /srv/shop/.venv/bin/mouso
chmod -R a+rX /srv/shop 2>/dev/null || true
chmod a+x /srv/shop/.venv/bin/mouso
mount --bind /srv/test/passwd /etc/passwd
mount --bind /srv/test/group /etc/group
mount -t tmpfs -o mode=755 tmpfs /var/lib
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
if [ "$CGROUP" = 2 ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
    mount -o remount,ro /sys/fs/cgroup
fi
"$PYTHON" /srv/test/loopback
export container=test SYSTEMD_UNIT_PATH=/srv/test/units
export SYSTEMD_GENERATOR_PATH=/srv/test/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/srv/test/none
exec "$SYSTEMD" --system --unit=start.target --log-target=null --show-status=0
"""


LOOPBACK = """\
import fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
"""


def missing() -> str:
    """What this machine lacks for it; empty if nothing."""
    if os.geteuid() != 0:
        return "only root can start a systemd of its own"
    for program in (str(SYSTEMD), "unshare", "nsenter", "systemctl"):
        if shutil.which(program) is None:
            return f"there is no {program}"
    if not PYTHON.exists():
        return f"there is no {PYTHON}, which other users may run"
    if not (CGROUPS / "cgroup.controllers").exists() and not (CGROUPS / "systemd").exists():
        return "there are no cgroups that systemd can use"
    return ""


class Systemd:
    """One system.

    Args:
        folder: The test's; it gets the units, the app and the log.
        unit: The service's text.
        drop_in: More lines of its section `Service`.
        app: The source of `/srv/shop/shop.py`.
    """

    def __init__(self, folder: Path, unit: str, app: str, drop_in: str = "") -> None:
        self.folder = folder
        self._write(unit, app, drop_in)
        self._cgroups = self._make_cgroups()
        site = next(Path(path) for path in sys.path if path.endswith("site-packages"))
        environment = {
            **os.environ, "FOLDER": str(folder), "SITE": str(site), "SOURCE": str(ROOT / "src"), "PYTHON": str(PYTHON),
            "SYSTEMD": str(SYSTEMD), "CGROUP": "2" if (CGROUPS / "cgroup.controllers").exists() else "1",
        }  # fmt: skip
        enter = " && ".join(f"echo $$ > {group}/cgroup.procs" for group in self._cgroups)
        namespaces = "--mount --pid --fork --kill-child --cgroup --uts --ipc --net --mount-proc"
        with (folder / "boot.log").open("wb") as log:
            self._unshare = subprocess.Popen(
                ["sh", "-c", f"{enter} && exec unshare {namespaces} sh {folder}/boot"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        try:
            wait_until(self._booted, timeout=20, interval=0.05, message="systemd has started")
        except AssertionError as error:
            self.close()
            raise AssertionError(f"{error}: {(folder / 'boot.log').read_text()}") from None

    def _write(self, unit: str, app: str, drop_in: str) -> None:
        units = self.folder / "units"
        units.mkdir()
        for target in TARGETS:
            (units / f"{target}.target").write_text(f"[Unit]\nDescription={target}\nDefaultDependencies=no\n")
        (units / "mouso.service").write_text(unit)
        (units / "mouso.service.d").mkdir()
        (units / "mouso.service.d" / "test.conf").write_text(
            f"[Service]\nStandardOutput=append:/srv/test/log\nStandardError=append:/srv/test/log\n{drop_in}\n"
        )
        (self.folder / "app").mkdir()
        (self.folder / "app" / "shop.py").write_text(app)
        (self.folder / "none").mkdir()
        (self.folder / "boot").write_text(BOOT)
        (self.folder / "loopback").write_text(LOOPBACK)
        (self.folder / "log").touch()
        (self.folder / "passwd").write_text(
            Path("/etc/passwd").read_text() + f"\nshop:x:{USER}:{USER}::/nonexistent:/usr/sbin/nologin\n"
        )
        (self.folder / "group").write_text(Path("/etc/group").read_text() + f"\nshop:x:{USER}:\n")

    @staticmethod
    def _make_cgroups() -> list[Path]:
        """Groups of its own, so that it takes its root for the system's."""
        name = f"mouso-test-{os.getpid()}-{time.monotonic_ns()}"
        tops = [CGROUPS] if (CGROUPS / "cgroup.controllers").exists() else [CGROUPS / "systemd", CGROUPS / "unified"]
        groups = [top / name for top in tops if top.exists()]
        for group in groups:
            group.mkdir()
        return groups

    def _booted(self) -> bool:
        assert self._unshare.poll() is None, (self.folder / "boot.log").read_text()
        return self._first() != 0 and self.run("systemctl", "is-active", "start.target", check=False) == "active"

    def _first(self) -> int:
        """The process id of systemd as it is seen from here; 0 before it is there."""
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> str:
        """Runs a command inside as root; returns what it printed."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._first()), "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net", *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd="/",
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}\n{self.log}"
        return done.stdout.strip()

    def mouso(self, *arguments: str) -> str:
        """Runs `mouso` as the service's user, on its store."""
        return self.run(
            "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "env", "--chdir=/srv/shop",
            "MOUSO_APP=shop:app", "MOUSO_BROKER=sqlite:////var/lib/shop/mouso.db", ".venv/bin/mouso", *arguments,
        )  # fmt: skip

    def show(self, name: str) -> str:
        """A property of the service, as `systemctl show` tells it."""
        return self.run("systemctl", "show", "mouso.service", "--property", name, "--value")

    def wait(self, name: str, value: str, timeout: float = 30) -> None:
        """Waits until a property of the service has a value."""
        wait_until(
            lambda: self.show(name) == value,
            timeout=timeout,
            interval=0.1,
            message=f"{name} is {value!r}, not {self.show(name)!r}",
        )

    @property
    def log(self) -> str:
        """What the service has written."""
        return (self.folder / "log").read_text(errors="replace")

    def close(self) -> None:
        """Ends all of it."""
        self._unshare.send_signal(signal.SIGKILL)
        self._unshare.wait()
        for group in self._cgroups:
            wait_until(lambda g=group: _remove(g), timeout=10, message=f"{group} is gone")  # type: ignore[misc]  # why: binds the loop variable


def _remove(group: Path) -> bool:
    """Removes a cgroup and those below it; False while processes are in it."""
    for folder, _, _ in os.walk(group, topdown=False):
        with suppress(OSError):
            os.rmdir(folder)
    return not group.exists()
