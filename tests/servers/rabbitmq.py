"""A private RabbitMQ, with the Erlang port mapper that it needs."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pika
from pika.exceptions import AMQPError

from tests.servers.server import Server, listens, program
from tests.support import free_port

_SETTINGS = """
loopback_users = none
log.console.level = warning
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.absolute = 2GB
"""
_IDLE = "+sbwt none +sbwtdcpu none +sbwtdio none"
"""Its threads do not spin while they wait for work: the tests have two CPUs."""


class RabbitServer(Server):
    """A RabbitMQ server, beside which jobs are remembered in a SQLite file.

    Args:
        settings: More settings, lines of its configuration file.
        advanced: Those for which that has no words, as an Erlang term.
    """

    def __init__(self, folder: Path, settings: str = "", advanced: str = "[].") -> None:
        super().__init__(folder)
        self._ports = free_port(), free_port()
        self.settings = folder / "rabbitmq.conf"
        self.settings.write_text(_SETTINGS + settings)
        (folder / "plugins").write_text("[].")
        (folder / "advanced.config").write_text(advanced)

    @property
    def alone(self) -> str:
        """The URL of the server without a store."""
        return f"amqp://127.0.0.1:{self.port}/"

    @property
    def url(self) -> str:
        return f"{self.alone}?store=sqlite:///{self.folder}/jobs.db"

    @contextmanager
    def store(self, name: str) -> Iterator[str]:
        folder = self.folder / "stores" / name
        folder.mkdir(parents=True)
        yield f"{self.alone}?namespace={name}&store=sqlite:///{folder}/jobs.db"
        shutil.rmtree(folder)

    def command(self) -> Sequence[str]:
        mapper, distribution = self._ports
        environment = {
            "HOME": self.folder,
            "ERL_EPMD_PORT": mapper,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "mouso@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_DIST_PORT": distribution,
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": self.settings,
            "RABBITMQ_ADVANCED_CONFIG_FILE": self.folder / "advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.folder / "plugins",
            "RABBITMQ_MNESIA_BASE": self.folder / "mnesia",
            "RABBITMQ_LOG_BASE": self.folder / "log",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": self.folder / "pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _IDLE,
        }
        words = [f"{name}={value}" for name, value in environment.items()]
        # The mapper is started first: the server starts one that outlives it if it finds none.
        script = f"{program('epmd')} -port {mapper} -address 127.0.0.1 & exec {program('rabbitmq-server')}"
        return ["env", *words, "sh", "-c", script]

    def answers(self) -> bool:
        with suppress(AMQPError, OSError):
            if not listens(self.port):
                return False
            self.client().close()
            return True
        return False

    def client(self) -> Any:
        """A connection; close it."""
        return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", self.port, socket_timeout=5))

    def control(self, *words: str) -> str:
        """What ``rabbitmqctl`` prints."""
        environment = dict(word.split("=", 1) for word in self.command() if "=" in word and " " not in word)
        command = [str(Path(program("rabbitmq-server")).with_name("rabbitmqctl")), "--quiet", *words]
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=True
        )
        return str(done.stdout)
