"""`--health` of real workers: what the probes say in good and bad times, and metrics that agree with the store."""

import contextlib
import os
import re
import resource
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import WAIT, Bench, Worker
from tests.integration.probing import ANY, Probe, probed
from tests.integration.snippets import PAUSES, SOUND
from tests.support import wait_until

KINDS = (
    SOUND
    + """
@app.task(queue="mail", attempts=1)
async def send(n: int) -> None:
    await asyncio.sleep(0.02)
    if n % 2:
        raise ValueError(n)

@app.task(attempts=2, backoff=constant(0.01))
def unlucky(ctx: Context) -> None:
    raise RuntimeError("no")

@app.task
def call_off() -> None:
    raise Cancel("why not")

@app.task
def later(ctx: Context) -> None:
    if not Path("snoozed").exists():
        Path("snoozed").touch()
        raise Snooze(0.01)

@app.task
def die() -> None:
    os._exit(3)
"""
)


@contextlib.contextmanager
def locked(bench: Bench) -> Iterator[None]:
    """Another program keeps the store to itself."""
    connection = sqlite3.connect(bench.store, isolation_level=None, timeout=WAIT)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


# -- metrics


def test_metrics_agree_with_the_store(bench: Bench) -> None:
    jobs = bench.app(KINDS)
    _, probe = probed(bench, processes=2)
    handles = [
        *jobs.sound.map([(n,) for n in range(100)]), *jobs.sound_coroutine.map([(n,) for n in range(50)]),
        *jobs.send.map([(n,) for n in range(40)]), jobs.unlucky.delay(), jobs.call_off.delay(), jobs.later.delay(),
    ]  # fmt: skip
    expected: Counter[tuple[str, str, str]] = Counter()
    for record in bench.wait_final(handles):
        expected[record.queue, record.task, str(record.state)] += 1
    expected["default", "jobs.unlucky", "retryable"] += 1
    expected["default", "jobs.later", "scheduled"] += 1

    def counted() -> Counter[tuple[str, str, str]]:
        found: Counter[tuple[str, str, str]] = Counter()
        for (name, labels), value in probe.metrics().items():
            kind = dict(labels)
            # A claim that was given back in time, untouched, is no part of a job's history.
            if name == "mouso_jobs_total" and kind["state"] != "available":
                found[kind["queue"], kind["task"], kind["state"]] += int(value)
        return found

    wait_until(lambda: counted() == expected, timeout=5, interval=0.2, message=f"{expected}")
    default = {"queue": "default", "task": "jobs.sound"}
    assert probe.value("mouso_job_run_seconds_count", **default) == 100
    assert probe.value("mouso_job_run_seconds_count", queue="mail", task="jobs.send") == 40
    assert probe.value("mouso_job_run_seconds_bucket", queue="mail", task="jobs.send", le="0.01") == 0
    assert probe.value("mouso_job_run_seconds_sum", queue="mail", task="jobs.send") >= 40 * 0.02
    assert probe.value("mouso_job_retries_total", queue="default", task="jobs.unlucky") == 1
    assert probe.value("mouso_job_wait_seconds_count", queue="mail") == 40
    claims = sum(record.claims for record in bench.records(handle.id for handle in handles))
    by_queue = [value for (name, _), value in probe.metrics().items() if name == "mouso_job_claims_total"]
    assert sum(by_queue) == claims


def test_a_worker_tells_what_it_is(bench: Bench) -> None:
    bench.app(SOUND)
    worker, probe = probed(bench, "--name", "shop 1", processes=2, concurrency=3)
    (info,) = bench.producer.workers()
    assert probe.value("mouso_worker_info", id=info.id, name="shop 1") == 1
    assert probe.value("mouso_slots") == 6
    assert probe.value("mouso_children") == probe.value("mouso_children_ready") == 2
    assert probe.value("mouso_worker_ready") == probe.value("mouso_broker_up") == 1
    assert 0 <= probe.value("mouso_heartbeat_age_seconds") < 10
    assert 5 < probe.value("mouso_lease_left_seconds") <= 15
    assert probe.value("mouso_broker_exchange_seconds_count") > 0
    for name in ("process_resident_memory_bytes", "mouso_children_resident_memory_bytes"):
        assert 5e6 < probe.value(name) < 5e9, name
    assert probe.value("mouso_child_resident_memory_max_bytes") < probe.value("mouso_children_resident_memory_bytes")
    assert probe.value("process_cpu_seconds_total") > 0
    assert probe.value("mouso_children_cpu_seconds_total") > 0
    assert probe.value("process_open_fds") == pytest.approx(len(os.listdir(f"/proc/{worker.pid}/fd")), abs=3)
    assert abs(probe.value("process_start_time_seconds") - time.time()) < 120


def test_slots_and_what_is_held(bench: Bench) -> None:
    jobs = bench.app(PAUSES)
    _, probe = probed(bench, concurrency=2)
    jobs.pause.map([(n, 2.0) for n in range(2)])
    probe.wait_for("mouso_slots_busy", lambda busy: busy == 2)
    assert probe.value("mouso_slots") == 2
    bench.wait_for("end", 2)
    probe.wait_for("mouso_slots_busy", lambda busy: busy == 0)
    probe.wait_for("mouso_jobs_held", lambda held: held == 0)


def test_children_that_die_are_counted_by_cause(bench: Bench) -> None:
    jobs = bench.app(KINDS)
    worker, probe = probed(bench)
    bench.wait_final([jobs.die.delay()])
    probe.wait_for("mouso_job_crashes_total", lambda crashes: crashes == 3, queue="default", task="jobs.die")
    probe.wait_for("mouso_child_restarts_total", lambda restarts: restarts >= 1, cause="exit code 3")
    probe.wait_ready()
    cpu = probe.value("mouso_children_cpu_seconds_total")
    os.kill(worker.children()[0], signal.SIGKILL)
    probe.wait_for("mouso_child_restarts_total", lambda restarts: restarts == 1, cause="SIGKILL")
    probe.wait_for("mouso_children_ready", lambda ready: ready == 1)
    assert probe.value("mouso_children_cpu_seconds_total") >= cpu > 0


def test_children_that_are_replaced_are_counted_too(bench: Bench) -> None:
    jobs = bench.app(SOUND)
    _, probe = probed(bench, "--max-jobs-per-child", "5")
    handles = jobs.sound.map([(n,) for n in range(12)])
    assert {record.state for record in bench.wait_final(handles)} == {"completed"}
    probe.wait_for("mouso_child_restarts_total", lambda restarts: restarts >= 1, cause="recycled")
    assert probe.value("mouso_child_restarts_total", cause="exit code 0") == 0


# -- probes


def test_a_worker_that_starts_is_alive_and_not_ready(bench: Bench) -> None:
    bench.app(SOUND)
    bench.write("while not Path('go').exists(): time.sleep(0.01)\n" + SOUND)
    worker = bench.start("-p", "1", *ANY)
    probe = Probe.of(worker)
    assert probe.live()
    assert probe.unready() == "the worker is starting"
    assert probe.value("mouso_worker_ready") == 0
    (bench.folder / "go").touch()
    probe.wait_ready()


def test_an_outage_of_the_broker(bench: Bench) -> None:
    jobs = bench.app(SOUND)
    worker, probe = probed(bench)
    with locked(bench):
        wait_until(
            lambda: probe.unready() == "the broker does not answer", timeout=WAIT, interval=0.05, message="unready"
        )
        assert probe.live()
        probe.wait_for("mouso_broker_up", lambda up: up == 0)
        assert probe.value("mouso_broker_outages_total") == 1
        # Longer than the broker waits for a lock: calls that need none go well all the while.
        probe.wait_for("mouso_broker_outage_seconds_total", lambda seconds: seconds > 7)
        assert probe.live()
    probe.wait_ready()
    assert jobs.sound.delay(1).get(timeout=WAIT) == 1
    probe.wait_for("mouso_broker_up", lambda up: up == 1)
    assert probe.value("mouso_broker_outages_total") == 1
    (lasted,) = re.findall(r"the broker answers again after ([\d.]+) s", worker.log)
    assert probe.value("mouso_broker_outage_seconds_total") == pytest.approx(float(lasted), abs=0.1)
    assert worker.log.count("the broker does not answer") == 1


def test_a_worker_without_children_is_not_ready(bench: Bench) -> None:
    bench.app(SOUND)
    worker, probe = probed(bench)
    bench.write("raise SystemExit(4)")  # whoever is started from now on ends at once
    os.kill(worker.children()[0], signal.SIGKILL)
    wait_until(lambda: probe.unready() == "no child process is ready", timeout=WAIT, message="unready")
    assert probe.live()
    bench.write(SOUND)
    probe.wait_ready()
    worker.quiet = False  # the broken app is in its log


def test_a_worker_that_stops_is_alive_and_not_ready(bench: Bench) -> None:
    jobs = bench.app(PAUSES)
    worker, probe = probed(bench)
    jobs.pause.delay(1, 3.0)
    bench.wait_for("start")
    worker.send(signal.SIGTERM)
    wait_until(lambda: probe.unready() == "the worker is stopping", timeout=WAIT, message="unready")
    assert probe.live()
    assert probe.value("mouso_slots_busy") == 1
    assert worker.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        probe.get("/live")


def test_a_frozen_worker_does_not_answer(bench: Bench) -> None:
    bench.app(SOUND)
    worker, probe = probed(bench)
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            probe.get("/live", timeout=1)
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    probe.wait_ready()
    assert probe.live()


# -- what others do to it


def hostile(port: int, ended: threading.Event) -> None:
    """Garbage, silence, half requests and floods, until told to end."""
    requests = [b"GET /metrics HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 500, b"", b"GET /" + b"x" * 20_000, b"G"]
    kept: list[socket.socket] = []
    while not ended.is_set():
        for request in requests:
            with contextlib.suppress(OSError):
                sock = socket.create_connection(("127.0.0.1", port), timeout=1)
                kept.append(sock)
                sock.sendall(request)
        while len(kept) > 50:
            kept.pop(0).close()
    for sock in kept:
        sock.close()


def test_jobs_go_on_whatever_is_sent(bench: Bench) -> None:
    jobs = bench.app(SOUND)
    worker, probe = probed(bench)
    ended = threading.Event()
    threads = [threading.Thread(target=hostile, args=(probe.port, ended)) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        handles = jobs.sound.map([(n,) for n in range(500)])
        assert {record.state for record in bench.wait_final(handles)} == {"completed"}
        assert jobs.sound.delay(7).get(timeout=WAIT) == 7
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert probe.live()
    # A page is rendered once a second at most, however many ask.
    probe.wait_for("mouso_jobs_total", lambda n: n == 501, queue="default", task="jobs.sound", state="completed")
    assert len(os.listdir(f"/proc/{worker.pid}/fd")) < 100
    assert "GET" not in worker.log


def test_a_worker_without_descriptors_answers_again_when_it_has_some(bench: Bench) -> None:
    jobs = bench.app(SOUND)
    worker, probe = probed(bench)
    assert jobs.sound.delay(1).get(timeout=WAIT) == 1
    _, hard = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(TimeoutError):
            probe.get("/live", timeout=2)
        assert jobs.sound.delay(2).get(timeout=WAIT) == 2
    finally:
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (hard, hard))
    assert probe.live()
    probe.wait_ready()


# -- the option


def one_line(worker: Worker) -> str:
    """The error of a worker that must not start."""
    assert worker.wait() == 2, worker.log
    (line,) = worker.log.splitlines()
    return line


def test_a_port_in_use(bench: Bench) -> None:
    bench.app(SOUND)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        line = one_line(bench.start("-p", "1", "--health", address))
    bench.workers.clear()
    assert line == (
        f"mouso: error: something else listens on {address}; choose another port, or port 0 for any that is free"
    )


def test_a_worker_without_health_listens_nowhere(bench: Bench) -> None:
    bench.app(SOUND)
    worker = bench.worker()
    assert "health is answered" not in worker.log
    listening = Path(f"/proc/{worker.pid}/net/tcp").read_text()
    inodes = {line.split()[9] for line in listening.splitlines()[1:] if line.split()[3] == "0A"}
    held = {os.readlink(f"/proc/{worker.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{worker.pid}/fd")}
    assert not held & {f"socket:[{inode}]" for inode in inodes}


def test_a_restarted_worker_has_its_port_at_once(bench: Bench) -> None:
    bench.app(SOUND)
    worker, probe = probed(bench)
    assert probe.live()
    assert worker.stop() == 0
    again = bench.worker("--health", f"127.0.0.1:{probe.port}")
    assert Probe.of(again).port == probe.port
    assert probe.live()
