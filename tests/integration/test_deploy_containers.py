"""`deploy/container` and `deploy/kubernetes`: what the files say fits together, and the worker runs as they say."""

import importlib
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mouso.cli import cli
from mouso.worker import WorkerOptions
from tests.integration.harness import ROOT
from tests.integration.own_container import Container, missing
from tests.support import wait_until

yaml: Any = importlib.import_module("yaml")  # it has no types

DOCKERFILE = ROOT / "deploy" / "container" / "Dockerfile"
COMPOSE = ROOT / "deploy" / "container" / "compose.yaml"
KUBERNETES = ROOT / "deploy" / "kubernetes" / "worker.yaml"
GRACE = WorkerOptions(app="").grace
SHOP = """
import asyncio, os
from pathlib import Path
from mouso import Mouso

app = Mouso("shop")

@app.task
def add(x: int, y: int) -> int:
    return x + y

@app.task
async def hold() -> None:
    while not Path("/data/go").exists():
        await asyncio.sleep(0.02)

@app.task
def surroundings() -> dict[str, object]:
    status = dict(line.split(":\\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\\t" in line)
    places = ("/", "/app", "/data", "/etc", "/tmp", "/venv")
    return {
        "user": os.getuid(),
        "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
        "writable": [place for place in places if os.access(place, os.W_OK)],
    }
"""


class Image:
    """What a Dockerfile's last stage says."""

    def __init__(self, path: Path) -> None:
        text = re.sub(r"\\\n", " ", path.read_text())
        lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
        start = max(index for index, (word, _) in enumerate(lines) if word == "FROM")
        self.said = [(word, rest) for word, rest in lines[start:]]

    def one(self, word: str) -> str:
        (rest,) = [rest for found, rest in self.said if found == word]
        return rest

    def words(self, word: str) -> list[str]:
        """An instruction in the form of a JSON list, which needs no shell."""
        found = json.loads(self.one(word).partition("CMD ")[2] or self.one(word))
        assert isinstance(found, list)
        return found

    @property
    def variables(self) -> dict[str, str]:
        return dict(rest.split("=", 1) for word, rest in self.said if word == "ENV")

    @property
    def command(self) -> list[str]:
        return [*self.words("ENTRYPOINT"), *self.words("CMD")]


IMAGE = Image(DOCKERFILE)


def options(command: list[str]) -> dict[str, Any]:
    """What the real command line makes of a command; fails if it refuses it."""
    assert command[:2] == ["mouso", "worker"]
    with cli.make_context("mouso", command[1:]) as context:
        worker = cli.get_command(context, "worker")
        assert worker is not None
        return dict(worker.make_context("worker", command[2:], parent=context).params)


def port_of(command: list[str]) -> int:
    host, _, port = str(options(command)["health"]).rpartition(":")
    assert host == "0.0.0.0"  # who asks comes from outside
    return int(port)


# -- what the files say


def test_the_image() -> None:
    assert port_of(IMAGE.command) == int(IMAGE.one("EXPOSE"))
    assert f":{IMAGE.one('EXPOSE')}/live" in IMAGE.words("HEALTHCHECK")[-1]
    assert IMAGE.one("STOPSIGNAL") == "SIGTERM"
    assert int(IMAGE.one("USER")) > 0
    assert IMAGE.variables["MOUSO_BROKER"].startswith(f"sqlite:///{IMAGE.one('VOLUME')}/")
    assert IMAGE.variables["PATH"].startswith("/venv/bin:")


def test_what_the_image_is_built_from_is_let_through() -> None:
    rules = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    assert next(rule for rule in rules if not rule.startswith("#")) == "*"
    sent = [rule[1:] for rule in rules if rule.startswith("!")]
    assert all((ROOT / name).exists() for name in sent)
    project = importlib.import_module("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"src", "pyproject.toml", project["readme"], *project["license-files"]} <= set(sent)


def test_compose() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    worker = services["worker"]
    assert port_of([*IMAGE.words("ENTRYPOINT"), *worker["command"]]) == int(IMAGE.one("EXPOSE"))
    assert float(worker["stop_grace_period"].removesuffix("s")) >= GRACE + 10
    assert worker["init"] is worker["read_only"] is True
    assert worker["volumes"] == services["web"]["volumes"] == [f"store:{IMAGE.one('VOLUME')}"]
    assert "/tmp" in worker["tmpfs"]
    assert worker["environment"] == {"MOUSO_APP": "shop:app"}


def test_kubernetes() -> None:
    claim, deployment = yaml.safe_load_all(KUBERNETES.read_text())
    assert (claim["kind"], deployment["apiVersion"], deployment["kind"]) == (
        "PersistentVolumeClaim", "apps/v1", "Deployment",
    )  # fmt: skip
    template = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert deployment["spec"]["strategy"]["type"] == "Recreate"  # two pods cannot share the claim on two nodes
    pod = template["spec"]
    assert pod["terminationGracePeriodSeconds"] >= GRACE + 10
    (container,) = pod["containers"]
    port = port_of([*IMAGE.words("ENTRYPOINT"), *container["args"]])
    assert container["ports"] == [{"name": "health", "containerPort": port}]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port)
    for probe, path in (("livenessProbe", "/live"), ("readinessProbe", "/ready")):
        assert container[probe]["httpGet"] == {"path": path, "port": "health"}
    variables = {each["name"]: each["value"] for each in container["env"]}
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert variables["MOUSO_BROKER"] == IMAGE.variables["MOUSO_BROKER"]
    assert volumes[mounts["/data"]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert "emptyDir" in volumes[mounts["/tmp"]]
    assert pod["securityContext"]["runAsUser"] == int(IMAGE.one("USER"))
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


# -- started for real


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    """The image's worker, with the limits of compose and Kubernetes."""
    if lacks := missing():
        pytest.skip(lacks)
    variables = {**IMAGE.variables, "MOUSO_APP": "shop:app"}
    made = Container(tmp_path, SHOP, IMAGE.command, variables, int(IMAGE.one("USER")), IMAGE.one("WORKDIR"))
    with closing(made):
        made.wait_serving()
        yield made


def ask(container: Container, path: str) -> str:
    """What a probe gets, from outside of the process, as from the node."""
    program = (
        "import sys, urllib.error, urllib.request\n"
        "try: answer = urllib.request.urlopen(sys.argv[1], timeout=10)\n"
        "except urllib.error.HTTPError as error: answer = error\n"
        "print(answer.status, answer.read().decode())"
    )
    return container.run("python", "-c", program, f"http://127.0.0.1:{IMAGE.one('EXPOSE')}{path}")


def test_the_worker_serves_as_process_1(container: Container) -> None:
    assert container.run("mouso", "enqueue", "add", "20", "22", "--wait") == "42"
    seen = json.loads(container.run("mouso", "enqueue", "surroundings", "--wait"))
    assert seen == {"user": int(IMAGE.one("USER")), "capabilities": 0, "writable": ["/data", "/tmp"]}
    container.run(*IMAGE.words("HEALTHCHECK"))
    assert ask(container, "/live") == '200 {"live": true}'
    assert ask(container, "/ready") == '200 {"ready": true}'
    assert 'task="shop.add",state="completed"} 1' in ask(container, "/metrics")
    for line in container.log.splitlines():
        assert "message" in json.loads(line)


def test_it_stops_when_its_jobs_have_ended(container: Container) -> None:
    container.run("mouso", "enqueue", "hold")
    wait_until(lambda: "running" in container.run("mouso", "jobs"), timeout=30, interval=0.1)
    container.send(signal.Signals[IMAGE.one("STOPSIGNAL")])
    wait_until(lambda: "stopping: 1 running job" in container.log, timeout=30)
    container.run("touch", "/data/go")
    assert container.wait() == 0
    assert "stopped" in container.log
    assert "are released" not in container.log


def test_a_worker_that_is_not_alive_fails_its_check(container: Container) -> None:
    first = container.first
    try:
        subprocess.run(["kill", "-STOP", str(first)], check=True)
        with pytest.raises(AssertionError, match="timed out"):
            container.run(*IMAGE.words("HEALTHCHECK"))
    finally:
        subprocess.run(["kill", "-CONT", str(first)], check=True)
    container.run(*IMAGE.words("HEALTHCHECK"))


def test_the_image_is_built(tmp_path: Path) -> None:
    engine = next((name for name in ("docker", "podman") if shutil.which(name)), None)
    if engine is None:
        pytest.skip("there is no container engine")
    info = subprocess.run([engine, "info"], capture_output=True, text=True, timeout=60, check=False)
    if info.returncode != 0:
        pytest.skip(f"{engine} does not run: {info.stderr.strip().splitlines()[-1:]}")
    pull = subprocess.run([engine, "pull", "python:3.13-slim"], capture_output=True, timeout=600, check=False)
    if pull.returncode != 0:
        pytest.skip("the base image cannot be had")
    name = f"mouso-test-{time.monotonic_ns()}"
    subprocess.run([engine, "build", "-f", str(DOCKERFILE), "-t", name, str(ROOT)], timeout=600, check=True)
    try:
        done = subprocess.run(
            [engine, "run", "--rm", name, "--version"], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.startswith("mouso ")
    finally:
        subprocess.run([engine, "rmi", name], timeout=60, check=True)
