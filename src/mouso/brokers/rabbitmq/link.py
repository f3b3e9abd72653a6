"""A connection to RabbitMQ that is made again whenever it is lost, and the thread that owns it."""

from __future__ import annotations

import logging
import os
import random
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
_PLAIN = frozenset({"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"})
"""What OpenSSL calls an answer that is no TLS."""
_LOST = re.compile(r"Stream connection lost: (?:\w+\((?:\d+, )?['\"](?P<why>.*)['\"],?\))?")
"""How pika tells of an error of the system's."""


REMEDY = "give the server memory or disk, rabbitmq-diagnostics alarms says which"
"""What to do while it takes no messages."""


class Outage:
    """Says once when a server is gone and once when it is back, of all connections to it together.

    Args:
        server: For people.
        meanwhile: What happens until it is back, likewise.
        raised: Whether what the server refuses is raised by the verbs, so that no line is needed.
    """

    def __init__(
        self, server: str, meanwhile: str = "workers look for jobs once a second", *, raised: bool = False
    ) -> None:
        self._server = server
        self._meanwhile = meanwhile
        self._raised = raised
        self._lock = threading.Lock()
        self._told = ""
        self._refused: set[str] = set()
        self._down: dict[object, float] = {}

    @contextmanager
    def raising(self) -> Iterator[None]:
        """For the length of the block, what is refused is raised."""
        before, self._raised = self._raised, True
        try:
            yield
        finally:
            self._raised = before

    def begins(self, link: object, why: str, *, refused: bool = False) -> None:
        """A connection has gone, or is not to be had; with ``refused`` it is the server that will not have it."""
        with self._lock:
            raised = refused and (self._raised or link in self._down)  # it may be tried again before that is heard of
            if not self._told and not raised:
                self._told = "can be used" if refused else "answers"
                what, end = ("cannot be used", "that is changed") if refused else ("does not answer", "it does")
                log.warning("%s %s (%s); until %s, %s", self._server, what, why, end, self._meanwhile)
            self._down.setdefault(link, SYSTEM.monotonic())

    def refuses(self, what: str) -> None:
        """The server is there, but refuses something that is wanted of it."""
        with self._lock:
            if what not in self._refused:
                self._refused.add(what)
                log.error("%s; until that is changed, %s", what, self._meanwhile)

    def ends(self, link: object, *, back: bool = True) -> None:
        """There is a connection again, or none is wanted any more."""
        with self._lock:
            since = self._down.pop(link, None)
            if since is not None and not self._down:
                told, self._told = self._told, ""
                if back and told:
                    log.info("%s %s again after %.1f s", self._server, told, SYSTEM.monotonic() - since)


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
        blocked: Why the server takes no messages on it, for people; empty while it does.
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
        self.blocked = ""
        self.why = "there is no connection yet"
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
        self._block("")
        connection.add_on_connection_blocked_callback(
            lambda _, frame: self._block(str(frame.method.reason or "it is short of memory or disk"))
        )
        connection.add_on_connection_unblocked_callback(lambda *_: self._block(""))
        self.version = str((connection.server_properties or {}).get("version", ""))
        self._outage.ends(self)
        self._use(connection)
        self._tried.set()

    def _block(self, why: str) -> None:
        self.blocked = why

    def _failed(self, connection: object, error: BaseException) -> None:
        """There is no connection, or none any more."""
        if self._leaving:
            self._stop()
            return
        self.up, self._connection = False, None
        self.why, remedy = explain(error)
        if remedy is not None:
            self.why = "; ".join(filter(None, (self.why, remedy)))
            self.refused = ConfigError(f"{self._url.shown}: {self.why}")
        self._outage.begins(self, self.why, refused=remedy is not None)
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


def explain(error: BaseException) -> tuple[str, str | None]:
    """What went wrong, in words, and what to do if the server will say the same the next time; None if it may not."""
    while (inner := _inner(error)) is not None:
        error = inner
    match error:
        case ConfigError():
            return one_line(error), ""
        case exceptions.ProbableAuthenticationError() | exceptions.AuthenticationError():
            return "user or password are wrong", "correct them in the URL"
        case exceptions.ProbableAccessDeniedError():
            why = "this user may not use this virtual host, or there is none of that name"
            return why, "correct the URL, or see rabbitmqctl set_permissions"
        case exceptions.ConnectionClosed():
            return error.reply_text, "see rabbitmqctl" if error.reply_code in _REFUSED else None
        case exceptions.IncompatibleProtocolError():
            return "it closed the connection before it said anything; if it speaks TLS there, write amqps://", None
        case ssl.SSLCertVerificationError():
            why = f"the server has a certificate that does not hold: {error.verify_message}"
            return why, "name its authority with ?ssl_ca_certs=, and the server as the certificate does"
        case ssl.SSLError(reason=str(reason)) if reason in _PLAIN:
            return "the server does not seem to speak TLS there", "write amqp:// instead of amqps://"
        case exceptions.StreamLostError():
            text = str(error.args[0]) if error.args else ""
            lost = _LOST.match(text)
            return (lost["why"] if lost else text) or "the connection was lost", None
        case exceptions.AMQPError():
            return str(error.args[0]) if error.args else "the connection was lost", None
        case OSError(strerror=str(text)):
            return text, None
        case _:
            return one_line(error), None


def _inner(error: BaseException) -> BaseException | None:
    """What an error of pika's is about: it wraps the system's several times."""
    found = getattr(error, "exceptions", None) or [getattr(error, "exception", None), *error.args]
    return next((one for one in reversed(found) if isinstance(one, BaseException)), None)
