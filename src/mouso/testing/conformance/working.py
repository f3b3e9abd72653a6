"""``exchange`` and ``report``: settling, fences, claiming, order, shares, and tasks that nobody knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from mouso.brokers.base import Broker, JobFilter, Update
from mouso.errors import ErrorInfo
from mouso.job import TRANSITIONS, Charge, JobState, Lease, Progress
from mouso.testing.clock import FakeClock
from mouso.testing.conformance.kit import (
    LEASE,
    TASK,
    W1,
    W2,
    Suite,
    claim,
    claim_one,
    enqueue,
    everything,
    exchange,
    failure,
    ids,
    join,
    outcome,
    read,
    release,
    require_inspection,
    settle,
    state,
)

KNOWN = frozenset({TASK})
RUNNING_TO = sorted(TRANSITIONS[JobState.RUNNING])


def _again(broker: Broker, clock: FakeClock, lease: Lease) -> None:
    settle(broker, release(lease))
    claim_one(broker)


def _made_anew(broker: Broker, clock: FakeClock, lease: Lease) -> None:
    require_inspection(broker)
    settle(broker, release(lease))
    broker.delete([lease.id])
    enqueue(broker, lease.id)
    assert claim_one(broker, worker=W2).token == lease.token


def _deleted(broker: Broker, clock: FakeClock, lease: Lease) -> None:
    settle(broker, release(lease))
    broker.delete([lease.id])


def _reaped(broker: Broker, clock: FakeClock, lease: Lease) -> None:
    require_inspection(broker)
    clock.advance(LEASE + 1)
    assert broker.reap(10) == [W1]


LATE: dict[str, Callable[[Broker, FakeClock, Lease], object]] = {
    "settled": lambda broker, clock, lease: settle(broker, outcome(lease, JobState.COMPLETED, result=b"1")),
    "failed": lambda broker, clock, lease: settle(broker, failure(lease)),
    "snoozed": lambda broker, clock, lease: settle(broker, outcome(lease, JobState.SCHEDULED, delay=1000)),
    "dead": lambda broker, clock, lease: settle(broker, failure(lease, JobState.DEAD)),
    "released": lambda broker, clock, lease: settle(broker, release(lease)),
    "claimed again": _again,
    "retired": lambda broker, clock, lease: broker.retire(W1),
    "reaped": _reaped,
    "deleted": _deleted,
    "made anew": _made_anew,
}


class Settling(Suite):
    """The first half of ``exchange``."""

    @pytest.mark.parametrize("next_state", RUNNING_TO)
    def test_an_outcome_is_applied(self, broker: Broker, clock: FakeClock, next_state: JobState) -> None:
        """An outcome is applied if its token is the job's last claim, which this worker made, and the job is still
        running under it."""
        require_inspection(broker)
        enqueue(broker, "a")
        lease = claim_one(broker)
        clock.advance(3)
        assert settle(broker, outcome(lease, next_state, delay=500, run_seconds=2.5)) == []
        job = read(broker, "a")
        assert job.state is next_state
        assert job.finished_at == (clock.now() if next_state.final else None)
        delayed = next_state in (JobState.SCHEDULED, JobState.RETRYABLE)
        assert job.due == (clock.now() + 500 if delayed else None)
        if next_state.final:
            assert job.run_seconds == 2.5

    @pytest.mark.parametrize("late", LATE)
    @pytest.mark.parametrize("next_state", [JobState.COMPLETED, JobState.RETRYABLE, JobState.AVAILABLE])
    def test_a_late_outcome_is_fenced(self, broker: Broker, clock: FakeClock, late: str, next_state: JobState) -> None:
        """Else it changes nothing and its key is in ``fenced``."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        LATE[late](broker, clock, lease)
        before = everything(broker)
        error = ErrorInfo(type="ValueError")
        writer = outcome(lease, next_state, result=b"2", charge=Charge.ATTEMPT, error=error, reason="late")
        assert settle(broker, writer) == [lease.key]
        assert everything(broker) == before

    @pytest.mark.parametrize("late", LATE)
    def test_late_progress_is_fenced(self, broker: Broker, clock: FakeClock, late: str) -> None:
        """Returns the keys whose token no longer held. Fenced updates change nothing."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        LATE[late](broker, clock, lease)
        before = everything(broker)
        assert broker.report(W1, [Update(lease.key, lease.token, Progress(1, 2, "late"))]) == [lease.key]
        assert everything(broker) == before

    @pytest.mark.parametrize("token", [-1, 0, 2, 10**12])
    def test_a_wrong_token_is_fenced(self, broker: Broker, token: int) -> None:
        """Else it changes nothing and its key is in ``fenced``."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        before = read(broker, "a")
        wrong = outcome(lease, JobState.COMPLETED)
        wrong.token = token
        assert settle(broker, wrong) == [lease.key]
        assert broker.report(W1, [Update(lease.key, token, Progress(1))]) == [lease.key]
        assert read(broker, "a") == before

    def test_what_another_worker_says_is_fenced(self, broker: Broker) -> None:
        """Its token is the job's last claim, which this worker made; else it changes nothing."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        claim(broker, 1, worker=W2)  # which makes it known
        before = read(broker, "a")
        for other in (W2, "nobody"):
            for next_state in (JobState.COMPLETED, JobState.RETRYABLE):
                assert settle(broker, outcome(lease, next_state), worker=other) == [lease.key]
            assert broker.report(other, [Update(lease.key, lease.token, Progress(1))]) == [lease.key]
        assert read(broker, "a") == before
        assert settle(broker, outcome(lease, JobState.COMPLETED)) == []

    @pytest.mark.parametrize("key", [0, -1, 10**12, "", "unknown"])
    def test_an_unknown_key_is_fenced(self, broker: Broker, key: int | str) -> None:
        """Else it changes nothing and its key is in ``fenced``."""
        enqueue(broker, "a")
        unknown = outcome(claim_one(broker), JobState.COMPLETED)
        unknown.key = key
        assert settle(broker, unknown) == [key]
        assert state(broker, "a") is JobState.RUNNING

    def test_one_fenced_outcome_does_not_hold_up_the_others(self, broker: Broker) -> None:
        """An outcome is applied if its token is the job's last claim, else its key is in ``fenced``."""
        enqueue(broker, "a", "b", "c")
        a, b, c = claim(broker, 3)
        settle(broker, outcome(b, JobState.COMPLETED, result=b"1"))
        ends = [outcome(lease, JobState.COMPLETED, result=b"2") for lease in (a, b, c)]
        assert settle(broker, *ends) == [b.key]
        assert [read(broker, id).result for id in "abc"] == [b"2", b"1", b"2"]

    @pytest.mark.parametrize("charge", Charge)
    def test_the_charged_counter_goes_up(self, broker: Broker, charge: Charge) -> None:
        """Applying adds 1 to the charged counter."""
        enqueue(broker, "a")
        for n in (1, 2):
            settle(broker, outcome(claim_one(broker), JobState.AVAILABLE, charge=charge))
            job = read(broker, "a")
            counters = {"attempts": job.attempts, "crashes": job.crashes, "releases": job.releases}
            assert counters == {name: n if name == charge else 0 for name in counters}
        lease = claim_one(broker)
        assert (lease.attempts, lease.crashes, lease.releases) == (job.attempts, job.crashes, job.releases)

    def test_result_reason_and_error_are_stored(self, broker: Broker, clock: FakeClock) -> None:
        """Applying adds 1 to the charged counter and stores result, reason and error with the new state."""
        enqueue(broker, "a", "b", "c")
        a, b, c = claim(broker, 3)
        clock.advance(1)
        error = ErrorInfo(type="ValueError", message="nö\0", traceback="Traceback…\n", attempt=1, reason="x")
        settle(
            broker,
            outcome(a, JobState.COMPLETED, result=b"42"),
            outcome(b, JobState.DEAD, reason="attempts", error=error, charge=Charge.ATTEMPT),
            outcome(c, JobState.CANCELLED, reason="by the task"),
        )
        assert (read(broker, "a").result, read(broker, "a").errors) == (b"42", ())
        assert (read(broker, "c").reason, read(broker, "c").result) == ("by the task", None)
        dead = read(broker, "b")
        [kept] = dead.errors
        assert (dead.reason, dead.attempts) == ("attempts", 1)
        assert (kept.type, kept.message, kept.traceback) == ("ValueError", "nö\0", "Traceback…\n")
        assert (kept.attempt, kept.reason, kept.at, kept.worker) == (1, "x", clock.now(), W1)

    def test_errors_add_up(self, broker: Broker, clock: FakeClock) -> None:
        """Failed attempts, oldest first, each with when and under which worker it was."""
        require_inspection(broker)
        enqueue(broker, "a")
        for worker in (W1, W2, W1):
            settle(broker, failure(claim_one(broker, worker=worker)), worker=worker)
            clock.advance(2)
            broker.promote(10)
        job = read(broker, "a")
        assert [(error.message, error.worker) for error in job.errors] == [
            ("token 1", W1),
            ("token 2", W2),
            ("token 3", W1),
        ]
        assert [clock.now() - error.at for error in job.errors] == [6000, 4000, 2000]
        assert (job.attempts, job.claims) == (3, 3)

    def test_repeating_changes_nothing_more(self, broker: Broker) -> None:
        """Repeating it with the same outcomes reports them as fenced and changes nothing more."""
        enqueue(broker, "a", "b", "c", "d")
        a, b, c, d = claim(broker, 4)
        ends = [failure(a), outcome(b, JobState.COMPLETED), release(c), failure(d, JobState.DEAD)]
        assert settle(broker, *ends) == []
        before = everything(broker)
        assert sorted(settle(broker, *ends), key=str) == sorted([x.key for x in (a, b, c, d)], key=str)
        assert everything(broker) == before

    def test_settles_first_and_then_claims(self, broker: Broker) -> None:
        """Settles outcomes, then claims jobs, in one step."""
        require_inspection(broker)
        enqueue(broker, "a", "b")
        lease = claim_one(broker)
        both = exchange(broker, 2, outcomes=[release(lease)])
        assert (ids(both.leases), both.fenced) == (["a", "b"], [])
        assert both.leases[0].token == 2


class Reporting(Suite):
    """``report``."""

    def test_the_last_progress_wins(self, broker: Broker) -> None:
        """The last progress of a claim wins."""
        enqueue(broker, "a", "b")
        a, b = claim(broker, 2)
        steps = [Progress(1, 3, "one"), Progress(2.5, None, "zwei\0 · 二")]
        updates = [Update(a.key, a.token, step) for step in steps]
        assert broker.report(W1, [*updates, Update(b.key, b.token, Progress(7))]) == []
        assert (read(broker, "a").progress, read(broker, "b").progress) == (steps[1], Progress(7))
        broker.report(W1, updates[:1])
        assert read(broker, "a").progress == steps[0]

    def test_progress_stays_with_a_finished_job(self, broker: Broker) -> None:
        """Stores progress of running claims."""
        enqueue(broker, "a")
        lease = claim_one(broker)
        broker.report(W1, [Update(lease.key, lease.token, Progress(3, 3))])
        settle(broker, outcome(lease, JobState.COMPLETED))
        assert read(broker, "a").progress == Progress(3, 3)


class Claiming(Suite):
    """The second half of ``exchange``."""

    def test_a_lease_holds_what_it_takes_to_run_the_job(self, broker: Broker, clock: FakeClock) -> None:
        """A claimed job on its way to a child: what it takes to run it."""
        enqueue(broker, "a", payload=b"p", codec="msgpack", queue="mail", priority=7, ttl=9000, options=b"o")
        at = clock.now()
        clock.advance(2)
        lease = claim_one(broker)
        assert (lease.id, lease.task, lease.queue, lease.payload) == ("a", TASK, "mail", b"p")
        assert (lease.codec, lease.options, lease.priority) == ("msgpack", b"o", 7)
        assert (lease.token, lease.attempts, lease.crashes, lease.releases) == (1, 0, 0, 0)
        assert (lease.enqueued_at, lease.ttl) == (at, 7000)

    def test_claiming_adds_to_claims(self, broker: Broker) -> None:
        """Claiming adds 1 to ``claims``, which is the token."""
        enqueue(broker, "a")
        for n in (1, 2, 3):
            lease = claim_one(broker)
            job = read(broker, "a")
            assert (job.state, job.claims, job.worker, lease.token) == (JobState.RUNNING, n, W1, n)
            settle(broker, release(lease))

    def test_a_running_job_is_not_claimed_again(self, broker: Broker) -> None:
        """A job is claimed by one worker only."""
        enqueue(broker, "a")
        claim_one(broker)
        assert claim(broker, 10) == []
        assert claim(broker, 10, worker=W2) == []

    def test_higher_priority_first_then_first_in_first_out(self, broker: Broker) -> None:
        """Inside a queue higher priority goes first, then what was enqueued first."""
        for id, priority in [("a", 0), ("b", -100), ("c", 100), ("d", 0), ("e", 1), ("f", 100), ("g", -1)]:
            enqueue(broker, id, priority=priority)
        assert ids(claim(broker, 3)) == ["c", "f", "e"]
        assert ids(claim(broker, 10)) == ["a", "d", "g", "b"]

    @pytest.mark.parametrize("jump", [-3600, 3600])
    def test_order_survives_a_clock_that_jumps(self, broker: Broker, clock: FakeClock, jump: float) -> None:
        """What was enqueued first goes first."""
        for id in "abc":
            enqueue(broker, id)
            clock.jump(jump)
        assert ids(claim(broker, 3)) == ["a", "b", "c"]

    def test_a_delayed_job_keeps_its_place(self, broker: Broker, clock: FakeClock) -> None:
        """Inside a queue what was enqueued first goes first, also if it became due last."""
        require_inspection(broker)
        enqueue(broker, "a", delay=2000)
        enqueue(broker, "b", delay=1000)
        enqueue(broker, "c")
        clock.advance(3)
        broker.promote(10)
        assert ids(claim(broker, 3)) == ["a", "b", "c"]

    def test_a_released_or_retried_job_keeps_its_place(self, broker: Broker, clock: FakeClock) -> None:
        """A released or retried job keeps its place."""
        require_inspection(broker)
        enqueue(broker, "a", "b", "c", "d", "e")
        a, b, c, d = claim(broker, 4)
        settle(broker, outcome(d, JobState.DEAD), failure(b), release(c), outcome(a, JobState.CANCELLED))
        clock.advance(2)
        broker.promote(10)
        broker.retry(["d", "a"])
        assert ids(claim(broker, 10)) == ["a", "b", "c", "d", "e"]

    def test_a_paused_queue_is_not_claimed(self, broker: Broker) -> None:
        """A paused queue and an expired job are not claimed."""
        enqueue(broker, "a", queue="mail")
        enqueue(broker, "b")
        broker.pause("mail")
        assert ids(claim(broker, 10)) == ["b"]
        assert claim(broker, 10, shares=[("mail", 10)]) == []

    def test_an_expired_job_is_not_claimed(self, broker: Broker, clock: FakeClock) -> None:
        """A paused queue and an expired job are not claimed."""
        require_inspection(broker)
        enqueue(broker, "a", "b", ttl=1000)
        enqueue(broker, "c", ttl=5000)
        clock.advance(1.5)
        assert ids(claim(broker, 10)) == ["c"]
        assert state(broker, "a") is JobState.AVAILABLE

    def test_a_due_job_waits_for_promote(self, broker: Broker, clock: FakeClock) -> None:
        """Makes due jobs available: until then they are not claimed."""
        require_inspection(broker)
        enqueue(broker, "a", delay=1000)
        clock.advance(2)
        assert claim(broker, 10) == []
        broker.promote(10)
        assert ids(claim(broker, 10)) == ["a"]

    @pytest.mark.parametrize("limit", [0, 1, 3, 5, 10_000])
    def test_no_more_than_the_limit(self, broker: Broker, limit: int) -> None:
        """No more than ``want.limit`` jobs are claimed."""
        enqueue(broker, "a", "b", queue="mail")
        enqueue(broker, "c", "d")
        assert len(claim(broker, limit)) == min(limit, 4)
        shares = [("mail", 5), ("default", 5)]
        settle(broker, *[release(lease) for lease in claim(broker, 0)])
        assert len(claim(broker, limit, shares=shares)) == max(0, min(limit, 4 - min(limit, 4)))

    def test_next_due(self, broker: Broker, clock: FakeClock) -> None:
        """ms until the earliest scheduled or retryable job is due (0: already), None for none."""
        require_inspection(broker)
        assert exchange(broker).next_due is None
        enqueue(broker, "a")
        assert exchange(broker).next_due is None
        enqueue(broker, "b", delay=5000)
        assert exchange(broker).next_due == 5000
        assert exchange(broker, 1, outcomes=[failure(claim_one(broker), delay=2000)]).next_due == 2000
        clock.advance(1.5)
        assert exchange(broker).next_due == 500
        clock.advance(3)
        assert exchange(broker).next_due == 0
        broker.promote(10)
        assert exchange(broker).next_due == 500
        broker.cancel(["b"])
        assert exchange(broker).next_due is None


def _fill(broker: Broker, **counts: int) -> None:
    for queue, count in counts.items():
        enqueue(broker, *[f"{queue}{n}" for n in range(count)], queue=queue)


class Sharing(Suite):
    """How a worker's slots are shared among queues."""

    @pytest.mark.parametrize(
        ("jobs", "limit", "shares", "expected"),
        [
            ({"a": 9, "b": 9}, 4, [("a", 3), ("b", 1)], {"a": 3, "b": 1}),
            ({"a": 9, "b": 9, "c": 9}, 6, [("c", 3), ("a", 2), ("b", 1)], {"a": 2, "b": 1, "c": 3}),
            ({"a": 1, "b": 9}, 4, [("a", 3), ("b", 1)], {"a": 1, "b": 3}),
            ({"b": 9}, 4, [("a", 3), ("b", 1)], {"b": 4}),
            ({"a": 9, "c": 9}, 6, [("a", 1), ("b", 1), ("c", 1)], {"a": 5, "c": 1}),
            ({"a": 2, "c": 9}, 6, [("a", 1), ("b", 1), ("c", 1)], {"a": 2, "c": 4}),
            ({"a": 9, "b": 9}, 5, [("a", 5), ("b", 5)], {"a": 5}),
            ({"a": 2, "b": 9}, 5, [("a", 5), ("b", 5)], {"a": 2, "b": 3}),
            ({"a": 9, "b": 9}, 5, [("a", 0), ("b", 5)], {"b": 5}),
            ({"a": 9, "b": 9}, 5, [("b", 1)], {"b": 5}),
            ({"a": 9}, 5, [], {}),
            ({"a": 1, "b": 1}, 9, [("a", 4), ("b", 4)], {"a": 1, "b": 1}),
            ({"a": 9, "b": 9}, 6, None, {"a": 3, "b": 3}),
            ({"a": 1, "b": 9}, 6, None, {"a": 1, "b": 5}),
            ({"a": 9, "b": 1, "c": 9, "d": 9}, 8, None, None),
        ],
        ids=str,
    )
    def test_every_queue_gets_its_share(
        self,
        broker: Broker,
        jobs: dict[str, int],
        limit: int,
        shares: list[tuple[str, int]] | None,
        expected: dict[str, int] | None,
    ) -> None:
        """Every queue gets its share when all have enough; what one leaves, others take."""
        _fill(broker, **jobs)
        leases = claim(broker, limit, shares=shares)
        served = Counter(lease.queue for lease in leases)
        if expected is None:
            assert len(leases) == limit
            assert all(served[queue] >= min(2, count) for queue, count in jobs.items())
        else:
            assert served == expected
        for queue in served:
            mine = [lease.id for lease in leases if lease.queue == queue]
            assert mine == [f"{queue}{n}" for n in range(len(mine))]

    def test_leases_are_in_the_order_to_start_them(self, broker: Broker) -> None:
        """Claimed jobs, in the order to start them: queues in the order to serve them."""
        _fill(broker, a=3, b=3, c=3)
        leases = claim(broker, 6, shares=[("c", 2), ("a", 2), ("b", 2)])
        assert ids(leases) == ["c0", "c1", "a0", "a1", "b0", "b1"]

    def test_no_queue_starves_a_worker_of_one_slot(self, broker: Broker) -> None:
        """None: every queue, equally."""
        _fill(broker, a=20, b=20, c=20)
        queues = {claim_one(broker).queue for _ in range(9)}
        assert queues == {"a", "b", "c"}


class UnknownTasks(Suite):
    """Jobs whose task the asking worker cannot run."""

    def test_a_task_that_nobody_knows_is_parked(self, broker: Broker) -> None:
        """A job whose task is not in ``want.tasks`` is never claimed; if no known worker knows it, it is parked and
        named."""
        enqueue(broker, "odd", task="odd")
        enqueue(broker, "a")
        join(broker)
        first = exchange(broker, 10, tasks=KNOWN)
        assert (ids(first.leases), first.parked) == (["a"], ["odd"])
        job = read(broker, "odd")
        assert (job.state, job.parked, job.claims) == (JobState.AVAILABLE, True, 0)
        assert claim(broker, 10, tasks=KNOWN) == []
        assert ids(broker.find(JobFilter(parked=True))) == ["odd"]
        assert ids(broker.find(JobFilter(parked=False))) == ["a"]

    def test_a_task_that_another_worker_knows_is_left_to_it(self, broker: Broker) -> None:
        """If no known worker knows it, it is parked and named: else it just waits."""
        enqueue(broker, "odd1", "odd2", task="odd")
        enqueue(broker, "a")
        join(broker)
        join(broker, W2, tasks=["odd"])
        first = exchange(broker, 1, tasks=KNOWN)
        assert (ids(first.leases), first.parked, read(broker, "odd1").parked) == (["a"], [], False)
        assert ids(claim(broker, 10, worker=W2, tasks=frozenset({"odd"}))) == ["odd1", "odd2"]

    def test_a_task_that_it_knows_and_does_not_want_is_not_parked(self, broker: Broker) -> None:
        """If no known worker knows it, this one included, it is parked and named: else it just waits."""
        enqueue(broker, "odd1", "odd2", task="odd")
        enqueue(broker, "a")
        join(broker, tasks=[TASK, "odd"])
        first = exchange(broker, 10, tasks=KNOWN)
        assert (ids(first.leases), first.parked, read(broker, "odd1").parked) == (["a"], [], False)
        assert ids(claim(broker, 10, tasks=KNOWN | {"odd"})) == ["odd1", "odd2"]

    def test_a_parked_job_is_claimed_once_a_worker_knows_it(self, broker: Broker) -> None:
        """It stays available and is claimed like any other once a worker that knows it has heartbeat."""
        enqueue(broker, "odd", task="odd")
        exchange(broker, 10, tasks=KNOWN)
        join(broker, W2, tasks=[TASK, "odd"])
        lease = claim_one(broker, worker=W2, tasks=frozenset({TASK, "odd"}))
        assert (lease.id, lease.token, read(broker, "odd").parked) == ("odd", 1, False)

    def test_parked_jobs_keep_their_place(self, broker: Broker) -> None:
        """Claimed like any other: by priority, then age. Parked jobs whose task it knows are available to it again."""
        enqueue(broker, "odd1", task="odd")
        enqueue(broker, "a")
        enqueue(broker, "odd2", task="odd", priority=1)
        join(broker)
        lease = claim_one(broker, tasks=KNOWN)
        assert exchange(broker, 10, tasks=KNOWN, outcomes=[release(lease)]).leases[0].id == "a"
        broker.retire(W1)
        join(broker, W2, tasks=[TASK, "odd"])
        assert ids(claim(broker, 10, worker=W2)) == ["odd2", "odd1", "a"]

    def test_when_the_last_worker_that_knows_it_has_left(self, broker: Broker) -> None:
        """If no known worker knows it, it is parked and named."""
        enqueue(broker, "odd", task="odd")
        join(broker, W2, tasks=["odd"])
        assert exchange(broker, 10, tasks=KNOWN).parked == []
        broker.retire(W2)
        assert exchange(broker, 10, tasks=KNOWN).parked == ["odd"]

    def test_a_heartbeat_that_does_not_know_it_changes_nothing(self, broker: Broker) -> None:
        """Parked jobs whose task it knows are available to it again."""
        enqueue(broker, "odd", task="odd")
        exchange(broker, 10, tasks=KNOWN)
        join(broker, W2)
        assert read(broker, "odd").parked
        assert claim(broker, 10, worker=W2, tasks=KNOWN) == []

    def test_many_unknown_jobs_do_not_hide_a_known_one(self, broker: Broker) -> None:
        """A job whose task is not in ``want.tasks`` is never claimed."""
        for task in ("odd", "strange"):
            enqueue(broker, *[f"{task}{n}" for n in range(200)], task=task)
        enqueue(broker, "a")
        join(broker, W2, tasks=["strange"])
        found = exchange(broker, 5, tasks=KNOWN)
        assert (ids(found.leases), found.parked) == (["a"], ["odd"])

    def test_a_parked_job_is_seen_to_wait(self, broker: Broker, clock: FakeClock) -> None:
        """It stays available, and its queue says how long it waits."""
        enqueue(broker, "odd", task="odd")
        exchange(broker, 10, tasks=KNOWN)
        clock.advance(3)
        [queue] = broker.queues()
        assert (dict(queue.counts), queue.oldest) == ({JobState.AVAILABLE: 1}, 3000)

    @pytest.mark.parametrize("verb", ["cancel", "delete", "purge", "expire"])
    def test_a_parked_job_waits_like_any_other(self, broker: Broker, clock: FakeClock, verb: str) -> None:
        """It stays available."""
        enqueue(broker, "odd", task="odd", ttl=1000)
        exchange(broker, 10, tasks=KNOWN)
        clock.advance(2)
        actions: dict[str, Callable[[], Any]] = {
            "cancel": lambda: broker.cancel(["odd"]),
            "delete": lambda: broker.delete(["odd"]),
            "purge": lambda: broker.purge("default", 10),
            "expire": lambda: broker.promote(10),
        }
        actions[verb]()
        left = {"cancel": JobState.CANCELLED, "expire": JobState.EXPIRED}.get(verb)
        assert state(broker, "odd") is left
        assert broker.find(JobFilter(parked=True)) == []
        join(broker, W2, tasks=["odd"])
        assert claim(broker, 10, worker=W2) == []
