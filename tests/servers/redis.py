"""Private Redis servers: a single one, a master with a replica and three Sentinels, a cluster of three masters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from tests.servers.server import Server, program, self_signed
from tests.support import free_port, wait_until

_MEET = 20.0
"""Seconds that servers may take to find each other."""


class RedisServer(Server):
    """A Redis server.

    Args:
        settings: More settings, as on its command line: ``maxmemory="10mb"``.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder)
        self.settings = {"appendonly": "yes", "appendfsync": "everysec", "save": ""} | settings

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str]:
        words = [program("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", "."]
        for name, value in self.settings.items():
            words += [f"--{name.replace('_', '-')}", value]
        return words

    @contextmanager
    def store(self, name: str) -> Iterator[str]:
        yield f"{self.url}?namespace={name}"
        with self.client() as client:
            for key in client.scan_iter(match=f"mouso:{{{name}}}:*", count=1000):
                client.unlink(key)

    def client(self, **options: Any) -> "redis.Redis":
        """A client of this server; close it."""
        return redis.Redis(port=self.port, socket_timeout=10, **options)

    def ask(self, *words: str | int) -> Any:
        """What the server answers to a command."""
        with self.client() as client:
            return client.execute_command(*words)

    def answers(self) -> bool:
        with self.client() as client, suppress(redis.RedisError):
            return bool(client.ping())
        return False


class TLSServer(RedisServer):
    """A Redis server that speaks TLS only, with a certificate for ``localhost``."""

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder, **settings)
        self.certificate = self_signed(folder)
        self.settings |= {"tls_port": str(self.port), "tls_auth_clients": "no"}
        self.settings |= {"tls_cert_file": "server.crt", "tls_key_file": "server.key", "tls_ca_cert_file": "server.crt"}

    @property
    def url(self) -> str:
        return f"rediss://localhost:{self.port}/0?ssl_ca_certs={self.certificate}"

    def command(self) -> Sequence[str]:
        words = list(super().command())
        words[words.index("--port") + 1] = "0"
        return words

    def client(self, **options: Any) -> "redis.Redis":
        return super().client(host="localhost", ssl=True, ssl_ca_certs=str(self.certificate), **options)


class Sentinel(RedisServer):
    """A Sentinel that watches over a master called ``jobs``."""

    def __init__(self, folder: Path, master: int) -> None:
        super().__init__(folder)
        self.file = folder / "sentinel.conf"
        self.file.write_text(
            f"port {self.port}\nbind 127.0.0.1\nsentinel monitor jobs 127.0.0.1 {master} 2\n"
            "sentinel down-after-milliseconds jobs 1000\nsentinel failover-timeout jobs 4000\n"
        )

    def command(self) -> Sequence[str]:
        return [program("redis-server"), str(self.file), "--sentinel"]


class Watched:
    """A master, a replica, and three Sentinels.

    Attributes:
        nodes: The servers, the first master first.
        url: Names the Sentinels.
    """

    def __init__(self, nodes: list[RedisServer], sentinels: list[Sentinel]) -> None:
        self.nodes, self.sentinels = nodes, sentinels
        self.url = f"redis+sentinel://{','.join(f'127.0.0.1:{s.port}' for s in sentinels)}/jobs/0"

    def master(self) -> RedisServer:
        """The node that the Sentinels take for the master."""
        _, port = self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "jobs")
        return next(node for node in self.nodes if node.port == int(port))


@contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    """Servers that replace their master by themselves within some seconds."""
    nodes: list[RedisServer] = []
    sentinels: list[Sentinel] = []
    try:
        for name in ("first", "second"):
            (folder / name).mkdir()
            follows = {"replicaof": f"127.0.0.1 {nodes[0].port}"} if nodes else {}
            nodes.append(RedisServer(folder / name, repl_diskless_sync_delay="0", **follows))
            nodes[-1].start()
        for number in range(3):
            (folder / f"sentinel-{number}").mkdir()
            sentinels.append(Sentinel(folder / f"sentinel-{number}", nodes[0].port))
            sentinels[-1].start()

        def acquainted() -> bool:
            return all(
                len(s.ask("SENTINEL", "SENTINELS", "jobs")) == 2 and len(s.ask("SENTINEL", "REPLICAS", "jobs")) == 1
                for s in sentinels
            )

        wait_until(acquainted, timeout=_MEET, message="the Sentinels know each other and the replica")
        yield Watched(nodes, sentinels)
    finally:
        for server in [*sentinels, *nodes]:
            server.kill()


class Cluster:
    """Three masters, each with a third of the slots.

    Attributes:
        url: Names one of them.
    """

    def __init__(self, nodes: list[RedisServer]) -> None:
        self.nodes = nodes
        self.url = f"redis+cluster://127.0.0.1:{nodes[0].port}/"

    def holder(self, slot: int) -> RedisServer:
        """Who has a slot, as the first node sees it."""
        for first, last, (_, port, *_), *_ in self.nodes[0].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody has slot {slot}")

    def move(self, slot: int, to: RedisServer, *, one_by_one: bool = True) -> None:
        """Moves a slot with all of its keys, as redis-cli --cluster reshard does."""
        source = self.holder(slot)
        ids = {node.port: node.ask("CLUSTER", "MYID").decode() for node in self.nodes}
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to.port])
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1 if one_by_one else 1000):
            source.ask("MIGRATE", "127.0.0.1", to.port, "", 0, 10_000, "KEYS", *[key.decode() for key in keys])
        for node in (to, source, *self.nodes):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[to.port])


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster of three masters."""
    nodes: list[RedisServer] = []
    try:
        for number in range(3):
            (folder / f"node-{number}").mkdir()
            bus = str(free_port())
            node = RedisServer(folder / f"node-{number}", cluster_enabled="yes", cluster_port=bus)
            nodes.append(node)
            node.start()
            first, last = number * 16384 // 3, (number + 1) * 16384 // 3 - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
            if number:
                nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, int(bus))
        for node in nodes:
            wait_until(lambda n=node: b"cluster_state:ok" in n.ask("CLUSTER", "INFO"), timeout=_MEET)  # type: ignore[misc]  # why: binds the loop variable
        yield Cluster(nodes)
    finally:
        for node in nodes:
            node.kill()
