"""What the notifier takes from its environment."""

import logging
import os

import pytest

from mouso.observe.notify import Notifier


def made(**variables: str) -> tuple[Notifier, dict[str, str]]:
    environment = {"HOME": "/", **variables}
    notifier = Notifier.from_environment(environment)
    notifier.close()
    return notifier, environment


def test_without_a_socket_nobody_is_told() -> None:
    notifier, _ = made()
    assert not notifier.active
    assert notifier.interval is None
    notifier.ready()
    notifier.status("fine")
    notifier.tick()
    notifier.stopping()
    notifier.close()


def test_the_variables_are_taken_out() -> None:
    _, environment = made(NOTIFY_SOCKET="/run/x", WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize(
    ("variables", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "٣"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
        ({"WATCHDOG_USEC": "9" * 19}, 9999999999999999999 / 2e6),
        ({"WATCHDOG_USEC": "1"}, 0.01),
    ],
)
def test_half_of_the_watchdogs_time(variables: dict[str, str], interval: float | None) -> None:
    assert made(NOTIFY_SOCKET="@x", **variables)[0].interval == interval


@pytest.mark.parametrize("value", ["-1", "soon", "1e6", "1.5", "٣", " ", "9" * 5000, "\udcff"])
def test_a_time_that_is_none_is_named(value: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mouso"):
        made(NOTIFY_SOCKET="@x", WATCHDOG_USEC=value)
        made(NOTIFY_SOCKET="@x", WATCHDOG_USEC=value, WATCHDOG_PID="1")  # which is for somebody else
    assert [record.getMessage() for record in caplog.records] == [
        f"WATCHDOG_USEC {value!r:.80} is no number of microseconds; there is no watchdog"
    ]


@pytest.mark.parametrize("address", ["vsock:2:1234", "run/notify", "@", "/", " "])
def test_an_address_of_another_kind_is_named(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mouso"):
        notifier, _ = made(NOTIFY_SOCKET=address)
    assert not notifier.active
    assert f"NOTIFY_SOCKET {address!r} is neither" in caplog.text


@pytest.mark.parametrize("address", ["/nowhere/at/all", "/" + "x" * 200, "@" + "x" * 200])
def test_a_manager_that_is_gone_does_no_harm(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once: a worker that the manager takes for not ready has to say why."""
    notifier = Notifier(address)
    with caplog.at_level(logging.WARNING, "mouso"):
        notifier.ready()
        notifier.tick()
    notifier.close()
    assert caplog.text.count("does not answer") == 1
