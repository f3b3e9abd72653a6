"""A hundred pages of a slow server, each fetched by a coroutine job: together they take about as long as one."""

import asyncio
import time

from mouso import Mouso

app = Mouso("async_pages")

PAGES = 100
DELAY = 0.3


@app.task(timeout="10s", retry_on=(OSError,))
async def fetch(port: int, number: int) -> int:
    """Returns the length of a page."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET /{number} HTTP/1.0\r\n\r\n".encode())
        await writer.drain()
        return len((await reader.read()).partition(b"\r\n\r\n")[2])
    finally:
        writer.close()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that takes its time."""
    number = int((await reader.readline()).split()[1].lstrip(b"/"))
    await asyncio.sleep(DELAY)
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * number)
    await writer.drain()
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=PAGES)
    async with server:
        port = server.sockets[0].getsockname()[1]
        started = time.monotonic()
        jobs = await fetch.amap((port, number) for number in range(PAGES))
        lengths = await asyncio.gather(*(job.aget(timeout=30) for job in jobs))
        print(f"{len(lengths)} pages, {sum(lengths)} bytes")
        print(f"{time.monotonic() - started:.1f} s in place of {PAGES * DELAY:.0f} s one after the other")


if __name__ == "__main__":
    asyncio.run(main())
