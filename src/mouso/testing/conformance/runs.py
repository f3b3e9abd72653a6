"""What is known of each run: what it took, what it logged, where it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mouso.brokers.base import Broker, Command, Update
from mouso.job import (
    KEPT_RUNS,
    Charge,
    JobState,
    Lease,
    LogLine,
    Progress,
    RunInfo,
    Stack,
    encode_log,
)
from mouso.testing.clock import FakeClock
from mouso.testing.conformance.kit import (
    LEASE,
    W1,
    W2,
    Suite,
    claim,
    claim_one,
    enqueue,
    everything,
    failure,
    join,
    outcome,
    read,
    release,
    settle,
)
from mouso.testing.conformance.upkeep import retention

TOOK: dict[str, Any] = {
    "started_at": 1_700_000_000_123,
    "run_seconds": 2.5,
    "cpu_seconds": 0.75,
    "peak_memory": 64 << 20,
    "pid": 4711,
}
LINES = (LogLine(1, "INFO", "one"), LogLine(2, "ERROR", "zwei\0 · 二\nTraceback…"))
LOG = encode_log(LINES, 3)

ENDS: dict[str, Callable[..., Any]] = {
    "completed": lambda lease, **took: outcome(lease, JobState.COMPLETED, **took),
    "failed": failure,
    "crashed": lambda lease, **took: outcome(lease, JobState.AVAILABLE, charge=Charge.CRASH, **took),
    "released": lambda lease, **took: outcome(lease, JobState.AVAILABLE, charge=Charge.RELEASE, **took),
    "snoozed": lambda lease, **took: outcome(lease, JobState.SCHEDULED, delay=1, **took),
    "cancelled": lambda lease, **took: outcome(lease, JobState.CANCELLED, **took),
}


def log(broker: Broker, lease: Lease, *messages: str, worker: str = W1) -> list[int | str]:
    """Reports these lines as the log of a claim."""
    lines = [LogLine(n, "INFO", message) for n, message in enumerate(messages)]
    return broker.report(worker, [Update(lease.key, lease.token, log=encode_log(lines, 0))])


def messages(run: RunInfo) -> list[str]:
    return [line.message for line in run.lines]


def stack_commands(broker: Broker, worker: str = W1) -> list[Command]:
    """What a heartbeat says of stacks."""
    return [command for command in join(broker, worker) if command.kind == "stack"]


class Runs(Suite):
    """``runs``, and what ``exchange`` and ``report`` keep for it."""

    @pytest.mark.parametrize("end", ENDS)
    def test_what_a_run_took_is_kept(self, broker: Broker, end: str) -> None:
        """Applying adds 1 to the charged counter and stores result, reason and error with the new state, and with the
        run what it took and logged."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        settle(broker, ENDS[end](lease, **TOOK, log=LOG))
        expected = RunInfo(token=1, attempt=1, end=end, worker=W1, lines=LINES, left_out=3, **TOOK)
        assert broker.runs("a") == [expected]

    @pytest.mark.parametrize("end", ENDS)
    def test_a_run_without_a_log(self, broker: Broker, end: str) -> None:
        """Stores with the run what it took."""
        enqueue(broker, "a", "b")
        a, b = claim(broker, 2)
        settle(broker, ENDS[end](a, **TOOK), ENDS[end](b))
        assert broker.runs("a") == [RunInfo(token=1, attempt=1, end=end, worker=W1, **TOOK)]
        assert broker.runs("b") == []  # it ended before it began

    @pytest.mark.parametrize("end", ["completed", "cancelled"])
    def test_the_last_run_of_a_finished_job_stands_in_the_job(self, broker: Broker, end: str) -> None:
        """Like ``result`` set in final states only."""
        enqueue(broker, "a")
        settle(broker, failure(claim_one(broker), delay=0, **TOOK))
        broker.promote(10)
        assert [getattr(read(broker, "a"), name) for name in TOOK] == [None] * len(TOOK)
        other = TOOK | {"pid": 12, "cpu_seconds": None}
        settle(broker, ENDS[end](claim_one(broker), **other))
        assert {name: getattr(read(broker, "a"), name) for name in TOOK} == other
        broker.retry(["a"])
        if end == "cancelled":
            assert [getattr(read(broker, "a"), name) for name in TOOK] == [None] * len(TOOK)

    def test_a_failed_run_stands_in_its_error(self, broker: Broker) -> None:
        """Stores the error with what the run took."""
        enqueue(broker, "a", "b")
        a, b = claim(broker, 2)
        settle(broker, failure(a, **TOOK), failure(b))
        [error] = read(broker, "a").errors
        assert {name: getattr(error, name) for name in TOOK} == TOOK
        assert (error.token, error.worker) == (1, W1)
        [error] = read(broker, "b").errors
        assert [getattr(error, name) for name in TOOK] == [None] * len(TOOK)

    def test_runs_are_in_order_and_numbered(self, broker: Broker, clock: FakeClock) -> None:
        """Oldest first; a run that was given back is repeated under its number."""
        enqueue(broker, "a")
        for end in ("failed", "released", "snoozed", "failed", "completed"):
            clock.advance(2)
            broker.promote(10)
            settle(broker, ENDS[end](claim_one(broker), **TOOK))
        assert [(run.token, run.attempt, run.end) for run in broker.runs("a")] == [
            (1, 1, "failed"),
            (2, 2, "released"),
            (3, 2, "snoozed"),
            (4, 2, "failed"),
            (5, 3, "completed"),
        ]

    def test_old_runs_are_forgotten(self, broker: Broker) -> None:
        """Of one that failed or was given back only while it is among the last ``KEPT_RUNS`` claims."""
        enqueue(broker, "a")
        for _ in range(KEPT_RUNS + 5):
            settle(broker, ENDS["released"](claim_one(broker), **TOOK, log=LOG))
        assert [run.token for run in broker.runs("a")] == list(range(6, KEPT_RUNS + 6))
        for _ in range(KEPT_RUNS - 1):
            settle(broker, release(claim_one(broker)))
        assert [run.token for run in broker.runs("a")] == [KEPT_RUNS + 5]
        settle(broker, release(claim_one(broker)))
        assert broker.runs("a") == []

    @pytest.mark.parametrize("how", ["delete", "prune"])
    def test_runs_go_with_their_job(self, broker: Broker, clock: FakeClock, how: str) -> None:
        """They stay as long as the job."""
        enqueue(broker, "a")
        settle(broker, failure(claim_one(broker), delay=0, **TOOK, log=LOG))
        broker.promote(10)
        settle(broker, outcome(claim_one(broker), JobState.COMPLETED, **TOOK, log=LOG))
        clock.advance(3600)
        broker.prune(10, retention())
        assert len(broker.runs("a")) == 2
        if how == "delete":
            broker.delete(["a"])
        else:
            assert broker.prune(10, retention(finished=1000)) == 1
        assert broker.runs("a") == []
        enqueue(broker, "a")
        assert broker.runs("a") == []

    def test_a_retry_keeps_them(self, broker: Broker) -> None:
        """They stay as long as the job."""
        enqueue(broker, "a")
        settle(broker, failure(claim_one(broker), JobState.DEAD, **TOOK, log=LOG))
        before = broker.runs("a")
        broker.retry(["a"])
        assert broker.runs("a") == before
        settle(broker, outcome(claim_one(broker), JobState.COMPLETED, **TOOK))
        assert [run.end for run in broker.runs("a")] == ["failed", "completed"]

    @pytest.mark.parametrize("id", ["", "unknown"])
    def test_an_unknown_job_has_none(self, broker: Broker, id: str) -> None:
        """Empty for an unknown id."""
        assert broker.runs(id) == []

    def test_an_outcome_that_is_fenced_keeps_nothing(self, broker: Broker) -> None:
        """Else it changes nothing."""
        enqueue(broker, "a", "b")
        a, b = claim(broker, 2)
        settle(broker, release(a), release(b))
        late = [outcome(a, JobState.COMPLETED, **TOOK, log=LOG), failure(b, **TOOK, log=LOG)]
        assert sorted(settle(broker, *late)) == sorted([a.key, b.key])
        assert (broker.runs("a"), broker.runs("b")) == ([], [])

    def test_a_fenced_log_beside_a_good_one(self, broker: Broker) -> None:
        """An outcome is applied if its token holds, else it changes nothing."""
        enqueue(broker, "a", "b")
        a, b = claim(broker, 2)
        settle(broker, release(a))
        ends = [outcome(lease, JobState.COMPLETED, **TOOK, log=LOG) for lease in (a, b)]
        assert settle(broker, *ends) == [a.key]
        assert (broker.runs("a"), [run.lines for run in broker.runs("b")]) == ([], [LINES])


class Logs(Suite):
    """Logs that ``report`` brings while a job runs."""

    def test_the_last_log_wins(self, broker: Broker) -> None:
        """The last progress, log and stack of a claim win; repeating an update changes nothing more."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        assert log(broker, lease, "one") == []
        assert log(broker, lease, "one", "two") == []
        assert log(broker, lease, "one", "two") == []
        [run] = broker.runs("a")
        assert (run.token, run.attempt, run.end, run.worker, messages(run)) == (1, 1, "", W1, ["one", "two"])

    def test_an_update_leaves_alone_what_it_does_not_bring(self, broker: Broker) -> None:
        """What is None stays as it is."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        broker.report(W1, [Update(lease.key, lease.token, Progress(1, 2))])
        log(broker, lease, "one")
        broker.report(W1, [Update(lease.key, lease.token, stack="here")])
        assert read(broker, "a").progress == Progress(1, 2)
        [run] = broker.runs("a")
        assert (messages(run), run.stack and run.stack.text) == (["one"], "here")
        broker.report(W1, [Update(lease.key, lease.token)])
        assert broker.runs("a") == [run]

    @pytest.mark.parametrize("end", ENDS)
    def test_it_stays_when_the_outcome_brings_none(self, broker: Broker, end: str) -> None:
        """Runs that ended, and those that logged something."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        log(broker, lease, "one")
        settle(broker, ENDS[end](lease))
        [run] = broker.runs("a")
        assert (run.end, run.worker, messages(run), run.run_seconds) == (end, W1, ["one"], None)

    @pytest.mark.parametrize("end", ENDS)
    def test_that_of_the_outcome_wins(self, broker: Broker, end: str) -> None:
        """Applying stores the new state, and with the run what it took and logged."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        log(broker, lease, "one")
        settle(broker, ENDS[end](lease, **TOOK, log=LOG))
        assert broker.runs("a") == [RunInfo(token=1, attempt=1, end=end, worker=W1, lines=LINES, left_out=3, **TOOK)]

    def test_a_late_log_is_fenced(self, broker: Broker) -> None:
        """Fenced updates change nothing."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        settle(broker, release(lease))
        assert log(broker, lease, "late") == [lease.key]
        claim_one(broker)
        assert log(broker, lease, "late") == [lease.key]
        assert broker.report(W1, [Update(lease.key, lease.token, stack="late")]) == [lease.key]
        assert broker.runs("a") == []

    @pytest.mark.parametrize("how", ["retired", "reaped", "cancelled"])
    def test_a_run_that_nobody_ended_is_lost(self, broker: Broker, clock: FakeClock, how: str) -> None:
        """``lost`` when nobody told its end."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        log(broker, lease, "one")
        if how == "reaped":
            clock.advance(LEASE + 1)
            assert broker.reap(10) == [W1]
        else:
            broker.cancel(["a"] if how == "cancelled" else [])
            broker.retire(W1)
        [run] = broker.runs("a")
        assert (run.end, messages(run)) == ("lost", ["one"])
        if how != "cancelled":
            log(broker, claim_one(broker, worker=W2), "two", worker=W2)
            assert [(run.end, run.worker, messages(run)) for run in broker.runs("a")] == [
                ("lost", W1, ["one"]),
                ("", W2, ["two"]),
            ]


class Stacks(Suite):
    """``ask_stack``, and the answer."""

    def test_its_worker_is_told_until_it_answers(self, broker: Broker, clock: FakeClock) -> None:
        """The wish is stored: its worker is told at each heartbeat until a stack is reported."""
        enqueue(broker, "a", "b")
        lease, _ = claim(broker, 2)
        join(broker, W2)
        assert broker.ask_stack("a") is True
        command = Command("stack", lease.key, lease.token)
        assert (stack_commands(broker), stack_commands(broker), stack_commands(broker, W2)) == (
            [command],
            [command],
            [],
        )
        assert broker.runs("a") == []
        clock.advance(1)
        assert broker.report(W1, [Update(lease.key, lease.token, stack="File nö\0")]) == []
        assert broker.runs("a") == [RunInfo(token=1, attempt=1, worker=W1, stack=Stack(clock.now(), "File nö\0"))]
        assert stack_commands(broker) == []

    def test_asking_again_forgets_the_answer(self, broker: Broker) -> None:
        """A stack that was reported before is forgotten, so one that is there is new."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        broker.report(W1, [Update(lease.key, lease.token, stack="old", log=LOG)])
        assert broker.ask_stack("a") is True
        [run] = broker.runs("a")
        assert (run.stack, run.lines) == (None, LINES)
        assert stack_commands(broker) == [Command("stack", lease.key, lease.token)]
        assert broker.ask_stack("a") is True
        assert len(stack_commands(broker)) == 1

    @pytest.mark.parametrize("state", [None, "available", "completed", "retryable"])
    def test_only_a_running_job_has_one(self, broker: Broker, state: str | None) -> None:
        """Returns False, and asks nobody, if it does not run."""
        if state is not None:
            enqueue(broker, "a")
        if state not in (None, "available"):
            settle(broker, outcome(claim_one(broker), JobState(state), delay=1000))
        before = everything(broker)
        assert broker.ask_stack("a") is False
        assert (everything(broker), stack_commands(broker)) == (before, [])

    def test_a_wish_holds_for_one_claim(self, broker: Broker) -> None:
        """The wish is stored and holds for this claim only."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        broker.ask_stack("a")
        settle(broker, release(lease))
        assert stack_commands(broker) == []
        claim_one(broker)
        assert stack_commands(broker) == []

    @pytest.mark.parametrize("end", ENDS)
    def test_the_answer_stays_with_the_run(self, broker: Broker, clock: FakeClock, end: str) -> None:
        """Runs that ended, and those that logged something or whose stack was taken."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        broker.ask_stack("a")
        broker.report(W1, [Update(lease.key, lease.token, stack="here")])
        settle(broker, ENDS[end](lease, **TOOK))
        stack = Stack(clock.now(), "here")
        assert broker.runs("a") == [RunInfo(token=1, attempt=1, end=end, worker=W1, stack=stack, **TOOK)]

    @pytest.mark.parametrize("answered", [False, True])
    def test_a_wish_without_an_answer_leaves_nothing(self, broker: Broker, answered: bool) -> None:
        enqueue(broker, "a")
        lease = claim_one(broker)
        if answered:
            assert broker.ask_stack("a")
            broker.report(W1, [Update(lease.key, lease.token, stack="here")])
        assert broker.ask_stack("a")
        assert settle(broker, release(lease)) == []
        assert broker.runs("a") == []

    def test_cancel_comes_as_well(self, broker: Broker) -> None:
        """``cancel`` for each running claim that somebody asked to cancel, ``stack`` for each whose stack was asked."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        broker.cancel(["a"])
        broker.ask_stack("a")
        assert join(broker) == [Command(kind, lease.key, lease.token) for kind in ("cancel", "stack")]
