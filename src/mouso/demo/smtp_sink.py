"""An SMTP server that takes every mail and puts it into a folder; nothing is sent on.

It speaks what RFC 5321 asks of every server (EHLO, HELO, MAIL, RCPT, DATA, RSET, NOOP, VRFY, QUIT), and 8BITMIME,
SIZE and PIPELINING. A mail becomes ``<its Message-ID>.eml``: a sender that delivers at least once may well deliver
twice, and then the second replaces the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.parser
import email.policy
import hashlib
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Self

MOST_BYTES = 32 << 20

_TIMEOUT = 300.0
_LONGEST_LINE = 64 << 10
_MOST_RECIPIENTS = 100
_HOST = "mouso-demo.localhost"
_PATH = re.compile(r"(?:FROM|TO):\s*<([^<>\s]*)>((?:\s+\S+)*)\s*", re.IGNORECASE)


class SmtpSink:
    """The server, while the ``async with`` block lasts.

    Args:
        folder: Where the mails go; made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: asyncio.Server
        self._sessions: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_LONGEST_LINE)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._sessions:
            task.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def address(self) -> str:
        """``host:port``."""
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        try:
            await Session(reader, writer, self._folder).run()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client went away, with or without a word
        finally:
            self._sessions.discard(task)
            writer.close()


class Session:
    """One conversation: a state machine from greeting to QUIT."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, folder: Path) -> None:
        self._reader = reader
        self._writer = writer
        self._folder = folder
        self._greeted = False
        self._sender: str | None = None
        self._recipients: list[str] = []

    async def run(self) -> None:
        """Answers commands until the client says QUIT."""
        await self._say(f"220 {_HOST} ESMTP")
        while True:
            try:
                line = await self._line()
            except asyncio.LimitOverrunError:
                await self._say("500 line too long")
                return
            verb, _, rest = line.rstrip(b"\r\n").decode("utf-8", "replace").partition(" ")
            match verb.upper():
                case "QUIT":
                    await self._say("221 bye")
                    return
                case "DATA":
                    await self._data()
                case verb:
                    await self._say(self._answer(verb, rest))

    def _answer(self, verb: str, rest: str) -> str:
        match verb:
            case "HELO" | "EHLO" if not rest.strip():
                return "501 say who you are"
            case "HELO":
                self._reset(greeted=True)
                return f"250 {_HOST}"
            case "EHLO":
                self._reset(greeted=True)
                return f"250-{_HOST}\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE {MOST_BYTES}"
            case "MAIL":
                return self._mail(rest)
            case "RCPT":
                return self._recipient(rest)
            case "RSET":
                self._reset(greeted=self._greeted)
                return "250 forgotten"
            case "NOOP":
                return "250 nothing done"
            case "VRFY":
                return "252 send it, and it will be taken"
            case _:
                return "500 no such command"

    def _reset(self, *, greeted: bool) -> None:
        self._greeted, self._sender, self._recipients = greeted, None, []

    def _mail(self, rest: str) -> str:
        if not self._greeted:
            return "503 say EHLO first"
        if self._sender is not None:
            return "503 a mail is under way; say RSET to give it up"
        found = _PATH.fullmatch(rest) if rest.upper().startswith("FROM:") else None
        if found is None:
            return "501 write MAIL FROM:<address>"
        size = re.search(r"\bSIZE=(\d{1,20})\b", found[2], re.IGNORECASE)
        if size and int(size[1]) > MOST_BYTES:
            return f"552 larger than {MOST_BYTES} bytes"
        self._sender = found[1]
        return "250 sender noted"

    def _recipient(self, rest: str) -> str:
        if self._sender is None:
            return "503 say MAIL first"
        found = _PATH.fullmatch(rest) if rest.upper().startswith("TO:") else None
        if found is None or not found[1]:
            return "501 write RCPT TO:<address>"
        if len(self._recipients) >= _MOST_RECIPIENTS:
            return "452 too many recipients"
        self._recipients.append(found[1])
        return "250 recipient noted"

    async def _data(self) -> None:
        if not self._recipients:
            await self._say("503 say RCPT first")
            return
        await self._say("354 end with a dot on a line of its own")
        content: list[bytes] = []
        size, begins = 0, True
        while (line := await self._line(whole=False)) != b".\r\n" or not begins:
            size += len(line)
            if size <= MOST_BYTES:
                content.append(line[1:] if begins and line.startswith(b".") else line)
            begins = line.endswith(b"\r\n")
        if size > MOST_BYTES:
            answer = f"552 larger than {MOST_BYTES} bytes"
        else:
            try:
                answer = f"250 kept as {await asyncio.to_thread(self._keep, b''.join(content))}"
            except OSError as error:
                answer = f"452 it cannot be kept: {error.strerror}"
        self._reset(greeted=True)
        await self._say(answer)

    async def _line(self, *, whole: bool = True) -> bytes:
        """The next line with its CRLF; with ``whole=False`` too long a one comes in pieces.

        A lone CR or LF ends nothing: a server that thought otherwise could be made to see two mails in one.
        """
        async with asyncio.timeout(_TIMEOUT):
            try:
                return await self._reader.readuntil(b"\r\n")
            except asyncio.LimitOverrunError as error:
                if whole:
                    raise
                return await self._reader.readexactly(max(error.consumed, 1))

    def _keep(self, content: bytes) -> str:
        """Stores a mail, whole or not at all; returns the file's name."""
        headers = email.parser.BytesHeaderParser(policy=email.policy.compat32).parsebytes(content)
        identity = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(headers.get("Message-ID", ""))).strip("-.")[:100]
        name = f"{identity or hashlib.blake2b(content, digest_size=8).hexdigest()}.eml"
        envelope = f"Return-Path: <{self._sender}>\r\nDelivered-To: {', '.join(self._recipients)}\r\n"
        unfinished = self._folder / f".{name}-{os.getpid()}"
        try:
            unfinished.write_bytes(envelope.encode("utf-8", "replace") + content)
            unfinished.replace(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        return name

    async def _say(self, text: str) -> None:
        self._writer.write(text.encode() + b"\r\n")
        await self._writer.drain()
