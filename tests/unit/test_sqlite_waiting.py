"""Who waits for a store that others write to all the time."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from mouso.brokers import connect
from mouso.brokers.sqlite.gate import FREE, LOOK, STEP_UP, Gate, pass_gate
from mouso.brokers.sqlite.store import Store
from mouso.job import Job

WRITES = """
import sys, time
from mouso.brokers.sqlite.store import Store
store = Store(sys.argv[1], "normal")
store.open()
print("ready", flush=True)
while True:
    with store.write(60, politely=True) as tx:
        tx.execute("UPDATE mouso_meta SET value = value + 1 WHERE key = 'turns'")
        time.sleep(0.02)
"""


@pytest.mark.parametrize("workers", [1, 3])
def test_who_waits_gets_its_turn_beside_those_who_write_all_the_time(tmp_path: Path, workers: int) -> None:
    """Else it would find the gate free by chance only, and more seldom the longer it waits."""
    path = tmp_path / "jobs.db"
    with ExitStack() as stack:
        broker, store = connect(f"sqlite:///{path}"), Store(str(path), "normal")
        stack.callback(broker.close)
        stack.callback(store.close)
        broker.open()
        with store.write() as tx:
            tx.execute("INSERT INTO mouso_meta (key, value) VALUES ('turns', 0)")

        def turns() -> int:
            with store.read() as tx:
                return int(tx.execute("SELECT value FROM mouso_meta WHERE key = 'turns'").fetchone()[0])

        command = [sys.executable, "-c", WRITES, str(path)]
        for _ in range(workers):
            writes = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(writes.kill)
            assert writes.stdout is not None
            assert writes.stdout.readline() == "ready\n"
        waited = []
        for number in range(20):
            before = turns()
            broker.enqueue([Job(id=str(number), task="t")], timeout=60)
            waited.append(turns() - before)
        assert sorted(waited)[10] <= 2 * workers + 1, waited
        assert max(waited) < 200, waited


def is_awaited(gate: Gate) -> bool:
    """Whether somebody else waits in front of it."""
    return bool(pass_gate(gate.number, LOOK, STEP_UP)[: len(FREE)] != FREE)


def test_one_waits_in_front(tmp_path: Path) -> None:
    path = tmp_path / "file"
    gates = [Gate() for _ in range(3)]
    for gate in gates:
        gate.open(str(path), create=True)
    first, second, third = gates
    assert not any(is_awaited(gate) for gate in gates)
    assert first.step_up()
    assert not second.step_up()
    assert not is_awaited(first), "by itself only"
    assert is_awaited(third)
    first.step_back()
    assert not is_awaited(third)
    assert second.step_up()
    second.close()
    assert third.step_up()
    for gate in (first, third):
        gate.close()
