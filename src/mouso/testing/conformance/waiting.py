"""``wait``, ``watch`` and ``interrupt``: nothing is missed, whichever of the two comes first."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest

from mouso.brokers.base import Broker, JobUpdate, Update
from mouso.job import FINAL, JobState, Progress
from mouso.testing.clock import FakeClock
from mouso.testing.conformance.kit import (
    W1,
    MakeBroker,
    Suite,
    claim,
    claim_one,
    ended_by,
    enqueue,
    failure,
    outcome,
    promptly,
    release,
    settle,
)

LONG = 8.0
"""Seconds: much longer than anything here may take."""

EVENTS: dict[str, Callable[[Broker], object]] = {
    "enqueue": lambda broker: enqueue(broker, "new"),
    "retry": lambda broker: broker.retry(["cancelled"]),
    "resume": lambda broker: broker.resume("mail"),
    "cancel": lambda broker: broker.cancel(["running"]),
}


def _quiet(broker: Broker) -> None:
    """Lets ``wait`` hear all that happened so far."""
    for _ in range(100):
        if not broker.wait(0):
            return
    raise AssertionError("wait(0) rings on and on although nothing happens")


class Waiting(Suite):
    """``wait``."""

    @pytest.fixture
    def quiet(self, broker: Broker) -> Broker:
        if not broker.capabilities.push:
            pytest.skip(f"{broker.capabilities.name} does not push")
        enqueue(broker, "running")
        claim_one(broker)
        enqueue(broker, "cancelled")
        broker.cancel(["cancelled"])
        broker.pause("mail")
        _quiet(broker)
        return broker

    @pytest.mark.parametrize("event", EVENTS)
    def test_waiting_is_ended(self, quiet: Broker, make_broker: MakeBroker, event: str) -> None:
        """An enqueue, retry, resume or cancel by any process that was committed after the last ``wait`` began ends it,
        unless ``capabilities.push`` is false."""
        other = make_broker()
        assert ended_by(lambda: quiet.wait(LONG), lambda: EVENTS[event](other))

    @pytest.mark.parametrize("event", EVENTS)
    def test_what_came_between_two_waits_counts(self, quiet: Broker, make_broker: MakeBroker, event: str) -> None:
        """That was committed after the last ``wait`` began: also between two of them."""
        EVENTS[event](make_broker())
        assert promptly(lambda: quiet.wait(LONG))

    def test_every_waiting_worker_hears_it(self, quiet: Broker, make_broker: MakeBroker) -> None:
        """An enqueue by any process ends it, whoever else waits."""
        other = make_broker()
        _quiet(other)
        enqueue(make_broker(), "new")
        assert promptly(lambda: quiet.wait(LONG))
        assert promptly(lambda: other.wait(LONG))

    def test_waiting_ends_after_the_timeout(self, broker: Broker) -> None:
        """Or for ``timeout`` seconds."""
        _quiet(broker)
        promptly(lambda: broker.wait(0.01))

    def test_interrupt_ends_waiting(self, broker: Broker) -> None:
        """``interrupt`` ends it."""
        _quiet(broker)
        ended_by(lambda: broker.wait(LONG), broker.interrupt)

    def test_interrupt_ends_the_next_wait(self, broker: Broker) -> None:
        """Makes a ``wait`` or ``watch`` of this broker object return at once; the next one if none is under way."""
        broker.interrupt()
        promptly(lambda: broker.wait(LONG))

    def test_interrupt_is_for_one_broker_object(self, broker: Broker, make_broker: MakeBroker) -> None:
        """Makes a ``wait`` or ``watch`` of this broker object return at once, and of no other."""
        other = make_broker()
        _quiet(broker)
        _quiet(other)
        other.interrupt()
        assert not broker.wait(0.05)


def _look(broker: Broker, id: str) -> JobUpdate:
    [update] = broker.watch({id: None}, 0)
    return update


class Watching(Suite):
    """``watch``."""

    def test_watching_shows_state_attempts_and_progress(self, broker: Broker, clock: FakeClock) -> None:
        """The updates that differ."""
        enqueue(broker, "a")
        assert _look(broker, "a") == JobUpdate("a", JobState.AVAILABLE)
        lease = claim_one(broker)
        broker.report(W1, [Update(lease.key, lease.token, Progress(1, 2, "x"))])
        assert _look(broker, "a") == JobUpdate("a", JobState.RUNNING, 0, Progress(1, 2, "x"))
        settle(broker, failure(lease))
        assert _look(broker, "a") == JobUpdate("a", JobState.RETRYABLE, 1, Progress(1, 2, "x"))

    def test_a_change_that_is_there_already(self, broker: Broker) -> None:
        """A change that is there already returns at once."""
        enqueue(broker, "a", "b", "c")
        seen: dict[str, JobUpdate | None] = {id: _look(broker, id) for id in "abc"}
        claim(broker, 2)
        updates = promptly(lambda: broker.watch(seen, LONG))
        assert updates == [JobUpdate("a", JobState.RUNNING), JobUpdate("b", JobState.RUNNING)]

    def test_an_unknown_id_counts_once(self, broker: Broker) -> None:
        """An unknown id is a change once."""
        assert promptly(lambda: broker.watch({"a": None}, LONG)) == [JobUpdate("a", None)]
        assert broker.watch({"a": JobUpdate("a", None)}, 0) == []
        enqueue(broker, "a")
        assert broker.watch({"a": JobUpdate("a", None)}, 0) == [JobUpdate("a", JobState.AVAILABLE)]
        broker.delete(["a"])
        assert broker.watch({"a": JobUpdate("a", JobState.AVAILABLE)}, 0) == [JobUpdate("a", None)]

    def test_nothing_differs_until_the_time_is_over(self, broker: Broker, clock: FakeClock) -> None:
        """Empty when the time is over."""
        enqueue(broker, "a")
        seen: dict[str, JobUpdate | None] = {"a": _look(broker, "a")}
        assert broker.watch(seen, 0) == []
        with ThreadPoolExecutor(1) as pool:
            future: Future[list[JobUpdate]] = pool.submit(broker.watch, seen, 0.05)
            for _ in range(100):
                clock.advance(0.05)
                if wait([future], 0.05).done:
                    break
            assert future.result(LONG) == []

    @pytest.mark.parametrize("final", sorted(FINAL))
    def test_no_final_state_is_missed(self, broker: Broker, make_broker: MakeBroker, final: JobState) -> None:
        """No final state is missed."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        seen: dict[str, JobUpdate | None] = {"a": _look(broker, "a")}
        other = make_broker()
        updates = ended_by(lambda: broker.watch(seen, LONG), lambda: settle(other, outcome(lease, final)))
        assert updates == [JobUpdate("a", final)]

    @pytest.mark.parametrize("change", ["progress", "claim", "cancel", "delete", "retire", "promote", "retry"])
    def test_changes_by_others_are_seen(
        self, broker: Broker, make_broker: MakeBroker, clock: FakeClock, change: str
    ) -> None:
        """Waits until a job differs from what the caller has seen of it."""
        enqueue(broker, "a", "late")
        a, late = claim(broker, 2)
        settle(broker, failure(late, delay=1000))
        if change in ("claim", "cancel", "delete", "retry"):
            settle(broker, release(a))
        if change == "retry":
            broker.cancel(["a"])
        clock.advance(2)
        other = make_broker()
        changes: dict[str, Callable[[], object]] = {
            "progress": lambda: other.report(W1, [Update(a.key, a.token, Progress(1))]),
            "claim": lambda: claim_one(other),
            "cancel": lambda: other.cancel(["a"]),
            "delete": lambda: other.delete(["a"]),
            "retire": lambda: other.retire(W1),
            "promote": lambda: other.promote(10),
            "retry": lambda: other.retry(["a"]),
        }
        seen: dict[str, JobUpdate | None] = {id: _look(broker, id) for id in ("a", "late")}
        [update] = ended_by(lambda: broker.watch(seen, LONG), changes[change])
        assert update.id == ("late" if change == "promote" else "a")
        assert update != seen[update.id]

    def test_interrupt_ends_watching(self, broker: Broker) -> None:
        """Makes a ``wait`` or ``watch`` of this broker object return at once."""
        enqueue(broker, "a")
        seen: dict[str, JobUpdate | None] = {"a": _look(broker, "a")}
        assert ended_by(lambda: broker.watch(seen, LONG), broker.interrupt) == []

    def test_interrupt_ends_the_next_watch(self, broker: Broker) -> None:
        """The next one if none is under way."""
        enqueue(broker, "a")
        seen: dict[str, JobUpdate | None] = {"a": JobUpdate("a", JobState.AVAILABLE)}
        broker.interrupt()
        assert promptly(lambda: broker.watch(seen, LONG)) == []

    def test_watching_many_ids(self, broker: Broker) -> None:
        """1..10,000 ids."""
        names = [f"j{n}" for n in range(2000)]
        for start in range(0, 2000, 1000):
            enqueue(broker, *names[start : start + 1000])
        seen: dict[str, JobUpdate | None] = {id: JobUpdate(id, JobState.AVAILABLE) for id in names}
        seen |= {f"unknown{n}": JobUpdate(f"unknown{n}", None) for n in range(8000)}
        assert broker.watch(seen, 0) == []
        broker.cancel(["j1999"])
        assert broker.watch(seen, 0) == [JobUpdate("j1999", JobState.CANCELLED)]
