"""The service manager's protocol, sd_notify(3): real workers, and a socket such as systemd's that listens to them."""

import contextlib
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mouso.observe.notify import Notifier
from tests.integration.harness import WAIT, Bench, Worker
from tests.integration.snippets import SOUND
from tests.support import wait_until

HOLD = """
@app.task
def hold() -> None:
    note("start")
    while not Path("go").exists():
        time.sleep(0.01)
"""


class Manager:
    """The other end of the protocol.

    Args:
        address: A path, or `@name`.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._seen: list[tuple[float, dict[str, str]]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)

    def close(self) -> None:
        self._socket.close()
        if self.address.startswith("/"):
            os.unlink(self.address)

    def seen(self) -> list[tuple[float, dict[str, str]]]:
        """All messages so far, each with when it was looked at, on the monotonic clock."""
        with contextlib.suppress(BlockingIOError):
            while True:
                text = self._socket.recv(65_536).decode()
                self._seen.append((time.monotonic(), dict(line.split("=", 1) for line in text.split("\n"))))
        return self._seen

    def said(self, name: str) -> list[str]:
        """All values of one variable, in order."""
        return [message[name] for _, message in self.seen() if name in message]

    def ticks(self) -> int:
        return len(self.said("WATCHDOG"))

    def wait(self, name: str, value: str) -> None:
        wait_until(
            lambda: self.said(name)[-1:] == [value],
            timeout=WAIT,
            message=f"{name}={value}, last of {self.said(name)[-3:]}",
        )


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with contextlib.closing(Manager(str(tmp_path / "notify"))) as made:
        yield made


def started(bench: Bench, manager: Manager, watchdog: float | None = None) -> Worker:
    variables = {"NOTIFY_SOCKET": manager.address}
    if watchdog is not None:
        variables["WATCHDOG_USEC"] = str(int(watchdog * 1e6))
    return bench.start("-p", "1", "-c", "2", **variables)


def test_ready_when_a_child_takes_jobs_and_not_before(bench: Bench, manager: Manager) -> None:
    bench.app(SOUND)
    bench.write("while not Path('go').exists(): time.sleep(0.01)\n" + SOUND)
    started(bench, manager, watchdog=0.4)
    manager.wait("STATUS", "the worker is starting")
    wait_until(lambda: manager.ticks() > 2, timeout=WAIT)
    assert manager.said("READY") == []
    (bench.folder / "go").touch()
    manager.wait("READY", "1")
    manager.wait("STATUS", "serving")
    assert bench.producer.workers()


def test_an_abstract_socket(bench: Bench) -> None:
    bench.app(SOUND)
    with contextlib.closing(Manager(f"@mouso-test-{os.getpid()}-{time.monotonic_ns()}")) as manager:
        worker = started(bench, manager)
        manager.wait("READY", "1")
        assert worker.stop() == 0
        manager.wait("STOPPING", "1")
        assert manager.said("READY") == ["1"]
        assert manager.ticks() == 0


def test_an_address_of_any_bytes_and_a_time_that_is_none(bench: Bench, tmp_path: Path) -> None:
    bench.app(SOUND)
    odd = os.fsdecode(b"\xff\xfe")
    with contextlib.closing(Manager(str(tmp_path / odd))) as manager:
        worker = bench.start("-p", "1", NOTIFY_SOCKET=manager.address, WATCHDOG_USEC=odd)
        manager.wait("READY", "1")
        assert worker.stop() == 0
        manager.wait("STOPPING", "1")
        assert manager.ticks() == 0
    assert worker.log.count("WATCHDOG_USEC '\\udcff\\udcfe' is no number of microseconds") == 1


def test_the_watchdog_ticks_at_half_of_its_time(bench: Bench, manager: Manager) -> None:
    bench.app(SOUND)
    started(bench, manager, watchdog=1.0)
    manager.wait("READY", "1")
    before, began = manager.ticks(), time.monotonic()
    wait_until(lambda: manager.ticks() >= before + 6, timeout=WAIT)
    took = time.monotonic() - began
    assert 2.0 < took < 6.0, f"6 ticks took {took:.1f} s"


def test_a_frozen_worker_does_not_tick(bench: Bench, manager: Manager) -> None:
    bench.app(SOUND)
    worker = started(bench, manager, watchdog=0.5)
    manager.wait("READY", "1")
    wait_until(lambda: manager.ticks() > 3, timeout=WAIT)
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: state(worker.pid) == "T")
        before = manager.ticks()
        with pytest.raises(AssertionError, match="not true within"):
            wait_until(lambda: manager.ticks() > before, timeout=2)
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    wait_until(lambda: manager.ticks() > before + 3, timeout=WAIT)


def test_a_broker_that_is_away_is_told_and_the_watchdog_ticks(bench: Bench, manager: Manager) -> None:
    jobs = bench.app(SOUND)
    started(bench, manager, watchdog=0.5)
    manager.wait("STATUS", "serving")
    connection = sqlite3.connect(bench.store, isolation_level=None, timeout=WAIT)
    with contextlib.closing(connection):
        connection.execute("BEGIN EXCLUSIVE")
        manager.wait("STATUS", "the broker does not answer")
        before, began = manager.ticks(), time.monotonic()
        wait_until(lambda: manager.ticks() > before + 6, timeout=WAIT)
        assert time.monotonic() - began > 1
        connection.execute("ROLLBACK")
    manager.wait("STATUS", "serving")
    assert jobs.sound.delay(1).get(timeout=WAIT) == 1
    assert manager.said("READY") == ["1"]
    assert manager.said("STATUS").count("the broker does not answer") == 1


def test_stopping_says_for_what_it_waits(bench: Bench, manager: Manager) -> None:
    jobs = bench.app(HOLD)
    worker = started(bench, manager, watchdog=0.5)
    manager.wait("READY", "1")
    jobs.hold.delay()
    bench.wait_for("start")
    worker.send(signal.SIGTERM)
    manager.wait("STATUS", "stopping: 1 running job")
    assert manager.said("STOPPING") == ["1"]
    before = manager.ticks()
    wait_until(lambda: manager.ticks() > before, timeout=WAIT)  # it is not dead
    (bench.folder / "go").touch()
    assert worker.wait() == 0


def test_a_child_that_is_missing_is_told(bench: Bench, manager: Manager) -> None:
    bench.app(SOUND)
    worker = started(bench, manager)
    manager.wait("STATUS", "serving")
    bench.write("while not Path('go').exists(): time.sleep(0.01)\n" + SOUND)
    os.kill(worker.children()[0], signal.SIGKILL)
    manager.wait("STATUS", "no child process is ready")
    (bench.folder / "go").touch()
    manager.wait("STATUS", "serving")


def test_what_jobs_start_is_not_the_service(bench: Bench, manager: Manager) -> None:
    jobs = bench.app(
        """
        @app.task
        def variables() -> list[str]:
            return sorted(name for name in os.environ if name.startswith(("NOTIFY", "WATCHDOG")))
        """
    )
    started(bench, manager, watchdog=5)
    assert jobs.variables.delay().get(timeout=WAIT) == []


def test_a_manager_that_goes_and_comes_back(bench: Bench, manager: Manager) -> None:
    jobs = bench.app(SOUND)
    worker = started(bench, manager, watchdog=0.4)
    manager.wait("READY", "1")
    os.rename(manager.address, f"{manager.address}-away")
    assert jobs.sound.delay(1).get(timeout=WAIT) == 1
    os.rename(f"{manager.address}-away", manager.address)
    before = manager.ticks()
    wait_until(lambda: manager.ticks() > before + 2, timeout=WAIT)
    assert worker.alive


def test_nothing_is_lost_to_a_manager_that_does_not_read(manager: Manager) -> None:
    with contextlib.closing(Notifier(manager.address, interval=1.0)) as notifier:
        fill(manager)
        notifier.ready()
        notifier.tick()
        notifier.status("serving")
        assert manager.said("READY") == []  # and now there is room again
        notifier.status("serving")
        assert manager.said("READY") == ["1"]
        assert manager.said("STATUS") == ["serving"]
        assert manager.said("WATCHDOG") == []  # an old sign of life is none


def fill(manager: Manager) -> None:
    """Sends to a manager until it takes no more; what one sender may have on its way has a limit, too."""
    full = False
    while not full:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.sendto(b"X=1", manager.address)
                    sent += 1
            full = sent == 0


def test_a_status_is_one_printable_line(manager: Manager) -> None:
    with contextlib.closing(Notifier(manager.address)) as notifier:
        notifier.status("a\nREADY=1\x1b[31m\udcff" + "x" * 1000)
    ((_, message),) = manager.seen()
    assert set(message) == {"STATUS"}
    assert message["STATUS"].isprintable()
    assert len(message["STATUS"]) <= 500


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
