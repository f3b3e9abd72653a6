"""Systems that hide processes of other users (`hidepid`, `ProtectProc=`): a worker that is not seen is not dead."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.harness import ROOT
from tests.integration.own_container import missing
from tests.integration.own_systemd import PYTHON, USER

CHECK = """
import os, sys
from mouso.brokers.base import WorkerInfo
from mouso.worker.proof import identity, proven_dead

here = identity()
for pid, started in zip(map(int, sys.argv[1::2]), map(int, sys.argv[2::2])):
    assert not os.path.exists(f"/proc/{pid}")
    told = WorkerInfo(id="w", name="w", host="h", pid=pid, boot=here.boot, namespace=here.namespace, started=started)
    print(proven_dead(told, here))
"""
SCRIPT = """
set -e
mount --make-rprivate /
mount -o remount,hidepid=2 /proc
sleep 60 &
alive=$!
started=$(cut -d' ' -f22 /proc/$alive/stat)
exec setpriv --reuid={user} --regid={user} --clear-groups env PYTHONPATH={paths} {python} -c "$CHECK" \\
    $alive $started 99999 $started
"""


@pytest.mark.skipif(bool(missing()), reason=missing() or "nothing is missing")
def test_a_worker_of_another_user_that_is_hidden_is_not_taken_for_dead() -> None:
    site = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    script = SCRIPT.format(user=USER, paths=f"{ROOT / 'src'}:{site}", python=PYTHON)
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CHECK": CHECK},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True"]  # the one that lives, and one that there is not
