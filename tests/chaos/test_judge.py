"""The judge finds each kind of violation in a forged history, and nothing in one that is explained."""

from dataclasses import replace
from typing import Any

import pytest

from mouso.errors import ErrorInfo
from mouso.job import Job, JobState
from tests.chaos.journal import Line
from tests.chaos.judge import EARLIEST_TAKEOVER, Case, Expected, Fault, judge

JOB = "j"


def line(at: float, event: str, *, pid: int = 1, token: int = 1, attempt: int = 1, job: str = JOB) -> Line:
    """An event; the supervisor of process 1 is 100, that of 2 is 200."""
    return Line(at, pid, 100 * pid, job, attempt, token, event)


def row(**fields: Any) -> Job:
    """A completed job with one claim, changed."""
    whole: dict[str, Any] = {"id": JOB, "task": "t", "state": JobState.COMPLETED, "claims": 1}
    return Job(**whole | fields)


def violations(*lines: Line, job: Job | None = None, faults: tuple[Fault, ...] = (), **details: Any) -> list[str]:
    """What the judge says about one job, whose result is that of its last claim."""
    stored = job or row()
    whole = Case(
        accepted={JOB: Expected()}, rows={JOB: stored}, results={JOB: stored.claims}, lines=lines, faults=faults
    )
    return judge(replace(whole, **details)).violations


KILL = Fault("a kill", at=1.5, until=1.5, pids=frozenset({1}), kills=True, limit=1.0)
ONE_RUN = (line(1, "start"), line(2, "end"))
TWO_RUNS = (line(1, "start"), line(2, "start", pid=2, token=2), line(3, "end", pid=2, token=2))
TWICE = row(claims=2, releases=1)


def test_a_run_from_start_to_end() -> None:
    assert violations(*ONE_RUN) == []


def test_a_failure_that_was_counted_explains_the_next_run() -> None:
    lines = (line(1, "start"), line(2, "fail"), line(3, "start", token=2, attempt=2), line(4, "end", token=2))
    job = row(claims=2, attempts=1)
    assert violations(*lines, job=job, accepted={JOB: Expected(failures=1)}) == []
    assert violations(*lines, job=job) == ["j (t): charged 1 attempts instead of 0: "]
    late = ErrorInfo(type="BrokerUnavailable", message="x stayed locked by another transaction for 5 s; nothing …")
    assert violations(*lines, job=row(claims=2, attempts=1, errors=(late,))) == []


def test_a_kill_explains_the_next_run() -> None:
    assert violations(*TWO_RUNS, job=TWICE, faults=(KILL,), deaths={1: 1.5}) == []


def test_a_kill_just_after_its_end_explains_it_too() -> None:
    lines = (line(1, "start"), line(1.4, "end"), *TWO_RUNS[1:])
    assert violations(*lines, job=TWICE, faults=(KILL,), deaths={1: 1.5}) == []


def test_a_suspect_runs_again_under_the_same_claim() -> None:
    lines = (line(1, "start"), line(2, "start", pid=2), line(3, "end", pid=2))
    assert violations(*lines, faults=(KILL,), deaths={1: 1.5}) == []


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (row(state=JobState.RUNNING), "lost: it is running for ever"),
        (row(state=JobState.RETRYABLE), "lost: it is retryable for ever"),
        (row(state=JobState.DEAD, reason="poison", crashes=1), "it is dead (poison) instead of completed"),
        (row(claims=2), "its counters do not add up"),
        (row(claims=2, attempts=1), "charged 1 attempts, but only 0 runs failed"),
        (row(claims=2, crashes=1), "charged 1 crashes, but a process died under it 0 times"),
        (row(claims=2, releases=1), "completed under claim 2, of which no run came to its end"),
        (row(claims=0, releases=-1), "it ran under a token that was never given out"),
    ],
)
def test_a_row_that_does_not_fit_its_runs(job: Job, words: str) -> None:
    assert any(words in violation for violation in violations(*ONE_RUN, job=job))


def test_a_job_that_is_not_there() -> None:
    assert violations(*ONE_RUN, rows={}) == [
        "j: lost: it was accepted and is not in the store",
        "j: it ran and is not in the store",
    ]


def test_a_job_that_nobody_enqueued() -> None:
    assert violations(*ONE_RUN, accepted={}) == ["j: nobody enqueued it"]
    assert violations(*ONE_RUN, accepted={}, unknown=frozenset({JOB})) == []


def test_a_result_of_another_run() -> None:
    assert violations(*ONE_RUN, results={JOB: 7}) == ["j: its result is 7, not that of claim 1"]


def test_completed_twice() -> None:
    lines = (*ONE_RUN, line(2.1, "completed"), line(2.2, "completed"))
    assert violations(*lines) == ["j: completed 2 times, by its events"]


def test_a_second_start_that_nothing_explains() -> None:
    (found,) = violations(line(1, "start"), line(1.2, "stop"), *TWO_RUNS[1:], job=TWICE)
    assert "started again without a reason: claim 1 in process 1 said 'stop'" in found


@pytest.mark.parametrize(
    "fault",
    [
        replace(KILL, pids=frozenset({3})),  # another process
        replace(KILL, at=0.5, until=0.5),  # before it started
        replace(KILL, at=2.5, until=2.5),  # when it had started again
    ],
)
def test_a_fault_that_does_not_explain_it(fault: Fault) -> None:
    found = violations(*TWO_RUNS, job=TWICE, faults=(fault,), deaths={1: 1.5})
    assert any("started again without a reason" in violation for violation in found)


def test_an_end_that_must_have_been_stored_long_ago() -> None:
    lines = (line(0.5, "start"), line(0.6, "end"), *TWO_RUNS[1:])
    (found,) = violations(*lines, job=TWICE, faults=(KILL,), deaths={1: 1.5})
    assert "started again without a reason" in found


def test_a_failure_does_not_explain_a_run_of_the_same_attempt() -> None:
    lines = (line(1, "start"), line(1.5, "fail"), *TWO_RUNS[1:])
    found = violations(*lines, job=TWICE)
    assert any("started again without a reason" in violation for violation in found)


def test_two_starts_in_one_process() -> None:
    found = violations(line(1, "start"), line(1.5, "start"), line(2, "end"))
    assert found == ["j: claim 1 was started twice in process 1"]


def test_two_ends() -> None:
    assert violations(*ONE_RUN, line(3, "end")) == ["j: claim 1 has one 'end' too many"]


def test_two_runs_at_once() -> None:
    orphan = (line(1, "start"), line(2, "start", pid=2, token=2), line(2.5, "end"), line(3, "end", pid=2, token=2))
    supervisor = Fault("a supervisor's death", at=1.5, until=2.5, supervisors=frozenset({100}))
    found = violations(*orphan, job=TWICE, faults=(supervisor,), deaths={1: 2.6})
    assert found == ["j: two runs at once for 0.500 s: claim 1 in process 1, claim 2 in process 2"]


def test_a_process_that_was_not_dead_yet() -> None:
    (found,) = violations(*TWO_RUNS, job=TWICE, faults=(KILL,), deaths={1: 2.2})
    assert "two runs at once for 0.200 s" in found
    (found,) = violations(*TWO_RUNS, job=TWICE, faults=(KILL,))
    assert "two runs at once" in found


FREEZE = Fault("a freeze", at=1.5, until=21, supervisors=frozenset({100}), lease=True, overlaps=True, limit=20.0)
THAWED = (
    line(1, "start"),
    line(17, "start", pid=2, token=2),
    line(18, "end", pid=2, token=2),
    line(20, "end"),
)


def test_beyond_its_lease_a_worker_may_overlap() -> None:
    assert violations(*THAWED, job=TWICE, faults=(FREEZE,)) == []


def test_within_its_lease_it_may_not() -> None:
    early = (THAWED[0], line(EARLIEST_TAKEOVER, "start", pid=2, token=2), *THAWED[2:])
    (found,) = violations(*early, job=TWICE, faults=(FREEZE,))
    assert "two runs at once" in found


def test_a_late_outcome_that_was_not_fenced() -> None:
    found = violations(*THAWED, job=row(claims=1), faults=(FREEZE,))
    assert any("a token that was never given out" in violation for violation in found)


def test_a_late_start_of_a_claim_that_is_worth_nothing() -> None:
    late = (*THAWED[1:3], line(20, "start"), line(20.5, "stop"))
    assert violations(*late, job=TWICE, faults=(FREEZE,)) == []
    assert any("started after it had completed" in violation for violation in violations(*late, job=TWICE))


def test_a_recovery_that_took_too_long() -> None:
    lines = (line(1, "start"), line(4, "start", pid=2, token=2), line(5, "end", pid=2, token=2))
    case: dict[str, Any] = {"job": TWICE, "faults": (KILL,), "deaths": {1: 1.5}}
    assert violations(*lines, **case, slack=0.5) == ["j: started again 2.50 s after a kill, not within 1 s"]
    assert violations(*lines, **case, slack=2.0) == []


@pytest.mark.parametrize(
    ("waits", "crowd", "late"),
    [
        ((0.9, 0.9, 0.9, 2.4, 2.4), 1.0, 0),
        ((0.9, 0.9, 1.2, 1.2, 1.2), 1.0, 1),
        ((0.9, 0.9, 1.2, 1.2, 1.2), 1.5, 0),
    ],
)
def test_half_of_the_recoveries_must_be_in_time(waits: tuple[float, ...], crowd: float, late: int) -> None:
    names = [f"j{n}" for n in range(len(waits))]
    lines = [line(1, "start", job=name) for name in names]
    for name, wait in zip(names, waits, strict=True):
        lines += (line(at, event, pid=2, token=2, job=name) for at, event in ((1.5 + wait, "start"), (5, "end")))
    rows = {name: row(id=name, claims=2, releases=1) for name in names}
    accepted, results = dict.fromkeys(names, Expected()), dict.fromkeys(names, 2)
    case = Case(accepted, rows, results, lines, faults=(KILL,), deaths={1: 1.5}, slack=2.0, crowd=crowd)
    found = judge(case).violations
    assert len(found) == late, found
    assert all("half of 5 jobs started again 1.20 s after a kill" in violation for violation in found)


def test_the_last_fault_is_the_one_to_blame() -> None:
    before = replace(KILL, at=1.2, until=9.0, kills=False)  # a freeze that the run survived
    lines = (line(1, "start"), line(4, "start", pid=2, token=2), line(5, "end", pid=2, token=2))
    late = replace(KILL, at=3.5, until=3.5)
    assert violations(*lines, job=TWICE, faults=(before, late), deaths={1: 3.5}, slack=0.0) == []


def test_jobs_of_one_key_side_by_side() -> None:
    lines = (line(1, "start"), line(2, "end"), line(1.5, "start", pid=2, job="k"), line(3, "end", pid=2, job="k"))
    both: dict[str, Any] = {"accepted": {JOB: Expected(), "k": Expected()}, "rows": {JOB: row(), "k": row(id="k")}}
    found = violations(*lines, **both, results={JOB: 1, "k": 1}, keys={"key": [JOB, "k"]})
    assert found == ["k: ran beside j, which holds the key key"]


def test_a_hostile_job_may_be_charged_after_its_end() -> None:
    lines = (line(1, "start"), line(1.1, "end"), *TWO_RUNS[1:])
    job = row(claims=2, crashes=1)
    kill = replace(KILL, at=1.0, until=2.0)
    assert violations(*lines, job=job, faults=(kill,), deaths={1: 1.5}, accepted={JOB: Expected(innocent=False)}) == []
    (found,) = violations(*lines, job=job, faults=(kill,), deaths={1: 1.5})
    assert "charged 1 crashes" in found
