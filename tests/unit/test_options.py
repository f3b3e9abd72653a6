"""The options of tasks and jobs, checked where they are written."""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import msgspec
import pytest

from mouso import Mouso, constant, exponential
from mouso.errors import OptionError
from mouso.job import JobOptions, UniqueScope
from mouso.options import AUTO, MAX_HEADERS, Options, RunSettings, Template, task_defaults, template, unique_key
from mouso.retry import Backoff, RetryPolicy

ETA = datetime(2030, 1, 1, tzinfo=UTC)
ETA_MS = 1_893_456_000_000


def laid_over(base: Template = Template(), /, **given: Any) -> Template:  # noqa: B008  # why: it is frozen
    return template(base, Options(**given), "shop.add")  # type: ignore[typeddict-item]  # why: wrong on purpose


def overrides(**given: Any) -> JobOptions:
    encoded = laid_over(**given).options
    assert encoded is not None
    return msgspec.json.decode(encoded, type=JobOptions)


def declared(**given: Any) -> tuple[Template, RunSettings]:
    return task_defaults(Options(**given), "shop.add")  # type: ignore[typeddict-item]  # why: wrong on purpose


# -- what they mean


def test_without_options_everything_is_at_its_default() -> None:
    job, runs = declared()
    assert job == Template()
    assert (job.queue, job.priority, job.codec, job.options) == ("default", 0, "json", None)
    assert (runs.policy, runs.timeout, runs.keep_result) == (RetryPolicy(), None, True)


def test_place() -> None:
    job = laid_over(queue="mail", priority=-100, id="a", codec="msgpack")
    assert (job.queue, job.priority, job.id, job.codec) == ("mail", -100, "a", "msgpack")


@pytest.mark.parametrize(
    ("delay", "ms"), [("10m", 600_000), (1.5, 1500), (timedelta(hours=1), 3_600_000), (0, 0), (-5, 0), (None, None)]
)
def test_a_delay_counts_from_the_enqueue_and_a_negative_one_means_now(delay: Any, ms: int | None) -> None:
    assert laid_over(delay=delay).delay == ms


@pytest.mark.parametrize("eta", [ETA, ETA_MS / 1000, ETA.astimezone()])
def test_an_eta_is_an_instant(eta: Any) -> None:
    assert laid_over(eta=eta).due == ETA_MS


def test_delay_and_eta_exclude_each_other() -> None:
    with pytest.raises(OptionError, match=r"task shop.add: delay= and eta= exclude each other; give one of them"):
        laid_over(delay=1, eta=ETA)


def test_an_eta_takes_the_place_of_the_tasks_own_delay() -> None:
    base, _ = declared(delay="10m")
    assert (laid_over(base, eta=ETA).delay, laid_over(base, eta=ETA).due) == (None, ETA_MS)
    assert laid_over(base, delay=None).delay is None
    assert laid_over(base, eta=None).delay == 600_000


def test_an_expiry_is_a_duration_or_an_instant() -> None:
    assert (laid_over(expires="1h").ttl, laid_over(expires="1h").expires_at) == (3_600_000, None)
    assert (laid_over(expires=ETA).ttl, laid_over(expires=ETA).expires_at) == (None, ETA_MS)


def test_an_expiry_takes_the_place_of_the_tasks_own() -> None:
    base, _ = declared(expires="1h")
    assert laid_over(base, expires=ETA).ttl is None
    assert laid_over(base, expires=None).ttl is None
    assert laid_over(base).ttl == 3_600_000


@pytest.mark.parametrize(("unique", "key"), [("add-4", "add-4"), (True, AUTO), (False, None), (None, None)])
def test_a_unique_key_is_given_or_made(unique: Any, key: str | None) -> None:
    assert laid_over(unique=unique).unique == key


def test_a_key_that_is_made_depends_on_task_and_arguments() -> None:
    keys = {unique_key("a", b"1"), unique_key("a", b"2"), unique_key("b", b"1")}
    assert len(keys) == 3
    assert unique_key("a", b"1") in keys
    assert laid_over(unique=unique_key("x" * 200, b"1")).unique in {unique_key("x" * 200, b"1")}


@pytest.mark.parametrize(
    ("scope", "kept", "period"),
    [
        ("queued", UniqueScope.QUEUED, 0),
        ("live", UniqueScope.LIVE, 0),
        ("1h", UniqueScope.PERIOD, 3_600_000),
        (30, UniqueScope.PERIOD, 30_000),
        (timedelta(days=1), UniqueScope.PERIOD, 86_400_000),
    ],
)
def test_a_key_is_held_while_queued_or_live_or_for_a_time(scope: Any, kept: UniqueScope, period: int) -> None:
    job = laid_over(unique="a", unique_scope=scope)
    assert (job.unique_scope, job.unique_period) == (kept, period)


def test_what_the_worker_reads_travels_with_the_job() -> None:
    assert overrides(
        attempts=3,
        timeout="30s",
        backoff=exponential(2, "1m"),
        retry_on=OSError,
        discard_on=[ValueError, KeyError],
        keep_result=False,
        headers={"user": "ann"},
    ) == JobOptions(
        attempts=3,
        timeout=30.0,
        backoff=(2.0, 2.0, 60.0, 1.0),
        retry_on=("OSError",),
        discard_on=("ValueError", "KeyError"),
        keep_result=False,
        headers={"user": "ann"},
    )


def test_a_job_without_such_options_carries_none() -> None:
    assert laid_over(queue="mail", delay=3, unique="a").options is None


def test_a_tasks_own_run_options_do_not_travel() -> None:
    job, runs = declared(
        attempts=3, timeout=5, backoff=constant(1), retry_on=(OSError,), discard_on=ValueError, keep_result="1h"
    )
    assert job.options is None
    assert runs.policy == RetryPolicy(
        attempts=3, backoff=constant(1), retry_on=("OSError",), discard_on=("ValueError",)
    )
    assert (runs.timeout, runs.keep_result) == (5.0, 3600.0)


def test_a_task_may_have_a_back_off_function_and_a_job_may_not() -> None:
    def backoff(error: BaseException, attempt: int) -> float:
        return 1.0

    assert declared(backoff=backoff)[1].policy.backoff is backoff
    with pytest.raises(OptionError, match=r"backoff= as a function cannot travel with a job; give it to app.task"):
        laid_over(backoff=backoff)


# -- a job's options over those of its task


def test_a_job_overrides_its_task_and_keeps_the_rest() -> None:
    app = Mouso("shop", broker="memory://options-override")

    @app.task(attempts=8, timeout=30, backoff=constant(1), retry_on=(OSError,), keep_result="1h")
    def add(x: int) -> int:
        return x

    own = add.run_settings(add.options(attempts=2, backoff=constant(9), headers={"a": "b"}).job(1).options)
    assert (own.policy.attempts, own.policy.backoff, own.policy.retry_on) == (2, constant(9), ("OSError",))
    assert (own.timeout, own.keep_result, own.headers) == (30.0, 3600.0, {"a": "b"})
    assert add.run_settings(None) is add.settings


def test_a_job_may_lift_the_timeout_of_its_task() -> None:
    app = Mouso("shop", broker="memory://options-timeout")

    @app.task(timeout=30)
    def add(x: int) -> int:
        return x

    assert add.run_settings(add.options(timeout=None).job(1).options).timeout is None
    assert add.run_settings(add.options(attempts=2).job(1).options).timeout == 30


# -- what is refused


@pytest.mark.parametrize("wrong", [-101, 101, True, 1.0, "5", None, 2**70, pytest.param(10**5000, id="5000 digits")])
def test_a_priority_out_of_range_is_refused(wrong: Any) -> None:
    with pytest.raises(
        OptionError, match=r"^task shop.add: priority=.* is out of range; use a whole number from -100 to 100$"
    ):
        laid_over(priority=wrong)


@pytest.mark.parametrize("wrong", [0, -1, 10**9, True, 1.5, "3", None, pytest.param(10**5000, id="5000 digits")])
def test_attempts_out_of_range_are_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"attempts=.* is out of range; use a whole number from 1 to 1,000,000$"):
        laid_over(attempts=wrong)
    with pytest.raises(OptionError, match=r"attempts=.* is out of range"):
        declared(attempts=wrong)


@pytest.mark.parametrize("option", ["delay", "expires", "timeout", "keep_result"])
@pytest.mark.parametrize(
    "wrong", ["soon", b"1", [1], float("nan"), float("inf"), timedelta.max, pytest.param(10**5000, id="5000 digits")]
)
def test_what_is_no_duration_is_refused_by_the_options_name(option: str, wrong: Any) -> None:
    with pytest.raises(OptionError, match=f"^task shop.add: {option}"):
        laid_over(**{option: wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        datetime(2030, 1, 1),
        "2030-01-01",
        True,
        float("nan"),
        1e300,
        pytest.param(10**5000, id="5000 digits"),
    ],
    ids=str,
)
def test_an_eta_that_is_no_instant_is_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"^task shop.add: eta"):
        laid_over(eta=wrong)


class Failing(tzinfo):
    """A time zone that is broken."""

    def _fail(self, moment: datetime | None) -> Any:
        raise RuntimeError("no zone")

    utcoffset = dst = tzname = _fail


def test_a_time_zone_that_fails_is_refused() -> None:
    for name in ("eta", "expires"):
        why = rf"^task shop.add: {name}=.* has a time zone that raises RuntimeError\('no zone'\); use another$"
        with pytest.raises(OptionError, match=why):
            laid_over(**{name: datetime(2030, 1, 1, tzinfo=Failing())})


@pytest.mark.parametrize("wrong", [datetime(2030, 1, 1), datetime.max.replace(tzinfo=UTC)])
def test_an_expiry_that_is_no_instant_is_refused(wrong: datetime) -> None:
    with pytest.raises(OptionError, match=r"^task shop.add: expires="):
        laid_over(expires=wrong)


@pytest.mark.parametrize("wrong", [0, -3, "0s", 0.0])
def test_a_timeout_that_leaves_no_time_is_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"timeout=.* leaves no time to run; use a positive duration or None"):
        laid_over(timeout=wrong)


@pytest.mark.parametrize("wrong", ["", "a\0", "a\nb", "x" * 256, 3, b"a", ["a"], "\ud800", 1.0])
def test_a_unique_key_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"unique=.* is no key; use True or 1 to 255 printable characters"):
        laid_over(unique=wrong)


@pytest.mark.parametrize("wrong", ["alive", "period", "", None, True, 0, -1, [], float("nan")])
def test_a_scope_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r'unique_scope=.* is none; use "queued", "live" or a positive duration'):
        laid_over(unique="a", unique_scope=wrong)


@pytest.mark.parametrize("wrong", ["yaml", "JSON", None, 1, ["json"]])
def test_a_codec_that_is_unknown_is_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match=re.escape(f"codec={wrong!r} is none of json, msgpack")):
        laid_over(codec=wrong)


@pytest.mark.parametrize("wrong", [None, "", "a b", "a/b", 3, "a,b", "p=2", ","])
def test_a_queue_that_cannot_be_named_so_is_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"^task shop.add: queue name .* is not usable"):
        laid_over(queue=wrong)
    with pytest.raises(OptionError, match=r"^task shop.add: queue name .* is not usable"):
        task_defaults({"queue": wrong}, "shop.add")


@pytest.mark.parametrize("wrong", ["", "a b", 3, "x" * 129])
def test_an_id_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"^task shop.add: id=.* is no job id"):
        laid_over(id=wrong)


@pytest.mark.parametrize("option", ["retry_on", "discard_on"])
@pytest.mark.parametrize("wrong", ["OSError", OSError(), int, [OSError, 3], None, ("OSError",)])
def test_only_exception_classes_can_be_retried_or_discarded(option: str, wrong: Any) -> None:
    with pytest.raises(OptionError, match=f"^task shop.add: {option}= takes exception classes, not "):
        laid_over(**{option: wrong})


@pytest.mark.parametrize("wrong", [5, "5s", None, True, [1, 2]])
def test_a_back_off_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match=r"backoff=.* is no back-off; use exponential\(5, cap='1h'\) or constant"):
        laid_over(backoff=wrong)


class Called:
    async def __call__(self, error: BaseException, attempt: int) -> float:
        return 1.0


async def coroutine(error: BaseException, attempt: int) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (exponential, r"backoff=exponential is not called; write backoff=exponential\(5\)$"),
        (constant, r"backoff=constant is not called; write backoff=constant\(5\)$"),
        (Backoff, r"backoff=Backoff is not called; write backoff=exponential\(5\)$"),
        (coroutine, r"backoff=coroutine is a coroutine function; write a plain function \(exception, attempt\) that"),
        (Called(), r"backoff=<.*> is a coroutine function; write a plain function"),
        (lambda: 1, r"backoff=<lambda> does not take \(exception, attempt\); write a plain function"),
        (lambda error: 1, r"backoff=<lambda> does not take \(exception, attempt\)"),
        (lambda error, *, attempt: 1, r"backoff=<lambda> does not take \(exception, attempt\)"),
        (len, r"backoff=len does not take \(exception, attempt\)"),
    ],
)
def test_a_back_off_function_that_cannot_be_called_is_refused(wrong: Any, why: str) -> None:
    with pytest.raises(OptionError, match=f"^task .*: {why}"):
        declared(backoff=wrong)


@pytest.mark.parametrize("right", [lambda error, attempt: 1, lambda *both: 1, lambda error, n, extra=1: 1, max])
def test_a_back_off_function_that_can_be_called_is_taken(right: Any) -> None:
    assert declared(backoff=right)[1].policy.backoff is right


@pytest.mark.parametrize("negative", [-1, -0.5, timedelta(seconds=-1)])
def test_a_negative_back_off_is_refused(negative: Any) -> None:
    for base, cap in ((negative, 1), (1, negative), (negative, negative)):
        with pytest.raises(OptionError, match="is before the failure; use 0 or more"):
            exponential(base, cap)


@pytest.mark.parametrize(
    "wrong", [Backoff(float("nan")), Backoff(float("inf")), Backoff(factor=0), Backoff(jitter=2), Backoff(cap=1e300)]
)
def test_a_back_off_made_by_hand_is_checked(wrong: Backoff) -> None:
    with pytest.raises(OptionError, match=r"^task shop.add: "):
        laid_over(backoff=wrong)


@pytest.mark.parametrize("wrong", [{"a": 1}, {1: "a"}, "a=b", ["a"], {"a": None}, 3])
def test_headers_are_text_to_text(wrong: Any) -> None:
    with pytest.raises(OptionError, match="headers= takes a mapping of text to text"):
        laid_over(headers=wrong)


def test_headers_are_limited_in_bytes() -> None:
    assert overrides(headers={"a": "x" * (MAX_HEADERS - 1)}).headers
    with pytest.raises(OptionError, match="headers= take 16,385 bytes, the limit is 16,384"):
        laid_over(headers={"a": "é" * (MAX_HEADERS // 2)})


def test_headers_hold_whole_characters() -> None:
    with pytest.raises(OptionError, match="headers= hold half a surrogate pair"):
        laid_over(headers={"a": "\ud800"})


@pytest.mark.parametrize(
    ("wrong", "hint"), [("prioritty", "did you mean 'priority'?"), ("colour", "see Task.options"), ("retries", "")]
)
def test_an_unknown_option_is_refused_with_the_closest_one(wrong: str, hint: str) -> None:
    message = re.escape(f"task shop.add: there is no option {wrong!r}; {hint}")
    with pytest.raises(OptionError, match=message):
        laid_over(**{wrong: 1})
    with pytest.raises(OptionError, match=message):
        declared(**{wrong: 1})


@pytest.mark.parametrize(("option", "value"), [("id", "a"), ("eta", ETA), ("headers", {"a": "b"}), ("expires", ETA)])
def test_what_belongs_to_one_job_is_no_default_of_a_task(option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=rf"^task shop.add: {option}= .*belongs? to one job|{option}= belongs"):
        declared(**{option: value})


def test_an_option_error_is_a_value_error_and_says_that_nothing_was_stored() -> None:
    with pytest.raises(ValueError, match="priority"):
        laid_over(priority=1000)
