"""`deploy/systemd`: systemd takes the unit as it is, and keeps the worker as the unit says."""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mouso.worker import WorkerOptions
from tests.integration.harness import ROOT
from tests.integration.own_systemd import PYTHON, USER, Systemd, missing
from tests.support import wait_until

UNIT = ROOT / "deploy" / "systemd" / "mouso.service"
SHOP = """
import asyncio, os, socket, time
from pathlib import Path
from mouso import Context, Mouso

app = Mouso("shop")

@app.task
def add(x: int, y: int) -> int:
    return x + y

@app.task
async def hold() -> None:
    while not Path("/var/lib/shop/go").exists():
        await asyncio.sleep(0.02)

@app.task
def die() -> None:
    os.kill(os.getpid(), 9)

@app.task
def surroundings() -> dict[str, object]:
    status = dict(line.split(":\\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\\t" in line)
    return {
        "user": os.getuid(),
        "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
        "no new privileges": status["NoNewPrivs"],
        "filtered": status["Seccomp"],
        "writable": [str(path) for path in map(Path, ("/etc", "/usr", "/srv/shop", "/tmp", "/var/lib/shop"))
                     if os.access(path, os.W_OK)],
        "homes": [path for path in ("/root", "/home") if os.access(path, os.R_OK) and os.listdir(path)],
        "variables": sorted(name for name in os.environ if name.startswith(("NOTIFY", "WATCHDOG"))),
    }
"""

analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
real = pytest.mark.skipif(bool(missing()), reason=missing() or "nothing is missing")

Boot = Callable[..., Systemd]


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Boot]:
    """Starts systems; they end with the test."""
    made: list[Systemd] = []

    def boot(drop_in: str = "", app: str = SHOP) -> Systemd:
        folder = tmp_path / f"system-{len(made)}"
        folder.mkdir()
        made.append(Systemd(folder, UNIT.read_text(), app, drop_in))
        return made[-1]

    yield boot
    for system in made:
        system.close()


def test_the_unit_leaves_the_worker_its_time() -> None:
    said = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    assert int(said["TimeoutStopSec"]) >= WorkerOptions(app="").grace + 10
    assert int(said["WatchdogSec"]) >= 20
    assert (said["Type"], said["KillMode"], said["KillSignal"]) == ("notify", "mixed", "SIGTERM")


@analyze
def test_the_unit_is_verified(tmp_path: Path) -> None:
    unit = tmp_path / "mouso.service"
    unit.write_text(UNIT.read_text().replace("/srv/shop/.venv/bin/mouso", shutil.which("true") or "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if "mouso" in line]
    assert (done.returncode, complaints) == (0, []), done.stderr


@analyze
def test_the_unit_is_hardened() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", str(UNIT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a file")
    assert done.returncode == 0, done.stdout[-2000:]
    assert re.search(r"exposure level for mouso.service: [01]\.\d", done.stdout)


@real
def test_the_service_serves_and_stops(boot: Boot) -> None:
    system = boot()
    system.run("systemctl", "start", "mouso.service")  # returns when the worker is ready
    assert system.show("ActiveState") == "active"
    system.wait("StatusText", "serving")
    assert system.mouso("enqueue", "add", "20", "22", "--wait") == "42"
    system.mouso("enqueue", "hold")
    wait_until(lambda: "running" in system.mouso("jobs"), timeout=30, interval=0.1)
    system.run("systemctl", "stop", "--no-block", "mouso.service")
    system.wait("StatusText", "stopping: 1 running job")
    assert system.show("ActiveState") == "deactivating"
    system.run("touch", "/var/lib/shop/go")
    system.wait("ActiveState", "inactive")
    assert system.show("Result") == "success"
    assert system.show("ExecMainStatus") == "0"
    assert system.show("NRestarts") == "0"
    assert "completed" in system.mouso("jobs", "--state", "completed", "--task", "hold")
    assert "stopped" in system.log


@real
def test_what_the_hardening_leaves(boot: Boot) -> None:
    system = boot()
    system.run("systemctl", "start", "mouso.service")
    seen = eval(system.mouso("enqueue", "surroundings", "--wait").replace("null", "None"))
    assert seen == {
        "user": USER, "capabilities": 0, "no new privileges": "1", "filtered": "2",
        "writable": ["/tmp", "/var/lib/shop"], "homes": [], "variables": [],
    }  # fmt: skip
    ask = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9808/ready').read().decode())"
    assert system.run(str(PYTHON), "-c", ask) == '{"ready": true}'


@real
def test_a_child_that_dies_is_no_end_of_the_service(boot: Boot) -> None:
    system = boot()
    system.run("systemctl", "start", "mouso.service")
    main = system.show("MainPID")
    system.mouso("enqueue", "die")
    wait_until(lambda: "poison" in system.log, timeout=30, interval=0.1)
    assert system.mouso("enqueue", "add", "1", "2", "--wait") == "3"
    assert (system.show("MainPID"), system.show("NRestarts")) == (main, "0")


@real
def test_a_worker_that_is_killed_is_started_again(boot: Boot) -> None:
    system = boot()
    system.run("systemctl", "start", "mouso.service")
    system.mouso("enqueue", "hold")
    wait_until(lambda: "running" in system.mouso("jobs"), timeout=30, interval=0.1)
    system.run("kill", "-KILL", system.show("MainPID"))
    system.wait("NRestarts", "1")
    system.wait("ActiveState", "active")
    system.run("touch", "/var/lib/shop/go")
    wait_until(lambda: "completed" in system.mouso("jobs"), timeout=30, interval=0.1)


@real
def test_a_worker_that_is_frozen_is_started_again(boot: Boot) -> None:
    system = boot("WatchdogSec=6\nTimeoutAbortSec=2")
    system.run("systemctl", "start", "mouso.service")
    began = time.monotonic()
    with pytest.raises(AssertionError, match="not true within"):  # it ticks: nothing happens to it
        system.wait("NRestarts", "1", timeout=13)
    system.wait("StatusText", "serving")
    assert time.monotonic() - began > 12
    system.run("kill", f"-{signal.SIGSTOP.value}", system.show("MainPID"))
    system.wait("NRestarts", "1")
    system.wait("ActiveState", "active")
    assert system.mouso("enqueue", "add", "1", "2", "--wait") == "3"


@real
def test_a_mistake_in_the_configuration_is_not_repeated(boot: Boot) -> None:
    system = boot(app="import no_such_module")
    system.run("systemctl", "start", "mouso.service", check=False)
    system.wait("ActiveState", "failed")
    assert system.show("ExecMainStatus") == "2"
    assert system.show("NRestarts") == "0"
    assert system.log.count("mouso: error: ") == 1
    assert "no_such_module" in system.log
