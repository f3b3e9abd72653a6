"""One connection to PostgreSQL, shared by the threads of a process: runs statements, and says what went wrong.

It speaks to libpq itself, and waits on the socket with the deadline of the call: whatever holds up the answer (a lock,
a black hole, a frozen server), the call ends in time, and the connection with it, as its answer may still come. Each
statement is a transaction of its own and needs nothing of the session, so PgBouncer may give each another one. Only
where the connection is seen to lead to a process of the server itself are statements prepared in it.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from zlib import crc32

from psycopg import conninfo, pq

from mouso.brokers.postgres.faults import Lost, Refusal, refusal, refuses_for_good
from mouso.clock import SYSTEM
from mouso.config import one_line
from mouso.errors import BrokerUnavailable, ConfigError, OutcomeUnknown
from mouso.urls import BrokerURL

Values = Sequence[bytes | None]

_PAUSE = (0.01, 0.5)
_BINARY = 1
_GOOD = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY)
_OWN = ("schema", "notify", "prepare")
_WATCHFUL = {"keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3", "tcp_user_timeout": "25000"}
"""How soon the system finds out that a server is gone of which nothing is awaited."""


class Link:
    """The connection.

    Args:
        url: Names the server.
    """

    def __init__(self, url: BrokerURL) -> None:
        self.shown = url.server if url.hosts else url.shown
        self._conninfos = list(_conninfos(url))
        self._prepare = url.params.get("prepare")
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._connection: pq.abc.PGconn | None = None
        self._prepared: dict[bytes, bytes] | None = None

    def call(
        self, sql: bytes, values: Values = (), *, timeout: float = 5.0, again: bool = True, common: bool = True
    ) -> pq.abc.PGresult:
        """Runs one statement.

        Args:
            sql: Commits by itself.
            values: Its parameters in binary form.
            timeout: Seconds.
            again: Repeat it within the deadline when its outcome is unknown: it is idempotent.
            common: It comes again and again, and its plan depends on no value: worth preparing.

        Raises:
            BrokerUnavailable: It was certainly not done.
            OutcomeUnknown: It may have been done.
            ConfigError: The server refuses it for good.
        """
        deadline = SYSTEM.monotonic() + timeout
        with self._alone(timeout):
            pause, unknown = _PAUSE[0], False
            while True:
                sent = False
                try:
                    connection = self._connected(deadline)
                    sent = True
                    return self._ask(connection, sql, values, deadline, common)
                except Refusal as error:
                    if error.unprepared and self._prepared is not None:
                        self._prepared = None
                        continue
                    why = error.why
                    if error.code in ("25006", "25P03") or error.lost:
                        self._drop()  # the name may lead to another server by now
                    unknown = unknown or error.lost
                    if not error.later and not error.lost:
                        raise self._config_error(error) from error
                except (Lost, OSError) as error:
                    why = one_line(error)
                    self._drop()
                    unknown = unknown or sent
                if SYSTEM.monotonic() + pause >= deadline or (unknown and not again):
                    raise self._failed(unknown, why)
                time.sleep(pause)
                pause = min(pause * 2, _PAUSE[1])

    def _failed(self, unknown: bool, why: str) -> BrokerUnavailable | OutcomeUnknown:
        if unknown:
            return OutcomeUnknown(f"{self.shown} did not answer; it is not known whether it was done: {why}")
        return BrokerUnavailable(f"{self.shown} cannot be used now; nothing was stored, try again: {why}")

    def _config_error(self, error: Refusal) -> ConfigError:
        if error.foreign:
            return ConfigError(f"{self.shown} holds no store of this version of Mouso: {error.why}; run mouso migrate")
        if error.rights:
            return ConfigError(f"{self.shown} refuses: {error.why}; grant the role what it lacks, or name another one")
        return ConfigError(f"{self.shown} refuses: {error.why} ({error.code})")

    @contextmanager
    def _alone(self, timeout: float) -> Iterator[None]:
        """Keeps other threads out, and forgets what belongs to a parent process."""
        if self._pid != os.getpid():
            self._reset()
        lock = self._lock
        if not lock.acquire(timeout=timeout):
            raise BrokerUnavailable(f"{self.shown} is busy with other calls of this process for {timeout:g} s")
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def session(self, deadline: float) -> Iterator[Session]:
        """The connection for several statements, such as a transaction; what fails raises ``Refusal`` or ``Lost``."""
        with self._alone(max(deadline - SYSTEM.monotonic(), 0)):
            try:
                yield Session(self._connected(deadline), deadline)
            except OSError as error:
                self._drop()
                raise Lost(one_line(error)) from error
            except BaseException:
                self._drop()
                raise

    def _ask(
        self, connection: pq.abc.PGconn, sql: bytes, values: Values, deadline: float, common: bool
    ) -> pq.abc.PGresult:
        formats = [_BINARY] * len(values)
        if self._prepared is None or not common:
            connection.send_query_params(sql, values, param_formats=formats, result_format=_BINARY)
            return answer(connection, deadline)
        name = self._prepared.get(sql)
        if name is None:  # a tenth to a sixth of a delay() is to read and to plan the statement
            name = b"mouso_%08x" % crc32(sql)  # should the session be shared after all, one name is one statement
            connection.send_prepare(name, sql)
            answer(connection, deadline)
            self._prepared[sql] = name
        connection.send_query_prepared(name, values, param_formats=formats, result_format=_BINARY)
        return answer(connection, deadline)

    def _connected(self, deadline: float) -> pq.abc.PGconn:
        """A connection that the server has not closed meanwhile."""
        connection = self._connection
        if connection is not None:
            if _quiet(connection):
                return connection
            self._drop()
        self._prepared = None
        self._connection = connection = self.connect(deadline)
        prepares = self._prepare == "on" or (self._prepare is None and not pooled(Session(connection, deadline)))
        self._prepared = {} if prepares else None
        return connection

    def connect(self, deadline: float) -> pq.abc.PGconn:
        """A new connection to the first server that takes it.

        Raises:
            ConfigError: They refuse it for good.
            Lost: None of them can be reached before the deadline.
        """
        failures: list[Exception] = []
        for left, target in zip(range(len(self._conninfos), 0, -1), self._conninfos, strict=True):
            now = SYSTEM.monotonic()
            try:
                return _connect(target, now + max(deadline - now, 0.05) / left, self.shown)
            except (Lost, OSError, ConfigError) as error:
                failures.append(error)
        raise next((error for error in failures if not isinstance(error, ConfigError)), failures[0])

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(Exception):
                self._connection.finish()
            self._connection = None

    def close(self) -> None:
        """Closes the connection; the next call opens it again."""
        if self._pid == os.getpid():
            with self._lock:
                self._drop()


class Session:
    """A connection that is held for several statements, until a deadline."""

    def __init__(self, connection: pq.abc.PGconn, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    @property
    def process(self) -> int:
        """The number of the server's process, as it was told when the connection was made."""
        return self._connection.backend_pid

    def run(self, script: str) -> None:
        """Runs statements without parameters, separated by semicolons."""
        self._connection.send_query(script.encode())
        answer(self._connection, self._deadline)

    def fetch(self, sql: str, *values: bytes | None) -> list[tuple[bytes | None, ...]]:
        """Runs one statement; returns the values of its rows in binary form."""
        formats = [_BINARY] * len(values)
        self._connection.send_query_params(sql.encode(), values, param_formats=formats, result_format=_BINARY)
        found = answer(self._connection, self._deadline)
        return [tuple(found.get_value(row, n) for n in range(found.nfields)) for row in range(found.ntuples)]


def pooled(session: Session) -> bool:
    """Whether something such as PgBouncer lends the server's processes out, so that each statement may meet another.

    A pooler tells its clients a process number of its own.
    """
    [(pid,)] = session.fetch("SELECT pg_backend_pid()")
    return int.from_bytes(pid or b"") != session.process


def answer(connection: pq.abc.PGconn, deadline: float) -> pq.abc.PGresult:
    """The last result of what was sent.

    Raises:
        Refusal: The server answered with an error.
        Lost: It did not answer.
    """
    poll = select.poll()
    poll.register(connection.socket, select.POLLIN)
    if connection.flush():
        _flush(connection, deadline)
    last: pq.abc.PGresult | None = None
    error: pq.abc.PGresult | None = None
    while True:
        while connection.is_busy():
            left = deadline - SYSTEM.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise Lost("no answer came in time")
            _consume(connection)
        result = connection.get_result()
        if result is None:
            break
        last = result
        if result.status not in _GOOD:
            error = error or result
            if connection.status != pq.ConnStatus.OK:
                break
    if error is not None:
        if error.error_field(pq.DiagnosticField.SQLSTATE) is None:
            raise Lost(one_line(Exception(connection.get_error_message())))
        raise refusal(error)
    if last is None:
        raise Lost("the connection was closed")
    return last


def _flush(connection: pq.abc.PGconn, deadline: float) -> None:
    """Sends what the system did not take at once; the server may want to be read meanwhile."""
    poll = select.poll()
    poll.register(connection.socket, select.POLLIN | select.POLLOUT)
    while connection.flush():
        left = deadline - SYSTEM.monotonic()
        ready = poll.poll(left * 1000) if left > 0 else ()
        if not ready:
            raise Lost("the statement could not be sent in time")
        if ready[0][1] & ~select.POLLOUT:
            _consume(connection)


def _consume(connection: pq.abc.PGconn) -> None:
    try:
        connection.consume_input()
    except Exception as error:
        raise Lost(one_line(error)) from error


def _quiet(connection: pq.abc.PGconn) -> bool:
    """Whether an idle connection is still good: nothing came but notices, and the server has not closed it."""
    try:
        if connection.status != pq.ConnStatus.OK or connection.transaction_status != pq.TransactionStatus.IDLE:
            return False
        ready = select.poll()
        ready.register(connection.socket, select.POLLIN)
        if ready.poll(0):
            _consume(connection)
            return not connection.is_busy() and connection.status == pq.ConnStatus.OK and not ready.poll(0)
    except (Lost, OSError):
        return False
    return True


def _connect(target: bytes, deadline: float, shown: str) -> pq.abc.PGconn:
    connection = pq.PGconn.connect_start(target)
    status = pq.PollingStatus.WRITING
    while status not in (pq.PollingStatus.OK, pq.PollingStatus.FAILED) and connection.status != pq.ConnStatus.BAD:
        poll = select.poll()
        poll.register(connection.socket, select.POLLIN if status == pq.PollingStatus.READING else select.POLLOUT)
        left = deadline - SYSTEM.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            connection.finish()
            raise Lost("the connection was not made in time")
        status = pq.PollingStatus(connection.connect_poll())
    if status != pq.PollingStatus.OK:
        said = one_line(Exception(connection.get_error_message()))
        for_good = bool(connection.needs_password) or refuses_for_good(said)
        connection.finish()
        if for_good:
            raise ConfigError(f"{shown} refuses the connection: {said}; check the broker's URL and the server's rules")
        raise Lost(said)
    connection.nonblocking = 1
    return connection


def _conninfos(url: BrokerURL) -> Iterator[bytes]:
    """What libpq needs to connect, for each server in turn: it would wait for the first one for ever."""
    options = {name: value for name, value in url.params.items() if name not in _OWN}
    options |= _WATCHFUL | {"client_encoding": "utf8", "fallback_application_name": "mouso"}
    for name, value in (("dbname", url.path), ("user", url.user), ("password", url.password)):
        if value:
            options[name] = value
    if not url.hosts:
        yield conninfo.make_conninfo("", **options).encode()
    for host, port in url.hosts:
        yield conninfo.make_conninfo("", **{"host": host, "port": str(port)} | options).encode()
