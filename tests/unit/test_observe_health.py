"""Paths, methods and addresses of the health server; its sockets are in tests/integration."""

import json
import logging
from collections.abc import Callable

import pytest

from mouso.clock import SYSTEM
from mouso.errors import ConfigError
from mouso.observe.health import HealthServer, parse_address


def server(live: str = "", ready: str = "", metrics: Callable[[], str] = lambda: "mouso_slots 8\n") -> HealthServer:
    return HealthServer([], lambda: live, lambda: ready, metrics)


def test_a_worker_that_is_well() -> None:
    well = server()
    for path, body in (("/live", {"live": True}), ("/ready", {"ready": True})):
        answer = well.answer("GET", path)
        assert (answer.status, answer.kind) == (200, "application/json")
        assert json.loads(answer.body) == body
    answer = well.answer("GET", "/metrics")
    assert (answer.status, answer.kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert answer.body == b"mouso_slots 8\n"


def test_a_worker_that_is_not_says_why() -> None:
    unwell = server(live="the pump stands still", ready='the broker is "away"')
    assert unwell.answer("GET", "/live").status == 503
    answer = unwell.answer("GET", "/ready")
    assert answer.status == 503
    assert json.loads(answer.body) == {"ready": False, "reason": 'the broker is "away"'}


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("HEAD", "/live", 200),
        ("GET", "/live?verbose=1", 200),
        ("GET", "http://worker:9808/ready", 200),
        ("GET", "/", 404),
        ("GET", "/live/", 404),
        ("GET", "//live", 404),
        ("GET", "/LIVE", 404),
        ("GET", "/%6cive", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/metrics\x00", 404),
        ("GET", "", 404),
        ("POST", "/live", 405),
        ("DELETE", "/nothing", 405),
        ("get", "/live", 405),
        ("OPTIONS", "*", 405),
    ],
)
def test_only_what_is_there_is_answered(method: str, target: str, status: int) -> None:
    assert server().answer(method, target).status == status


def test_nothing_of_a_request_comes_back() -> None:
    for method, target in (("GET", "/<script>"), ("<script>", "/live")):
        assert b"<script>" not in server().answer(method, target).body


def test_a_fault_of_ours_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> str:
        raise RuntimeError("boom")

    with caplog.at_level(logging.ERROR, "mouso"):
        answers = [server_.answer("GET", "/metrics") for server_ in [server(metrics=broken)] for _ in range(3)]
    assert [answer.status for answer in answers] == [500, 500, 500]
    assert caplog.text.count("/metrics cannot be answered") == 1
    assert all(b"boom" not in answer.body for answer in answers)


def test_metrics_are_put_together_twice_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now, rendered = [100.0], []

    def metrics() -> str:
        rendered.append(now[0])
        return f"{len(rendered)}\n"

    monkeypatch.setattr(SYSTEM, "monotonic", lambda: now[0])
    made = server(metrics=metrics)
    bodies = []
    for step in range(11):
        now[0] = 100 + step / 10
        bodies.append(made.answer("GET", "/metrics").body)
    assert rendered == [100.0, 100.5, 101.0]
    assert bodies == [b"1\n"] * 5 + [b"2\n"] * 5 + [b"3\n"]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9808", "127.0.0.1", 9808),
        ("localhost:0", "localhost", 0),
        ("[::1]:9808", "::1", 9808),
        ("0.0.0.0:65535", "0.0.0.0", 65535),
        ("worker-1.shop.svc:80", "worker-1.shop.svc", 80),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_address(text) == (host, port)
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "write for example 127.0.0.1:9808"),
        ("9808", "write for example 127.0.0.1:9808"),
        (":9808", "or 0.0.0.0:9808 for every interface"),
        ("127.0.0.1", "write for example 127.0.0.1:9808"),
        ("127.0.0.1:", "the port is a number from 0 to 65535"),
        ("127.0.0.1:http", "the port is a number"),
        ("127.0.0.1:-1", "the port is a number"),
        ("127.0.0.1:65536", "the port is a number"),
        ("127.0.0.1:" + "9" * 5000, "the port is a number"),
        ("127.0.0.1:٣", "the port is a number"),
        ("127.0.0.1: 80", "the port is a number"),
        ("::1:9808", "as in [::1]:9808"),
        ("http://127.0.0.1:9808", "as in [::1]:9808"),
        ("user@host:9808", "write for example"),
        ("host/path:9808", "write for example"),
        ("a b:9808", "write for example"),
        ("h\x00st:9808", "write for example"),
        ("höst:9808", "write for example"),
        ("x" * 300 + ":9808", "write for example"),
        ("\udcff:9808", "write for example"),
    ],
    ids=ascii,
)
def test_what_is_no_address(text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    message = str(caught.value)
    assert "is no HOST:PORT" in message
    assert hint in message
    assert message.isprintable()
    assert len(message) < 300
