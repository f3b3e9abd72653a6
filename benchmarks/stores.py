"""Private servers that are measured: the tests' own, with what a measurement asks of them."""

import json
import secrets
import shutil
import time
from abc import abstractmethod
from contextlib import closing
from pathlib import Path

import pika
from psycopg.sql import SQL

from tests.servers.postgres import PostgresServer
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.server import Server
from tests.support import wait_until

_LUA = """
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'task', ARGV[2], 'queue', ARGV[3], 'payload', ARGV[5])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
redis.call('PUBLISH', KEYS[3], '')
"""
_SENT = ("evalsha", "script|load", "subscribe", "ping")
_TABLE = "CREATE TABLE bare (seq bigserial, id text, task text, queue text, at bigint, payload bytea)"
_INSERT = SQL("INSERT INTO bare (id, task, queue, at, payload) VALUES (%s, %s, %s, %s, %s)")
_TASK = "benchmarks.jobs.noop"


class Store(Server):
    """A server under measurement."""

    @abstractmethod
    def about(self) -> str:
        """Its version and the settings that its speed depends on."""

    def discard(self) -> None:
        """Ends it, and deletes its data."""
        self.__exit__()
        shutil.rmtree(self.folder, ignore_errors=True)

    @abstractmethod
    def settle(self) -> None:
        """Has it do at once, and waits for, what it would else do during the next measurement."""

    @abstractmethod
    def operations(self) -> int:
        """How many it has carried out so far, those of whoever asks not counted."""

    @abstractmethod
    def bare(self, jobs: int) -> float:
        """The yardstick of ``delay()``: such jobs per second stored by its client's bare library, one by one."""


class Redis(Store, RedisServer):
    """Redis with its log, which it writes to the disk every second."""

    def about(self) -> str:
        with self.client() as client:
            return f"Redis {client.info('server')['redis_version']}, AOF {self.settings['appendfsync']}"

    def settle(self) -> None:
        def rests() -> bool:
            with self.client() as client:
                state = client.info("persistence")
            return not (state["aof_rewrite_in_progress"] or state["aof_rewrite_scheduled"])

        wait_until(rests, timeout=60, interval=0.05, message="Redis has rewritten its log")

    def operations(self) -> int:
        """Commands that Mouso sends; not those that its scripts carry out."""
        with self.client() as client:
            stats = client.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in _SENT)

    def bare(self, jobs: int) -> float:
        """One Lua script that stores a hash, adds to a sorted set, and rings."""
        with self.client() as client:
            store = client.register_script(_LUA)
            store(["bare:", "bare", "bell"], ["", "", "", 0, ""])
            began = time.perf_counter()
            for i in range(jobs):
                id, payload = secrets.token_hex(16), json.dumps([i])
                store([f"bare:{id}", "bare", "bell"], [id, _TASK, "default", time.time_ns(), payload])
            return jobs / (time.perf_counter() - began)


class Postgres(Store, PostgresServer):
    """PostgreSQL that survives a loss of power: fsync and synchronous_commit are on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(fsync=True, shared_buffers="1GB")  # it has a folder of its own, which its user may enter
        self._asked = 0

    def about(self) -> str:
        with self.client() as client:
            version = client.info.server_version // 10_000, client.info.server_version % 10_000
        shown = ("fsync", "synchronous_commit", "shared_buffers")
        settings = ", ".join(f"{name} {self.settings[name]}" for name in shown)
        return f"PostgreSQL {version[0]}.{version[1]}, {settings}"

    def settle(self) -> None:
        with self.client() as client:
            client.execute("CHECKPOINT")

    def operations(self) -> int:
        """Transactions, as far as the processes of the connections have said so: they do once a second at most."""
        with self.client() as client:
            row = client.execute(
                "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
            ).fetchone()
        assert row is not None
        own = 2 * self._asked  # to connect is one too
        self._asked += 1
        return int(row[0]) - own

    def bare(self, jobs: int) -> float:
        """One INSERT a transaction into one table with no index."""
        with self.client() as client:
            client.execute(_TABLE)
            began = time.perf_counter()
            for i in range(jobs):
                payload = json.dumps([i]).encode()
                client.execute(_INSERT, (secrets.token_hex(16), _TASK, "default", time.time_ns(), payload))
            return jobs / (time.perf_counter() - began)


class RabbitMQ(Store, RabbitServer):
    """RabbitMQ as it comes, with no store beside it."""

    @property
    def url(self) -> str:
        return self.alone

    def about(self) -> str:
        with closing(self.client()) as client:
            return f"RabbitMQ {client._impl.server_properties['version']}, quorum queues"

    def settle(self) -> None:
        """There is nothing that it would do later."""

    def operations(self) -> int:
        """It does not count them."""
        return 0

    def bare(self, jobs: int) -> float:
        """One confirmed message to a quorum queue."""
        with closing(self.client()) as client:
            channel = client.channel()
            channel.confirm_delivery()
            channel.queue_declare("bare", durable=True, arguments={"x-queue-type": "quorum"})
            properties = pika.BasicProperties(delivery_mode=2)
            began = time.perf_counter()
            for i in range(jobs):
                channel.basic_publish("", "bare", json.dumps([secrets.token_hex(16), _TASK, i]).encode(), properties)
            return jobs / (time.perf_counter() - began)
