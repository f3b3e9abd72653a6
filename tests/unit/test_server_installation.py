"""What ``make test`` installs: by apt as root, without starting a service; else it says what to install."""

import os
from pathlib import Path

import pytest

from tools import servers

APT = """#!/bin/sh
echo "$*" >> {folder}/calls
[ -x {policy} ] || echo "services would start" >> {folder}/calls
case " $* " in
*" update "*) touch {folder}/updated ;;
*) [ -e {folder}/updated ] || {{ echo "E: Unable to locate package"; exit 100; }}
   touch {folder}/made-up-server; chmod +x {folder}/made-up-server ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an apt-get of our own, whose lists are old, and without the one server that is wanted."""
    monkeypatch.setattr(servers, "PACKAGES", {"made-up-server": "made-up-package"})
    monkeypatch.setattr(servers, "_POLICY", tmp_path / "policy-rc.d")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    apt = tmp_path / "apt-get"
    apt.write_text(APT.format(folder=tmp_path, policy=tmp_path / "policy-rc.d"))
    apt.chmod(0o755)
    return tmp_path


def test_what_is_missing_is_installed(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert servers.main() == 0
    assert servers.find("made-up-server") == str(machine / "made-up-server")
    calls = (machine / "calls").read_text()
    assert calls.count("install --no-install-recommends made-up-package") == 2  # before and after the update
    assert "services would start" not in calls
    assert not (machine / "policy-rc.d").exists()
    assert capsys.readouterr() == ("servers: apt-get install made-up-package\n", "")
    assert servers.main() == 0
    assert capsys.readouterr() == ("", "")


def test_a_policy_that_is_there_stays(machine: Path) -> None:
    policy = machine / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 104\n")
    policy.chmod(0o755)
    servers.main()
    assert policy.read_text() == "#!/bin/sh\nexit 104\n"


def test_who_is_not_root_is_told(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert servers.main() == 0
    said = "servers: tests of made-up-package are skipped; to run them: sudo apt-get install made-up-package\n"
    assert capsys.readouterr() == ("", said)
    assert not (machine / "calls").exists()


def test_what_cannot_be_installed_is_told(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "apt-get").write_text("#!/bin/sh\necho 'E: Temporary failure resolving'; exit 100\n")
    assert servers.main() == 0
    said = capsys.readouterr().err
    assert said.startswith("servers: made-up-package could not be installed (E: Temporary failure resolving);")
    assert said.count("\n") == 1
