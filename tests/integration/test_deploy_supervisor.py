"""`deploy/supervisor`: the real Supervisor starts the program as it is configured, and ends it cleanly."""

import configparser
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.integration.harness import ROOT, WAIT, Bench
from tests.integration.snippets import PAUSES, SOUND
from tests.support import free_port, process_ids, wait_until

CONF = ROOT / "deploy" / "supervisor" / "mouso.conf"
BIN = Path(sys.executable).parent
MAIN = """
[supervisord]
nodaemon=true
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
childlogdir={folder}

[unix_http_server]
file=/tmp/{socket}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix:///tmp/{socket}

[include]
files = {folder}/mouso.conf
"""


def program() -> configparser.SectionProxy:
    """What the project's file says of the program."""
    conf = configparser.ConfigParser()
    conf.read(CONF)
    return conf["program:mouso"]


class Supervisord:
    """One Supervisor with the project's program, its paths and user put in."""

    def __init__(self, bench: Bench, **instead: str) -> None:
        self.folder = bench.folder
        self.socket = f"mouso-test-{os.getpid()}.sock"  # a path that is short enough, wherever the test's folder is
        text = CONF.read_text()
        for there, here in {
            "/srv/shop/.venv/bin/mouso": f"{BIN}/mouso",
            "shop:app": "jobs:app",
            "127.0.0.1:9808": f"127.0.0.1:{free_port()}",
            "directory=/srv/shop": f"directory={bench.folder}",
            "user=shop\n": "",
            "sqlite:////var/lib/shop/mouso.db": bench.broker_url,
            "/var/log/supervisor/mouso.log": f"{bench.folder}/mouso.log",
            **{f"{name}={program()[name]}": f"{name}={value}" for name, value in instead.items()},
        }.items():
            assert there in text, there
            text = text.replace(there, here)
        (bench.folder / "mouso.conf").write_text(text)
        (bench.folder / "main.conf").write_text(MAIN.format(folder=bench.folder, socket=self.socket))
        with (bench.folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [str(BIN / "supervisord"), "-c", str(bench.folder / "main.conf")],
                cwd=bench.folder,
                env=bench.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def ctl(self, *command: str) -> str:
        done = subprocess.run(
            [str(BIN / "supervisorctl"), "-c", str(self.folder / "main.conf"), *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout + done.stderr

    @property
    def pid(self) -> int:
        """The worker's; 0 if it does not run."""
        found = re.search(r"mouso\s+RUNNING\s+pid (\d+)", self.ctl("status"))
        return int(found[1]) if found else 0

    @property
    def log(self) -> str:
        file = self.folder / "supervisord.log"
        return file.read_text() if file.exists() else ""

    def wait_running(self, other_than: int = 0) -> int:
        return wait_until(
            lambda: self.pid not in (0, other_than) and self.pid, timeout=WAIT, interval=0.2, message="it runs"
        )

    def stop(self) -> int:
        """SIGTERM to Supervisor itself; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def close(self) -> None:
        if self._process.poll() is None:
            self.stop()
        with suppress(FileNotFoundError):
            os.unlink(f"/tmp/{self.socket}")


@pytest.fixture
def supervisord(bench: Bench) -> Iterator[Supervisord]:
    bench.app(SOUND + PAUSES)
    with closing(Supervisord(bench)) as made:
        yield made


def test_the_program_runs_and_ends_with_supervisor(bench: Bench, supervisord: Supervisord) -> None:
    pid = supervisord.wait_running()
    assert bench.producer.tasks["jobs.sound"].delay(7).get(timeout=WAIT) == 7
    handle = bench.producer.tasks["jobs.pause"].delay(1, 2.0)
    bench.wait_for("start")
    assert supervisord.stop() == 0
    assert handle.state == "completed"  # it was waited for
    assert "stopped: mouso (exit status 0)" in supervisord.log
    assert pid not in process_ids()
    assert "INFO     stopped" in (bench.folder / "mouso.log").read_text()


def test_stop_and_start(bench: Bench, supervisord: Supervisord) -> None:
    pid = supervisord.wait_running()
    assert "mouso: stopped" in supervisord.ctl("stop", "mouso")
    assert "stopped: mouso (exit status 0)" in supervisord.log
    handle = bench.producer.tasks["jobs.sound"].delay(7)
    assert "mouso: started" in supervisord.ctl("start", "mouso")
    assert supervisord.wait_running() != pid
    assert handle.get(timeout=WAIT) == 7


def test_a_worker_that_is_killed_is_started_again(bench: Bench, supervisord: Supervisord) -> None:
    pid = supervisord.wait_running()
    os.kill(pid, signal.SIGKILL)
    assert supervisord.wait_running(other_than=pid) != pid
    assert bench.producer.tasks["jobs.sound"].delay(7).get(timeout=WAIT) == 7


def test_a_worker_that_somebody_else_stops_is_started_again(bench: Bench, supervisord: Supervisord) -> None:
    pid = supervisord.wait_running()
    os.kill(pid, signal.SIGTERM)
    assert supervisord.wait_running(other_than=pid) != pid
    assert "exited: mouso (exit status 0; not expected)" in supervisord.log
    assert bench.producer.tasks["jobs.sound"].delay(7).get(timeout=WAIT) == 7


def test_a_worker_without_its_broker_is_started_again(bench: Bench) -> None:
    bench.broker_url = f"redis://127.0.0.1:{free_port()}"  # where nobody listens
    bench.write(SOUND)
    with closing(Supervisord(bench)) as supervisord:
        wait_until(lambda: "(exit status 75; not expected)" in supervisord.log, timeout=2 * WAIT)
        wait_until(lambda: supervisord.log.count("spawned: 'mouso'") == 2, timeout=WAIT)


def test_a_mistake_in_the_configuration_is_not_repeated_for_ever(bench: Bench) -> None:
    bench.write("time.sleep(2.5)\nimport no_such_module\n")
    with closing(Supervisord(bench)) as supervisord:
        wait_until(lambda: "EXITED" in supervisord.ctl("status"), timeout=WAIT, interval=0.2)
        assert "exited: mouso (exit status 2; expected)" in supervisord.log
        assert supervisord.log.count("spawned: 'mouso'") == 1
        assert "no_such_module" in (bench.folder / "mouso.log").read_text()


def test_a_mistake_that_ends_it_at_once_is_given_up(bench: Bench) -> None:
    bench.write("import no_such_module\n")
    with closing(Supervisord(bench, startretries="1")) as supervisord:
        wait_until(lambda: "FATAL" in supervisord.ctl("status"), timeout=WAIT, interval=0.2)
        assert supervisord.log.count("spawned: 'mouso'") == 2


def test_it_leaves_the_worker_its_grace() -> None:
    assert program()["stopsignal"] == "TERM"
    assert int(program()["stopwaitsecs"]) >= 25 + 10
