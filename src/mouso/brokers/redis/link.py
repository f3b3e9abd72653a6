"""One connection to Redis, shared by the threads of a process: calls scripts, and says what went wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import redis
from redis import exceptions

from mouso.brokers.redis.scripts import Script, load
from mouso.clock import SYSTEM
from mouso.config import one_line
from mouso.errors import BrokerUnavailable, ConfigError, OutcomeUnknown
from mouso.urls import BrokerURL

_CONNECT = 2.0
_PAUSE = (0.01, 0.5)
_LATER = ("LOADING", "READONLY", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN", "BUSY", "OOM", "NOREPLICAS", "MISCONF")
"""Refusals that end by themselves, or when somebody has helped the server; nothing was done."""
_REFUSED = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError)


class Link:
    """The connection.

    Args:
        url: Names the server.
        prefix: What all keys begin with.
    """

    def __init__(self, url: BrokerURL, prefix: str) -> None:
        self._shown = url.server
        self._prefix = prefix.encode()
        self._scripts = load()
        self._heads: dict[tuple[str, str], tuple[bytes, int]] = {}
        self._lock = threading.Lock()
        self._connection: Any = None
        self._pool = redis.ConnectionPool(**_options(url))

    def call(
        self, name: str, *arguments: bytes | str | float, of: str = "", timeout: float = 5.0, again: bool = True
    ) -> Any:
        """Calls a script.

        Args:
            of: The worker whose claims it touches.
            again: Repeat it within the deadline when its outcome is unknown: it is idempotent.

        Raises:
            BrokerUnavailable: It was certainly not done.
            OutcomeUnknown: It may have been done.
            ConfigError: The server refuses it for good.
        """
        script = self._scripts[name]
        deadline = SYSTEM.monotonic() + timeout
        command = self._command(script, arguments, of)
        if not self._lock.acquire(timeout=timeout):
            raise BrokerUnavailable(f"{self._shown} is busy with other calls of this process for {timeout:g} s")
        try:
            return self._persist(script, command, deadline, again)
        finally:
            self._lock.release()

    def _persist(self, script: Script, command: bytes, deadline: float, again: bool) -> Any:
        pause = _PAUSE[0]
        unknown = False
        while True:
            sent = False
            try:
                connection = self._connected(deadline)
                sent = True
                return self._ask(connection, script, command, deadline)
            except _REFUSED as error:
                raise ConfigError(f"{self._shown} refuses: {one_line(error)}") from error
            except exceptions.ResponseError as error:
                why = one_line(error)
                if not why.startswith(_LATER):
                    raise ConfigError(f"{self._shown} cannot be used: {why}") from error
            except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
                why = one_line(error)
                self._drop()
                unknown = unknown or sent
            left = deadline - SYSTEM.monotonic()
            if left < pause or (unknown and not again):
                if unknown:
                    raise OutcomeUnknown(f"{self._shown} did not answer; it is not known whether it was done: {why}")
                raise BrokerUnavailable(f"{self._shown} cannot be reached: {why}")
            time.sleep(pause)
            pause = min(pause * 2, _PAUSE[1])

    def _ask(self, connection: Any, script: Script, command: bytes, deadline: float) -> Any:
        left = max(deadline - SYSTEM.monotonic(), 0.05)
        connection.send_packed_command([command], check_health=False)
        try:
            return connection.read_response(timeout=left)
        except exceptions.NoScriptError:
            connection.send_command("SCRIPT", "LOAD", script.source, check_health=False)
            connection.read_response(timeout=left)
            connection.send_packed_command([command], check_health=False)
            return connection.read_response(timeout=left)

    def _connected(self, deadline: float) -> Any:
        """A connection that the server has not closed meanwhile."""
        if self._connection is not None:
            try:
                if not self._connection.can_read():
                    return self._connection
            except (exceptions.ConnectionError, OSError):
                pass
            self._drop()
        connection = self._pool.make_connection()
        connection.socket_connect_timeout = min(_CONNECT, max(deadline - SYSTEM.monotonic(), 0.05))
        connection.connect()
        self._connection = connection
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(Exception):
                self._connection.disconnect()
            self._connection = None

    def close(self) -> None:
        """Closes the connection; the next call opens it again."""
        with self._lock:
            self._drop()

    def channel(self, kind: str) -> bytes:
        """Where rings for workers (``w``) or callers (``c``) are published."""
        return self._prefix + b"bell:" + kind.encode()

    def listening(self, channel: bytes) -> Any:
        """A new connection that listens to a channel.

        Raises:
            redis.exceptions.RedisError, OSError: It cannot be.
        """
        connection = self._pool.make_connection()
        try:
            connection.connect()
            connection.send_command("SUBSCRIBE", channel, check_health=False)
            connection.read_response(timeout=_CONNECT)
        except BaseException:
            with suppress(Exception):
                connection.disconnect()
            raise
        return connection

    # -- the wire

    def _command(self, script: Script, arguments: Sequence[bytes | str | float], of: str) -> bytes:
        """EVALSHA with its keys and arguments, as it is sent."""
        head = self._heads.get((script.name, of))
        if head is None:
            keys = [self._prefix + (f"claimed:{of}" if key == "claimed" else key).encode() for key in script.keys]
            words = [b"EVALSHA", script.digest, str(len(keys)).encode(), *keys]
            head = b"".join(_words(words)), len(words)
            if len(self._heads) < 1000:
                self._heads[script.name, of] = head
        encoded = [a if isinstance(a, bytes) else str(a).encode() for a in arguments]
        return b"".join((b"*%d\r\n" % (head[1] + len(encoded)), head[0], *_words(encoded)))


def _options(url: BrokerURL) -> dict[str, Any]:
    """What the client library needs to connect."""
    [(host, port)] = url.hosts
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "db": int(url.path or 0),
        "username": url.user or None,
        "password": url.password or None,
        "protocol": 2,
        "socket_connect_timeout": _CONNECT,
        "socket_timeout": 5.0,
        "socket_keepalive": True,
        "client_name": "mouso",
    }
    if url.scheme.startswith("rediss"):
        options["connection_class"] = redis.SSLConnection
        options |= {name: value for name, value in url.params.items() if name.startswith("ssl_")}
        options["ssl_check_hostname"] = url.params.get("ssl_check_hostname", "true") == "true"
    return options


def _words(words: Sequence[bytes]) -> Iterator[bytes]:
    for word in words:
        yield b"$%d\r\n%b\r\n" % (len(word), word)
