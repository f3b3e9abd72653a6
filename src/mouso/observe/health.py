"""A small HTTP server that says how a worker is: for probes, for Prometheus, and for people with curl.

It lives in the supervisor's own event loop, so that an answer proves that the loop turns. It must never harm the
worker, whoever speaks to it and whatever they say:

1. A connection is answered once and then closed. It gets 8 KiB for its request and five seconds in all.
2. There are 32 at most. One more takes the place of the eldest, so that a crowd of silent ones keeps no probe out.
3. Only three paths are known, and only GET and HEAD. Nothing of a request is logged, and nothing of it comes back.
4. The metrics are put together twice a second at most, and eight connections are accepted at each turn of the loop.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import NamedTuple

from mouso.clock import SYSTEM
from mouso.errors import ConfigError, shown

_REQUEST = 8 << 10
_DISCARD = 64 << 10
"""Bytes that are still taken after the answer: a socket that is closed with some unread takes the answer back."""
_PATIENCE = 5.0
_CROWD = 32
_QUEUE = 1024
_AT_ONCE = 8
_FRESH = 0.5
_SCARCE = 1.0
_EXAMPLE = "write for example 127.0.0.1:9808"
_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"

log = logging.getLogger("mouso.worker")


class Address(NamedTuple):
    """Where to listen; port 0 for any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Reads ``HOST:PORT``, where an IPv6 address stands in brackets.

    Raises:
        ConfigError: It is none.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{shown(text)} is no HOST:PORT; an IPv6 address stands in brackets, as in [::1]:9808")
    if not host or not host.isascii() or not host.isprintable() or set(host) & set(" /[]@") or len(host) > 255:
        raise ConfigError(f"{shown(text)} is no HOST:PORT; {_EXAMPLE}, or 0.0.0.0:9808 for every interface")
    if not (port.isascii() and port.isdecimal() and len(port) < 6 and int(port) <= 65_535):
        raise ConfigError(f"{shown(text)} is no HOST:PORT; the port is a number from 0 to 65535")
    return Address(host, int(port))


def listen(address: Address) -> list[socket.socket]:
    """Opens sockets to accept connections at, one for each address that the host has.

    Raises:
        ConfigError: That cannot be done; says why.
    """
    try:
        places = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"the host of {address} is not known ({_reason(error)}); {_EXAMPLE}") from None
    sockets: list[socket.socket] = []
    refused = OSError(errno.EADDRNOTAVAIL, "it has no address")
    for family, _, _, _, place in dict.fromkeys(places):
        # With port 0 a name's second address takes the port that the first one got.
        port = sockets[0].getsockname()[1] if sockets else address.port
        try:
            sockets.append(_bound(family, (place[0], port, *place[2:])))
        except OSError as error:
            refused = error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # a name may stand for ::1 without IPv6
                break
    else:
        if sockets:
            return sockets
    for sock in sockets:
        sock.close()
    raise ConfigError(_cannot_listen(address, refused))


def _bound(family: int, place: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(place)
        sock.listen(_QUEUE)
    except OSError:
        sock.close()
        raise
    return sock


def _cannot_listen(address: Address, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"something else listens on {address}; choose another port, or port 0 for any that is free"
        case errno.EACCES | errno.EPERM:
            return f"{address}: this user may not listen on port {address.port}; choose one above 1023"
        case errno.EADDRNOTAVAIL:
            return f"{address}: this machine has no such address; {_EXAMPLE}, or 0.0.0.0 for every interface"
        case _:
            return f"cannot listen on {address}: {_reason(error)}"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else "") or type(error).__name__


class Answer(NamedTuple):
    """What a path answers with."""

    status: HTTPStatus
    kind: str
    body: bytes


class HealthServer:
    """Answers ``/live``, ``/ready`` and ``/metrics``.

    Args:
        sockets: From ``listen``; they are closed with the server.
        live: Why the worker makes no progress; empty if it does.
        ready: Why it does not serve; empty if it does.
        metrics: Prometheus's text.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        live: Callable[[], str],
        ready: Callable[[], str],
        metrics: Callable[[], str],
    ) -> None:
        self._sockets = list(sockets)
        self._metrics = metrics
        self._paths: dict[str, Callable[[], Answer]] = {
            "/live": lambda: _verdict("live", live()),
            "/ready": lambda: _verdict("ready", ready()),
            "/metrics": self._render,
        }
        self._rendered = b""
        self._rendered_at = -_FRESH
        self._failed: set[str] = set()
        self._connections: dict[_Connection, None] = {}

    @property
    def addresses(self) -> list[Address]:
        """Where it listens, with the ports that were really taken."""
        return [Address(*sock.getsockname()[:2]) for sock in self._sockets]

    def start(self) -> None:
        """Begins to answer, in the running loop."""
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            loop.add_reader(sock, self._accept, sock)

    def close(self) -> None:
        """Ends all connections and lets go of the sockets."""
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()
        for connection in list(self._connections):
            connection.close()

    def answer(self, method: str, target: str) -> Answer:
        """What a request gets."""
        path = target.partition("?")[0]
        if "://" in path:  # the form for proxies
            path = "/" + path.partition("://")[2].partition("/")[2]
        if method not in ("GET", "HEAD"):
            return Answer(HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, b"only GET and HEAD are answered\n")
        route = self._paths.get(path)
        if route is None:
            return Answer(HTTPStatus.NOT_FOUND, _TEXT, b"there are /live, /ready and /metrics\n")
        try:
            return route()
        except Exception:
            if path not in self._failed:
                self._failed.add(path)
                log.exception("%s cannot be answered", path)
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, b"the worker's log says more\n")

    def _render(self) -> Answer:
        now = SYSTEM.monotonic()
        if now - self._rendered_at >= _FRESH:
            self._rendered = self._metrics().encode("utf-8", "replace")  # any backslash would have to be an escape
            self._rendered_at = now
        return Answer(HTTPStatus.OK, _METRICS, self._rendered)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no descriptors are left, or no memory
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(_SCARCE, self._accept_again, listener)
                return
            if len(self._connections) >= _CROWD:
                next(iter(self._connections)).close()
            self._connections[_Connection(sock, self.answer, self._forget)] = None

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._sockets:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _forget(self, connection: _Connection) -> None:
        self._connections.pop(connection, None)


class _Connection:
    """One request and its answer."""

    def __init__(
        self, sock: socket.socket, answer: Callable[[str, str], Answer], on_close: Callable[[_Connection], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._answer = answer
        self._on_close = on_close
        self._request = b""
        self._taken = 0
        self._response = memoryview(b"")
        self._answered = False
        sock.setblocking(False)
        self._loop.add_reader(sock, self._read)
        self._timer = self._loop.call_later(_PATIENCE, self.close)

    def close(self) -> None:
        """Ends the connection, whatever its state."""
        self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._on_close(self)

    def _read(self) -> None:
        try:
            data = self._socket.recv(_REQUEST)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        self._taken += len(data)
        if self._answered:
            if not data and self._response:  # it has said all it wanted to say, and still listens
                self._loop.remove_reader(self._socket)
            elif not data or self._taken > _DISCARD:
                self.close()
            return
        self._request += data
        if b"\r\n\r\n" in self._request or b"\n\n" in self._request:
            self._reply(*self._parse())
        elif not data:
            self.close()
        elif len(self._request) > _REQUEST:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._reply("GET", Answer(status, _TEXT, b"a request has 8 KiB at most\n"))

    def _parse(self) -> tuple[str, Answer]:
        words = self._request.partition(b"\n")[0].decode("latin-1").split()
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return "GET", Answer(HTTPStatus.BAD_REQUEST, _TEXT, b"this is no request of HTTP/1\n")
        return words[0], self._answer(words[0], words[1])

    def _reply(self, method: str, answer: Answer) -> None:
        self._answered = True
        self._request = b""
        lines = [
            f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
            f"Content-Type: {answer.kind}",
            f"Content-Length: {len(answer.body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
        ]
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            lines.append("Allow: GET, HEAD")
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        self._response = memoryview(head if method == "HEAD" else head + answer.body)
        self._loop.add_writer(self._socket, self._write)
        self._write()

    def _write(self) -> None:
        try:
            sent = self._socket.send(self._response)
            self._response = self._response[sent:]
            if self._response:
                return
            self._loop.remove_writer(self._socket)
            self._socket.shutdown(socket.SHUT_WR)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()


def _verdict(name: str, reason: str) -> Answer:
    status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
    said: dict[str, object] = {name: not reason}
    if reason:
        said["reason"] = reason
    return Answer(status, _JSON, json.dumps(said).encode() + b"\n")
