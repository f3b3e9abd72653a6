"""Whatever the store holds in place of a job's arguments, the job is dead and says why, and other jobs go on."""

import pickle

import pytest

from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import ARGUMENTS, SOUND, still_sound

PAYLOADS: dict[str, bytes] = {
    "empty": b"",
    "blank": b"   ",
    "truncated": b'{"x": 1, "y": "te',
    "bit flipped": b'{"x": 1, "y"\xba "text"}',
    "random": bytes(range(255, 0, -3)),
    "zeros": bytes(64),
    "not UTF-8": b'{"x": 1, "y": "\xff\xfe"}',
    "list": b"[1, 2]",
    "null": b"null",
    "text": b'"text"',
    "number": b"5",
    "missing field": b'{"y": "text"}',
    "unknown field": b'{"x": 1, "z": 2}',
    "wrong type": b'{"x": "1"}',
    "wrong type too": b'{"x": 1, "y": null}',
    "huge integer": b'{"x": ' + b"9" * 5000 + b"}",
    "overflow": b'{"x": 1e400}',
    "NaN": b'{"x": NaN}',
    "trailing": b'{"x": 1}{"x": 2}',
    "byte order mark": b'\xef\xbb\xbf{"x": 1}',
    "pickle": pickle.dumps(print),
    "deep": b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"x":' * 100_000 + b"1" + b"}" * 100_000,
}


def test_payloads_that_do_not_decode_are_dead(bench: Bench) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    handles = {}
    for name, payload in PAYLOADS.items():
        for task in (jobs.typed, jobs.typed_coroutine):
            handle = handles[name, task.name] = task.delay(1)
            store_payload(bench, handle.id, payload)
    worker = bench.worker()
    children = worker.children()
    records = bench.wait_final(handles.values())
    for (name, _), record in zip(handles, records, strict=True):
        assert (record.state, record.reason) == ("dead", "bad_payload"), name
        assert (record.attempts, record.crashes) == (0, 0)
        assert record.errors[0].type == "BadPayload"
        assert len(record.errors[0].message) < 1000
        if name != "deep" and name != "deep objects":
            assert PAYLOADS[name][:4].hex(" ") in record.errors[0].message, name
    assert bench.history("ran") == []
    still_sound(jobs)
    assert worker.children() == children
    # Mended and retried, it runs.
    handle = handles["truncated", "jobs.typed"]
    assert jobs.app.broker.retry([handle.id], payload=b'{"x": 7}') == ["retried"]
    assert handle.get(timeout=WAIT) == 7


def test_deep_payloads_for_a_task_that_takes_anything(bench: Bench) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    handles = [jobs.anything.delay(1), jobs.anything.delay(1)]
    store_payload(bench, handles[0].id, b'{"x": ' + b"[" * 500_000 + b"]" * 500_000 + b"}")
    store_payload(bench, handles[1].id, b'{"x": ' + b'{"a":' * 500_000 + b"1" + b"}" * 500_001)
    worker = bench.worker()
    children = worker.children()
    records = bench.wait_final(handles)
    assert [(r.state, r.reason) for r in records] == [("dead", "bad_payload")] * 2
    still_sound(jobs)
    assert worker.children() == children


@pytest.mark.parametrize(
    "payload",
    [b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", pytest.param(b"\x91" * 100_000, id="deep"), b"{}"],
)
def test_payloads_in_msgpack_that_do_not_decode(bench: Bench, payload: bytes) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    handle = jobs.typed.options(codec="msgpack").delay(1)
    store_payload(bench, handle.id, payload)
    bench.worker()
    record = bench.wait_final([handle])[0]
    assert (record.state, record.reason) == ("dead", "bad_payload")
    still_sound(jobs)


def test_a_thousand_bad_payloads_in_a_row(bench: Bench) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    handles = jobs.typed.map([(n,) for n in range(600)]) + jobs.typed_coroutine.map([(n,) for n in range(2400)])
    bench.sql("UPDATE mouso_jobs SET payload = x'00'")
    worker = bench.worker(processes=1, concurrency=1000)
    children = worker.children()
    records = bench.wait_final(handles, timeout=40)
    assert {(r.state, r.reason) for r in records} == {("dead", "bad_payload")}
    still_sound(jobs)
    assert worker.children() == children


@pytest.mark.parametrize("codec", ["pickle", "", "JSON", "json\0", "../json", "__class__", "\U0001f600" * 1000])
def test_an_unknown_codec(bench: Bench, codec: str) -> None:
    jobs = bench.app(SOUND + ARGUMENTS)
    handle = jobs.typed.delay(1)
    bench.sql("UPDATE mouso_jobs SET codec = ?", codec)
    bench.worker()
    record = bench.wait_final([handle])[0]
    assert (record.state, record.reason) == ("dead", "bad_payload")
    assert "codec" in record.errors[0].message
    assert bench.history("ran") == []
    still_sound(jobs)


def test_a_type_of_the_app_that_fails_when_it_is_made(bench: Bench) -> None:
    jobs = bench.app(
        SOUND
        + """
from dataclasses import dataclass

@dataclass
class Nasty:
    how: str

    def __post_init__(self):
        if "pytest" not in sys.modules:
            if self.how == "exits":
                sys.exit(1)
            raise RuntimeError("no such thing")

@app.task
def plain(nasty: Nasty) -> None:
    note("ran")

@app.task
async def coroutine(nasty: Nasty) -> None:
    note("ran")
"""
    )
    worker = bench.worker()
    worker.quiet = False
    children = worker.children()
    handles = [task.delay(jobs.Nasty(how)) for how in ("exits", "raises") for task in (jobs.plain, jobs.coroutine)]
    records = bench.wait_final(handles)
    assert {(r.state, r.reason) for r in records} == {("dead", "bad_payload")}
    assert bench.history("ran") == []
    still_sound(jobs)
    assert worker.children() == children


def store_payload(bench: Bench, id: str, payload: bytes) -> None:
    bench.sql("UPDATE mouso_jobs SET payload = ? WHERE id = ?", payload, id)
