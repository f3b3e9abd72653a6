"""Variables that are no text, no number and no place: workers and commands do without, or say what to mend."""

import os
import subprocess
import sys

import pytest

from tests.integration.harness import WAIT, Bench
from tests.integration.snippets import SOUND

BAD = os.fsdecode(b"\xff\xfe")
SECRET = "shared-secret-of-more-than-32-bytes"
ODD = {
    "nowhere": {
        "HOME": "/nowhere", "TMPDIR": "/nowhere", "TZ": ":bad/zone", "LC_ALL": "xx_XX", "COLUMNS": "-1", "LINES": "abc",
        "TERM": "nosuch", "PATH": "/nowhere",
    },
    "empty": dict.fromkeys(("HOME", "TMPDIR", "TZ", "LC_ALL", "LANG", "COLUMNS", "LINES", "TERM", "PATH", "SHELL"), ""),
    "bytes": {
        "HOME": BAD, "TMPDIR": BAD, "TZ": BAD, "LANG": BAD, "COLUMNS": BAD, "LINES": BAD, "TERM": BAD, "PATH": BAD,
        "MOUSO_DEBUG": BAD, "MOUSO_SOMETHING": BAD, "WATCHDOG_USEC": BAD, "WATCHDOG_PID": BAD, "NOTIFY_SOCKET": BAD,
    },
    "ascii": {
        "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "garbage", "TMPDIR": "/proc",
        "COLUMNS": "99999",
    },
}  # fmt: skip
odd = pytest.mark.parametrize("odd", ODD)


def mouso(bench: Bench, *args: str, **variables: str) -> tuple[int, str, str]:
    """Runs a command in the bench's folder; returns exit code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "mouso", *args],
        cwd=bench.folder, env=bench.environment(**variables), capture_output=True, text=True, errors="replace",
        timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@odd
def test_commands_in_odd_surroundings(bench: Bench, odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    jobs = bench.app(SOUND)
    handle = jobs.sound.delay(1)
    for args, shown in (
        (("jobs", "jobs:app"), handle.id),
        (("job", "jobs:app", handle.id), handle.id),
        (("doctor", "jobs:app"), "0 errors"),
        (("demo", "--help"), "Usage: mouso demo"),
    ):
        code, out, err = mouso(bench, *args, **ODD[odd])
        assert (code, err) == (0, ""), (args, err)
        assert shown in out


@odd
def test_a_worker_in_odd_surroundings(bench: Bench, odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    jobs = bench.app(SOUND)
    bench.start("-p", "1", **ODD[odd])
    assert jobs.sound.delay(1).get(timeout=WAIT) == 1
    assert jobs.sound_coroutine.delay(2).get(timeout=WAIT) == 2


@pytest.mark.parametrize("option", ["", "--preload", "--reload"])
def test_a_worker_in_a_folder_that_was_deleted(bench: Bench, option: str) -> None:
    """What PYTHONPATH holds is found from anywhere."""
    jobs = bench.app(SOUND)
    bench.program(
        "import os, sys\nos.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
        f"os.execv(sys.executable, [sys.executable, *'-m mouso worker jobs:app -p 1 {option}'.split()])"
    )
    assert jobs.sound.delay(1).get(timeout=WAIT) == 1


@pytest.mark.parametrize("command", ["jobs", "worker"])
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MOUSO_KEYS", BAD, "$MOUSO_KEYS cannot be read; write hmac:ID:SECRET"),
        ("MOUSO_KEYS", f"hmac:{BAD}:{SECRET}", "$MOUSO_KEYS: a key's id is 1 to 64 of A-Z"),
        ("MOUSO_KEYS", f"hmac:a:{SECRET};{BAD}", "$MOUSO_KEYS: after ';' comes tasks="),
        ("MOUSO_KEYS", f"ed25519-private:a:{SECRET}{BAD}", "$MOUSO_KEYS: private= is no Ed25519 private key"),
        ("MOUSO_KEYS", f"@/nowhere{BAD}", "cannot read the key file /nowhere\\udcff\\udcfe: No such file"),
        ("MOUSO_BROKER", f"sqlite:///{BAD}", "holds a control character or invalid UTF-8; remove it"),
        ("MOUSO_BROKER", f"sqlite://u:{SECRET}@h/{BAD}", "holds a control character or invalid UTF-8; remove it"),
        ("MOUSO_APP", f"own{BAD}:app", "$MOUSO_APP: 'own\\udcff\\udcfe:app' is not valid UTF-8"),
    ],
)
def test_settings_of_invalid_utf8(bench: Bench, command: str, name: str, value: str, says: str) -> None:
    bench.write("from mouso import Mouso\napp = Mouso('own')\n", "own", header=False)
    code, out, err = mouso(bench, command, **{"MOUSO_APP": "own:app", name: value})
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("mouso: error: ")
    assert says in err
    assert SECRET not in err


def test_a_cgroup_of_invalid_utf8(bench: Bench) -> None:
    bench.app(SOUND)
    code, _, err = mouso(bench, "worker", "jobs:app", MOUSO_CGROUP=f"/nowhere{BAD}")
    assert code == 2
    assert err.startswith("mouso: error: MOUSO_CGROUP=/nowhere\\udcff\\udcfe cannot be used")
    assert err.count("\n") == 1


def test_a_secret_of_any_bytes_is_the_same_in_every_locale(bench: Bench) -> None:
    """The producer reads the variable as UTF-8, the worker as ASCII."""
    jobs = bench.app(SOUND)
    keys = {"MOUSO_KEYS": f"hmac:a:{SECRET}ä{BAD}"}
    bench.start("-p", "1", **keys, **ODD["ascii"])
    assert mouso(bench, "enqueue", "jobs:app", "sound", "7", "--wait", **keys)[:2] == (0, "7\n")
    [refused] = bench.wait_final([jobs.sound.delay(1)])  # this process has no key
    assert (refused.state, refused.reason) == ("dead", "bad_signature")
