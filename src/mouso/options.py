"""The options of tasks and jobs: checked once, where they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict

import msgspec

from mouso import isolation
from mouso.clock import Duration, instant, millis, seconds
from mouso.config import closest
from mouso.errors import OptionError, shown
from mouso.isolation import Limits
from mouso.job import JobOptions, UniqueScope, check_id, check_queue
from mouso.retry import Backoff, BackoffFunction, RetryPolicy, check_backoff, class_name, exponential
from mouso.wire import CODECS, PICKLE

MAX_ATTEMPTS = 1_000_000
MAX_HEADERS = 16 << 10
"""Bytes of UTF-8."""
AUTO = "\0auto"
"""Stands in a template for a unique key made from the task's name and the arguments."""

_RUN_OPTIONS = ("timeout", "attempts", "backoff", "retry_on", "discard_on", "keep_result")

ErrorTypes = type[BaseException] | Sequence[type[BaseException]]


class Options(TypedDict, total=False):
    """What ``Task.options`` takes, and what ``app.task`` takes as defaults of a task.

    Keys:
        queue: Where the job waits; the default is ``"default"``. 1 to 255 printable characters, without spaces,
            slashes, backslashes, ``..``, commas and equals signs.
        priority: -100..100, higher first; default 0.
        delay: Start no earlier than after this time.
        eta: Start no earlier than at this aware datetime (or Unix timestamp).
        expires: Do not start later than after this time, or than at this aware datetime.
        unique: A key that one job at most may hold, or True for one made of the task and its arguments.
        unique_scope: How long it is held: ``"queued"`` until the job starts, ``"live"`` (default) until it is final,
            or a duration from the enqueue.
        id: The job's id; the same id again is the same job, as long as that is kept.
        timeout: Per attempt; None for no limit.
        attempts: Runs in all, so 1 means no retry; default 10.
        backoff: ``exponential(...)``, ``constant(...)``, or, for tasks, ``f(exception, attempt) -> seconds | None``.
        retry_on, discard_on: Exception classes; retry these only, never retry those.
        keep_result: A duration keeps the completed job with its result that long, and deletes it then, so that its id
            names a new one; False keeps the job without its result; default True, both as long as the app says.
        headers: Text for the task's ``ctx.headers``.
        codec: ``"json"`` (default), ``"msgpack"``, or, with ``Mouso(allow_pickle=True)``, ``"pickle"``.
        isolated: For tasks: each run has a process of its own; the following hold for it.
        max_memory: The most it may have resident: bytes, or text such as ``"500MB"``. Above it the attempt fails.
        max_cpu: CPU time, in whole seconds. Above it the attempt fails.
        nice: Added to its niceness, 0..19; higher yields to others.
        io_priority: ``"normal"``, ``"low"`` or ``"idle"``.
    """

    queue: str
    priority: int
    delay: Duration | None
    eta: datetime | float | None
    expires: Duration | datetime | None
    unique: str | bool | None
    unique_scope: str | Duration
    id: str | None
    timeout: Duration | None
    attempts: int
    backoff: Backoff | BackoffFunction
    retry_on: ErrorTypes
    discard_on: ErrorTypes
    keep_result: bool | Duration
    headers: Mapping[str, str] | None
    codec: str
    isolated: bool
    max_memory: int | str | None
    max_cpu: Duration | None
    nice: int
    io_priority: str


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """What the jobs of one task, called with certain options, have in common; named as in ``Job``."""

    queue: str = "default"
    priority: int = 0
    delay: int | None = None
    due: int | None = None
    ttl: int | None = None
    expires_at: int | None = None
    unique: str | None = None
    unique_scope: UniqueScope = UniqueScope.LIVE
    unique_period: int = 0
    codec: str = "json"
    id: str | None = None
    options: bytes | None = None


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the worker runs a task's jobs, unless a job overrides it."""

    policy: RetryPolicy = RetryPolicy()
    timeout: float | None = None
    keep_result: bool | float = True
    headers: dict[str, str] = {}
    limits: Limits | None = None


def template(base: Template, given: Options, task: str) -> Template:
    """Checks options for one call and lays them over the task's own.

    Raises:
        OptionError: Names the option, its value and what it may be.
    """
    _check_known(given, task)
    for name in isolation.OPTIONS:
        if name in given:
            raise OptionError(f"task {task}: {name}= belongs to the task; give it to app.task")
    try:
        changes: dict[str, Any] = {}
        _place(changes, given)
        _time(changes, given)
        _unique(changes, given)
        overrides = _overrides(given)
        if overrides:
            old = msgspec.json.decode(base.options, type=JobOptions) if base.options else JobOptions()
            changes["options"] = msgspec.json.encode(msgspec.structs.replace(old, **overrides))
        return msgspec.structs.replace(base, **changes)
    except ValueError as error:
        raise OptionError(f"task {task}: {error}") from None


def task_defaults(given: Options, task: str) -> tuple[Template, RunSettings]:
    """Checks the options of a task's declaration: those of its jobs, and those of its runs.

    Raises:
        OptionError: Names the option, its value and what it may be.
    """
    for name in ("id", "eta", "headers"):
        if given.get(name) is not None:
            raise OptionError(f"task {task}: {name}= belongs to one job; give it to .options()")
    if isinstance(given.get("expires"), datetime):
        raise OptionError(f"task {task}: expires= at an instant belongs to one job; give a duration, or use .options()")
    everything: dict[str, Any] = {name: value for name, value in given.items() if name not in isolation.OPTIONS}
    runs: Any = {name: value for name, value in everything.items() if name in _RUN_OPTIONS}
    jobs: Any = {name: value for name, value in everything.items() if name not in _RUN_OPTIONS}
    try:
        overrides = _overrides(runs, functions=True)
        limits = isolation.limits(given)
    except ValueError as error:
        raise OptionError(f"task {task}: {error}") from None
    policy: dict[str, Any] = {n: overrides[n] for n in ("attempts", "retry_on", "discard_on") if n in overrides}
    if "backoff" in overrides:
        backoff = overrides["backoff"]
        policy["backoff"] = Backoff(*backoff) if isinstance(backoff, tuple) else backoff
    settings = RunSettings(
        policy=RetryPolicy(**policy),
        timeout=overrides.get("timeout") or None,
        keep_result=overrides.get("keep_result", True),
        limits=limits,
    )
    return template(Template(), jobs, task), settings


def _check_known(given: Options, task: str) -> None:
    for name in given:
        if name not in Options.__annotations__:
            hint = closest(name, Options.__annotations__) or "see Task.options"
            raise OptionError(f"task {task}: there is no option {name!r}; {hint}")


def _place(changes: dict[str, Any], given: Options) -> None:
    if "queue" in given:
        changes["queue"] = check_queue(given["queue"])
    if "priority" in given:
        changes["priority"] = _integer("priority", given["priority"], -100, 100)
    if "id" in given and given["id"] is not None:
        changes["id"] = check_id(given["id"])
    if "codec" in given:
        if given["codec"] not in (*CODECS, PICKLE):
            raise ValueError(f"codec={shown(given['codec'])} is none of {', '.join(CODECS)}")
        changes["codec"] = given["codec"]


def _time(changes: dict[str, Any], given: Options) -> None:
    if given.get("delay") is not None and given.get("eta") is not None:
        raise ValueError("delay= and eta= exclude each other; give one of them")
    delay, eta = given.get("delay"), given.get("eta")
    if "delay" in given or eta is not None:
        changes["delay"] = None if delay is None else millis(delay, "delay")
        changes["due"] = None if eta is None else instant(eta)
    if "expires" in given:
        expires = given["expires"]
        changes["expires_at"] = changes["ttl"] = None
        if isinstance(expires, datetime):
            changes["expires_at"] = instant(expires, "expires")
        elif expires is not None:
            changes["ttl"] = millis(expires, "expires")


def _unique(changes: dict[str, Any], given: Options) -> None:
    if "unique" in given:
        key = given["unique"]
        if key is True:
            changes["unique"] = AUTO
        elif key is None or key is False:
            changes["unique"] = None
        elif isinstance(key, str) and 0 < len(key) <= 255 and key.isprintable():
            changes["unique"] = key
        else:
            raise ValueError(f"unique={shown(key)} is no key; use True or 1 to 255 printable characters")
    if "unique_scope" in given:
        scope = given["unique_scope"]
        if isinstance(scope, str) and scope in ("queued", "live"):
            changes["unique_scope"] = UniqueScope(scope)
        else:
            changes["unique_scope"] = UniqueScope.PERIOD
            changes["unique_period"] = _period(scope)


def _period(scope: Duration) -> int:
    try:
        period = millis(scope, "unique_scope")
    except ValueError:
        period = 0
    if not period:
        raise ValueError(f'unique_scope={shown(scope)} is none; use "queued", "live" or a positive duration')
    return period


def _overrides(given: Options, *, functions: bool = False) -> dict[str, Any]:
    """The options that the worker reads, in the form of ``JobOptions``."""
    found: dict[str, Any] = {}
    if "attempts" in given:
        found["attempts"] = _integer("attempts", given["attempts"], 1, MAX_ATTEMPTS)
    if "timeout" in given:
        timeout = given["timeout"]
        found["timeout"] = 0.0 if timeout is None else seconds(timeout, "timeout")
        if timeout is not None and not found["timeout"]:
            raise ValueError(f"timeout={shown(timeout)} leaves no time to run; use a positive duration or None")
    if "backoff" in given:
        found["backoff"] = _backoff(given["backoff"], functions=functions)
    if "retry_on" in given:
        found["retry_on"] = _classes("retry_on", given["retry_on"])
    if "discard_on" in given:
        found["discard_on"] = _classes("discard_on", given["discard_on"])
    if "keep_result" in given:
        keep = given["keep_result"]
        found["keep_result"] = keep if isinstance(keep, bool) else seconds(keep, "keep_result")
    headers = given.get("headers")
    if headers is not None:
        found["headers"] = _headers(headers)
    return found


def _backoff(value: object, *, functions: bool) -> object:
    if isinstance(value, Backoff):
        checked = exponential(value.base, value.cap, factor=value.factor)
        if not 0 <= value.jitter <= 1:
            raise ValueError(f"jitter={shown(value.jitter)} is out of range; use 0 to 1")
        return checked.base, checked.factor, checked.cap, value.jitter
    function = check_backoff(value)
    if not functions:
        raise ValueError(
            "backoff= as a function cannot travel with a job; give it to app.task, or use exponential(...)"
        )
    return function


def _classes(name: str, value: object) -> tuple[str, ...]:
    names = []
    for item in value if isinstance(value, (tuple, list, set, frozenset)) else (value,):
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise ValueError(f"{name}= takes exception classes, not {shown(item)}")
        names.append(class_name(item))
    return tuple(names)


def _headers(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) and isinstance(v, str) for k, v in value.items()):
        raise ValueError("headers= takes a mapping of text to text")
    headers = dict(value)
    try:
        size = len("".join(text for pair in headers.items() for text in pair).encode())
    except UnicodeEncodeError:
        raise ValueError("headers= hold half a surrogate pair, which is no text; remove it") from None
    if size > MAX_HEADERS:
        raise ValueError(f"headers= take {size:,} bytes, the limit is {MAX_HEADERS:,}")
    return headers


def _integer(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}={shown(value)} is out of range; use a whole number from {low:,} to {high:,}")
    return value


def unique_key(task: str, arguments: bytes, digest: str | None = None) -> str:
    """The key of ``unique=True``: the task and a digest of its canonical arguments, or the one given."""
    if digest is not None:
        return f"{task}:{digest}"
    import hashlib  # loads OpenSSL, which is needed here only

    return f"{task}:{hashlib.blake2b(arguments, digest_size=16).hexdigest()}"
