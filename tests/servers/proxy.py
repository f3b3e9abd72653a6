"""A TCP proxy between Mouso and a server, which does what networks do: cut, swallow, delay, and end in the middle."""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_CHUNK = 65536


class Proxy:
    """Passes on what comes to its port.

    Attributes:
        port: Where it listens.
        swallow: Which bytes are lost: ``to`` the server, ``from`` it, or both; what is lost stays lost.
        delay: Seconds by which it passes on later.
        rate: Bytes a second that it passes on, each way of each connection; None for any number.
        cut_after: Bytes of replies after which it ends all connections, once.
    """

    def __init__(self, target: int) -> None:
        self.swallow: frozenset[str] = frozenset()
        self.delay = 0.0
        self.rate: int | None = None
        self.cut_after: int | None = None
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy")

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._call(self._stop)
        self._thread.join()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._writers) // 2

    def reset(self) -> None:
        """Ends all connections at once, as when a machine on the way forgets them."""
        self._call(self._reset)

    # -- in its thread

    def _call(self, step: Callable[[], object]) -> None:
        done = threading.Event()

        def run() -> None:
            try:
                step()
            finally:
                done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait()

    def _run(self) -> None:
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _stop(self) -> None:
        self._server.close()
        self._reset()
        self._loop.call_later(0.1, self._loop.stop)

    def _reset(self) -> None:
        for writer in list(self._writers):
            found: Any = writer.get_extra_info("socket")
            with suppress(OSError):  # it has ended meanwhile
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, back}
        self._writers |= both
        try:
            await asyncio.gather(self._pass(reader, back, "to"), self._pass(there, writer, "from"))
        finally:
            for each in both:
                each.transport.abort()
            self._writers -= both

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        try:
            while data := await reader.read(_CHUNK):
                if way in self.swallow:
                    continue
                if self.delay:
                    await asyncio.sleep(self.delay)
                if self.rate is not None:
                    await asyncio.sleep(len(data) / self.rate)
                if way == "from" and self.cut_after is not None:
                    data, self.cut_after = data[: self.cut_after], None
                    writer.write(data)
                    await writer.drain()
                    self._reset()
                    return
                writer.write(data)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
