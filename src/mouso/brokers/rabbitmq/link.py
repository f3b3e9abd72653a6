"""A connection to RabbitMQ that is made again whenever it is lost, and the thread that owns it."""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pika
from pika import exceptions
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter

from mouso.brokers import tls
from mouso.clock import SYSTEM
from mouso.config import one_line
from mouso.errors import ConfigError
from mouso.urls import BrokerURL

log = logging.getLogger("mouso.brokers.rabbitmq")
_THREAD = "mouso-rabbitmq"
for _name in [name for name in logging.root.manager.loggerDict if name.startswith("pika")]:
    # It writes ten lines about each attempt to connect, some as errors; what matters of them is said here.
    logging.getLogger(_name).addFilter(lambda record: record.threadName != _THREAD)

_PAUSE = (0.05, 1.0)
_CONNECT = 3.0
_HEARTBEAT = 10
"""Seconds; after two of silence the connection is taken for lost."""
_REFUSED = frozenset({403, 530})
"""Reply codes: access refused; not allowed, as when there is no such virtual host."""


class Outage:
    """Says once when a server is gone and once when it is back, of all connections to it together.

    Args:
        server: For people.
        meanwhile: What happens until it is back, likewise.
    """

    def __init__(self, server: str, meanwhile: str = "until it does, workers look for jobs once a second") -> None:
        self._server = server
        self._meanwhile = meanwhile
        self._lock = threading.Lock()
        self._down: dict[object, float] = {}

    def begins(self, link: object, why: str) -> None:
        """A connection has gone, or is not to be had."""
        with self._lock:
            if not self._down:
                log.warning("%s does not answer (%s); %s", self._server, why, self._meanwhile)
            self._down.setdefault(link, SYSTEM.monotonic())

    def ends(self, link: object, *, back: bool = True) -> None:
        """There is a connection again, or none is wanted any more."""
        with self._lock:
            since = self._down.pop(link, None)
            if back and since is not None and not self._down:
                log.info("%s answers again after %.1f s", self._server, SYSTEM.monotonic() - since)


class _Services(SelectorIOServicesAdapter):  # type: ignore[misc]  # why: pika says nothing of its types
    """Looks hosts up in its own thread, which may wait: pika starts one, and a program that ends may start none."""

    def getaddrinfo(
        self,
        host: str,
        port: int,
        on_done: Callable[[object], None],
        family: int = 0,
        socktype: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        name = host.encode() if host.isascii() else host  # a text takes a codec, which a program that ends cannot load
        try:
            found: object = socket.getaddrinfo(name, port, family, socktype, proto, flags)
        except (OSError, ValueError, LookupError) as error:
            found = error
        return self.call_later(0, lambda: on_done(found))


class Link:
    """One connection. Its thread starts with the first ``soon`` and ends with ``close``.

    Args:
        outage: Is told when there is none.
        use: Called on the thread with each new connection.
        lost: Called on the thread when it has gone.

    Attributes:
        up: Whether there is a connection now.
        refused: Why another try would end the same; None while that is not known.
        why: Why there is no connection, for people.
        version: The server's, once it is known.
        server: Its address, for people.
    """

    def __init__(
        self, url: BrokerURL, outage: Outage, use: Callable[[SelectConnection], None], lost: Callable[[], None]
    ) -> None:
        self._url = url
        self.server = url.server
        self._outage = outage
        self._use, self._lost = use, lost
        self._fresh()

    def _fresh(self) -> None:
        """Begins anew; what a parent process had is the parent's."""
        self._pid = os.getpid()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: Any = None
        self._connection: SelectConnection | None = None
        self._leaving = False
        self._turn = random.randrange(len(self._url.hosts))
        self._pause = _PAUSE[0]
        self._tried = threading.Event()
        self.up = False
        self.refused: ConfigError | None = None
        self.why = "it was not tried yet"
        self.version = ""

    @property
    def tried(self) -> bool:
        """Whether a first attempt to connect has ended, or none was made."""
        return self._thread is None or self._tried.is_set()

    @property
    def inherited(self) -> bool:
        """Whether it belongs to a process of which this one is a fork."""
        return self._pid != os.getpid()

    def start(self) -> None:
        """Starts to connect, if that was not done."""
        if self.inherited:
            self._fresh()
        with self._starting:
            if self._thread is None:
                self._loop = IOLoop()
                self._thread = threading.Thread(target=self._run, name=_THREAD, daemon=True)
                self._thread.start()

    def wait_tried(self, timeout: float) -> bool:
        """Waits until the first attempt to connect has ended; returns whether there is a connection."""
        self.start()
        self._tried.wait(timeout)
        return self.up

    def soon(self, step: Callable[[], None]) -> None:
        """Lets the thread do something."""
        self.start()
        self._loop.add_callback_threadsafe(partial(_harmless, step))

    def later(self, seconds: float, step: Callable[[], None]) -> None:
        """Does something on its thread after a while; to be called there."""
        self._loop.call_later(seconds, partial(_harmless, step))

    def close(self, patience: float = 1.0) -> None:
        """Closes the connection in good order, within so many seconds, and ends the thread."""
        if self.inherited:
            return
        with self._starting:
            self._outage.ends(self, back=False)
            thread = self._thread
            if thread is None:
                return
            self._loop.add_callback_threadsafe(self._leave)
            thread.join(patience)
            if thread.is_alive():  # the server does not answer
                self._loop.add_callback_threadsafe(self._abort)
                thread.join(patience)
            self._fresh()

    # -- on the thread

    def _run(self) -> None:
        loop = self._loop
        self._connect()
        try:
            loop.start()
        except AssertionError:  # of pika 1.4, when it is to end an attempt to connect
            if not self._leaving:
                raise
        finally:
            self.up = False
            loop.close()

    def _connect(self) -> None:
        if self._leaving:
            return
        hosts = self._url.hosts
        self._turn = (self._turn + 1) % len(hosts)
        try:
            self._connection = SelectConnection(
                _parameters(self._url, hosts[self._turn]),
                on_open_callback=self._opened,
                on_open_error_callback=self._failed,
                on_close_callback=self._closed,
                custom_ioloop=_Services(self._loop),
            )
        except ConfigError as error:
            self._failed(None, error)

    def _opened(self, connection: SelectConnection) -> None:
        if self._leaving:
            connection.close()
            return
        self.up, self.refused, self.why, self._pause = True, None, "", _PAUSE[0]
        self.version = str((connection.server_properties or {}).get("version", ""))
        self._outage.ends(self)
        self._use(connection)
        self._tried.set()

    def _failed(self, connection: object, error: BaseException) -> None:
        """There is no connection, or none any more."""
        if self._leaving:
            self._stop()
            return
        self.up, self._connection = False, None
        self.why, refused = _explain(error)
        if refused:
            self.refused = ConfigError(f"{self._url.shown}: {self.why}")
        self._outage.begins(self, self.why)
        self._tried.set()
        self._loop.call_later(self._pause * random.uniform(0.5, 1.0), self._connect)
        self._pause = min(self._pause * 2, _PAUSE[1])

    def _closed(self, connection: object, error: BaseException) -> None:
        if not self._leaving:
            self._lost()
        self._failed(connection, error)

    def _leave(self) -> None:
        self._leaving = True
        connection = self._connection
        if connection is None or connection.is_closed:
            self._stop()
        elif connection.is_open:
            connection.close()  # one that is about to be opened is closed then

    def _abort(self) -> None:
        if self._connection is not None and not self._connection.is_closed:
            transport = self._connection._transport  # of one that is closing, and whose server does not answer
            if transport is not None:
                transport.abort()
            else:
                self._connection.close()
        self._stop()

    def _stop(self) -> None:
        """Ends the loop in its next turn: in this one it may have a socket to close."""
        self._loop.add_callback_threadsafe(self._loop.stop)


def _harmless(step: Callable[[], None]) -> None:
    """Does something, unless its channel or connection is just being closed: what follows from that is done then."""
    with suppress(exceptions.ChannelWrongStateError, exceptions.ConnectionWrongStateError):
        step()


def _parameters(url: BrokerURL, host: tuple[str, int]) -> pika.ConnectionParameters:
    options: dict[str, Any] = {}
    if url.scheme == "amqps":
        options["ssl_options"] = pika.SSLOptions(tls.context(url.params), host[0])
    if url.user or url.password:
        options["credentials"] = pika.PlainCredentials(url.user, url.password, erase_on_connect=True)
    return pika.ConnectionParameters(
        host=host[0],
        port=host[1],
        virtual_host=url.path or "/",
        heartbeat=_HEARTBEAT,
        connection_attempts=1,
        socket_timeout=_CONNECT,
        stack_timeout=2 * _CONNECT,
        client_properties={"connection_name": f"mouso {os.getpid()}"},
        tcp_options={"TCP_USER_TIMEOUT": 1000 * _HEARTBEAT},
        **options,
    )


def _explain(error: BaseException) -> tuple[str, bool]:
    """What went wrong, in a line, and whether the server will say the same the next time."""
    while (inner := _inner(error)) is not None:
        error = inner
    if isinstance(error, (exceptions.ProbableAuthenticationError, exceptions.AuthenticationError)):
        return "user or password are wrong", True
    if isinstance(error, exceptions.ProbableAccessDeniedError):
        return "this user may not use this virtual host, or there is none of that name", True
    if isinstance(error, exceptions.ConnectionClosed):
        return error.reply_text, error.reply_code in _REFUSED
    return one_line(error) or type(error).__name__, isinstance(error, ConfigError)


def _inner(error: BaseException) -> BaseException | None:
    """What an error of pika's is about: it wraps the system's several times."""
    found = getattr(error, "exceptions", None) or [getattr(error, "exception", None), *error.args]
    return next((one for one in reversed(found) if isinstance(one, BaseException)), None)
