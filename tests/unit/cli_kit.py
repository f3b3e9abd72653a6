"""What the tests of the command line are written with: an app in a folder, its store, and a worker's hand."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mouso.brokers import Broker, connect
from mouso.brokers.base import Want, WorkerInfo
from mouso.cli import main
from mouso.errors import ErrorInfo
from mouso.job import Charge, Job, JobState, Lease, Outcome, new_id

WORKER = "1" * 16
SHOP = """
import datetime
from mouso import Context, Mouso

app = Mouso("shop", enqueue_timeout="200ms")

@app.task
def add(x: int, y: int = 1) -> int:
    return x + y

@app.task(queue="mail")
async def send(ctx: Context, to: str, *, at: datetime.datetime | None = None) -> str:
    return to

@app.task(codec="msgpack")
def pack(data: dict[str, int]) -> None: ...
"""


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shop:
    """The app ``shop:app`` in the current directory, with its store ``mouso.db``."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.broker: Broker = connect(f"sqlite:///{folder / 'mouso.db'}")
        self._capsys = capsys

    def run(self, *args: str) -> Result:
        """Runs ``mouso`` with these arguments in this process."""
        self._capsys.readouterr()
        code = main(args)
        out, err = self._capsys.readouterr()
        return Result(code, out, err)

    def ok(self, *args: str) -> str:
        """Runs a command that must succeed and say nothing on stderr; returns its output."""
        result = self.run(*args)
        assert (result.code, result.err) == (0, ""), result
        return result.out

    def error(self, code: int, *args: str) -> str:
        """Runs a command that must fail with one line on stderr; returns that line without its prefix."""
        result = self.run(*args)
        assert result.code == code, result
        assert result.err.startswith("mouso: error: "), result
        assert result.err.count("\n") == 1, result
        return result.err.removeprefix("mouso: error: ").rstrip("\n")

    def write(self, name: str, text: str) -> Path:
        """Writes a file in the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    # -- the worker's part ---------------------------------------------------------------------------------------

    def enqueue(self, *ids: str, task: str = "shop.add", payload: bytes = b'{"x":2,"y":3}', **fields: Any) -> list[str]:
        """Stores a job for each id."""
        jobs = [Job(id=id_, task=task, payload=payload, **fields) for id_ in ids or (new_id(),)]
        return [done.id for done in self.broker.enqueue(jobs)]

    def join(self, **fields: Any) -> None:
        """Announces a worker."""
        info: dict[str, Any] = {"id": WORKER, "name": "w1", "host": "here", "pid": 42, "slots": 8}
        self.broker.heartbeat(WorkerInfo(**{**info, **fields}))

    def claim(self, limit: int = 10_000) -> list[Lease]:
        """Claims waiting jobs for the worker."""
        self.join()
        return self.broker.exchange(WORKER, (), Want(limit=limit)).leases

    def settle(self, lease: Lease, state: JobState = JobState.COMPLETED, **fields: Any) -> None:
        """Records what became of a claim."""
        outcome = Outcome(
            key=lease.key, token=lease.token, id=lease.id, task=lease.task, queue=lease.queue, state=state, **fields
        )
        assert self.broker.exchange(WORKER, [outcome], Want(limit=0)).fenced == []

    def bury(self, *ids: str, message: str = "boom", **fields: Any) -> None:
        """Makes dead jobs."""
        self.enqueue(*ids, **fields)
        for lease in self.claim():
            error = ErrorInfo(type="ValueError", message=message, traceback=f"File x\n  {message}", attempt=1)
            self.settle(lease, JobState.DEAD, reason="attempts", error=error, charge=Charge.ATTEMPT, run_seconds=0.25)

    def state(self, id_: str) -> JobState | None:
        """A job's state, None if it does not exist."""
        (job,) = self.broker.get([id_])
        return None if job is None else job.state


@contextmanager
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    """A shop for one test: the current directory, ``sys.path`` and the imported modules are put back afterwards."""
    with isolated(tmp_path, monkeypatch):
        shop = Shop(tmp_path, capsys)
        shop.write("shop.py", SHOP)
        (tmp_path / ".git").mkdir()  # the search for settings ends here
        (tmp_path / "pyproject.toml").write_text("")
        try:
            yield shop
        finally:
            shop.broker.close()


@contextmanager
def isolated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes a folder the current directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            names = vars(sys.modules[name])
            places = [names.get("__file__"), *names.get("__path__", [])]
            if any(place and Path(place).is_relative_to(folder) for place in places):
                del sys.modules[name]
