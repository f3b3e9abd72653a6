"""Events tell what has happened, and cannot harm it."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from mouso import Mouso
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


def generator(event: Event) -> Iterator[Event]:
    yield event


REFUSED: list[tuple[Any, str]] = [
    (5, "the handler 5 of job.completed is no function"),
    (lambda: None, r"the handler <lambda> of job.completed does not take \(event\)"),
    (lambda event, more: None, r"the handler <lambda> of job.completed does not take \(event\)"),
    (generator, "the handler generator of job.completed is a generator"),
]


@pytest.mark.parametrize(("handler", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_told_an_event_is_refused_where_it_is_registered(handler: Any, words: str) -> None:
    app = Mouso("shop", "memory://events")
    with pytest.raises(ConfigError, match=words):
        app.on("job.completed")(handler)
    assert app.events.names == frozenset()


def test_a_handler_of_no_event_is_refused() -> None:
    app = Mouso("shop", "memory://events")
    with pytest.raises(
        ConfigError, match=r'app.on\(\) names no event; write @app.on\("job.dead"\), there are job.comp'
    ):
        app.on()(print)
    with pytest.raises(ConfigError, match=r"is no name of an event; write @app.on"):
        app.on(print)  # type: ignore[arg-type]  # why: the parentheses are easily forgotten
