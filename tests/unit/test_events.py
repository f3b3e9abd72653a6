"""Events tell what has happened, and cannot harm it."""

import logging

import pytest

from mouso.errors import ConfigError
from mouso.events import EVENTS, Event, EventBus

DEAD = Event("job.dead", "w1", job_id="a", task="shop.add", reason="attempts")


def test_a_handler_hears_its_event_and_no_other() -> None:
    bus, heard = EventBus(), list[Event]()
    bus.add("job.dead", heard.append)
    bus.emit(DEAD)
    bus.emit(Event("job.completed", "w1"))
    assert heard == [DEAD]


def test_handlers_are_called_in_the_order_of_registration() -> None:
    bus, heard = EventBus(), list[int]()
    for number in (1, 2, 3):
        bus.add("job.dead", lambda event, number=number: heard.append(number))  # type: ignore[misc]  # why: a default
    bus.emit(DEAD)
    assert heard == [1, 2, 3]


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_a_handler_that_raises_is_logged_and_the_others_still_hear(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    bus, heard = EventBus(), list[Event]()

    def broken(event: Event) -> None:
        raise error("a bug in the handler")

    bus.add("job.dead", broken)
    bus.add("job.dead", heard.append)
    with caplog.at_level(logging.ERROR, "mouso.events"):
        bus.emit(DEAD)
    assert heard == [DEAD]
    assert "broken" in caplog.text
    assert "a bug in the handler" in caplog.text


def test_an_event_that_nobody_wants_is_no_error() -> None:
    EventBus().emit(DEAD)


def test_the_bus_knows_which_events_are_wanted() -> None:
    bus = EventBus()
    assert bus.names == frozenset()
    bus.add("worker.lost", print)
    assert bus.names == {"worker.lost"}


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_can_be_asked_for(name: str) -> None:
    EventBus().add(name, print)


def test_an_unknown_event_is_refused_with_the_closest_name() -> None:
    with pytest.raises(ConfigError, match=r"no event is called 'job\.complete'; did you mean 'job\.completed'\?"):
        EventBus().add("job.complete", print)
    with pytest.raises(ConfigError, match=r"no event is called ''; there are job\.completed, job\.failed"):
        EventBus().add("", print)
