"""The demo for real: its processes, servers, signals; asserted on the store, the page and the mail that it leaves."""

import asyncio
import email
import email.policy
import os
import re
import signal
import smtplib
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mouso import Job, JobState, Mouso
from mouso.demo.jobs import REPORT_ID, REPORTS
from mouso.demo.licences import LicenceService, LicenceServiceBusy, ask, is_refused_at_first
from mouso.demo.smtp_sink import SmtpSink
from tests.support import process_ids, wait_until

MARK = "DEMO_TEST_RUN"
BROKEN = ("broken/print.py", "broken/bytes.py")
COMMAND = (sys.executable, "-m", "mouso", "demo", "--store", "store", "--processes", "2")


class Running:
    """A demo under way, in a process group of its own as a shell would start it."""

    def __init__(self, place: Path, *arguments: str) -> None:
        self.place = place
        self.mark = f"{MARK}={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [*COMMAND, "--dir", "code", *arguments],
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, name: value},
        )

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Waits for its end, after a signal to its process group if one is given; nothing may be left of it."""
        if number is not None:
            os.killpg(self.process.pid, number)
        try:
            said, _ = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        wait_until(lambda: not self.processes(), timeout=10, message="every process of the demo has ended")
        return self.process.returncode, said

    def processes(self) -> list[int]:
        """The demo, its worker, its worker's children."""
        return [pid for pid in process_ids() if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        try:
            return self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False


@contextmanager
def looking(place: Path) -> Iterator[Mouso]:
    """The demo's store, seen from here."""
    wait_until((place / "store/demo.db").exists, timeout=30, message="the demo has made its store")
    with Mouso("look", broker=f"sqlite:///{place}/store/demo.db") as app:
        yield app


def completed(app: Mouso) -> dict[str, tuple[int | None, int]]:
    """Every completed analysis, with when it ended and how often it was claimed."""
    found: list[Job] = app.jobs(state=JobState.COMPLETED, queue="files", limit=1000)
    return {job.id: (job.finished_at, job.claims) for job in found}


def text_of(part: object) -> str:
    """The text of a part of a mail, with line ends as Python has them."""
    assert isinstance(part, EmailMessage)
    return str(part.get_content()).replace("\r\n", "\n")


def make_code(place: Path, files: int, *, functions: int) -> int:
    """Writes a code base with two broken files; returns how many of the others the service refuses at first."""
    refused = 0
    body = "\n".join(
        f"def f{n}(a, b):\n    # a comment\n    if a and b:\n        return {n}\n" for n in range(functions)
    )
    for number in range(files - len(BROKEN)):
        path = place / f"code/package{number % 3}/module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
        refused += is_refused_at_first(str(path))
    (place / "code/broken").mkdir()
    (place / "code" / BROKEN[0]).write_text("print 'hello'\n")
    (place / "code" / BROKEN[1]).write_bytes(b"x = 1\0\xff")
    return refused


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A place with a code base that takes a few seconds."""
    make_code(tmp_path, 80, functions=400)
    return tmp_path


def test_a_demo_from_beginning_to_end(tmp_path: Path) -> None:
    refused = make_code(tmp_path, 20, functions=2)
    code, said = Running(tmp_path).end()
    assert code == 0, said
    assert f"18 files analysed, 2 dead, {refused} retried: 20 jobs" in said
    assert re.search(
        r"^  broken/bytes\.py  \w+Error: .*\n  broken/print\.py  SyntaxError: Missing paren", said, re.MULTILINE
    )
    with looking(tmp_path) as app:
        assert len(completed(app)) == 18
        assert len(app.jobs(state="dead")) == 2
        assert app.workers() == []
    page = (tmp_path / "store/report.html").read_bytes()
    assert "module17.py" in "".join(ElementTree.fromstring(page).itertext())
    (file,) = (tmp_path / "store/mail").iterdir()
    mail = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
    (attachment,) = mail.iter_attachments()
    assert mail["Subject"] == "18 files of code, analysed"
    assert abs(mail["Date"].datetime.timestamp() - time.time()) < 600
    assert text_of(attachment) == page.decode()
    assert "18 files of code" in text_of(mail.get_body())

    commands = re.findall(r"^  (MOUSO_DEMO_STORE=store .*)$", said, re.MULTILINE)
    assert len(commands) == 6
    for command in commands[:5]:  # the sixth is a worker
        subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True, timeout=30)

    code, said = Running(tmp_path).end()
    assert code == 0, said
    assert "20 Python files in" in said
    assert "going on" not in said, "a complete demo starts afresh"
    assert "18 files analysed, 2 dead" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_an_interrupted_demo_goes_on_where_it_stopped(large: Path, number: signal.Signals) -> None:
    demo = Running(large)
    with looking(large) as app:
        wait_until(lambda: len(completed(app)) >= 3, timeout=30)
    code, said = demo.end(number)
    if number is signal.SIGKILL:
        assert code == -number
    else:
        assert code == 128 + number, said
        assert "nothing is left running" in said
    with looking(large) as app:
        before = completed(app)
        assert 3 <= len(before) < 78
        assert app.workers() == []
    code, said = Running(large).end()
    assert code == 0, said
    assert "going on where the last demo stopped" in said
    assert "78 files analysed, 2 dead" in said
    with looking(large) as app:
        after = completed(app)
    assert len(after) == 78
    assert {id_: after[id_] for id_ in before} == before, "what was completed is not done again"


def test_a_demo_that_is_stopped_while_it_makes_its_report_shows_it_the_next_time(tmp_path: Path) -> None:
    """The worker may have made it within its grace: that is no demo that has come to its end."""
    make_code(tmp_path, 20, functions=2)
    demo = Running(tmp_path)
    with looking(tmp_path) as app:
        app.pause(REPORTS)
        wait_until(lambda: app.broker.get([REPORT_ID]) != [None], timeout=30, message="the report's job is enqueued")
        demo.process.send_signal(signal.SIGSTOP)  # and with it the server to which the report's job sends its mail
        app.resume(REPORTS)
        wait_until(lambda: app.job(REPORT_ID).state is JobState.RUNNING, timeout=30, message="the report is being made")
        os.killpg(demo.process.pid, signal.SIGINT)
    code, said = demo.end(signal.SIGCONT)
    assert code == 130, said
    with looking(tmp_path) as app:
        assert app.job(REPORT_ID).state is JobState.COMPLETED
        before = completed(app)
    code, said = Running(tmp_path).end()
    assert (code, "going on where the last demo stopped" in said) == (0, True), said
    assert "18 files analysed, 2 dead" in said
    with looking(tmp_path) as app:
        assert completed(app) == before


def test_a_demo_that_is_stopped_at_its_very_start_leaves_nothing(large: Path) -> None:
    for _ in range(4):
        demo = Running(large)
        wait_until(lambda demo=demo: len(demo.processes()) > 1 or demo.process.poll() is not None, timeout=30)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        code, said = demo.end(signal.SIGINT)
        assert code == 130, said


def test_a_killed_worker_is_replaced_and_said_so(large: Path) -> None:
    demo = Running(large)
    with looking(large) as app:
        wait_until(lambda: len(completed(app)) >= 3, timeout=30)
        (worker,) = app.workers()
        second = subprocess.run([*COMMAND, "--dir", "code"], cwd=large, capture_output=True, text=True, check=False)
        assert (second.returncode, "another demo runs in store" in second.stderr) == (2, True)
        os.kill(worker.pid, signal.SIGKILL)
    code, said = demo.end()
    assert code == 0, said
    assert said.count("the worker ended (killed by SIGKILL); starting another") == 1
    assert "78 files analysed, 2 dead" in said


@pytest.mark.parametrize(
    ("folder", "reason"),
    [("none", "No such file"), ("file.py", "is a file"), ("empty", "no Python files"), ("loop", "loop")],
)
def test_a_wrong_folder_is_one_line_and_exit_code_2(tmp_path: Path, folder: str, reason: str) -> None:
    (tmp_path / "file.py").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    done = subprocess.run([*COMMAND, "--dir", folder], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert reason in done.stderr
    assert not (tmp_path / "store").exists()


def test_the_smtp_server_takes_what_smtplib_sends(tmp_path: Path) -> None:
    message = EmailMessage()
    message["Subject"] = "Grüße"
    message["From"], message["To"] = "a@example.org", "b@example.org"
    message["Message-ID"] = "<one@example.org>"
    message.set_content(".\n..two\nünï\n" + "long " * 500 + "\n")

    def send(address: str) -> None:
        host, _, port = address.partition(":")
        with smtplib.SMTP(host, int(port), local_hostname="here", timeout=10) as client:
            client.send_message(message)
            assert client.noop()[0] == 250
            assert client.docmd("NONSENSE")[0] == 500

    async def run() -> None:
        async with SmtpSink(tmp_path) as sink:
            await asyncio.to_thread(send, sink.address)

    asyncio.run(run())
    kept = email.message_from_bytes((tmp_path / "one-example.org.eml").read_bytes(), policy=email.policy.default)
    assert kept["Subject"] == "Grüße"
    assert kept["Delivered-To"] == "b@example.org"
    assert text_of(kept) == message.get_content()


def test_the_licence_service_is_busy_at_first_for_some(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "LICENSE").write_text("Apache License, Version 2.0")
    paths = [str(tmp_path / f"file {number}ü.py") for number in range(100)]
    busy = next(path for path in paths if is_refused_at_first(path))
    ready = next(path for path in paths if not is_refused_at_first(path))

    def converse(address: str) -> None:
        assert ask(address, ready) == "Apache-2.0"
        with pytest.raises(LicenceServiceBusy, match="503"):
            ask(address, busy)
        assert ask(address, busy) == "Apache-2.0"
        with pytest.raises(Exception, match="404"):
            ask(address, "/etc/passwd")

    async def run() -> None:
        async with LicenceService(tmp_path) as service:
            await asyncio.to_thread(converse, service.address)

    asyncio.run(run())
