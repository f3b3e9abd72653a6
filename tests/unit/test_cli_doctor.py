"""``mouso doctor``: what it says of an app, its store, workers, queues and jobs, and that it only looks."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from mouso import Mouso, __version__
from mouso.brokers.base import LEASE_MS, Finding, Level, QueueInfo, Retention, WorkerInfo
from mouso.cli import checks
from mouso.cli.checks import Seen
from mouso.config import ProjectSettings
from mouso.job import Job, JobOptions, JobState
from mouso.worker.proof import Identity
from tests.unit.cli_kit import Shop, opened

EVIL = "\x1b]0;owned\x07[bold red]x[/]\u202e"
NOW, STEADY = 1_750_000_000_000, 90_000_000
HERE = Identity("boot", "pid:[1]", 100)
MINUTE, HOUR = 60_000, 3_600_000


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    with opened(tmp_path, monkeypatch, capsys) as shop:
        monkeypatch.setenv("MOUSO_APP", "shop:app")
        yield shop


def diagnose(shop: Shop, *args: str, code: int = 0) -> list[Finding]:
    """The findings, from the one JSON document; the exit code must fit them."""
    result = shop.run("doctor", "--json", *args)
    assert (result.code, result.err) == (code, ""), result
    findings = msgspec.convert(result.json["findings"], list[Finding])
    assert result.json["level"] == findings[0].level
    assert (findings[0].level is Level.ERROR) == (code == 1)
    return findings


def of(findings: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def one(findings: list[Finding], check: str) -> Finding:
    (finding,) = of(findings, check)
    return finding


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of change of every file, the index of the log excepted: every reader notes itself there."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


# -- the command -----------------------------------------------------------------------------------------------------


def test_all_is_well(shop: Shop) -> None:
    shop.join(tasks=("shop.add", "shop.send", "shop.pack"), version=__version__)
    findings = diagnose(shop, "--full")
    assert {finding.check for finding in findings if finding.level is not Level.OK} <= {"engine", "place", "disk"}
    checked = {finding.check for finding in findings}
    assert checked >= {"program", "engine", "file", "place", "disk", "permissions", "schema", "integrity", "log"}
    assert checked >= {"upkeep", "consistency", "workers", "versions", "tasks", "queues", "stuck", "dead", "clock"}
    assert f"Mouso {__version__}, Python 3." in one(findings, "program").what
    assert "1 worker with 8 slots: w1" in one(findings, "workers").what


def test_the_worst_comes_first_and_decides_the_exit_code(shop: Shop) -> None:
    shop.enqueue("a", task="shop.gone", queue="mail")
    shop.join(tasks=("shop.add",), version=__version__)
    shop.broker.pause("news")
    findings = diagnose(shop, code=1)
    order = list(Level)
    ranks = [order.index(finding.level) for finding in findings]
    assert ranks == sorted(ranks, reverse=True)
    assert {Level.ERROR, Level.INFO, Level.OK} <= {finding.level for finding in findings}


def test_a_person_gets_one_line_for_each_finding(shop: Shop) -> None:
    shop.enqueue("a", task="shop.ad")
    result = shop.run("doctor")
    assert (result.code, result.err) == (1, "")
    header, first, *_, empty, summary = result.out.splitlines()
    assert header.split() == ["LEVEL", "CHECK", "FINDING"]
    assert first.split()[:2] == ["error", "parked"]
    assert first.endswith("register it again under this name (name=), or cancel its jobs")
    assert "; did you mean 'shop.add'? " in first
    assert not empty
    assert summary.startswith("1 error, ")


def test_what_comes_from_jobs_is_no_markup_and_steers_no_terminal(shop: Shop) -> None:
    shop.enqueue("a", task=f"shop.{EVIL}", queue=f"q{EVIL}")
    shop.join(id="2" * 16, name=f"w{EVIL}", tasks=(f"t{EVIL}",), version=f"v{EVIL}", queues=("other",))
    text = shop.run("doctor").out
    assert all(line.isprintable() for line in text.splitlines())
    assert "[bold red]x[/]" in text
    document = shop.run("doctor", "--json")
    assert document.out.isascii() or "\u202e" not in document.out
    assert any(EVIL in finding["what"] for finding in json.loads(document.out)["findings"])


def test_it_changes_nothing(shop: Shop) -> None:
    shop.bury("d1")
    shop.enqueue("a1")
    shop.broker.close()
    os.utime(shop.folder / "mouso.db", (1, 1))
    before = fingerprint(shop.folder)
    shop.run("doctor")
    shop.run("doctor", "--full", "--json")
    assert fingerprint(shop.folder) == before
    assert sorted(os.listdir(shop.folder)) == [".git", "mouso.db", "pyproject.toml", "shop.py"]


def test_a_log_that_a_crash_left_behind_is_not_moved(shop: Shop) -> None:
    """Who opens such a store in the usual way and closes it moves the log into the file."""
    shop.enqueue("a1")
    crashed = {end: (shop.folder / f"mouso.db{end}").read_bytes() for end in ("", "-wal")}
    shop.broker.close()
    for end, content in crashed.items():
        shop.write(f"mouso.db{end}", "").write_bytes(content)
    before = fingerprint(shop.folder)
    assert "no worker is alive for 1 job" in one(diagnose(shop, "--full"), "workers").what
    assert fingerprint(shop.folder) == before


def test_a_folder_whose_name_is_no_utf8(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = shop.folder / os.fsdecode(b"odd-\xff")
    odd.mkdir()
    (odd / "here.py").write_text(
        "from mouso import Mouso\napp = Mouso(broker='sqlite:///here.db')\n@app.task\ndef t(): ..."
    )
    monkeypatch.chdir(odd)
    assert "odd-\\udcff" in one(diagnose(shop, "here:app"), "file").what
    assert "odd-\\udcff" in shop.run("doctor", "here:app").out


def test_no_app_is_wrong_usage(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOUSO_APP")
    assert "no app is named" in shop.error(2, "doctor")
    assert "is no app path" in shop.error(2, "doctor", "-A", "shop/app.py:")


# -- the app ---------------------------------------------------------------------------------------------------------


def test_an_app_that_cannot_be_imported_is_a_finding_and_its_store_is_looked_at(shop: Shop) -> None:
    shop.enqueue("a")
    shop.write("broken.py", "raise RuntimeError('boom')\n")
    findings = diagnose(shop, "broken:app", code=1)
    wrong, instead = of(findings, "app")
    assert wrong.what == "cannot import 'broken': broken.py, line 1: RuntimeError: boom"
    assert wrong.remedy
    assert "mouso.db is looked at" in instead.what
    assert "no worker is alive for 1 job" in one(findings, "workers").what


def test_an_app_that_cannot_be_imported_and_no_store(shop: Shop) -> None:
    findings = diagnose(shop, "nowhere:app", code=1)
    assert {finding.check for finding in findings} == {"app", "program"}
    assert not (shop.folder / "mouso.db").exists()


def test_an_app_without_tasks(shop: Shop) -> None:
    shop.write("bare.py", "from mouso import Mouso\napp = Mouso()\n")
    assert "it has no tasks" in one(diagnose(shop, "bare:app", code=1), "app").what


def test_a_project_file_that_cannot_be_read_is_a_finding(shop: Shop) -> None:
    shop.write("pyproject.toml", "[tool.mouso]\nprocesses = 0\n")
    finding = one(diagnose(shop, code=1), "settings")
    assert finding.what.endswith("tool.mouso.processes: 0 is out of range")
    assert finding.remedy == "use 1 to 1,024"


def test_a_project_file_that_is_no_toml_is_to_be_mended(shop: Shop) -> None:
    shop.write("pyproject.toml", "[tool.mouso\n")
    finding = one(diagnose(shop, code=1), "settings")
    assert "is not valid TOML" in finding.what
    assert finding.remedy == "mend it: no worker starts like this"


@pytest.mark.parametrize("app", ["bare:app", "nowhere:app"])
def test_a_broker_url_that_cannot_work_is_to_be_mended(shop: Shop, monkeypatch: pytest.MonkeyPatch, app: str) -> None:
    """It says what to write. No other program has to do with it, and there is no store to look at with --full."""
    shop.write("bare.py", "from mouso import Mouso\napp = Mouso()\n@app.task\ndef t(): ...\n")
    monkeypatch.setenv("MOUSO_BROKER", "sqlite://x")
    findings = diagnose(shop, app, code=1)
    needs = "needs three slashes before the file: sqlite:///x"
    assert one(findings, "store").what == f"$MOUSO_BROKER: the broker URL 'sqlite://x' {needs}"
    remedies = {finding.remedy for finding in findings if finding.level is Level.ERROR}
    assert "mend it: no worker starts like this" in remedies
    assert not any("--full" in remedy for remedy in remedies)


# -- rows that another program wrote ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("UPDATE mouso_live SET state = 'nonsense'", "jobs in a state that Mouso does not know: 1"),
        ("UPDATE mouso_workers SET info = '{'", "workers whose description cannot be read: 1"),
        ("UPDATE mouso_jobs SET unique_scope = 'nonsense'", "unique scopes that Mouso does not know: 1"),
    ],
)
def test_rows_that_make_no_sense_are_a_finding(shop: Shop, statement: str, text: str) -> None:
    import sqlite3

    shop.enqueue("a")
    shop.join()
    connection = sqlite3.connect(shop.folder / "mouso.db")
    with connection:
        connection.execute(statement)
    connection.close()
    assert text in [finding.what for finding in of(diagnose(shop, "--full", code=1), "consistency")]


# -- the checks, each on what was seen -------------------------------------------------------------------------------

app = Mouso("checks", "memory://checks")


@app.task(name="add", timeout="1h")
def add() -> None: ...


@app.task(name="send")
def send() -> None: ...


def worker(name: str = "w1", **fields: Any) -> WorkerInfo:
    """A worker of this host that sent a heartbeat two seconds ago; its process is not looked for."""
    given: dict[str, Any] = {
        "id": name.rjust(16, "0"),
        "name": name,
        "host": "here",
        "pid": 42,
        "tasks": ("add", "send"),
        "slots": 4,
        "version": __version__,
        "beat": NOW - 2000,
        "started_at": NOW - 2 * HOUR,
        "lease_left": LEASE_MS - 2000,
    }
    return WorkerInfo(**{**given, **fields})


def queue(name: str = "default", oldest: int | None = None, paused: bool = False, **counts: int) -> QueueInfo:
    states = {JobState(state): number for state, number in counts.items()}
    return QueueInfo(name=name, counts=states, oldest=oldest, paused=paused)


def job(id: str = "a", task: str = "send", **fields: Any) -> Job:
    return Job(**{"id": id, "task": task, "enqueued_at": NOW - MINUTE, **fields})


def seen(**fields: Any) -> Seen:
    given: dict[str, Any] = {"now": NOW, "steady": STEADY, "here": HERE, "tasks": app.tasks, "workers": [worker()]}
    return Seen(**{**given, **fields})


def worst(found: Iterator[Finding]) -> tuple[Level, str]:
    """The first finding, which stands for all, as level and text."""
    findings = list(found)
    for finding in findings:
        assert bool(finding.remedy) == (finding.level is not Level.OK), finding
    return findings[0].level, f"{findings[0].what}; {findings[0].remedy}"


def test_every_check_is_content_with_a_store_at_work() -> None:
    now = seen(queues=[queue(available=3, running=1, completed=9, oldest=1000)], running=[job(worker=worker().id)])
    for check in checks.CHECKS:
        assert all(finding.level is Level.OK for finding in check(now)), check.__name__


def test_every_check_is_content_with_an_empty_store() -> None:
    now = Seen(now=NOW, steady=STEADY, here=HERE)
    for check in checks.CHECKS:
        assert all(finding.level in (Level.OK, Level.INFO) for finding in check(now)), check.__name__


@pytest.mark.parametrize(
    ("fields", "level", "text"),
    [
        ({"workers": []}, Level.INFO, "no worker is alive, and no job waits"),
        ({"workers": [], "queues": [queue(available=2, oldest=500)]}, Level.WARNING, "no worker is alive for 2 jobs"),
        ({"workers": [], "queues": [queue(available=1, oldest=2 * MINUTE)]}, Level.ERROR, "for 1 job, the oldest of"),
        ({"workers": [worker(f"w{n}") for n in range(7)]}, Level.OK, "7 workers with 28 slots: w0, w1, w2, w3, w4 and"),
    ],
)
def test_workers_alive(fields: dict[str, Any], level: Level, text: str) -> None:
    found, said = worst(checks.workers(seen(**fields)))
    assert found is level
    assert text in said


def test_a_worker_that_is_lost() -> None:
    lost = worker("gone", lease_left=0, beat=NOW - 90_000)
    _, finding = checks.workers(seen(workers=[worker(), lost]))
    assert finding.level is Level.WARNING
    assert finding.what == "worker gone (process 42 on here) is lost: it was last heard of 1.5 min ago"


def test_a_worker_that_died_on_this_host() -> None:
    """Its process number belongs to nobody, or to a process that was started at another time."""
    died = worker("died", boot=HERE.boot, namespace=HERE.namespace, started=1, pid=os.getpid())
    _, finding = checks.workers(seen(workers=[worker(), died]))
    assert (finding.level, finding.what[:11]) == (Level.WARNING, "worker died")
    assert "died and was last heard of" in finding.what
    assert seen(workers=[died]).alive == []


def test_a_worker_that_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    from mouso.worker.proof import identity

    here = identity()
    frozen = worker("cold", boot=here.boot, namespace=here.namespace, started=here.started, pid=os.getpid())
    _, finding = checks.workers(seen(here=here, workers=[worker(), replace(frozen, lease_left=0)]))
    assert finding.level is Level.ERROR
    assert "is alive, but its lease has ended" in finding.what
    assert "SIGQUIT" in finding.remedy


def test_versions_that_differ() -> None:
    level, text = worst(checks.versions(seen(workers=[worker(), worker("w2", version="0.0.9")])))
    assert level is Level.WARNING
    assert f"0.0.9 (w2), {__version__} (w1)" in text
    level, text = worst(checks.versions(seen(workers=[worker(version="9.9")])))
    assert (level, text[:18]) == (Level.WARNING, "workers run Mouso ")
    assert text.endswith(f"and this is {__version__}; restart them, or run this in their environment")


def test_tasks_that_differ() -> None:
    def tasks(**fields: Any) -> list[str]:
        return [f"{f.level}: {f.what}" for f in checks.versions(seen(**fields)) if f.check == "tasks"]

    assert tasks(workers=[worker(tasks=("add",)), worker("w2")]) == [
        "warning: workers w1 and w2 differ in the tasks send"
    ]
    assert tasks(workers=[worker(tasks=("add",))]) == [
        "warning: no worker knows the tasks send, which the app has here"
    ]
    assert tasks(workers=[worker(), worker("other", tasks=("of", "another", "app"))]) == ["ok: the app has 2 tasks"]
    assert tasks(workers=[]) == ["ok: the app has 2 tasks"]


def test_jobs_whose_task_nobody_knows() -> None:
    parked = {("sned", "default"): 12, ("sned", "mail"): 1, ("add", "default"): 2}
    renamed, behind = checks.parked(seen(parked=parked, workers=[worker(tasks=())]))
    assert (renamed.level, renamed.what) == (Level.ERROR, "13 jobs of the task sned cannot run: no worker knows it")
    assert renamed.remedy.startswith("did you mean 'send'? register it again")
    assert (behind.level, behind.what[:21]) == (Level.WARNING, "2 jobs of the task ad")
    assert behind.remedy == "restart the workers with this code, which knows it"
    (unsure, _) = checks.parked(seen(parked=parked, tasks=None))
    assert unsure.level is Level.WARNING
    many = list(checks.parked(seen(parked={(f"t{n}", "q"): 1 for n in range(9)})))
    assert many[-1].what == "jobs of 4 more tasks cannot run: no worker knows them"
    (full,) = checks.parked(seen(parked={("x", "q"): checks.MOST_READ}))
    assert full.what.startswith("at least 10,000 jobs")


def test_jobs_that_no_worker_has_looked_at_yet() -> None:
    level, text = worst(checks.parked(seen(workers=[], available=[job(task="sned"), job(task="add")])))
    assert (level, text[:25]) == (Level.ERROR, "jobs of the task sned wai")
    assert list(checks.parked(seen(available=[job(task="theirs")], workers=[worker(tasks=("theirs",))]))) == []


@pytest.mark.parametrize(
    ("fields", "level", "text"),
    [
        (
            {"queues": [queue(paused=True, available=2, oldest=HOUR)]},
            Level.WARNING,
            "2 jobs in it could run, the oldest",
        ),
        ({"queues": [queue(paused=True)]}, Level.INFO, "queue default is paused, and 0 jobs in it could run; end the"),
        ({"queues": [queue(available=5, oldest=HOUR)]}, Level.WARNING, "5 jobs in queue default could run, the oldest"),
        ({"queues": [queue(available=5, oldest=MINUTE)]}, Level.OK, "1 queue, 5 jobs could run"),
        (
            {"queues": [queue("mial", available=1, oldest=HOUR)], "workers": [worker(queues=("mail",))]},
            Level.ERROR,
            "queue mial, which has 1 waiting job, the oldest for 1 h; did you mean 'mail'? start a worker with -Q mial",
        ),
        (
            {"queues": [queue("a", scheduled=1)], "workers": [worker(queues=("mail",))]},
            Level.WARNING,
            "no worker serves queue a, which has 1 waiting job; start a worker with -Q a",
        ),
        ({"queues": [queue("a", completed=1)], "workers": [worker(queues=("mail",))]}, Level.OK, "1 queue, 0 jobs"),
        (
            {"queues": [queue(available=5, oldest=HOUR)], "parked": {("gone", "default"): 5}},
            Level.OK,
            "1 queue, 0 jobs could run",
        ),
    ],
)
def test_queues(fields: dict[str, Any], level: Level, text: str) -> None:
    found, said = worst(checks.queues(seen(**fields)))
    assert found is level
    assert text in said


def test_many_queues_are_summed_up() -> None:
    found = list(checks.queues(seen(queues=[queue(f"q{n}", paused=True) for n in range(100)])))
    assert len(found) == 6
    assert found[-1].what == "95 more of the same kind"


def test_jobs_that_run_under_nobody() -> None:
    gone, lost = job("b", worker="f" * 16), job("c", worker=None)
    found = list(checks.stuck(seen(running=[job(worker=worker().id), gone, lost])))
    assert [(f.level, f.what) for f in found] == [
        (Level.ERROR, "1 job running under no worker at all, such as c"),
        (Level.WARNING, "1 job running under workers that are gone, such as b"),
    ]


@pytest.mark.parametrize(
    ("fields", "long"),
    [
        ({"task": "send"}, True),
        ({"task": "add"}, False),
        ({"task": "add", "options": msgspec.json.encode(JobOptions(timeout=0))}, True),
        ({"task": "send", "options": msgspec.json.encode(JobOptions(timeout=9.0))}, False),
        ({"task": "send", "options": b"nonsense"}, False),
        ({"task": "unknown"}, False),
        ({"task": "send", "enqueued_at": NOW - MINUTE}, False),
    ],
)
def test_jobs_that_may_run_for_ever(fields: dict[str, Any], long: bool) -> None:
    running = [job(**{"worker": worker().id, "enqueued_at": NOW - HOUR, **fields})]
    level, text = worst(checks.stuck(seen(running=running)))
    assert level is (Level.WARNING if long else Level.OK)
    assert ("1 job without a timeout may have run for 10 min and more; a (" in text) == long


def test_a_job_that_may_just_have_left_a_long_queue_is_not_called_stuck() -> None:
    running = [job(worker=worker().id, enqueued_at=NOW - HOUR)]
    assert worst(checks.stuck(seen(running=running, queues=[queue(available=9, oldest=HOUR)])))[0] is Level.OK
    assert worst(checks.stuck(seen(running=running, workers=[worker(started_at=NOW - MINUTE)])))[0] is Level.OK


def test_a_job_that_comes_back_again_and_again() -> None:
    """It may end its whole worker each time, as where the kernel ends a container at once."""
    few = [job("few", releases=4), job("none")]
    assert worst(checks.returning(seen(running=few)))[0] is Level.OK
    often = [job("often", releases=7), job("less", releases=5)]
    level, text = worst(checks.returning(seen(running=[*few, often[1]], available=[often[0]])))
    assert level is Level.WARNING
    assert text.startswith("2 jobs went back 5 times and more, often (send) 7; ")
    assert "mouso cancel" in text


def test_the_dead_letter_queue() -> None:
    old = [job(str(n), state=JobState.DEAD, finished_at=NOW - 2 * HOUR) for n in range(3)]
    new = [job(f"n{n}", state=JobState.DEAD, finished_at=NOW - 5, reason="attempts") for n in range(2)]
    level, text = worst(checks.dead(seen(queues=[queue(dead=5)], dead=new + old)))
    assert level is Level.WARNING
    assert text.startswith("at least 2 jobs died within the last hour: 2 × send (attempts); look at them")
    assert worst(checks.dead(seen(queues=[queue(dead=3)], dead=old)))[0] is Level.INFO
    _, full = checks.dead(seen(queues=[queue(dead=95)], retention=Retention(max_dead=100)))
    assert full.level is Level.WARNING
    _, results = checks.dead(seen(queues=[queue(completed=80, expired=20)], retention=Retention(max_finished=100)))
    assert (results.level, results.check) == (Level.INFO, "results")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"beat": NOW - 2000 - HOUR}, "the clock was set forward by 1 h while worker w1 ran"),
        ({"beat": NOW + HOUR}, "the clock was set back by 1.0 h while worker w1 ran"),
        ({"beat": NOW - 2000 + 4000}, ""),
        ({"boot": "boot", "started": (STEADY - 2 * HOUR) // 10}, ""),
        ({"boot": "boot", "started": (STEADY - HOUR) // 10}, "the clock was set forward by 1 h while worker w1 ran"),
        ({"boot": "other", "started": (STEADY - HOUR) // 10}, ""),
    ],
)
def test_a_clock_that_jumped(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], text: str) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    monkeypatch.setattr(Seen, "alive", property(lambda self: self.workers))
    level, said = worst(checks.clocks(seen(workers=[worker(**fields)])))
    assert level is (Level.WARNING if text else Level.OK)
    assert said.startswith(text)


def test_a_job_from_the_future() -> None:
    level, text = worst(checks.clocks(seen(newest=job("f", enqueued_at=NOW + 90_000))))
    assert (level, text[:53]) == (Level.WARNING, "the last job, f, was enqueued 1.5 min in the future; ")
    assert worst(checks.clocks(seen(newest=job(enqueued_at=NOW + 1000))))[0] is Level.OK


def test_limits_of_a_worker_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    from mouso.worker.proof import identity

    here = identity()
    mine = worker(boot=here.boot, namespace=here.namespace, started=here.started, pid=os.getpid())
    monkeypatch.setattr(checks, "_open_files", lambda pid: 95)
    monkeypatch.setattr(checks, "_process_limits", lambda pid: {"Max file size": 4096, "Max open files": 100})
    size, files = checks.limits(seen(here=here, workers=[mine]))
    assert (size.level, size.what) == (
        Level.WARNING,
        "worker w1 cannot write files of more than 4,096 bytes, the store included",
    )
    assert (files.level, files.what) == (Level.WARNING, "worker w1 has 95 of 100 files open")
    assert list(checks.limits(seen(workers=[worker()]))) == []


def test_limits_are_read_from_the_kernel() -> None:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert checks._process_limits(os.getpid()).get("Max open files", resource.RLIM_INFINITY) == soft
    assert checks._open_files(os.getpid()) > 2
    assert (checks._process_limits(0), checks._open_files(0)) == ({}, 0)


def test_a_grace_that_kubernetes_does_not_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    long = seen(settings=ProjectSettings(grace=60))
    assert worst(checks.settings(long))[0] is Level.INFO
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    level, text = worst(checks.settings(long))
    assert level is Level.WARNING
    assert text.endswith("set terminationGracePeriodSeconds (or TimeoutStopSec=) to 70 or more")
    assert list(checks.settings(seen(settings=ProjectSettings(grace=25)))) == []


# -- the documentation -----------------------------------------------------------------------------------------------


def test_every_check_is_in_the_reference() -> None:
    root = Path(__file__).parents[2]
    sources = [*(root / "src" / "mouso" / "cli").glob("*.py"), *(root / "src" / "mouso" / "brokers").rglob("*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    named = set(re.findall(r'(?:Finding|_found)\(\s*(?:Level\.\w+|level),\s*"(\w+)"', text))
    named |= set(re.findall(r'_ask\("(\w+)"', text)) | {"queues", "clock"}
    page = (root / "docs" / "reference" / "doctor.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) - set(Level) == named
