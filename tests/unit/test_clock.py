"""Durations and instants: what a person may write, and the units inside."""

import time
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mouso.clock import MAX_SECONDS, SYSTEM, instant, millis, moment, seconds
from mouso.testing.clock import FakeClock


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (0, 0.0),
        (1.5, 1.5),
        ("90", 90.0),
        (" 2.5 ", 2.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("250ms", 0.25),
        ("90s", 90.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("1H30M", 5400.0),
        ("1.5h", 5400.0),
        ("2d", 172_800.0),
        ("1w", 604_800.0),
        (timedelta(minutes=1, microseconds=1), 60.000001),
        (MAX_SECONDS, MAX_SECONDS),
    ],
)
def test_a_duration_is_read_as_seconds(written: float | str | timedelta, meant: float) -> None:
    assert seconds(written) == meant
    assert isinstance(seconds(written), float)


@pytest.mark.parametrize(
    "written", [-1, -0.5, "-10", timedelta(days=-1), timedelta.min, pytest.param(-(10**400), id="huge")]
)
def test_a_negative_duration_counts_as_none(written: float | str | timedelta) -> None:
    assert seconds(written) == 0.0


@pytest.mark.parametrize(
    "written", ["", "soon", "10 m", "10x", "m", "1m-", "nan", "inf", "1_000", "١٢", "0x10", float("nan")]
)
def test_what_is_no_duration_is_refused_with_an_example(written: str | float) -> None:
    with pytest.raises(ValueError, match=r'delay=.* is no duration; write seconds or "90s", "10m"'):
        seconds(written, "delay")


@pytest.mark.parametrize(
    "written",
    [
        float("inf"),
        MAX_SECONDS + 1,
        1e308,
        pytest.param(10**400, id="400 digits"),
        pytest.param(10**5000, id="5000 digits"),
        pytest.param(2**5000, id="2**5000"),
        timedelta.max,
        "1e400",
        pytest.param("9" * 400 + "s", id="400 digits of seconds"),
        pytest.param(("9" * 308 + "s") * 3, id="a sum that overflows"),
        pytest.param("101w" * 100, id="many weeks"),
    ],
)
def test_a_duration_of_more_than_a_hundred_years_is_refused(written: float | str | timedelta) -> None:
    with pytest.raises(ValueError, match=r"delay=.* is longer than a hundred years") as caught:
        seconds(written, "delay")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("written", [None, True, False, b"1", [1], object()])
def test_another_type_is_refused_by_its_name(written: object) -> None:
    with pytest.raises(ValueError, match=f"delay must be seconds.* not {type(written).__name__}"):
        seconds(written, "delay")  # type: ignore[arg-type]  # why: wrong on purpose


@given(st.integers(0, 10**9))
def test_whole_milliseconds_stay_what_they_are(ms: int) -> None:
    assert millis(ms / 1000) == ms
    assert millis(timedelta(milliseconds=ms)) == ms


@given(st.floats(0, MAX_SECONDS))
def test_milliseconds_are_never_less_than_what_was_asked_for(duration: float) -> None:
    assert duration - 1e-6 <= millis(duration) / 1000 < duration + 0.0011


@given(st.integers(0, 9_223_372_035_999))
def test_an_instant_survives_the_way_to_a_datetime_and_back(ms: int) -> None:
    assert instant(moment(ms)) == ms
    assert moment(ms).tzinfo is UTC


def test_an_instant_may_be_given_in_any_zone() -> None:
    utc = datetime(2030, 1, 1, 12, 0, 0, 123_000, tzinfo=UTC)
    assert instant(utc) == 1_893_499_200_123
    assert instant(utc.astimezone(ZoneInfo("Asia/Tokyo"))) == instant(utc)
    assert instant(utc.astimezone(timezone(timedelta(hours=-9, minutes=-30)))) == instant(utc)


def test_an_instant_may_be_a_unix_timestamp() -> None:
    assert instant(1_893_499_200) == 1_893_499_200_000
    assert instant(1_893_499_200.123) == 1_893_499_200_123


def test_the_doubled_hour_of_a_zone_is_told_apart() -> None:
    paris = ZoneInfo("Europe/Paris")
    first = datetime(2030, 10, 27, 2, 30, tzinfo=paris)
    second = first.replace(fold=1)
    assert instant(second) - instant(first) == 3_600_000


class NoOffset(tzinfo):
    def utcoffset(self, moment: datetime | None, /) -> None: ...
    def dst(self, moment: datetime | None, /) -> None: ...
    def tzname(self, moment: datetime | None, /) -> None: ...


@pytest.mark.parametrize("naive", [datetime(2030, 1, 1), datetime(2030, 1, 1, tzinfo=NoOffset())])
def test_a_naive_datetime_is_refused_with_the_remedy(naive: datetime) -> None:
    with pytest.raises(ValueError, match=r"eta=2030-01-01T00:00:00 has no time zone; use datetime.now\(timezone.utc\)"):
        instant(naive)


@pytest.mark.parametrize(
    "value",
    [
        datetime.min.replace(tzinfo=UTC),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
        datetime.max.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))),
        datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC),
        -1,
        float("nan"),
        float("inf"),
        1e308,
        pytest.param(10**400, id="400 digits"),
        pytest.param(10**5000, id="5000 digits"),
    ],
)
def test_an_instant_outside_1970_to_2262_is_refused(value: datetime | float) -> None:
    with pytest.raises(ValueError, match=r"eta=.* lies outside the years 1970 to 2262"):
        instant(value)


@pytest.mark.parametrize("value", [None, True, "2030-01-01", timedelta(1)])
def test_what_is_no_instant_is_refused_by_its_type(value: object) -> None:
    with pytest.raises(ValueError, match=f"eta must be an aware datetime, not {type(value).__name__}"):
        instant(value)  # type: ignore[arg-type]  # why: wrong on purpose


def test_the_wall_clock_counts_milliseconds_since_the_epoch() -> None:
    before = time.time() * 1000
    now = SYSTEM.now()
    assert before - 1 <= now <= time.time() * 1000 + 1


def test_steady_time_and_monotonic_time_do_not_run_backwards() -> None:
    assert SYSTEM.steady() <= SYSTEM.steady()
    assert SYSTEM.monotonic() <= SYSTEM.monotonic()


def test_a_test_moves_all_clocks_or_the_wall_clock_alone() -> None:
    clock = FakeClock(now=1000)
    clock.advance(1.5)
    clock.jump(-2)
    assert (clock.now(), clock.monotonic()) == (500, 1001.5)


def test_a_moment_beyond_all_datetimes() -> None:
    assert [moment(ms).year for ms in (2**63 - 1, -(2**63), 0)] == [9999, 1, 1970]
