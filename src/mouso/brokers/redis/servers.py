"""Which server holds the jobs: the one that the URL names, the master that Sentinels name, or a node of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from mouso.brokers import tls
from mouso.clock import SYSTEM
from mouso.urls import BrokerURL

_CONNECT = 2.0
"""Seconds that one attempt to connect may take: there may be another server to ask."""
FAILED = (exceptions.RedisError, OSError)

Address = tuple[str, int]


class Servers:
    """Opens connections to the server that holds the jobs.

    Args:
        url: Names it, or others that know it.
    """

    def __init__(self, url: BrokerURL) -> None:
        self._hosts = list(url.hosts)
        self._moved: Address | None = None
        self._sentinels = url.scheme.endswith("+sentinel")
        self._service, _, number = url.path.partition("/") if self._sentinels else ("", "", url.path)
        self._options = _options(url, int(number or 0))
        self._sentinel_options = _options(url, 0) | {
            "username": url.params.get("sentinel_username"),
            "password": url.params.get("sentinel_password"),
        }

    def connect(self, deadline: float) -> Any:
        """A new connection, open.

        Args:
            deadline: On ``SYSTEM.monotonic()``.

        Raises:
            redis.exceptions.RedisError, OSError: There is none to be had.
        """
        if self._sentinels:
            return self._first(lambda address: self._master(address, deadline))
        if self._moved is not None:
            with suppress(*FAILED):
                return self._open(self._moved, self._options, deadline)
            self._moved = None
        return self._first(lambda address: self._open(address, self._options, deadline))

    def moved(self, address: Address) -> None:
        """Takes note of which node of a cluster holds the jobs by now."""
        self._moved = address

    def elsewhere(self) -> None:
        """Takes note that the server which was connected to last is not the one to ask now: another comes first."""
        self._moved = None
        self._hosts = [*self._hosts[1:], self._hosts[0]]

    def other(self, address: Address, deadline: float) -> Any:
        """A new connection to another node of a cluster, for one call."""
        return self._open(address, self._options, deadline)

    def _first(self, attempt: Callable[[Address], Any]) -> Any:
        """What one of the URL's servers makes of it, the first that can; raises what the last one said."""
        *others, last = self._hosts
        for address in others:
            with suppress(exceptions.ConnectionError, exceptions.TimeoutError, OSError):
                return attempt(address)
        return attempt(last)

    def _master(self, sentinel: Address, deadline: float) -> Any:
        """A connection to the master that a Sentinel knows."""
        asked = self._open(sentinel, self._sentinel_options, deadline)
        try:
            found = _ask(asked, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        finally:
            asked.disconnect()
        if not found:
            raise exceptions.ConnectionError(f"no Sentinel knows the service {self._service!r}")
        master = self._open((found[0].decode(), int(found[1])), self._options, deadline)
        try:
            role = _ask(master, "ROLE")
        except BaseException:
            master.disconnect()
            raise
        if role[0] != b"master":
            master.disconnect()
            raise exceptions.ConnectionError(f"{found[0].decode()}:{int(found[1])} is no master any more")
        return master

    def _open(self, address: Address, options: dict[str, Any], deadline: float) -> Any:
        left = min(max(deadline - SYSTEM.monotonic(), 0.05), _CONNECT)
        kind = options.get("kind", redis.Connection)
        given = {name: value for name, value in options.items() if name != "kind"}
        connection = kind(host=address[0], port=address[1], socket_connect_timeout=left, socket_timeout=left, **given)
        connection.connect()
        with suppress(exceptions.ResponseError):  # a user may be forbidden to
            _ask(connection, "CLIENT", "SETNAME", "mouso")
        return connection


def _ask(connection: Any, *words: str) -> Any:
    connection.send_command(*words, check_health=False)
    return connection.read_response()


def _options(url: BrokerURL, number: int) -> dict[str, Any]:
    """What the client library needs to connect."""
    options: dict[str, Any] = {
        "db": number,
        "username": url.user or None,
        "password": url.password or None,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_keepalive": True,
    }
    if url.scheme.startswith("rediss"):
        tls.context(url.params)  # the client library would take a wrong file for an outage
        options["kind"] = redis.SSLConnection
        options |= {name: value for name, value in url.params.items() if name.startswith("ssl_")}
        options["ssl_check_hostname"] = (
            url.params.get("ssl_check_hostname", "true") == "true" and url.params.get("ssl_cert_reqs") != "none"
        )
    return options
