"""What the server's errors mean: what became of the statement, and the error of ours to raise.

A verb is one statement that commits by itself. When the server answers with an error it was undone; when the connection
is lost after it was sent, nobody knows. An administrator's shutdown counts as a lost connection: with synchronous
replication the server may say so of what is committed.
"""

from __future__ import annotations

from psycopg import pq

from mouso.config import one_line

_LATER = {
    "40001": "a serialization failure",
    "40P01": "a deadlock",
    "55P03": "a lock was not to be had",
    "57014": "the statement was cancelled",
    "25006": "it is read-only, such as a standby",
    "25P03": "a transaction was idle for too long",
    "53100": "its disk is full",
    "53200": "it has no memory left",
    "53300": "it has too many connections",
    "53400": "a limit of its configuration is reached",
    "58030": "it cannot read or write its files",
}
"""Errors that end by themselves, or when somebody has helped the server."""
_LOST = ("57P01", "57P02", "57P03", "57P04", "57P05", "08")
_RIGHTS = ("28", "42501")
_UNPREPARED = ("26000", "42P05", "0A000")
_FOREIGN = ("3F000", "42P01", "42883", "42703", "42804", "3D000")
_REFUSED = (
    "authentication failed",
    "pg_hba.conf",
    "does not exist",
    "no password supplied",
    "permission denied",
    "is not permitted to log in",
    "no such database",
    "no such user",
    "certificate",
    "invalid connection option",
    "invalid URI",
    "SSL was required",
    "server does not support SSL",
    "unsupported startup parameter",
)


class Refusal(Exception):
    """The server answered with an error, and the statement was undone.

    Attributes:
        code: The five characters of its SQLSTATE.
        why: What it said, in one line.
    """

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why

    @property
    def later(self) -> bool:
        """Whether trying again may help."""
        return self.code in _LATER

    @property
    def lost(self) -> bool:
        """Whether it ended the connection, and it is not certain that nothing was done."""
        return self.code.startswith(_LOST)

    @property
    def unprepared(self) -> bool:
        """Whether a prepared statement is not what it was: another session, or another function behind its name."""
        return self.code in _UNPREPARED

    @property
    def rights(self) -> bool:
        """Whether the role lacks a right."""
        return self.code.startswith(_RIGHTS)

    @property
    def foreign(self) -> bool:
        """Whether something is not there that every store has."""
        return self.code in _FOREIGN


class Lost(Exception):
    """The connection failed, or the deadline passed."""


def refusal(result: pq.abc.PGresult) -> Refusal:
    """The error in a result."""
    code = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"XX000").decode()
    said = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace")
    why = one_line(Exception(said or "an error without a text"))
    return Refusal(code, f"{_LATER[code]} ({why})" if code in _LATER else why)


def refuses_for_good(message: str) -> bool:
    """Whether a connection was refused in a way that waiting does not change. The client library tells no code."""
    lasting = "could not translate host name" not in message and "starting up" not in message
    return lasting and any(words in message for words in _REFUSED)
