"""The demo's app: what a program that uses Mouso looks like.

Its store is ``demo.db`` in the folder ``$MOUSO_DEMO_STORE``, by default ``mouso-demo`` in the current directory, so
that ``mouso dead mouso.demo.jobs:app`` and all the others work when the demo is over. Where no licence service or SMTP
server is named (the demo is over, and with it both), the jobs do without.
"""

from __future__ import annotations

import dataclasses
import os
import smtplib
import warnings
from collections.abc import AsyncIterator, Iterator
from email.message import EmailMessage
from email.utils import formatdate
from pathlib import Path

from mouso import Context, Job, JobState, Mouso, exponential
from mouso.clock import SYSTEM
from mouso.demo import licences
from mouso.demo.measure import FileFacts, TooLarge, measure
from mouso.demo.page import write_page
from mouso.demo.source import Unreadable
from mouso.demo.summary import Failure, Summary, summarize
from mouso.errors import BadPayload, BadSignature, ErrorInfo
from mouso.reveal import encoded_arguments, encoded_result
from mouso.urls import BrokerURL

STORE = Path(os.environ.get("MOUSO_DEMO_STORE") or "mouso-demo")
FILES, REPORTS = "files", "report"
"""Queues."""
REPORT_ID = "demo-report"
RECIPIENT = "you@mouso-demo.localhost"

_PAGE = 250
_MOST_FAILURES = 200

app = Mouso("demo", broker=str(BrokerURL(scheme="sqlite", path=str(STORE / "demo.db"), params={})), keep_finished="30d")


@app.lifespan
async def quiet() -> AsyncIterator[None]:
    """Keeps what the parser has to say about other people's code out of the worker's log."""
    warnings.filterwarnings("ignore", category=SyntaxWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    yield


@app.task(
    queue=FILES,
    attempts=8,
    backoff=exponential(0.5, cap=5),
    timeout="2m",
    discard_on=(SyntaxError, ValueError, RecursionError, MemoryError, Unreadable, TooLarge),
)
def analyse_file(ctx: Context, path: str) -> FileFacts:
    """Measures a file; one that is not Python ends in the dead-letter queue, a busy licence service costs a retry."""
    licence = licences.UNKNOWN
    if service := os.environ.get("MOUSO_DEMO_LICENCES"):
        licence = licences.ask(service, path)
    ctx.check()
    return dataclasses.replace(measure(path), licence=licence)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the report job made: the page's path, the address it was mailed to (or nothing), and its main numbers."""

    page: str
    mailed_to: str
    files: int
    dead: int
    retried: int
    lines: int


@app.task(queue=REPORTS, attempts=5, backoff=exponential(0.5, cap=5))
def report(ctx: Context, root: str) -> Report:
    """Makes one page of all results and mails it."""
    ctx.progress(0, 3, "gathering the results")
    summary = summarize(root, list(results()), failures(), count_dead())
    ctx.check()
    ctx.progress(1, 3, "drawing the charts")
    page = write_page(summary, STORE / "report.html")
    ctx.progress(2, 3, "mailing the page")
    server = os.environ.get("MOUSO_DEMO_SMTP", "")
    if server:
        mail(ctx, server, summary, page)
    return Report(
        page=str(page),
        mailed_to=RECIPIENT if server else "",
        files=summary.files,
        dead=summary.dead,
        retried=summary.retried,
        lines=summary.lines,
    )


def every_job(state: str) -> Iterator[Job]:
    """All analysis jobs in a state, the last enqueued first."""
    after = None
    while page := app.jobs(task=analyse_file.name, state=state, limit=_PAGE, after=after):
        yield from page
        after = page[-1].id


def results() -> Iterator[tuple[Job, FileFacts]]:
    """Every completed job with what it returned."""
    for job in every_job("completed"):
        yield job, analyse_file.signature.decode_result(encoded_result(app, job), job.codec)


def count_dead() -> int:
    """How many jobs are in the dead-letter queue."""
    return sum(queue.counts.get(JobState.DEAD, 0) for queue in app.queues() if queue.name == FILES)


def failures(limit: int = _MOST_FAILURES) -> list[Failure]:
    """The jobs in the dead-letter queue with the path of their file and their last error, by path."""
    found = []
    for job in app.jobs(task=analyse_file.name, state="dead", limit=limit):
        errors = app.job(job.id).errors
        error = errors[-1] if errors else ErrorInfo(type="", message=job.reason)
        text = ": ".join(part for part in (error.type.rpartition(".")[2], error.message) if part)
        found.append(Failure(path=path_of(job), job=job.id, error=text))
    return sorted(found)


def path_of(job: Job) -> str:
    """The path that a job was given; its id if somebody gave it other arguments."""
    try:
        (path,), _ = analyse_file.signature.decode(encoded_arguments(app, job), job.codec)
    except (BadPayload, BadSignature, ValueError):
        return job.id
    return str(path)


def mail(ctx: Context, server: str, summary: Summary, page: Path) -> None:
    """Mails the page. A job may run twice, so both mails bear the same Message-ID and a mailbox can tell."""
    message = EmailMessage()
    message["From"] = "Mouso demo <demo@mouso-demo.localhost>"
    message["To"] = RECIPIENT
    message["Subject"] = f"{summary.files:,} files of {summary.name}, analysed"
    message["Date"] = formatdate(SYSTEM.now() / 1000)
    message["Message-ID"] = f"<{ctx.job_id or REPORT_ID}@mouso-demo.localhost>"
    message.set_content(summary.as_text())
    message.add_attachment(page.read_text(encoding="utf-8"), subtype="html", filename=page.name)
    host, _, port = server.rpartition(":")
    with smtplib.SMTP(host, int(port), local_hostname="mouso-demo.localhost", timeout=10) as connection:
        connection.send_message(message)
