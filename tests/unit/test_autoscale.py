"""When a worker gets one child more, or one less."""

import itertools
from pathlib import Path

import pytest

from mouso.worker import Scaling, cpus
from mouso.worker.autoscale import Decision, View, decide

MIB = 1 << 20
SCALING = Scaling()
HUNGRY = View(2, 1, 4, full=5.0, waited=5.0, settled=60.0)
"""All slots are taken and jobs wait: one more is wanted."""
SATED = View(2, 1, 4, calm=60.0, settled=60.0)
"""One less would do."""


def size(view: View, scaling: Scaling = SCALING) -> int:
    return decide(view, scaling).size


# -- one more


def test_one_more_when_jobs_wait_for_slots() -> None:
    assert decide(HUNGRY, SCALING) == Decision(3, "all slots are taken, and the oldest job has waited 5.0 s")


@pytest.mark.parametrize(
    "changed",
    [
        {"full": 0.0},
        {"full": 0.99},
        {"waited": 0.0},
        {"waited": 0.99},
        {"settled": 0.0},
        {"settled": 2.99},
        {"starting": True},
        {"size": 4},
    ],
)
def test_none_is_started_without_need_or_too_soon(changed: dict[str, float]) -> None:
    view = HUNGRY._replace(**changed)  # type: ignore[arg-type]  # why: the values differ in type
    assert decide(view, SCALING) == Decision(view.size)


@pytest.mark.parametrize("field", ["full", "waited", "settled"])
def test_the_thresholds_are_met_exactly(field: str) -> None:
    exact = {"full": SCALING.wait, "waited": SCALING.wait, "settled": SCALING.step}[field]
    assert size(HUNGRY._replace(**{field: exact})) == 3  # type: ignore[arg-type]  # why: the name is not known here


@pytest.mark.parametrize(("pressure", "grown"), [(0.0, True), (0.4, True), (0.41, False), (1.0, False)])
def test_none_is_started_when_the_cpus_are_short(pressure: float, grown: bool) -> None:
    decision = decide(HUNGRY._replace(pressure=pressure), SCALING)
    assert decision.size == (3 if grown else 2)
    if not grown:
        assert decision.why == f"jobs wait, but so they do for CPUs: {pressure:.0%} of the time"


@pytest.mark.parametrize(
    ("available", "total", "largest", "grown"),
    [
        (1000, 10_000, 100, True),  # 880 are left, 500 are to be
        (620, 10_000, 100, True),  # exactly 500 are left
        (619, 10_000, 100, False),
        (500, 10_000, 0, True),
        (499, 10_000, 0, False),
        (0, 10_000, 0, False),
        (0, 0, 100, True),  # nobody can tell
    ],
)
def test_none_is_started_when_there_is_no_memory_for_it(available: int, total: int, largest: int, grown: bool) -> None:
    view = HUNGRY._replace(memory=(available * MIB, total * MIB), largest=largest * MIB)
    decision = decide(view, SCALING)
    assert decision.size == (3 if grown else 2)
    if not grown:
        assert f"{available:,} MiB of memory are too few for one more of {largest * 1.2:,.0f} MiB" in decision.why


def test_shortage_is_no_reason_without_need() -> None:
    short = HUNGRY._replace(pressure=1.0, memory=(0, MIB))
    assert decide(short._replace(full=0.0), SCALING) == Decision(2)
    assert decide(short._replace(size=4), SCALING) == Decision(4)
    assert decide(short._replace(full=0.0, calm=60.0), SCALING).size == 1


# -- one less


def test_one_less_when_fewer_have_been_enough() -> None:
    assert decide(SATED, SCALING) == Decision(1, "one less has been enough for 60 s")


@pytest.mark.parametrize(
    "changed", [{"calm": 0.0}, {"calm": 29.9}, {"settled": 0.0}, {"starting": True}, {"size": 1}, {"least": 2}]
)
def test_none_ends_too_soon_or_below_the_least(changed: dict[str, float]) -> None:
    view = SATED._replace(**changed)  # type: ignore[arg-type]  # why: the values differ in type
    assert decide(view, SCALING) == Decision(view.size)


# -- both


def test_always_between_the_least_and_the_most_and_one_step_at_a_time() -> None:
    seconds = (0.0, 0.5, 1.0, 3.0, 30.0, 1000.0)
    shortages = (0.0, 0.4, 0.5, 1.0)
    for least, extra, now in itertools.product((1, 2, 3), (0, 1, 3), (1, 2, 3, 4, 7)):
        most = least + extra
        for full, waited, calm, pressure, starting in itertools.product(seconds, seconds, seconds, shortages, (0, 1)):
            view = View(now, least, most, bool(starting), full, waited, calm, 1000.0, pressure)
            found, why = decide(view, SCALING)
            assert abs(found - now) <= 1
            assert bool(why) or found == now, "every change has its reason"
            if least <= now <= most:
                assert least <= found <= most
            else:
                assert abs(found - (least if now < least else most)) < abs(now - (least if now < least else most))


@pytest.mark.parametrize("concurrency", [1, 2, 8])
def test_it_does_not_go_to_and_fro(concurrency: int) -> None:
    """What makes one more necessary does not make one less enough afterwards, and the other way round."""
    scaling = SCALING
    for now in range(1, 20):
        for taken in range(now * concurrency + 1):
            enough = taken <= (now - 1) * concurrency * scaling.fill
            if enough and now > 1:
                assert taken < (now - 1) * concurrency, "one less would be full at once"
            if taken == now * concurrency:
                grown = now + 1
                assert taken > (grown - 1) * concurrency * scaling.fill, "the new one would not be needed"


# -- the CPUs


def pressures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, load: float = 0.0) -> float:
    file = tmp_path / "cpu"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(cpus, "_PRESSURE", file)
    monkeypatch.setattr(cpus, "usable_cpus", lambda: 4)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    return cpus.pressure()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("some avg10=0.00 avg60=9.00 avg300=9.00 total=1\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=0\n", 0.0),
        ("some avg10=41.50 avg60=0.00 avg300=0.00 total=1\n", 0.415),
        ("some avg10=100.00 avg60=0.00 avg300=0.00 total=1\n", 1.0),
        ("some avg10=7 avg60=0\n", 0.07),
    ],
)
def test_pressure_as_the_kernel_tells_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, expected: float
) -> None:
    assert pressures(monkeypatch, tmp_path, text, load=400.0) == pytest.approx(expected)


@pytest.mark.parametrize("text", [None, "", "what is this?\n", "full avg10=50.00 avg60=0.00 avg300=0.00 total=0\n"])
@pytest.mark.parametrize(("load", "expected"), [(0.0, 0.0), (2.0, 0.0), (4.0, 0.0), (8.0, 0.5), (40.0, 0.9)])
def test_pressure_by_the_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, load: float, expected: float
) -> None:
    assert pressures(monkeypatch, tmp_path, text, load) == pytest.approx(expected)


def test_pressure_of_this_machine() -> None:
    assert 0.0 <= cpus.pressure() <= 1.0
    assert cpus.usable_cpus() >= 1
