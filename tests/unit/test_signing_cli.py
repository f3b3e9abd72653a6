"""The command line on signed, encrypted and redacted jobs: what it shows, hides and can change."""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from mouso.handle import JobHandle
from mouso.signing import MARK, envelope_of
from mouso.testing.inline import run_until_idle
from tests.unit.cli_kit import Shop, opened

SECRET = "s" * 32
PLANTED = "hunter2-planted"
TASKS = """

@app.task(name="login", attempts=1)
def login(user: str, password: str, fails: bool = False, more: dict[str, str] | None = None) -> dict[str, str]:
    if fails:
        raise ValueError("no")
    return {"user": user, "token": password}

@app.task(name="pick", attempts=1, codec="pickle" if app.allow_pickle else "json")
def pick(n: int) -> int:
    return n
"""
APPS = {
    "signed": 'keys=[Key.hmac("k", "s" * 32)]',
    "sealed": 'keys=[Key.hmac("k", "s" * 32)], encrypt=True',
    "short": 'keys=[Key.hmac("k", "s" * 32)], signed_for="1s"',
    "other": 'keys=[Key.hmac("other", "o" * 32)]',
    "checks": 'keys="ed25519-public:e:A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"',
    "makes": 'keys="ed25519-private:e:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"',
    "pickles": 'keys=[Key.hmac("k", "s" * 32)], allow_pickle=True',
    "open": "redact=False",
    "bare": "",
}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    with opened(tmp_path, monkeypatch, capsys) as shop:
        for name, settings in APPS.items():
            head = f'from mouso import Key, Mouso\napp = Mouso("{name}", {settings or "keys=None"})\n'
            shop.write(f"{name}.py", head + TASKS)
        yield shop


def enqueue(shop: Shop, app: str, arguments: Mapping[str, object], *options: str, task: str = "login") -> str:
    """A job of an app of the shop; its id."""
    return shop.ok("enqueue", f"{app}:app", task, "--kwargs", json.dumps(arguments), *options).strip()


def work(app: str) -> None:
    """Runs what waits, by the app as a worker has it."""
    from importlib import import_module

    with import_module(app).app as one:
        run_until_idle(one)


def handle(shop: Shop, id: str) -> JobHandle[object]:
    from importlib import import_module

    found: JobHandle[object] = import_module("signed").app.job(id)
    return found


def sql(shop: Shop, statement: str, *values: object) -> None:
    """Does to the store what another program can do."""
    with closing(sqlite3.connect(shop.folder / "mouso.db")) as connection, connection:
        connection.execute(statement, values)


def everything(shop: Shop, app: str, id: str) -> str:
    """All that the tools print about a job and its kind."""
    return "".join(
        shop.ok(*command)
        for command in (
            ("job", f"{app}:app", id),
            ("job", f"{app}:app", id, "--json"),
            ("jobs", f"{app}:app"),
            ("jobs", f"{app}:app", "--json"),
            ("dead", f"{app}:app", "list", "--json"),
        )
    )


# -- redaction


@pytest.mark.parametrize("app", ["bare", "signed", "sealed"])
def test_planted_secrets_are_in_no_listing(shop: Shop, app: str) -> None:
    arguments = {"user": "ann", "password": PLANTED, "more": {"api-key": PLANTED, "name": "b"}}
    good, bad = enqueue(shop, app, arguments), enqueue(shop, app, {**arguments, "fails": True})
    work(app)
    for id in (good, bad):
        shown = everything(shop, app, id)
        assert PLANTED not in shown
        assert "ann" in shown
    document = json.loads(shop.ok("job", f"{app}:app", good, "--json"))
    assert document["arguments"]["password"] == document["arguments"]["more"]["api-key"] == "***"
    assert document["arguments"]["more"]["name"] == "b"
    assert document["result"] == {"user": "ann", "token": "***"}
    assert 'password = "***"' in shop.ok("job", f"{app}:app", good)


def test_headers_are_redacted(shop: Shop) -> None:
    from importlib import import_module

    shop.ok("jobs", "open:app", "--json")
    with import_module("bare").app as app:
        job = app.tasks["login"].options(headers={"Authorization": PLANTED, "lang": "de"}).delay("a", "b")
    shown = everything(shop, "bare", job.id)
    assert PLANTED not in shown
    assert '"lang":"de"' in shown


def test_redaction_can_be_switched_off(shop: Shop) -> None:
    id = enqueue(shop, "open", {"user": "ann", "password": PLANTED})
    assert PLANTED in shop.ok("job", "open:app", id)


def test_the_result_that_is_asked_for_is_printed(shop: Shop) -> None:
    id = enqueue(shop, "sealed", {"user": "ann", "password": PLANTED})
    work("sealed")
    again = ("--kwargs", json.dumps({"user": "ann", "password": "x"}), "--id", id, "--wait")
    result = shop.run("enqueue", "sealed:app", "login", *again)
    assert result.json == {"user": "ann", "token": PLANTED}


# -- who sees what


def test_a_forged_result_is_not_shown(shop: Shop) -> None:
    id = enqueue(shop, "signed", {"user": "ann", "password": "x"})
    work("signed")
    sql(shop, "UPDATE mouso_history SET result = ?", b'{"user":"forged"}')
    assert "forged" not in everything(shop, "signed", id)
    assert "is not signed: no worker of this app stored it" in shop.ok("job", "signed:app", id)
    assert "forged" not in shop.run("enqueue", "signed:app", "login", '"a"', '"b"', "--id", id, "--wait").out
    assert "forged" in shop.ok("job", "bare:app", id)


def test_without_the_key_encrypted_is_all_there_is_to_see(shop: Shop) -> None:
    id = enqueue(shop, "sealed", {"user": "ann", "password": "x"})
    work("sealed")
    for app in ("bare", "other", "checks"):
        shown = everything(shop, app, id)
        assert "ann" not in shown
        text = shop.ok("job", f"{app}:app", id)
        assert "arguments  encrypted (k)\n" in text
        assert "result     encrypted (k)\n" in text
        document = json.loads(shop.ok("job", f"{app}:app", id, "--json"))
        assert document["arguments"] == document["result"] == {"encrypted": "k"}
        assert document["signature"]["encrypted"] == "k"
    assert "ann" in shop.ok("job", "sealed:app", id)


def test_the_signature_is_told(shop: Shop) -> None:
    id, unsigned = (
        enqueue(shop, "signed", {"user": "a", "password": "x"}),
        enqueue(shop, "bare", {"user": "b", "password": "x"}),
    )

    def told(app: str, id: str) -> str:
        lines = [line for line in shop.ok("job", f"{app}:app", id).splitlines() if line.startswith("signature")]
        return " ".join(lines).removeprefix("signature").strip()

    assert told("signed", id).startswith("by key k until 20")
    assert told("bare", id).endswith(" UTC (not checked: this app has no keys)")
    assert told("other", id) == "bad: the job is signed with key 'k', which this app lacks; it has other"
    assert told("bare", unsigned) == ""
    assert told("signed", unsigned) == "bad: the job is not signed, and this app takes signed jobs only"
    sql(shop, "UPDATE mouso_jobs SET queue = 'high'")
    assert told("signed", id).startswith("bad: the signature with key 'k' does not fit the job")
    document = json.loads(shop.ok("job", "signed:app", id, "--json"))["signature"]
    assert (document["key"], document["valid"]) == ("k", False)
    sql(shop, "UPDATE mouso_jobs SET payload = ?", b"\xc1mouso1")
    assert "cannot be read" in told("signed", id)
    assert "undecodable (" in shop.ok("job", "signed:app", id)


def test_an_envelope_that_nobody_checks_may_hold_anything(shop: Shop) -> None:
    id = enqueue(shop, "signed", {"user": "a", "password": "x"})
    envelope = envelope_of(handle(shop, id).record)
    assert envelope is not None
    for until in (2**62, -(2**62), 0):
        forged = msgspec.structs.replace(envelope, until=until, key="\x1b[31m", sealed="\x1b[31m")
        sql(shop, "UPDATE mouso_jobs SET payload = ?", MARK + b"\0" + msgspec.msgpack.encode(forged))
        for app in ("bare", "signed", "checks"):
            assert "\x1b" not in everything(shop, app, id)


def test_pickled_arguments_are_not_unpickled_to_be_shown(shop: Shop) -> None:
    id = enqueue(shop, "pickles", {"n": 5}, task="pick")
    work("pickles")
    text = shop.ok("job", "pickles:app", id)
    assert "pickled bytes, which are not unpickled to be shown" in text
    assert handle(shop, id).state == "completed"


# -- edit and retry


@pytest.mark.parametrize("command", [["retry", "{}:app"], ["dead", "{}:app", "retry"]])
@pytest.mark.parametrize("app", ["bare", "signed", "sealed", "makes"])
def test_edit_and_retry(shop: Shop, app: str, command: list[str]) -> None:
    id = enqueue(shop, app, {"user": "ann", "password": PLANTED, "fails": True})
    work(app)
    listed = json.loads(shop.ok("job", f"{app}:app", id, "--json"))["arguments"]
    listed["fails"] = False
    words = [word.format(app) for word in command]
    shop.ok(*words, id, "--payload", json.dumps(listed))
    work(app)
    record = handle(shop, id).record
    assert (record.state, record.errors[-1].type) == ("completed", "ValueError")
    assert (PLANTED.encode() in record.payload) is (app != "sealed")
    assert PLANTED not in everything(shop, app, id)


def test_edit_without_a_key_is_refused(shop: Shop) -> None:
    arguments = {"user": "ann", "password": "x", "fails": True}
    new = json.dumps({"user": "bob", "password": "x"})
    signed, sealed, made = (enqueue(shop, app, arguments) for app in ("signed", "sealed", "makes"))
    for app, id in (("signed", signed), ("sealed", sealed), ("makes", made)):
        handle(shop, id).cancel()
        before = handle(shop, id).record
        error = shop.error(2, "retry", "bare:app", id, "--payload", new)
        assert (
            error
            == f"job {id} is signed, and new arguments take a new signature; give the app keys=, or set $MOUSO_KEYS"
        )
        error = shop.error(2, "retry", "other:app", id, "--payload", new)
        assert error.startswith(f"job {id}: its arguments cannot be replaced: the job is signed with key ")
        assert error.endswith("enqueue it anew")
        assert handle(shop, id).record == before, app
    error = shop.error(2, "retry", "checks:app", made, "--payload", new)
    assert "no key of this app can sign, they only check" in error


def test_edit_of_a_job_that_was_altered_is_refused(shop: Shop) -> None:
    """Its task, queue and options would be vouched for as well."""
    id = enqueue(shop, "signed", {"user": "ann", "password": "x", "fails": True})
    unsigned = enqueue(shop, "bare", {"user": "ann", "password": "x", "fails": True})
    sql(shop, "UPDATE mouso_jobs SET codec = 'msgpack' WHERE id = ?", id)
    work("signed")
    for one, why in ((id, "does not fit the job"), (unsigned, "the job is not signed")):
        error = shop.error(2, "retry", "signed:app", one, "--payload", '{"user": "bob", "password": "***"}')
        assert why in error
        assert handle(shop, one).record.state == "dead"


def test_a_mask_for_what_is_not_there_is_refused(shop: Shop) -> None:
    id = enqueue(shop, "bare", {"user": "ann", "password": "x", "fails": True})
    work("bare")
    error = shop.error(
        2, "retry", "bare:app", id, "--payload", '{"user": "a", "password": "x", "more": {"token": "***"}}'
    )
    assert error == "the job has no 'token' to keep; give one in place of ***"


def test_all_dead_jobs_are_retried_with_new_signatures(shop: Shop) -> None:
    from importlib import import_module

    ids = [enqueue(shop, "signed", {"user": "ann", "password": "x"}) for _ in range(3)]
    app = import_module("signed").app
    clock = app.trust.clock
    try:
        app.trust.clock = type("Later", (type(clock),), {"now": lambda self: clock.now() + 40 * 86_400_000})()
        work("signed")
        assert {handle(shop, id).record.reason for id in ids} == {"bad_signature"}
        assert shop.ok("dead", "signed:app", "retry", "--all") == "3 retried\n"
        work("signed")
        assert {handle(shop, id).record.state for id in ids} == {"completed"}
    finally:
        app.trust.clock = clock


# -- settings


def test_a_key_that_cannot_be_read_is_one_line_without_it(shop: Shop) -> None:
    shop.write("broken.py", "from mouso import Mouso\napp = Mouso('t', keys='hmac:k:hunter2')\n")
    error = shop.error(2, "jobs", "broken:app")
    assert "a key's secret has 7 bytes, at least 32 are needed" in error
    assert "hunter2" not in error


def test_debugging_shows_no_key(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOUSO_DEBUG", "1")
    monkeypatch.setenv("MOUSO_KEYS", f"hmac:k:{SECRET};tasks")
    shop.write("broken.py", "from mouso import Mouso\napp = Mouso('t')\n")
    result = shop.run("jobs", "broken:app")
    assert "Traceback" in result.err
    assert SECRET not in result.out + result.err
