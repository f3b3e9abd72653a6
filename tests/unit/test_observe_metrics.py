"""Metrics: what is counted, and that Prometheus's own parser reads it as it is meant."""

import math
import os
import re
import time

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from mouso.clock import SYSTEM
from mouso.job import Charge, JobState, Lease, Outcome
from mouso.observe.metrics import JOB_SECONDS, MOST_LABELS, Metrics, Snapshot
from mouso.observe.page import Histogram, Page
from mouso.observe.processes import Usage, cpu_seconds, family_usage, own_usage, resident
from tests.docs.markdown import ROOT

NOW = Snapshot(
    id="0" * 16,
    name="w1",
    version="0.1.0",
    ready=True,
    slots=8,
    busy=3,
    held=2,
    unsettled=1,
    children=4,
    children_ready=3,
    restarts={"SIGKILL": 2, "exit code 1": 1},
    broker_up=True,
    outages=2,
    outage_seconds=1.5,
    renewed_ago=0.25,
    lease_left=14.75,
    started_at=1_700_000_000_500,
    supervisor=Usage(1.25, 30_000_000, 20),
    family=Usage(7.5, 120_000_000),
    largest=50_000_000,
)


def outcome(
    state: JobState = JobState.COMPLETED,
    charge: Charge = Charge.NONE,
    seconds: float = 0.02,
    task: str = "shop.add",
    queue: str = "default",
) -> Outcome:
    return Outcome(1, 1, "id", task, queue, state, run_seconds=seconds, charge=charge)


def lease(queue: str = "default", waited: int = 0, token: int = 1) -> Lease:
    return Lease(1, token, "id", "shop.add", queue, b"{}", "json", 0, 0, 0, SYSTEM.now() - waited, None, None)


def read(metrics: Metrics, now: Snapshot = NOW) -> dict[str, Metric]:
    """The page as Prometheus reads it, each metric by its name."""
    text = metrics.render(now)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert len(families) == text.count("# TYPE ")
    return families


def value(families: dict[str, Metric], name: str, /, **labels: str) -> float:
    """One sample's value; 0 if it is not there."""
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(found) <= 1, (name, labels)
    return found[0] if found else 0.0


def test_a_fresh_worker_has_every_metric() -> None:
    families = read(Metrics())
    kinds = {name: family.type for name, family in families.items()}
    assert kinds["mouso_jobs"] == "counter"
    assert kinds["mouso_job_run_seconds"] == "histogram"
    assert kinds["mouso_slots"] == "gauge"
    for name, family in families.items():
        assert family.documentation.endswith("."), name
        assert name.startswith(("mouso_", "process_")), name
        for sample in family.samples:
            assert sample.name.endswith("_total") is (family.type == "counter"), sample.name


def test_outcomes_are_counted_by_queue_task_and_state() -> None:
    metrics = Metrics()
    metrics.exchanged(0.001, [outcome(), outcome(), outcome(queue="mail"), outcome(task="shop.send")], [])
    metrics.exchanged(0.001, [outcome(), outcome(JobState.DEAD, Charge.ATTEMPT)], [])
    families = read(metrics)
    labels = {"queue": "default", "task": "shop.add"}
    assert value(families, "mouso_jobs_total", **labels, state="completed") == 3
    assert value(families, "mouso_jobs_total", **labels, state="dead") == 1
    assert value(families, "mouso_jobs_total", queue="mail", task="shop.add", state="completed") == 1
    assert value(families, "mouso_jobs_total", queue="default", task="shop.send", state="completed") == 1
    assert sum(sample.value for sample in families["mouso_jobs"].samples) == 6


@pytest.mark.parametrize(
    ("state", "charge", "counted"),
    [
        (JobState.COMPLETED, Charge.NONE, set()),
        (JobState.CANCELLED, Charge.NONE, set()),
        (JobState.SCHEDULED, Charge.NONE, set()),
        (JobState.DEAD, Charge.ATTEMPT, set()),
        (JobState.RETRYABLE, Charge.ATTEMPT, {"retries"}),
        (JobState.AVAILABLE, Charge.RELEASE, {"releases"}),
        (JobState.AVAILABLE, Charge.CRASH, {"crashes"}),
        (JobState.DEAD, Charge.CRASH, {"crashes"}),
    ],
)
def test_what_an_outcome_is_charged_to(state: JobState, charge: Charge, counted: set[str]) -> None:
    metrics = Metrics()
    metrics.exchanged(0.001, [outcome(state, charge)], [])
    families = read(metrics)
    labels = {"queue": "default", "task": "shop.add"}
    assert value(families, "mouso_jobs_total", **labels, state=str(state)) == 1
    for name in ("retries", "releases", "crashes"):
        assert value(families, f"mouso_job_{name}_total", **labels) == (name in counted), name


def test_run_times_go_into_buckets() -> None:
    metrics = Metrics()
    seconds = [0.001, 0.0011, 0.02, 2.0, 4000.0]
    metrics.exchanged(0.001, [outcome(seconds=each) for each in seconds], [])
    metrics.exchanged(0.001, [outcome(JobState.AVAILABLE, Charge.RELEASE, seconds=0.0)], [])  # it did not run
    families = read(metrics)
    labels = {"queue": "default", "task": "shop.add"}
    for bound in (*JOB_SECONDS, math.inf):
        text = "+Inf" if bound == math.inf else str(bound)
        expected = sum(each <= bound for each in seconds)
        assert value(families, "mouso_job_run_seconds_bucket", **labels, le=text) == expected, bound
    assert value(families, "mouso_job_run_seconds_count", **labels) == 5
    assert value(families, "mouso_job_run_seconds_sum", **labels) == pytest.approx(sum(seconds))


def test_claims_and_how_long_their_jobs_waited() -> None:
    metrics = Metrics()
    metrics.exchanged(0.001, [], [lease(), lease("mail", waited=20_000), lease("mail", waited=900_000, token=2)])
    metrics.exchanged(0.001, [], [lease(waited=-5_000)])  # the clock was set back
    families = read(metrics)
    assert value(families, "mouso_job_claims_total", queue="default") == 2
    assert value(families, "mouso_job_claims_total", queue="mail") == 2
    assert value(families, "mouso_job_wait_seconds_count", queue="mail") == 1
    assert value(families, "mouso_job_wait_seconds_sum", queue="mail") == pytest.approx(20, abs=5)
    assert value(families, "mouso_job_wait_seconds_bucket", queue="mail", le="10.0") == 0
    assert value(families, "mouso_job_wait_seconds_sum", queue="default") < 1


def test_exchanges_and_fenced_outcomes() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.exchanged(0.004, [], [], fenced=2)
    families = read(metrics)
    assert value(families, "mouso_outcomes_fenced_total") == 6
    assert value(families, "mouso_broker_exchange_seconds_count") == 3
    assert value(families, "mouso_broker_exchange_seconds_bucket", le="0.0025") == 0
    assert value(families, "mouso_broker_exchange_seconds_bucket", le="0.005") == 3


def test_what_is_looked_up() -> None:
    families = read(Metrics())
    for name, expected in {
        "mouso_slots": 8, "mouso_slots_busy": 3, "mouso_jobs_held": 2, "mouso_outcomes_unsettled": 1,
        "mouso_children": 4, "mouso_children_ready": 3, "mouso_worker_ready": 1, "mouso_broker_up": 1,
        "mouso_broker_outages_total": 2, "mouso_broker_outage_seconds_total": 1.5,
        "mouso_heartbeat_age_seconds": 0.25, "mouso_lease_left_seconds": 14.75,
        "mouso_children_cpu_seconds_total": 7.5, "mouso_children_resident_memory_bytes": 120_000_000,
        "mouso_child_resident_memory_max_bytes": 50_000_000, "process_cpu_seconds_total": 1.25,
        "process_resident_memory_bytes": 30_000_000, "process_open_fds": 20,
        "process_start_time_seconds": 1_700_000_000.5,
    }.items():  # fmt: skip
        assert value(families, name) == expected, name
    assert value(families, "mouso_child_restarts_total", cause="SIGKILL") == 2
    assert value(families, "mouso_child_restarts_total", cause="exit code 1") == 1
    assert value(families, "mouso_worker_info", id="0" * 16, name="w1") == 1
    (build,) = families["mouso_build_info"].samples
    assert build.labels["version"] == "0.1.0"


def test_what_is_not_known_is_left_out() -> None:
    families = read(Metrics(), NOW._replace(renewed_ago=None, lease_left=None, supervisor=Usage(), largest=None))
    for name in ("mouso_heartbeat_age_seconds", "mouso_lease_left_seconds", "process_open_fds", "process_cpu_seconds"):
        assert name not in families


def test_the_cpu_of_children_never_goes_back() -> None:
    """Between two looks a child may have ended, and the clocks that measure it differ by a tick."""
    metrics = Metrics()
    assert value(read(metrics), "mouso_children_cpu_seconds_total") == 7.5
    families = read(metrics, NOW._replace(family=Usage(7.49, 1)))
    assert value(families, "mouso_children_cpu_seconds_total") == 7.5


def test_names_are_bounded() -> None:
    metrics = Metrics()
    for number in range(10_000):
        metrics.exchanged(0.001, [outcome(queue=f"q{number}", task=f"t{number}")], [lease(f"q{number}")])
    families = read(metrics)
    kinds = {(sample.labels["queue"], sample.labels["task"]) for sample in families["mouso_jobs"].samples}
    assert len(kinds) == MOST_LABELS + 1
    rest = 10_000 - MOST_LABELS
    assert value(families, "mouso_jobs_total", queue="other", task="other", state="completed") == rest
    assert value(families, "mouso_job_claims_total", queue="other") == rest
    assert sum(sample.value for sample in families["mouso_jobs"].samples) == 10_000
    # The first ones are still told apart.
    metrics.exchanged(0.001, [outcome(queue="q5", task="t5")], [])
    assert value(read(metrics), "mouso_jobs_total", queue="q5", task="t5", state="completed") == 2


def test_a_queue_that_is_called_other_is_one_like_any() -> None:
    metrics = Metrics()
    metrics.exchanged(0.001, [outcome(queue="other", task="other")], [lease("other")])
    assert value(read(metrics), "mouso_jobs_total", queue="other", task="other", state="completed") == 1


@pytest.mark.parametrize(
    "name",
    [
        'quo"te',
        "back\\slash",
        "back\\nslash",
        "new\nline",
        "{}",
        '"} 1\nfake_total 5',
        "北京",
        "é\u202e",
        "\x00\x1b",
        "",
    ],
    ids=ascii,
)
def test_hostile_names_are_escaped(name: str) -> None:
    metrics = Metrics()
    metrics.exchanged(0.001, [outcome(queue=name)], [])
    families = read(metrics)
    assert value(families, "mouso_jobs_total", queue=name, task="shop.add", state="completed") == 1
    assert "fake" not in families


def test_long_names_are_cut() -> None:
    metrics = Metrics()
    metrics.exchanged(0.001, [outcome(queue="x" * 1_000_000)], [])
    assert value(read(metrics), "mouso_jobs_total", queue="x" * 255, task="shop.add", state="completed") == 1


def test_samples_with_the_same_labels_are_added_up() -> None:
    page = Page()
    page.counter("a_total", "A.", [({"x": "1"}, 2), ({"x": "1"}, 3), ({"x": "2"}, 1)])
    assert page.text().splitlines()[2:] == ['a_total{x="1"} 5', 'a_total{x="2"} 1']


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for each in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.add(each)
    assert histogram.counts == [2, 2, 1]


def test_the_reference_has_every_metric() -> None:
    page = (ROOT / "docs" / "reference" / "health.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([`\w ]*)\| (.+) \|$", page, re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels, _ in rows}
    metrics = Metrics()
    metrics.exchanged(0.001, [outcome(JobState.RETRYABLE, Charge.ATTEMPT)], [lease()])
    metrics.exchanged(0.001, [outcome(JobState.AVAILABLE, Charge.CRASH)], [])
    metrics.exchanged(0.001, [outcome(JobState.AVAILABLE, Charge.RELEASE)], [])
    told = {
        f"{name}{'_total' if family.type == 'counter' else ''}": (family.type, set(family.samples[0].labels) - {"le"})
        for name, family in read(metrics).items()
    }
    assert told == documented


def test_every_metric_that_the_documentation_names_exists() -> None:
    there = set(re.findall(r"^# TYPE (\w+)", Metrics().render(NOW), re.MULTILINE))
    there |= {f"{name}_{part}" for name in there for part in ("bucket", "count", "sum")}
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"\bmouso_\w+_(?:total|seconds|bytes|up|bucket|busy|info|ready|held|count|slots)\b", text))
    assert named
    assert named <= there


def test_this_process_is_measured() -> None:
    began = own_usage()
    while time.process_time() < (began.cpu or 0) + 0.05:
        pass
    now = own_usage()
    assert (now.cpu or 0) >= (began.cpu or 0) + 0.05
    assert 1 << 20 < (now.memory or 0) < 1 << 40
    assert now.files == len(os.listdir("/proc/self/fd")) - 1


def test_children_are_measured_and_strangers_do_no_harm() -> None:
    family, largest = family_usage([os.getpid(), 0, -1, 1 << 30])
    assert family.memory == largest == pytest.approx(resident(os.getpid()) or 0, rel=0.2)
    assert (family.cpu or 0) >= (cpu_seconds(os.getpid()) or 0) > 0
    assert family_usage([])[1] == 0
    assert resident(1 << 30) is None
    assert cpu_seconds(1 << 30) is None
