"""Tells systemd, or whatever else speaks its protocol, how the worker is: ready, its status, alive, stopping.

Each message is one datagram to the socket that ``$NOTIFY_SOCKET`` names (sd_notify(3)). Without that variable nothing
is sent.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping

from mouso.config import printable

_STATUS = 500
_OFTEN = 0.01
"""Seconds: the shortest time between two ticks."""

log = logging.getLogger("mouso.worker")


class Notifier:
    """The worker's end of the protocol. No method waits, and none raises.

    Args:
        address: A path, or ``@name`` for an abstract socket; empty for nobody to tell.
        interval: Seconds between two ticks of the watchdog; None when there is no watchdog.
    """

    def __init__(self, address: str = "", interval: float | None = None) -> None:
        self.interval = interval
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._unsent: dict[str, str] = {}
        self._status = ""
        self._told = False
        if address:
            # Opened once: a worker that has run out of descriptors must still be able to say that it lives.
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] | None = None) -> Notifier:
        """Reads the variables and takes them out: programs that jobs start are not the service."""
        variables = os.environ if environment is None else environment
        address = variables.pop("NOTIFY_SOCKET", "")
        microseconds = variables.pop("WATCHDOG_USEC", "")
        pid = variables.pop("WATCHDOG_PID", "")
        if address and (address[0] not in "/@" or len(address) == 1):
            log.warning("NOTIFY_SOCKET %.80r is neither a path nor an abstract socket; nobody is notified", address)
            address = ""
        if not microseconds or pid not in ("", str(os.getpid())):
            return cls(address)
        if not (microseconds.isascii() and microseconds.isdecimal() and len(microseconds) < 20):
            log.warning("WATCHDOG_USEC %.80r is no number of microseconds; there is no watchdog", microseconds)
            return cls(address)
        interval = int(microseconds) / 2e6
        return cls(address, max(interval, _OFTEN) if interval else None)

    @property
    def active(self) -> bool:
        """Whether anybody is told."""
        return self._socket is not None

    def ready(self) -> None:
        """The worker serves."""
        self._send(READY="1")

    def status(self, text: str) -> None:
        """A short sentence for people; sent when it differs from the last one, or something is still unsent."""
        text = printable(text)[:_STATUS]
        if text != self._status or self._unsent:
            self._status = text
            self._send(STATUS=text)

    def tick(self) -> None:
        """The worker makes progress."""
        self._send(WATCHDOG="1")

    def stopping(self) -> None:
        """The worker has begun to stop."""
        self._send(STOPPING="1")

    def close(self) -> None:
        """Lets go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, **fields: str) -> None:
        if self._socket is None:
            return
        # What could not be sent goes with the next message: a READY must not get lost because a queue was full.
        self._unsent.update(fields)
        text = "\n".join(f"{name}={value}" for name, value in self._unsent.items())
        try:
            self._socket.sendto(text.encode("utf-8", "replace"), self._address)
        except OSError as error:
            self._unsent.pop("WATCHDOG", None)
            if not (self._told or isinstance(error, BlockingIOError)):
                self._told = True
                log.warning(
                    "the socket of NOTIFY_SOCKET, %.80r, does not answer (%s): the service manager does not hear of"
                    " this worker",
                    self._address, error.strerror,
                )  # fmt: skip
        else:
            self._told = False
            self._unsent.clear()
