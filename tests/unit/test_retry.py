"""What follows a failed attempt."""

import logging
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mouso import Retry, constant, exponential
from mouso.errors import OptionError
from mouso.retry import MAX_DELAY, Backoff, Decision, RetryPolicy, class_name, matches

STEADY = exponential(5, "1h", jitter=False)


class ShopError(Exception):
    class Nested(Exception): ...


class SoldOut(ShopError): ...


# -- back-off


def test_the_delay_doubles_from_its_base_to_its_cap() -> None:
    assert [STEADY.delay(n) for n in (1, 2, 3, 10, 11, 1_000_000)] == [5, 10, 20, 2560, 3600, 3600]


def test_the_default_is_five_seconds_doubling_to_an_hour_with_full_jitter() -> None:
    assert exponential() == Backoff(base=5, factor=2, cap=3600, jitter=1)
    assert RetryPolicy().backoff == exponential()
    assert RetryPolicy().attempts == 10


def test_full_jitter_spreads_the_delay_between_nothing_and_the_whole() -> None:
    delays = [exponential(8).delay(1) for _ in range(200)]
    assert all(0 <= delay <= 8 for delay in delays)
    assert len({int(delay) for delay in delays}) > 4


def test_a_constant_back_off_is_always_the_same() -> None:
    assert {constant("30s").delay(n) for n in (1, 2, 1_000_000)} == {30.0}
    assert constant(0).delay(5_000) == 0


def test_durations_may_be_text_or_timedelta() -> None:
    assert exponential("2s", timedelta(minutes=1), jitter=False).delay(99) == 60


@given(
    st.floats(0, 1e9),
    st.floats(1, 100),
    st.floats(0, 1e9),
    st.integers(1, 10**9) | st.just(2**5000),
)
def test_no_back_off_overflows(base: float, factor: float, cap: float, attempt: int) -> None:
    assert 0 <= exponential(base, cap, factor=factor).delay(attempt) <= cap


@pytest.mark.parametrize("factor", [0, 0.99, 101, -2, float("nan"), float("inf"), True, "2", None])
def test_a_factor_out_of_range_is_refused(factor: Any) -> None:
    with pytest.raises(OptionError, match=rf"factor={re.escape(repr(factor))} is out of range; use 1 to 100"):
        exponential(factor=factor)


@pytest.mark.parametrize("wrong", ["soon", None, True, float("nan"), timedelta.max])
def test_a_base_or_cap_that_is_no_duration_is_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match="base"):
        exponential(wrong)
    with pytest.raises(OptionError, match="cap"):
        exponential(5, wrong)


# -- decisions


def test_a_failure_is_retried_as_long_as_attempts_are_left() -> None:
    policy = RetryPolicy(attempts=3, backoff=STEADY)
    assert policy.decide(ValueError(), 1) == Decision(5.0, "")
    assert policy.decide(ValueError(), 2) == Decision(10.0, "")
    assert policy.decide(ValueError(), 3) == Decision(None, "attempts")
    assert policy.decide(ValueError(), 4) == Decision(None, "attempts")


def test_one_attempt_means_no_retry() -> None:
    assert RetryPolicy(attempts=1).decide(ValueError(), 1) == Decision(None, "attempts")


def test_the_last_attempt_that_timed_out_says_so() -> None:
    assert RetryPolicy(attempts=1).decide(TimeoutError(), 1, timed_out=True) == Decision(None, "timeout")


def test_only_what_retry_on_names_is_retried() -> None:
    policy = RetryPolicy(backoff=STEADY, retry_on=("OSError",))
    assert policy.decide(ConnectionResetError(), 1).delay == 5
    assert policy.decide(ValueError(), 1) == Decision(None, "not_retryable")


def test_nothing_is_retried_when_retry_on_is_empty() -> None:
    assert RetryPolicy(retry_on=()).decide(OSError(), 1) == Decision(None, "not_retryable")


def test_a_timeout_is_retried_whatever_retry_on_names() -> None:
    policy = RetryPolicy(backoff=STEADY, retry_on=("OSError",))
    assert policy.decide(RuntimeError(), 1, timed_out=True).delay == 5


def test_discard_on_wins_over_retry_on() -> None:
    policy = RetryPolicy(retry_on=("OSError",), discard_on=("ConnectionError",))
    assert policy.decide(ConnectionResetError(), 1) == Decision(None, "discarded")


def test_a_retry_that_the_task_asked_for_needs_no_permission() -> None:
    policy = RetryPolicy(attempts=2, backoff=STEADY, retry_on=("OSError",), discard_on=("Exception",))
    assert policy.decide(Retry(), 1) == Decision(5.0, "")
    assert policy.decide(Retry(), 2) == Decision(None, "attempts")


# -- back-off functions


def test_a_function_decides_by_exception_and_attempt() -> None:
    def backoff(error: BaseException, attempt: int) -> float | None:
        return attempt * 7.0 if isinstance(error, OSError) else None

    policy = RetryPolicy(backoff=backoff)
    assert policy.decide(OSError(), 2) == Decision(14.0, "")
    assert policy.decide(ValueError(), 2) == Decision(None, "discarded")


@pytest.mark.parametrize("much", [2.0**900, float("inf"), pytest.param(2**5000, id="2**5000")])
def test_what_a_function_returns_is_capped(much: float) -> None:
    assert RetryPolicy(backoff=lambda error, attempt: much).decide(OSError(), 1) == Decision(MAX_DELAY, "")


def test_a_negative_delay_means_now() -> None:
    assert RetryPolicy(backoff=lambda error, attempt: -5.0).decide(OSError(), 1) == Decision(0.0, "")


def broken(error: BaseException, attempt: int) -> float:
    raise RuntimeError("a bug in the back-off")


@pytest.mark.parametrize(
    "function",
    [broken, lambda e, n: float("nan"), lambda e, n: "soon", lambda e: 1],
    ids=["raises", "nan", "text", "arity"],
)
def test_a_function_that_fails_is_logged_and_the_default_applies(
    function: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "mouso.retry"):
        decision = RetryPolicy(backoff=function).decide(OSError(), 1)
    assert decision.delay is not None
    assert 0 <= decision.delay <= 5
    assert "the default back-off applies" in caplog.text


def test_a_back_off_made_by_hand_is_bounded_too() -> None:
    assert RetryPolicy(backoff=Backoff(-5, jitter=0)).decide(OSError(), 1) == Decision(0.0, "")
    assert RetryPolicy(backoff=Backoff(1e30, cap=1e30, jitter=0)).decide(OSError(), 1) == Decision(MAX_DELAY, "")


# -- names of exception classes


def test_a_class_is_matched_by_its_own_name_or_that_of_a_base() -> None:
    assert matches(SoldOut(), [f"{__name__}.SoldOut"])
    assert matches(SoldOut(), [f"{__name__}.ShopError"])
    assert matches(SoldOut(), ["Exception"])
    assert not matches(ShopError(), [f"{__name__}.SoldOut"])
    assert not matches(SoldOut(), ["SoldOut"])


def test_builtins_go_by_their_plain_name_and_others_by_their_full_one() -> None:
    assert class_name(ValueError) == "ValueError"
    assert class_name(ShopError.Nested) == f"{__name__}.ShopError.Nested"


def test_a_class_of_a_script_is_called_as_a_worker_imports_it(tmp_path: Path) -> None:
    script = tmp_path / "shop.py"
    script.write_text("from mouso.retry import class_name\nclass SoldOut(Exception): ...\nprint(class_name(SoldOut))\n")
    assert subprocess.check_output([sys.executable, script], text=True) == "shop.SoldOut\n"
    assert subprocess.check_output([sys.executable, "-m", "shop"], text=True, cwd=tmp_path) == "shop.SoldOut\n"
