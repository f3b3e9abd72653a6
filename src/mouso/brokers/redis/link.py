"""One connection to Redis, shared by the threads of a process: calls scripts, and says what went wrong."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from redis import exceptions

from mouso.brokers.redis.facts import Facts
from mouso.brokers.redis.scripts import Script, load
from mouso.brokers.redis.servers import Servers
from mouso.clock import SYSTEM
from mouso.config import one_line
from mouso.errors import BrokerUnavailable, ConfigError, OutcomeUnknown
from mouso.urls import BrokerURL

_PAUSE = (0.01, 0.5)
_LOST = (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.InvalidResponse, OSError)
_REFUSED = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError)
_ELSEWHERE = (
    exceptions.ReadOnlyError,
    exceptions.BusyLoadingError,
    exceptions.MasterDownError,
    exceptions.ClusterDownError,
)
"""Refusals of a server that is not, not yet, or not any more the one to ask; nothing was done."""
_LATER = (exceptions.TryAgainError, exceptions.OutOfMemoryError)
_LATER_WORDS = ("BUSY", "MISCONF", "NOREPLICAS")
"""Refusals that end by themselves, or when somebody has helped the server; nothing was done."""


class Link:
    """The connection.

    Args:
        url: Names the server.
        prefix: What all keys begin with.

    Attributes:
        scripts: What can be called.
        facts: What the server said of itself when it was connected to; None before, and if the user may not know.
    """

    def __init__(self, url: BrokerURL, prefix: str) -> None:
        self._shown = url.server
        self._prefix = prefix.encode()
        self._replicas = int(url.params.get("wait", 0))
        self._evicts = url.params.get("eviction") == "allow"
        self.scripts = load()
        self.facts: Facts | None = None
        self._heads: dict[tuple[str, str], tuple[bytes, int]] = {}
        self._servers = Servers(url)
        self._tls = url.scheme.startswith("rediss")
        self._spoke = False
        self._fresh()

    def _fresh(self) -> None:
        """Forgets the connection of another process, of which this one is a fork: it goes on using it."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._connection: Any = None
        self._allowed: set[str] = set()

    def call(
        self, name: str, *arguments: bytes | str | float, of: str = "", timeout: float = 5.0, again: bool = True
    ) -> Any:
        """Calls a script.

        Args:
            of: The worker whose claims it touches.
            timeout: Total deadline, in seconds.
            again: Repeat it within the deadline when its outcome is unknown: it is idempotent.

        Raises:
            BrokerUnavailable: It was certainly not done.
            OutcomeUnknown: It may have been done.
            ConfigError: The server refuses it for good.
        """
        if self._pid != os.getpid():
            self._fresh()
        deadline = SYSTEM.monotonic() + timeout
        script = self.scripts[name]
        command = self._command(script, arguments, of)
        if not self._lock.acquire(timeout=timeout):
            raise BrokerUnavailable(f"{self._shown} is busy with other calls of this process for {timeout:g} s")
        try:
            return self._persist(script, command, of, deadline, again)
        except (BrokerUnavailable, OutcomeUnknown, ConfigError):
            raise
        except BaseException:  # as of a signal's handler, which came before the answer: the next call would take that
            self._drop()
            raise
        finally:
            self._lock.release()

    def _persist(self, script: Script, command: bytes, of: str, deadline: float, again: bool) -> Any:
        pause = _PAUSE[0]
        unknown = False
        while True:
            sent = False
            try:
                connection = self._connected(deadline)
                if script.name not in self._allowed:
                    self._ask_leave(connection, script, of, deadline)
                sent = True
                reply = self._ask(connection, script, command, deadline)
                if self._replicas and script.name in ("enqueue", "enqueue_over"):
                    self._replicate(connection, deadline)
                return reply
            except _REFUSED as error:
                self._drop()
                raise ConfigError(f"{self._shown} refuses: {_said(error)}") from error
            except _ELSEWHERE as error:
                why = _said(error)
                self._drop()
                self._servers.elsewhere()
            except exceptions.MovedError as error:
                why = f"the jobs have moved to {error.host}:{error.port}"
                self._drop()
                self._servers.moved(error.node_addr)
            except exceptions.ResponseError as error:
                why = self._put_off(script, error)
            except _LOST as error:
                self._drop()
                why = self._lost(error)
                unknown = unknown or sent
            left = deadline - SYSTEM.monotonic()
            if left < pause or (unknown and not again):
                if unknown:
                    raise OutcomeUnknown(f"{self._shown} did not answer; it is not known whether it was done: {why}")
                raise BrokerUnavailable(f"{self._shown} cannot be used now: {why}")
            time.sleep(pause)
            pause = min(pause * 2, _PAUSE[1])

    def _put_off(self, script: Script, error: exceptions.ResponseError) -> str:
        """Why a server refuses to do it now.

        Raises:
            ConfigError: It never will.
            OutcomeUnknown: It has done a part of it, which it does not undo.
        """
        why = _said(error)
        if isinstance(error, _LATER) or why.startswith(_LATER_WORDS):
            return why
        forbidden = "executing the script" in why
        if forbidden:  # it was withdrawn; the next call says which right that is
            self._allowed.clear()
        if script.writes and " script: " in str(error) and not str(error).startswith("WRONGTYPE"):
            raise OutcomeUnknown(f"{self._shown} has not done all of it: {why}") from error
        verdict = "refuses: this user has no permission" if forbidden else "cannot be used"
        raise ConfigError(f"{self._shown} {verdict}: {why}") from error

    def _lost(self, error: Exception) -> str:
        """Why there is no connection any more, and what may be behind it if there never was one.

        Raises:
            ConfigError: There never will be one.
        """
        why = one_line(error)
        if "certificate verify failed" in why:
            said = why.partition("certificate verify failed: ")[2].partition(" (_ssl")[0]
            raise ConfigError(
                f"{self._shown} has a certificate that does not hold: {said}; name its authority with "
                "?ssl_ca_certs=, and the server as the certificate does"
            ) from error
        if not self._spoke and not isinstance(error, exceptions.InvalidResponse):
            if self._tls and "Timeout connecting" in why:
                return f"{why}; if it speaks no TLS, write redis:// instead of rediss://"
            if not self._tls and ("while reading" in why or "closed by server" in why):
                return f"{why}; if it speaks TLS only, write rediss:// instead of redis://"
        return why

    def _ask_leave(self, connection: Any, script: Script, of: str, deadline: float) -> None:
        """Asks once on each connection whether this user may do what a script does: it would be refused half-way.

        Raises:
            ConfigError: It may not.
        """
        words: list[bytes | str] = [b""]
        for command, key, end in sorted(script.needs):
            words += (command, self._key(key, of) + end.encode() if key else b"")
        may = self.scripts["may"]
        refused = self._ask(connection, may, self._command(may, words, ""), deadline)
        if refused:
            what = ", ".join(sorted(text.decode() for text in refused))
            raise ConfigError(
                f"{self._shown} refuses: this user has no permission for {what}; the rules that each role needs are in "
                "Mouso's documentation of Redis"
            )
        self._allowed.add(script.name)

    def _ask(self, connection: Any, script: Script, command: bytes, deadline: float) -> Any:
        reply = self._asked(connection, script, command, deadline)
        if not isinstance(reply, script.gives):
            raise exceptions.InvalidResponse("what answers there is no Redis or Valkey server")
        return reply

    def _asked(self, connection: Any, script: Script, command: bytes, deadline: float) -> Any:
        try:
            return _send(connection, command, deadline)
        except exceptions.NoScriptError:
            _send(connection, _words("SCRIPT", "LOAD", script.source), deadline)
            return _send(connection, command, deadline)
        except exceptions.MovedError:
            raise
        except exceptions.AskError as error:
            # The jobs are on their way to another node of the cluster, and some keys are there already.
            other = self._servers.other(error.node_addr, deadline)
            try:
                _send(other, _words("SCRIPT", "LOAD", script.source), deadline)
                _send(other, _words("ASKING"), deadline)
                return _send(other, command, deadline)
            finally:
                other.disconnect()

    def _replicate(self, connection: Any, deadline: float) -> None:
        """Waits until replicas have taken over all that this connection has written.

        Raises:
            OutcomeUnknown: They have not in time: the jobs are stored, and may get lost with this server.
        """
        # A repeated enqueue writes nothing, and the server would wait for nothing.
        _send(connection, _words("HSET", self._prefix + b"meta", "waited", "1"), deadline)
        left = max(int((deadline - SYSTEM.monotonic()) * 1000), 1)
        ready = _send(connection, _words("WAIT", str(self._replicas), str(left)), deadline + 1)
        if ready < self._replicas:
            raise OutcomeUnknown(
                f"{self._shown} has stored it, but {ready} of {self._replicas} replicas have taken it over in time; "
                "repeat it with the same id"
            )

    def _connected(self, deadline: float) -> Any:
        """A connection that the server has not closed meanwhile."""
        if self._connection is not None:
            with suppress(*_LOST):
                if not self._connection.can_read():
                    return self._connection
            self._drop()
        connection = self._servers.connect(deadline)
        try:
            self._greet(connection, deadline)
        except BaseException:
            connection.disconnect()
            raise
        self._connection, self._spoke = connection, True
        return connection

    def _greet(self, connection: Any, deadline: float) -> None:
        """Asks a server what it is.

        Raises:
            ConfigError: It must not hold jobs.
        """
        try:
            self.facts = Facts.read(_send(connection, _words("INFO"), deadline))
        except exceptions.NoPermissionError:
            return
        what, remedy = self.facts.refusal(evicts=self._evicts)
        if what:
            raise ConfigError(f"{self._shown}: {what}; {remedy}")

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(Exception):
                self._connection.disconnect()
            self._connection = None
        self._allowed.clear()

    def close(self) -> None:
        """Closes the connection; the next call opens it again."""
        if self._pid == os.getpid():
            with self._lock:
                self._drop()

    def listening(self, kind: str) -> Any:
        """A new connection that hears the rings for workers (``w``) or waiting callers (``c``).

        Raises:
            redis.exceptions.RedisError, OSError: It cannot be.
        """
        deadline = SYSTEM.monotonic() + 2.0
        connection = self._servers.connect(deadline)
        try:
            _send(connection, _words("SUBSCRIBE", self._prefix + b"bell:" + kind.encode()), deadline)
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def _command(self, script: Script, arguments: Sequence[bytes | str | float], of: str) -> bytes:
        """EVALSHA with its keys and arguments, as it is sent."""
        head = self._heads.get((script.name, of))
        if head is None:
            keys = [self._key(key, of) for key in script.keys]
            words = [b"EVALSHA", script.digest, str(len(keys)).encode(), *keys]
            head = b"".join(_bulks(words)), len(words)
            if len(self._heads) < 1000:
                self._heads[script.name, of] = head
        encoded = [a if isinstance(a, bytes) else str(a).encode() for a in arguments]
        return b"".join((b"*%d\r\n" % (head[1] + len(encoded)), head[0], *_bulks(encoded)))

    def _key(self, name: str, of: str) -> bytes:
        return self._prefix + (f"claimed:{of}" if name == "claimed" else name).encode()


def _said(error: Exception) -> str:
    """What the server said, and what that means, without where in which script."""
    said = one_line(error).partition(" script: ")[0]
    if isinstance(error, exceptions.OutOfMemoryError):
        return f"its memory is full ({said}); raise maxmemory, or keep less: shorter times, smaller results"
    if said.startswith("WRONGTYPE"):
        return "another program has put something else under one of Mouso's keys; mouso doctor says under which"
    return said


def _send(connection: Any, command: bytes, deadline: float) -> Any:
    left = max(deadline - SYSTEM.monotonic(), 0.05)
    connection._sock.settimeout(left)
    connection.send_packed_command([command], check_health=False)
    return connection.read_response(timeout=left)


def _words(*words: str | bytes) -> bytes:
    """A command, as it is sent."""
    encoded = [word if isinstance(word, bytes) else word.encode() for word in words]
    return b"".join((b"*%d\r\n" % len(encoded), *_bulks(encoded)))


def _bulks(words: Sequence[bytes]) -> Iterator[bytes]:
    for word in words:
        yield b"$%d\r\n%b\r\n" % (len(word), word)
