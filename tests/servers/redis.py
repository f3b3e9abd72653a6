"""A private Redis with an append-only file."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from tests.servers.server import Server, program


class RedisServer(Server):
    """A Redis server.

    Args:
        settings: More settings, as on its command line: ``maxmemory="10mb"``.
    """

    package = "redis-server"

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder)
        self.settings = {"appendonly": "yes", "appendfsync": "everysec", "save": ""} | settings

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str]:
        words = [program("redis-server", self.package), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", "."]
        for name, value in self.settings.items():
            words += [f"--{name.replace('_', '-')}", value]
        return words

    def client(self, **options: Any) -> "redis.Redis":
        """A client of this server; close it."""
        return redis.Redis(port=self.port, socket_timeout=10, **options)

    def answers(self) -> bool:
        with self.client() as client, suppress(redis.RedisError):
            return bool(client.ping())
        return False
