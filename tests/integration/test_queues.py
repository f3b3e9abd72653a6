"""Which job runs when: order, weights, times, unique keys, parked jobs, pauses."""

import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from msgspec import structs

from mouso import JobFailed
from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import JOB, started
from tests.stalls import elapsed
from tests.support import crowd, wait_until

# -- order


pytestmark = pytest.mark.every_broker("rabbitmq")


def test_first_in_first_out_with_one_slot(bench: Bench) -> None:
    jobs = bench.app(JOB)
    handles = [jobs.job.delay(n) if n % 10 else jobs.pause_coroutine.delay(n, 0.0) for n in range(300)]
    bench.worker(processes=1, concurrency=1)
    bench.wait_final(handles)
    assert started(bench) == list(range(300))


def test_priority_then_age_with_one_slot(bench: Bench) -> None:
    jobs = bench.app(JOB)
    wanted = []
    handles = []
    for n in range(300):
        priority = (n * 37) % 201 - 100
        wanted.append((-priority, n))
        handles.append(jobs.job.options(priority=priority).delay(n))
    bench.worker(processes=1, concurrency=1)
    bench.wait_final(handles)
    assert started(bench) == [n for _, n in sorted(wanted)]


def test_queues_take_turns_by_weight(bench: Bench) -> None:
    jobs = bench.app(JOB)
    for _ in range(400):
        jobs.pause.options(queue="mail").delay(0, 0.001)
        jobs.pause.options(queue="slow").delay(1, 0.001)
    bench.worker("-Q", "mail=3,slow", processes=1, concurrency=1)
    bench.wait_for("start", count=200)
    counts = Counter(started(bench)[:200])
    assert 3 * 0.8 < counts[0] / counts[1] < 3 * 1.25


def test_strict_queues_are_served_in_order(bench: Bench) -> None:
    jobs = bench.app(JOB)
    for _ in range(150):
        for rank, queue in enumerate(("third", "first", "second")):
            jobs.job.options(queue=queue).delay((rank + 2) % 3 + 1 if rank != 0 else 3)
    bench.worker("-Q", "first,second,third", "--strict", processes=1, concurrency=1)
    bench.wait_for("start", count=450)
    assert started(bench) == sorted(started(bench))


def test_a_worker_serves_its_own_queues_only(bench: Bench) -> None:
    jobs = bench.app(JOB)
    other = jobs.job.options(queue="other").delay(1)
    mine = jobs.job.options(queue="mine").delay(2)
    worker = bench.worker("-Q", "mine")
    assert mine.get(timeout=WAIT) == 2
    assert other.state == "available"
    assert jobs.app.workers()[0].queues == ("mine",)
    assert worker.stop() == 0
    bench.worker("-Q", "new,other")
    assert other.get(timeout=WAIT) == 1


def test_queues_of_names_that_no_worker_can_be_told_are_served_by_those_that_take_all(bench: Bench) -> None:
    """Such names were accepted once."""
    jobs = bench.app(JOB)
    app, job = jobs.app, jobs.job
    stored = [structs.replace(job.job(n), queue=queue) for n, queue in ((1, "a,b"), (2, "p=2"))]
    app.broker.enqueue(stored)
    assert [app.job(one.id).record.queue for one in stored] == ["a,b", "p=2"]
    app.pause("a,b")
    app.resume("a,b")
    bench.worker()
    assert [app.job(one.id).get(timeout=WAIT) for one in stored] == [1, 2]


# -- time


def test_delayed_jobs_start_on_time(bench: Bench) -> None:
    jobs = bench.app(JOB)
    bench.worker()
    delays = [0.0, 0.05, 0.2, 0.5, 0.9, 1.3]
    at = time.monotonic()
    handles = [jobs.job.options(delay=delay).delay(n) for n, delay in enumerate(delays)]
    soon = datetime.now(UTC) + timedelta(seconds=0.7)
    handles.append(jobs.job.options(eta=soon).delay(99))
    assert handles[-2].state == "scheduled"
    bench.wait_final(handles)
    starts = {int(line.text): line.at - at for line in bench.history("start")}
    for n, delay in [*enumerate(delays), (99, 0.7)]:
        assert starts[n] >= delay - 0.01, (n, delay, starts)
        assert elapsed(at, at + starts[n]) < delay + 0.5 * crowd(), (n, delay, starts)


def test_a_worker_started_late_runs_what_is_due(bench: Bench) -> None:
    jobs = bench.app(JOB)
    handles = [jobs.job.options(delay=0.1).delay(n) for n in range(50)]
    later = jobs.job.options(delay="1h").delay(99)
    wait_until(lambda: time.time() * 1000 > handles[-1].record.due + 50)
    bench.worker()
    bench.wait_final(handles)
    assert later.state == "scheduled"
    assert later.retry() == "retried", "a waiting job can be run at once"
    assert later.get(timeout=WAIT) == 99


# -- unique keys


def test_unique_scopes(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task
        def waits(name: str) -> str:
            note("start", name)
            while not Path(f"go-{name}").exists():
                time.sleep(0.01)
            return name

        @app.task(unique=True)
        def automatic(n: int) -> int:
            return n
        """
    )
    live = jobs.waits.options(unique="live")
    queued = jobs.waits.options(unique="queued", unique_scope="queued")
    period = jobs.waits.options(unique="period", unique_scope=1.0)

    holders = {name: task.delay(name) for name, task in (("live", live), ("queued", queued), ("period", period))}
    assert live.delay("live") == holders["live"]
    assert queued.delay("queued") == holders["queued"]
    assert period.delay("period") == holders["period"]
    first = jobs.automatic.delay(1)
    assert jobs.automatic.delay(1) == first
    assert jobs.automatic.delay(2) != first

    bench.worker(concurrency=8)
    bench.wait_for("start", count=3)
    assert live.delay("live") == holders["live"], "held until it is final"
    second = queued.delay("queued")
    assert second != holders["queued"], "free once it has started"
    for name in holders:
        (bench.folder / f"go-{name}").touch()
    bench.wait_final([*holders.values(), second, first])
    assert live.delay("live") != holders["live"]
    wait_until(lambda: period.delay("period") != holders["period"], timeout=3, message="the period is over")
    assert jobs.automatic.delay(1) != first
    assert len(set(started_ids(bench, "queued"))) == 2


def started_ids(bench: Bench, text: str) -> list[str]:
    return [line.job for line in bench.history("start") if line.text == text]


def test_unique_keys_are_free_again_however_the_job_ended(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task(unique="key", attempts=1)
        def ends(how: str) -> None:
            if how == "fails":
                raise ValueError
            if how == "cancels":
                raise Cancel("so")
            if how == "dies":
                os._exit(1)
        """
    )
    bench.worker()
    ids = set()
    for how in ("completes", "fails", "cancels", "dies", "completes"):
        handle = jobs.ends.delay(how)
        ids.add(handle.id)
        bench.wait_final([handle])
    assert len(ids) == 5


# -- jobs that no worker knows


def test_unknown_tasks_are_parked_until_a_worker_knows_them(bench: Bench) -> None:
    old = bench.app(JOB)
    new = bench.app(
        JOB + "\n@app.task\ndef fresh(n: int) -> int:\n    note('fresh', str(n))\n    return n\n", name="new"
    )
    # As it is during a deployment: the producer is ahead of the worker.
    unknown = [new.fresh.delay(n) for n in range(20)]
    known = [old.job.delay(n) for n in range(20)]
    worker = bench.worker()
    bench.wait_final(known)
    wait_until(lambda: len(new.app.jobs(parked=True)) == 20, message="parked and listed")
    assert {record.state for record in new.app.jobs(parked=True)} == {"available"}
    wait_until(lambda: "'new.fresh'" in worker.log, message="the worker says what it parked")

    bench.worker(app="new:app")
    records = bench.wait_final(unknown)
    assert {(r.state, r.attempts, r.releases, r.parked) for r in records} == {("completed", 0, 0, False)}
    assert new.app.jobs(parked=True) == []
    assert worker.stop() == 0
    assert worker.log.count("parked until") == 1, "one line in all, not one per job or look"


def test_two_workers_that_know_different_tasks(bench: Bench) -> None:
    """Each runs its own, although they share a queue; none is parked, none waits behind the other's."""
    one = bench.app(JOB)
    two = bench.app(JOB, name="two")
    bench.worker()
    bench.worker(app="two:app")
    handles = []
    for n in range(100):
        handles += [one.job.delay(n), two.job.delay(n)]
    records = bench.wait_final(handles)
    assert {(r.state, r.attempts) for r in records} == {("completed", 0)}


# -- operators


def test_pause_resume_and_purge_while_it_runs(bench: Bench) -> None:
    jobs = bench.app(JOB)
    app = jobs.app
    bench.worker()
    app.pause("mail")
    running = jobs.pause.delay(0, 1.0)
    bench.wait_for("start")
    app.pause("default")
    paused = [jobs.job.options(queue="mail").delay(n) for n in range(1, 10)]
    other = jobs.job.options(queue="other").delay(100)
    assert other.get(timeout=WAIT) == 100, "other queues go on"
    assert running.get(timeout=WAIT) == 0, "running jobs go on"
    assert {handle.state for handle in paused} == {"available"}
    assert [q.name for q in app.queues() if q.paused] == ["default", "mail"]

    assert app.purge("mail") == 9
    assert app.purge("mail") == 0
    kept = jobs.job.options(queue="mail").delay(50)
    default = jobs.job.delay(51)
    app.resume("mail")
    assert kept.get(timeout=WAIT) == 50
    assert default.state == "available"
    app.resume("default")
    assert default.get(timeout=WAIT) == 51
    assert not set(started(bench)) & set(range(1, 10))


def test_a_pause_ends_by_itself(bench: Bench) -> None:
    jobs = bench.app(JOB)
    bench.worker()
    until = datetime.now(UTC) + timedelta(seconds=1.0)
    at = time.monotonic()
    jobs.app.pause("default", until=until)
    handle = jobs.job.delay(1)
    assert handle.get(timeout=WAIT) == 1
    started = bench.history("start")[0].at
    assert started - at > 0.9
    assert elapsed(at, started) < 1.0 + 1.5 * crowd()


def test_delete_and_purge_under_load(bench: Bench) -> None:
    jobs = bench.app(JOB)
    bench.worker(processes=2)
    handles = jobs.pause.map([(n, 0.01) for n in range(1000)])
    bench.wait_for("end", count=50)
    purged = jobs.app.purge("default")
    assert 0 < purged < 1000
    wait_until(lambda: bench.states() == {"completed": 1000 - purged}, timeout=WAIT)
    known = [r for r in jobs.app.broker.get([h.id for h in handles]) if r is not None]
    assert len(known) == 1000 - purged
    assert len(bench.history("start")) == 1000 - purged


def test_dead_letter_queue_lists_and_counts(bench: Bench) -> None:
    jobs = bench.app(
        """
        @app.task(attempts=1)
        def fails(n: int) -> None:
            raise ValueError(n)
        """
    )
    bench.worker()
    handles = jobs.fails.map([(n,) for n in range(30)])
    with pytest.raises(JobFailed):
        handles[0].get(timeout=WAIT)
    bench.wait_final(handles)
    assert len(jobs.app.jobs(state="dead", limit=20)) == 20
    assert bench.states() == {"dead": 30}
    assert {r.reason for r in jobs.app.jobs(state="dead", task="jobs.fails")} == {"attempts"}
    assert jobs.app.broker.delete([handle.id for handle in handles]) == ["deleted"] * 30
    assert bench.states() == {}
