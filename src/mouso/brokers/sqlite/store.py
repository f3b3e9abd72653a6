"""One SQLite file, opened safely: transactions with a deadline, and errors in Mouso's words.

Somebody may delete, move or replace the file, its log or the log's index, or close what this process has open of them,
while all of it is in use. So who writes passes the gate and looks whether all is what it was; if not, ``_mend`` saves
what can be saved, opens anew, or refuses. That is the slow path; the fast one is in ``write``.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import ClassVar, NoReturn

from mouso.brokers.base import EXIT_LOST
from mouso.brokers.sqlite import connecting, descriptors, faults, ground, locks, lost, schema
from mouso.brokers.sqlite.checkpoints import CHANGE_BYTES, COMMIT_BYTES, Checkpoints
from mouso.brokers.sqlite.gate import ENTER, FREE, LEAVE, LOOK, SET, STEP_UP, Gate, pass_gate
from mouso.brokers.sqlite.transactions import locked, roll_back
from mouso.clock import SYSTEM
from mouso.errors import BrokerError, BrokerUnavailable, ConfigError, OutcomeUnknown

_PAUSE, _LONGEST = 0.0001, 0.03
_TURN = 0.001
"""Seconds between two looks of the first who waits to write; who writes all the time leaves it twice that."""
_LOG_PAUSE = 0.01
_CATCH_UP = 5.0
_LOST_DESCRIPTORS = (
    "this process has closed file descriptors that SQLite was using, as os.closerange() does; nothing was stored,"
    " restart it and let it close only what it has opened"
)
_DELETED_INDEX = (
    "the index of its log (-shm) was deleted while it was in use; nothing was stored, try again, and first close what"
    " this process may have opened the file with besides"
)
_DELETED_LOG = "its log (-wal) was deleted while it was in use, and is being saved; nothing was stored, try again"

log = logging.getLogger("mouso.brokers.sqlite")


class Store:
    """A SQLite file with one connection for writing and one for reading, usable from any thread.

    Args:
        path: The file.
        synchronous: ``"full"`` (a commit survives power loss) or ``"normal"`` (it survives any crash of programs).
        create: Whether a file that is not there is made; not by a worker's process, which also ends when it cannot
            use the store any more, to be replaced.
    """

    _held: ClassVar[set[sqlite3.Connection]] = set()
    """All connections of all stores. Python collects a store that nobody has closed, and what belongs to it, in any
    order: it would warn of a connection before ``__del__`` can close it."""

    def __init__(self, path: str, synchronous: str, *, create: bool = True) -> None:
        try:
            self.path = os.path.realpath(path)  # SQLite keeps the log beside the file itself, not beside a link to it
        except FileNotFoundError:
            raise ConfigError(f"the current directory is gone, so {path} has no place; use an absolute path") from None
        self._synchronous = synchronous
        self._create = create
        self._reset()
        _STORES.add(self)

    def _reset(self) -> None:
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._file: tuple[int, ...] | None = None
        self._log_file: tuple[int, ...] | None = None
        self._gate = Gate()
        self._checkpoints = Checkpoints(self.path, self._connect)
        self._writes_with: descriptors.Held = ()
        self._reads_with: descriptors.Held = ()

    def open(self, timeout: float = 5.0) -> None:
        """Opens the file, creating or upgrading its tables; when it is open already, sees that it is the same file."""
        if self._writer is not None and descriptors.are_own(self._reads_with) and _identity(self.path) == self._file:
            return
        with self._writing:
            self._open(timeout)

    def _open(self, timeout: float) -> None:
        self._check_descriptors()
        self._check_file()
        if self._writer is not None:
            return
        deadline = SYSTEM.monotonic() + timeout
        ground.check(self.path, create=self._create)
        comes = not self._gate.is_open
        if comes:
            self._gate.open(self.path, create=self._create)
        try:
            if comes:
                self._close_copies()
                self._await_log(deadline)
            with descriptors.opening:
                self._connect_both(deadline, timeout, comes=comes)
        except BaseException:
            if not (self._create or descriptors.are_own((self._gate.held,))):
                self._give_up()  # closed while SQLite was opening its own
            self._close_gate()
            raise

    def _close_copies(self) -> None:
        """In a fork: SQLite believes that what its parent had locked is locked, as long as its copies are open."""
        copies = _abandoned.get(self.path, [])
        if copies and all(descriptors.are_own(held) for _, held in copies):
            with descriptors.opening, self._gate.in_use():  # or the last one would move the log, and delete it
                for connection, _ in _abandoned.pop(self.path):
                    connection.close()

    def _connect_both(self, deadline: float, timeout: float, *, comes: bool) -> None:
        others, before = descriptors.leading_to(self.path), descriptors.opened()
        with ExitStack() as opened:
            writer = opened.enter_context(
                closing(connecting.connect(self.path, self._synchronous, timeout, create=self._create))
            )
            connecting.prepare(writer, self.path, timeout, deadline)
            writer.execute("PRAGMA busy_timeout = 0")  # _begin waits, with shorter pauses
            writes_with = descriptors.held(self.path, others)
            index = descriptors.index_state(self.path)
            if index == "deleted":
                raise BrokerUnavailable(f"{self.path}: {_DELETED_INDEX}")
            if index == "closed":
                opened.pop_all()
                descriptors.abandon(writer)
                self._give_up()
            if lost.is_awaited(self.path):
                raise BrokerUnavailable(f"{self.path}: {_DELETED_LOG}")
            reader = opened.enter_context(closing(self._connect()))
            # Prepared as well, or it would open the log only when it is needed.
            connecting.prepare(reader, self.path, timeout, deadline)
            log_file = _identity(self.path + "-wal")
            if descriptors.has_deleted(f"{self.path}-wal", before):
                with suppress(BrokerError):  # this may be the only one that has it open
                    self._await_log(deadline) if comes else self._bring_back()
                raise BrokerUnavailable(f"{self.path}: {_DELETED_LOG}")
            opened.pop_all()
        self._file, self._log_file = _identity(self.path), log_file
        self._writes_with = (*writes_with, self._gate.held)
        self._reads_with = descriptors.held(self.path, others | {number for number, _ in writes_with})
        self._writer, self._reader = writer, reader
        self._held.update((writer, reader))
        self._checkpoints.opened(writer)

    def close(self) -> None:
        """Closes both connections; the next use opens them again."""
        with self._writing:
            if self._writer is not None and descriptors.is_any_deleted(self._writes_with):
                with suppress(BrokerError, ConfigError):
                    self._catch_up()  # this may be the last one that has the log open
            self._disconnect()
            self._close_gate()
            self._file = self._log_file = None

    def __del__(self) -> None:
        if hasattr(self, "_reads_with"):
            self._let_go()  # or Python warns of what nobody needs to close by hand
            self._close_gate()

    def _close_gate(self) -> None:
        if self.path in _ruined:
            self._gate.forget()
        else:
            self._gate.close()

    def _disconnect(self) -> None:
        with self._reading:
            self._let_go()

    def _let_go(self) -> None:
        if not self._holds_its_own():
            _ruined.add(self.path)
        if self.path in _ruined:
            for connection in filter(None, (self._reader, self._writer)):
                descriptors.abandon(connection)
        elif self._writer is not None and descriptors.is_any_deleted(self._writes_with):
            with suppress(sqlite3.Error, BrokerError, OSError):
                self._move_lost_log(self._writer)
            with self._gate.in_use():  # others may have another log, or another index, by now
                self._close_both()
        else:
            self._close_both()
        self._held.difference_update((self._reader, self._writer))
        self._writer = self._reader = None
        self._writes_with = self._reads_with = ()

    def _close_both(self) -> None:
        for connection in filter(None, (self._reader, self._writer)):
            connection.close()

    def _holds_its_own(self) -> bool:
        return descriptors.are_own(self._writes_with) and descriptors.are_own(self._reads_with)

    def _check_descriptors(self) -> None:
        if self.path in _ruined or not self._holds_its_own():
            self._give_up()

    def _give_up(self) -> NoReturn:
        """This process has lost what SQLite uses: what SQLite believes of its locks cannot be mended."""
        text = f"{self.path}: {_LOST_DESCRIPTORS}"
        if not self._create:
            log.critical("%s; child %d ends", text, os.getpid())
            os._exit(EXIT_LOST)
        _ruined.add(self.path)
        self._disconnect()
        self._close_gate()
        raise ConfigError(text)

    def _end_if_lost(self) -> None:
        """Ends a worker's process in which a call failed because its descriptors are closed: no job of it is to blame,
        and none is charged for what another one did."""
        if not (self._create or self._holds_its_own()):
            self._give_up()

    def _check_file(self) -> None:
        """Refuses to go on if the path leads to another file than the one that is open, or to none.

        Nobody else would see what is written to a file without a name. Nor can the new file just be opened: its jobs
        have the numbers of the old one's, so a worker would settle others with the outcomes that it still holds. What
        is open is closed, as the new file cannot be opened by anybody while the old log is in use. If the old file
        comes back, all goes on.
        """
        if self._file is None or (found := _identity(self.path)) == self._file:
            return
        gone = descriptors.is_nameless(self._gate.held[0])
        self._disconnect()
        self._close_gate()
        if found is None:
            if gone and _identity(self.path + "-wal") == self._log_file:  # nobody can put back what the log belongs to
                with suppress(OSError):
                    os.unlink(self.path + "-wal")
            raise ConfigError(
                f"{self.path} was deleted or moved while it was open; nothing was stored, put it back or restart this"
                " program"
            )
        raise ConfigError(
            f"{self.path} was replaced by another file while it was open; nothing was stored, restart this program"
        )

    def _save_log(self, timeout: float) -> None:
        """Somebody has deleted the log, in which lies what was not moved into the file yet: that is done now.

        All processes that had it open share it still, so the first to notice saves what any of them has stored. It also
        empties it, so that the others cannot take it for the new one. Then all is opened anew. If there is a new log
        already, somebody else was the first.
        """
        log, deadline = self.path + "-wal", SYSTEM.monotonic() + timeout
        if self._writer is None or self._log_file is None or _identity(log) == self._log_file:
            return
        try:
            while not self._is_saved(self._writer):
                if SYSTEM.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"{log} was deleted while it was in use, and saving what it held takes longer than"
                        f" {timeout:.3g} s; nothing was stored, try again"
                    )
                time.sleep(_LOG_PAUSE)
        except sqlite3.Error as error:
            raise ConfigError(
                f"{log} was deleted while it was in use, and what it held cannot be saved ({error}); stop all programs"
                " that use it"
            ) from error
        self._disconnect()
        self._open(timeout)

    def _is_saved(self, writer: sqlite3.Connection) -> bool:
        """Whether nothing is in a log without a name any more, be it the one known here, or a later one."""
        if self._is_there_again():
            return True
        found = self._bring_back(self._log_file)
        if found == "own" or (found == "unknown" and self._may_save()):
            return self._move_lost_log(writer)
        return found != "unknown"

    def _may_save(self) -> bool:
        """Whether something may be in the log that this process knows: nothing is if somebody else has saved it."""
        return all(lost.is_of_use(n) for n, file in self._writes_with if file[:2] == self._log_file)

    def _bring_back(self, own: tuple[int, ...] | None = None) -> lost.Found:
        """As the function does, which see."""
        try:
            return lost.bring_back(self.path, own)
        except OSError as error:
            raise faults.cannot_bring_back(error, self.path) from error

    def _is_there_again(self) -> bool:
        """Whether there is a log that is in use."""
        found = _identity(log := self.path + "-wal")
        return found is not None and (found == self._log_file or os.stat(log).st_size > 0)

    def _move_lost_log(self, writer: sqlite3.Connection) -> bool:
        """Whether all of the log that this process knows is in the file now, or somebody has moved it before."""
        if self._is_there_again() or not self._may_save():
            return True
        busy, frames, moved = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy and frames == moved

    def _renew_index(self, timeout: float) -> None:
        """Somebody has deleted the log's index. Who opens the store from now on makes another one, and who has the old
        one neither sees what they write nor is seen: so all is opened anew before anything is read or written.
        """
        if self._writer is not None and descriptors.is_any_deleted(self._writes_with):
            self._disconnect()
            self._open(timeout)

    def _await_log(self, deadline: float) -> None:
        """Brings back a log that somebody has deleted while others use it, or lets them save what it held: who makes a
        new one takes that away from them.
        """
        while ground.has_log(self._gate.number) and lost.is_suspected(self.path):
            if self._enter():
                try:
                    found = self._bring_back()
                finally:
                    self._gate.leave()
                if found != "unknown":
                    return
            if not locks.holders(self.path, locks.USERS):
                return
            if SYSTEM.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"{self.path}-wal was deleted while other programs used it, and they have not saved it yet; nothing"
                    " was stored, try again, or restart those programs"
                )
            time.sleep(_LOG_PAUSE)

    def _mend(self, timeout: float) -> sqlite3.Connection:
        """Who has passed the gate sees whether all is what it was, and returns what to write with."""
        self._check_descriptors()
        self._check_file()
        self._save_log(timeout)
        self._renew_index(timeout)
        if self._writer is None:
            raise BrokerUnavailable(f"{self.path} was closed meanwhile; nothing was stored, try again")
        self._writes_with = descriptors.as_they_are(self._writes_with)
        return self._writer

    def _begin_with_care(self, deadline: float, timeout: float) -> sqlite3.Connection:
        """Begins a transaction where others write as well, or something is not what it was.

        SQLite's own busy handler sleeps 1 ms and more; many writers want less than that. But the longer it takes, the
        more of them there may be, and hundreds that tried every 5 ms would leave no CPU to the one that has the lock:
        so the pauses grow with the wait, but for one who waits in front of the gate.
        """
        began, pause, in_front = SYSTEM.monotonic(), _PAUSE, False
        try:
            while True:
                passed = self._enter()
                if passed:
                    connection = self._mend(timeout)
                    try:
                        connection.execute("BEGIN IMMEDIATE")
                        return connection
                    except faults.FAILURES as error:
                        roll_back(connection)
                        if not faults.is_busy(error):
                            raise self.translate(error) from error
                    self._gate.leave()
                elif pause > _TURN:
                    in_front = in_front or self._gate.step_up()
                now = SYSTEM.monotonic()
                if now >= deadline:
                    raise locked(self.path, timeout)
                next_try = _TURN if in_front and not passed else pause * random.uniform(0.5, 1.5)
                time.sleep(min(next_try, deadline - now))
                longest = (now - began) / 10
                pause = min(pause * 1.5, max(0.005, longest if passed else min(longest, _LONGEST)))
        finally:
            if in_front:
                self._gate.step_back()

    def _catch_up(self) -> None:
        """Does what a write transaction does before it writes."""
        try:
            roll_back(self._begin_with_care(SYSTEM.monotonic() + _CATCH_UP, _CATCH_UP))
        finally:
            self._gate.leave()

    def _enter(self) -> bool:
        """Whether this one has passed the gate."""
        try:
            self._gate.enter()
        except BlockingIOError:
            return False
        except (OSError, ValueError):  # it is not there any more: whoever mends will see why
            pass
        return True

    @contextmanager
    def write(self, timeout: float = 5.0, *, politely: bool = False) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed at the end of the block, rolled back if it raises. Who writes all the time
        does it ``politely`` and lets who waits go first, or others would hardly ever find the file free.

        Raises:
            BrokerUnavailable: Nothing happened.
            OutcomeUnknown: The commit failed half-way.
        """
        deadline = SYSTEM.monotonic() + timeout
        if self._writer is None:
            self.open(timeout)
        if not self._writing.acquire(timeout=max(deadline - SYSTEM.monotonic(), 0)):
            raise BrokerUnavailable(
                f"{self.path} was busy in this process for {timeout:.3g} s; nothing was stored, try again"
            )
        try:
            connection, begun = self._writer, False
            try:
                if politely and pass_gate(self._gate.number, LOOK, STEP_UP)[: len(FREE)] != FREE:
                    time.sleep(2 * _TURN)
                # The gate takes 4 µs of the 180 that an enqueue takes, and to see that all is what it was, 5.
                pass_gate(self._gate.number, SET, ENTER)
                if (
                    connection is not None
                    and os.stat(self.path)[1:3] == self._file
                    and os.stat(self.path + "-wal")[1:3] == self._log_file
                    and all(os.fstat(number)[1:4] == file for number, file in self._writes_with)
                ):
                    connection.execute("BEGIN IMMEDIATE")
                    begun = True
            except (OSError, ValueError, *faults.FAILURES):
                pass
            if not begun or connection is None:
                connection = self._begin_with_care(deadline, timeout)
            try:
                yield connection
            except faults.FAILURES as error:
                self._failed(connection, error)
                raise self.translate(error) from error
            try:
                connection.execute("COMMIT")
            except faults.FAILURES as error:
                self._failed(connection, error)
                raise faults.commit_failed(error, self.path) from error
            made, changes = self._checkpoints, connection.total_changes
            made.written, made.changes = made.written + COMMIT_BYTES + CHANGE_BYTES * (changes - made.changes), changes
            if made.written >= made.look_at:
                made.look(connection)
        finally:
            own = False
            try:
                if self._writer is not None and self._writer.in_transaction:  # the block raised, or Ctrl-C came first
                    roll_back(self._writer)
                # As in Gate.leave: 2 µs, or another file, or the same opened again, might have its number by now.
                number = self._gate.number
                if os.fstat(number)[1:3] == self._file and pass_gate(number, LOOK, ENTER)[: len(FREE)] == FREE:
                    pass_gate(number, SET, LEAVE)
                    own = True
            except (OSError, ValueError):
                pass
            finally:
                if not own:
                    self._gate.leave()  # which gives it up
                self._writing.release()
        if not own:
            self._check_what_was_stored()

    def _check_what_was_stored(self) -> None:
        """A commit may have gone into other files, which had the numbers of those that SQLite believes to be its own.

        Raises:
            OutcomeUnknown: It may have.
        """
        try:
            with self._writing:
                self._check_descriptors()
        except ConfigError as error:
            raise OutcomeUnknown(f"{self.path}: {_LOST_DESCRIPTORS.replace('nothing', 'perhaps nothing')}") from error

    def _failed(self, connection: sqlite3.Connection, error: sqlite3.Error | MemoryError) -> None:
        self._end_if_lost()
        roll_back(connection)
        self._checkpoints.make_room(connection, error)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: all statements of the block see one state of the file."""
        self.open()
        if self._log_file is not None and (
            _identity(self.path + "-wal") != self._log_file or descriptors.is_any_deleted(self._writes_with)
        ):
            with self._writing:
                self._catch_up()
        with self._reading:
            if self._reader is None:
                raise BrokerUnavailable(f"{self.path} was closed meanwhile; try again")
            try:
                self._reader.execute("BEGIN")
                yield self._reader
            except faults.FAILURES as error:
                raise self.translate(error) from error
            finally:
                roll_back(self._reader)

    def migrate(self) -> tuple[int, int]:
        """Upgrades the tables and returns the version before and after."""
        ground.check(self.path, create=self._create)
        connection = connecting.connect(self.path, self._synchronous, create=True)
        try:
            return connecting.prepare(connection, self.path, 5.0), schema.VERSION
        finally:
            connection.close()

    def connection(self) -> sqlite3.Connection:
        """A connection for a job's own statements, as durable as the store's."""
        self.open()
        try:
            connection = sqlite3.connect(f"{Path(self.path).as_uri()}?mode=rw", uri=True, isolation_level=None)
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        except faults.FAILURES as error:
            raise self.translate(error) from error
        return connection

    def is_same_file(self, connection: sqlite3.Connection) -> bool:
        """Whether ``connection``'s main database is this file."""
        name = connection.execute("SELECT file FROM pragma_database_list WHERE name = 'main'").fetchone()[0]
        return bool(name) and os.path.exists(name) and os.path.samefile(name, self.path)

    def _connect(self) -> sqlite3.Connection:
        return connecting.connect(self.path, self._synchronous)

    def translate(self, error: sqlite3.Error | MemoryError) -> BrokerError | ConfigError:
        """A client's error in Mouso's words."""
        self._end_if_lost()
        return faults.translate(error, self.path)


_ruined: set[str] = set()
"""Files that this process, or the one that it is a copy of, cannot use any more."""
_STORES: weakref.WeakSet[Store] = weakref.WeakSet()
_forking: list[Store] = []
_one_fork = threading.Lock()
"""Two threads may fork at once; the second would empty the list of the first, whose locks nobody gave back then."""
_abandoned: dict[str, list[tuple[sqlite3.Connection, descriptors.Held]]] = {}
"""A forked child's copies of its parent's connections, by their file: never used, and closed with care."""


def _before_fork() -> None:
    _one_fork.acquire()
    _forking[:] = list(_STORES)
    for store in _forking:
        store._writing.acquire()
        store._reading.acquire()
    descriptors.opening.acquire()  # in the order of who opens a store


def _after_fork(*, child: bool) -> None:
    descriptors.opening.release()
    for store in _forking:
        if child:
            copies = ((store._writer, store._writes_with[:-1]), (store._reader, store._reads_with))
            _abandoned.setdefault(store.path, []).extend((one, held) for one, held in copies if one is not None)
            store._gate.close_copy()
            store._reset()
        else:
            store._reading.release()
            store._writing.release()
    if child:
        Store._held.clear()
    _forking.clear()
    _one_fork.release()


@atexit.register
def _at_exit() -> None:
    """While there is still an interpreter to abandon with what must not be closed."""
    for store in list(_STORES):
        if not store._holds_its_own():
            store._let_go()
        elif descriptors.is_any_deleted(store._writes_with) and store._writing.acquire(timeout=1):
            store._writing.release()
            store.close()
    for copies in _abandoned.values():
        for connection, _ in copies:
            descriptors.abandon(connection)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=lambda: _after_fork(child=False),
        after_in_child=lambda: _after_fork(child=True),
    )


def _identity(path: str) -> tuple[int, ...] | None:
    """Inode and device of the file that a path leads to, None if there is none."""
    try:
        return os.stat(path)[1:3]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BrokerUnavailable(f"{path} cannot be reached: {error.strerror}; nothing was stored, try again") from error
