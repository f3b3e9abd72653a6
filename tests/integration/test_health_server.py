"""The health server against real sockets: what clients do to it, and that it goes on."""

import asyncio
import contextlib
import http.client
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mouso.errors import ConfigError
from mouso.observe import health
from mouso.observe.health import Address, HealthServer, listen
from tests.stalls import elapsed
from tests.support import wait_until

PATIENCE = 1.0
"""Seconds that a connection gets here."""


class Served:
    """A server in a thread of its own, as it lives in a supervisor's loop."""

    def __init__(self) -> None:
        self.live = ""
        self.metrics = "mouso_slots 8\n"
        self.turns = 0
        self._sockets = listen(Address("127.0.0.1", 0))
        self.server = HealthServer(self._sockets, lambda: self.live, lambda: "", lambda: self.metrics)
        self.port = self.server.addresses[0].port
        self._ended = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),))
        self._thread.start()

    async def _run(self) -> None:
        self.server.start()
        while not self._ended.is_set():
            self.turns += 1
            await asyncio.sleep(0.005)
        self.server.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def ask(self, request: bytes, half_close: bool = False) -> bytes:
        """What comes back, until the server closes."""
        with self.connect() as sock:
            sock.sendall(request)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            return received(sock)

    def status(self, request: bytes) -> int:
        answer = self.ask(request)
        assert answer.startswith(b"HTTP/1.1 "), answer
        return int(answer.split()[1])

    def well(self) -> None:
        """It answers."""
        assert self.status(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n") == 200

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


def received(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65_536):
            data += part
    return data


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(health, "_PATIENCE", PATIENCE)
    with contextlib.closing(Served()) as made:
        yield made


GET = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_common_client_gets_its_answers(served: Served) -> None:
    base = f"http://127.0.0.1:{served.port}"
    with urllib.request.urlopen(f"{base}/live", timeout=10) as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
        assert response.read() == b'{"live": true}\n'
    with urllib.request.urlopen(f"{base}/metrics", timeout=10) as response:
        assert response.read() == b"mouso_slots 8\n"
    served.live = "the pump stands still"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{base}/live", timeout=10)
    with caught.value as error:
        assert error.code == 503
        assert error.read() == b'{"live": false, "reason": "the pump stands still"}\n'


def test_head_has_the_length_and_no_body(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.request("HEAD", "/metrics")
    response = connection.getresponse()
    assert (response.status, response.headers["Content-Length"], response.read()) == (200, "14", b"")
    connection.close()
    assert served.ask(b"HEAD /metrics HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")


def test_other_methods_are_told_which_there_are(served: Served) -> None:
    answer = served.ask(b"POST /live HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
    assert answer.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    assert b"\r\nAllow: GET, HEAD\r\n" in answer


def test_a_client_may_end_what_it_says_before_it_listens(served: Served) -> None:
    with served.connect() as sock:
        sock.sendall(b"POST /live HTTP/1.1\r\nContent-Length: 40000\r\n\r\n")
        wait_until(lambda: select.select([sock], [], [], 0)[0])  # it is answered already
        for _ in range(10):
            sock.sendall(b"x" * 4000)
            time.sleep(0.001)
        assert received(sock).startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /live HTTP/1.0\r\n\r\n", 200),
        (b"GET /live HTTP/1.1\n\n", 200),
        (b"GET /live HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n", 200),
        (b"GET /" + b"x" * 4000 + b" HTTP/1.1\r\n\r\n", 404),
        (b"GET /" + b"x" * 100_000, 431),
        (b"GET /live HTTP/1.1\r\n" + b"X: y\r\n" * 10_000, 431),
        (b"GET /live\r\n\r\n", 400),
        (b"GET /live HTTP/2.0\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32)).replace(b"\n", b" ") + b"\r\n\r\n", 400),
        (b"\x00" * 100 + b"\n\n", 400),
        (b"\xff\xfe /live HTTP/1.1\r\n\r\n", 405),
        (b"GET \xff\xfe HTTP/1.1\r\n\r\n", 404),
        (b"GET\t/live\tHTTP/1.1\r\n\r\n", 200),
    ],
    ids=lambda value: str(value)[:30],
)
def test_whatever_is_sent_is_answered(served: Served, request_: bytes, status: int) -> None:
    assert served.status(request_) == status
    served.well()


def test_a_request_may_come_in_pieces(served: Served) -> None:
    with served.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GET:
            sock.sendall(bytes([byte]))
        assert received(sock).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_client_that_has_said_all_is_answered(served: Served) -> None:
    assert served.ask(GET, half_close=True).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_connection_is_answered_once(served: Served) -> None:
    assert served.ask(GET * 3).count(b"HTTP/1.1") == 1


def test_a_client_that_goes_away(served: Served) -> None:
    for request in (b"", b"GET /li", GET, GET + b"x" * 1000):
        with served.connect() as sock:
            sock.sendall(request)
        with served.connect() as sock:
            sock.sendall(request)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
    served.well()


@pytest.mark.parametrize("request_", [b"", b"GET /live HTTP/1.1\r\n", GET], ids=["silent", "half", "lingers"])
def test_a_connection_that_stays_is_closed(served: Served, request_: bytes) -> None:
    with served.connect() as sock:
        sock.sendall(request_)
        began = time.monotonic()
        received(sock)  # to the end: after an answer that comes at once, else after its time
        assert elapsed(began) < PATIENCE + 5
        # And its last half too: what is sent from now on is refused.
        wait_until(lambda: refuses(sock), timeout=PATIENCE + 5)


def refuses(sock: socket.socket) -> bool:
    try:
        sock.send(b"x")
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def test_one_that_sends_without_end_is_cut_off(served: Served) -> None:
    with served.connect() as sock:
        sock.sendall(GET)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            sock.sendall(b"x" * (64 << 20))
    served.well()


def test_a_crowd_of_silent_ones_keeps_no_probe_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_PATIENCE", 60)  # longer than the probe waits: only the crowd itself can make room
    served.well()  # and its loop has opened what it needs
    before = descriptors()
    with contextlib.ExitStack() as crowd:
        for number in range(200):
            sock = crowd.enter_context(served.connect())
            sock.sendall(b"GET /live HTTP/1.1\r\nX: ")
            if number % 20 == 0:
                served.well()
        served.well()
        wait_until(lambda: descriptors() - before - 200 <= health._CROWD)
    served.well()


def test_one_that_does_not_read_holds_nobody_up(served: Served) -> None:
    served.metrics = "# " + "x" * (64 << 20) + "\n"
    with served.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        served.well()
        turns = served.turns
        wait_until(lambda: served.turns > turns + 5)
        wait_until(lambda: refuses(sock), timeout=PATIENCE + 5)
    served.well()


def test_a_large_page_arrives_whole(served: Served) -> None:
    served.metrics = "".join(f'mouso_x{{n="{n}"}} {n}\n' for n in range(200_000))
    with urllib.request.urlopen(f"http://127.0.0.1:{served.port}/metrics", timeout=30) as response:
        assert response.read().decode() == served.metrics


def test_a_flood_leaves_the_loop_its_turns(served: Served) -> None:
    ended = threading.Event()

    def flood() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError), served.connect() as sock:
                sock.sendall(GET)
                received(sock)

    threads = [threading.Thread(target=flood) for _ in range(8)]
    for thread in threads:
        thread.start()
    turns = served.turns
    try:
        wait_until(lambda: served.turns > turns + 50, message="the loop goes on")
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    served.well()


def test_close_ends_every_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served()
    with served.connect() as sock, served.connect() as other:
        sock.sendall(b"GET /li")
        served.well()
        served.close()
        assert received(sock) == b""
        assert received(other) == b""
    with pytest.raises(ConnectionRefusedError):
        served.connect()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- where it listens


@contextlib.contextmanager
def opened(host: str, port: int) -> Iterator[list[socket.socket]]:
    sockets = listen(Address(host, port))
    try:
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


def test_port_0_takes_any_that_is_free() -> None:
    with opened("127.0.0.1", 0) as (first,), opened("127.0.0.1", 0) as (second,):
        assert 0 < first.getsockname()[1] != second.getsockname()[1] > 0


def test_every_address_of_a_name_gets_the_same_port() -> None:
    with opened("localhost", 0) as sockets:
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        assert any(sock.getsockname()[0] == "127.0.0.1" for sock in sockets)


def test_ipv6() -> None:
    try:
        sockets = listen(Address("::1", 0))
    except ConfigError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    with contextlib.closing(sockets[0]) as sock:
        server = HealthServer([sock], str, str, str)
        assert str(server.addresses[0]).startswith("[::1]:")


def test_programs_that_jobs_start_do_not_inherit_the_port() -> None:
    with opened("127.0.0.1", 0) as (sock,):
        assert not os.get_inheritable(sock.fileno())


def test_a_port_in_use() -> None:
    with opened("127.0.0.1", 0) as (sock,):
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            listen(Address("127.0.0.1", port))
    assert str(caught.value) == (
        f"something else listens on 127.0.0.1:{port}; choose another port, or port 0 for any that is free"
    )


def test_a_port_is_free_again_at_once() -> None:
    """A worker that is restarted finds the connections of the one before it in TIME_WAIT."""
    served = Served()
    served.well()
    served.close()
    with opened("127.0.0.1", served.port):
        pass


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("203.0.113.1", "203.0.113.1:9808: this machine has no such address"),
        ("no-such-host.invalid", "the host of no-such-host.invalid:9808 is not known"),
        ("999.999.999.999", "is not known"),
        ("a..b", "is not known"),
    ],
)
def test_an_address_that_is_not_here(host: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        listen(Address(host, 9808))
    assert text in str(caught.value)
    assert "write for example 127.0.0.1:9808" in str(caught.value)


def test_a_privileged_port(tmp_path: Path) -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if lowest <= 80:
        pytest.skip("on this machine anybody may listen on port 80")
    program = (
        "import os\n"
        "from mouso.errors import ConfigError\n"
        "from mouso.observe.health import Address, listen\n"
        "'x'.encode('idna')\n"  # is imported when it is first used, where that user may not read
        "os.getuid() or os.setuid(65534)\n"
        "try: listen(Address('127.0.0.1', 80))\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "127.0.0.1:80: this user may not listen on port 80; choose one above 1023\n"
