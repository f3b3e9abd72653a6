"""A licence service, and how a job asks it: the part of the demo that fails now and then, as services do.

The service is a small HTTP server on the loopback interface: ``GET /licence?path=…`` answers with the name of the
licence under which a file stands, as the file itself or the nearest LICENSE file says. About one file in twelve it
refuses at first with ``503 Service Unavailable``: that job fails, waits its back-off, and is run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import zlib
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote, urlsplit

from mouso.demo.source import Unreadable, read_file

BUSY_SHARE = 12
"""One file in so many is refused at first."""
UNKNOWN = "not stated"

_TIMEOUT = 5.0
_HEAD = 4096
_LONGEST_REQUEST = 16 << 10
_SPDX = re.compile(rb"SPDX-License-Identifier:\s*([\w.+() -]{1,80})")
_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENSE.rst", "LICENCE", "LICENCE.txt", "COPYING", "COPYING.txt")
_WORDING = (
    (b"python software foundation", "PSF-2.0"),
    (b"apache license", "Apache-2.0"),
    (b"mozilla public license", "MPL"),
    (b"gnu lesser general public", "LGPL"),
    (b"gnu affero general public", "AGPL"),
    (b"gnu general public", "GPL"),
    (b"permission is hereby granted, free of charge", "MIT"),
    (b"redistribution and use in source and binary forms", "BSD"),
    (b"permission to use, copy, modify, and/or distribute", "ISC"),
    (b"free and unencumbered software", "Unlicense"),
)


class LicenceServiceBusy(Exception):
    """The service answered 503; it will work in a moment."""


def ask(address: str, path: str) -> str:
    """Asks the service at ``host:port`` for the licence of a file.

    Raises:
        LicenceServiceBusy: It has no time right now.
        OSError, http.client.HTTPException: It cannot be reached, or does not speak HTTP.
    """
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT)
    with contextlib.closing(connection):
        connection.request("GET", f"/licence?path={quote(path)}")
        response = connection.getresponse()
        text = response.read(1000).decode("utf-8", "replace").strip()
    if response.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        raise LicenceServiceBusy(f"the licence service answered 503: {text}")
    if response.status != http.HTTPStatus.OK:
        raise http.client.HTTPException(f"the licence service answered {response.status}: {text}")
    return text


def is_refused_at_first(path: str) -> bool:
    """Whether the service refuses the first request for this file."""
    return zlib.crc32(path.encode("utf-8", "surrogateescape")) % BUSY_SHARE == 0


class LicenceService:
    """The server, while the ``async with`` block lasts.

    Args:
        root: It answers for files below this folder only.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._refused: set[str] = set()
        self._folders: dict[Path, str] = {}
        self._server: asyncio.Server
        self._conversations: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._converse, "127.0.0.1", 0, limit=_LONGEST_REQUEST)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._conversations:
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def address(self) -> str:
        """``host:port``."""
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        try:
            async with asyncio.timeout(_TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
                status, text = self._answer(head.split(b"\r\n", 1)[0].decode("latin-1"))
                writer.write(_response(status, text))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # not our client, or one that went away
        finally:
            self._conversations.discard(task)
            writer.close()

    def _answer(self, request: str) -> tuple[http.HTTPStatus, str]:
        method, _, rest = request.partition(" ")
        url = urlsplit(rest.partition(" ")[0])
        path = parse_qs(url.query).get("path", [""])[0]
        if method != "GET" or url.path != "/licence" or not Path(path).is_relative_to(self._root):
            return http.HTTPStatus.NOT_FOUND, f"ask for /licence?path= of a file below {self._root}"
        if is_refused_at_first(path) and path not in self._refused:
            self._refused.add(path)
            return http.HTTPStatus.SERVICE_UNAVAILABLE, "too many requests, try again in a moment"
        return http.HTTPStatus.OK, self.licence_of(Path(path))

    def licence_of(self, path: Path) -> str:
        """The licence that the file states, else that of its folder."""
        with contextlib.suppress(Unreadable, OSError):
            if found := _SPDX.search(read_file(str(path), _HEAD)):
                return found[1].decode("ascii", "replace").strip()
        return self._licence_in(path.parent)

    def _licence_in(self, folder: Path) -> str:
        """The licence that holds in a folder: its own, or that of the nearest folder above it."""
        known = self._folders.get(folder)
        if known is None:
            known = _read_licence(folder)
            if not known:
                end = folder.parent == folder or (folder / ".git").exists()
                known = UNKNOWN if end else self._licence_in(folder.parent)
            self._folders[folder] = known
        return known


def _response(status: http.HTTPStatus, text: str) -> bytes:
    body = text.encode() + b"\n"
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join([*lines, "", ""]).encode() + body


def _read_licence(folder: Path) -> str:
    for name in _NAMES:
        with contextlib.suppress(Unreadable, OSError):
            words = b" ".join(read_file(str(folder / name), 4 * _HEAD).lower().split())
            return next((licence for phrase, licence in _WORDING if phrase in words), "other")
    return ""
