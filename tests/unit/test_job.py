"""A job's states, ids and names."""

import re
import uuid
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from mouso import Job, JobState
from mouso.clock import SYSTEM
from mouso.errors import OptionError
from mouso.job import FINAL, LIVE, TRANSITIONS, JobOptions, check_id, check_name, new_id

# -- states


def test_every_state_is_either_live_or_final() -> None:
    assert set(JobState) == LIVE | FINAL
    assert not LIVE & FINAL
    assert {state for state in JobState if state.final} == FINAL


def test_every_state_has_its_transitions_and_a_cause_for_each() -> None:
    assert set(TRANSITIONS) == set(JobState)
    assert all(cause for targets in TRANSITIONS.values() for cause in targets.values())


def test_only_a_claim_leads_to_running_and_only_from_available() -> None:
    assert [state for state, targets in TRANSITIONS.items() if JobState.RUNNING in targets] == [JobState.AVAILABLE]


def test_a_completed_job_stays_completed() -> None:
    assert not TRANSITIONS[JobState.COMPLETED]


def test_a_final_job_leaves_its_state_by_retry_only() -> None:
    for state in FINAL - {JobState.COMPLETED}:
        assert TRANSITIONS[state] == {JobState.AVAILABLE: "retry"}


def test_every_live_state_leads_to_an_end() -> None:
    def reachable(state: JobState, seen: frozenset[JobState] = frozenset()) -> set[JobState]:
        return {state}.union(*(reachable(t, seen | {state}) for t in TRANSITIONS[state] if t not in seen | {state}))

    assert all(JobState.COMPLETED in reachable(state) and JobState.DEAD in reachable(state) for state in LIVE)


def test_the_transitions_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[JobState.DEAD] = {}  # type: ignore[index]  # why: wrong on purpose


def test_a_job_is_not_changed_in_place() -> None:
    job = Job(id="a", task="t")
    with pytest.raises(AttributeError):
        job.attempts = 1  # type: ignore[misc]  # why: wrong on purpose


def test_options_that_override_nothing_take_no_room() -> None:
    assert msgspec.json.encode(JobOptions()) == b"{}"


# -- ids


def test_a_new_id_is_a_uuid_of_version_7() -> None:
    id = uuid.UUID(new_id())
    assert (id.version, id.variant) == (7, uuid.RFC_4122)
    assert check_id(str(id)) == str(id)


def test_a_new_id_holds_the_time_in_its_first_48_bits() -> None:
    before = SYSTEM.now()
    stamp = uuid.UUID(new_id()).int >> 80
    assert before <= stamp <= SYSTEM.now()


def test_ids_of_a_later_millisecond_sort_after_earlier_ones() -> None:
    first, now = new_id(), SYSTEM.now()
    while SYSTEM.now() == now:
        pass
    assert new_id() > first


def test_ids_made_by_many_threads_differ() -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: new_id(), range(10_000)))
    assert len(set(ids)) == 10_000


@pytest.mark.parametrize("id", ["a", "A-z_0.9:x", "x" * 128, "..", "0", "0197c3a5-0000-7000-8000-000000000000"])
def test_an_id_may_be_chosen_from_plain_characters(id: str) -> None:
    assert check_id(id) == id


@pytest.mark.parametrize(
    "id",
    [
        "",
        "x" * 129,
        "x" * 1024,
        "a/b",
        "a b",
        "a\n",
        "a\0",
        "%00",
        "'a'",
        '"',
        "é",
        "e\u0301",
        "１",
        "\ud800",
        "🐁",
        b"a",
        1,
        None,
        ["a"],
        pytest.param(10**5000, id="5000 digits"),
    ],
    ids=lambda id: ascii(id)[:20],
)
def test_any_other_id_is_refused_and_shown(id: object) -> None:
    with pytest.raises(OptionError, match=r"is no job id; use 1 to 128 of A-Z a-z 0-9 _ \. : -") as caught:
        check_id(id)  # type: ignore[arg-type]  # why: wrong on purpose
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


# -- names


@pytest.mark.parametrize("name", ["a", "mail", "shop.tasks.add", "a-b_c:d", "größe", "🐁", "x" * 255, "f.<locals>.g"])
def test_a_name_may_be_any_printable_text(name: str) -> None:
    assert check_name(name, "task") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "a\tb",
        "a\n",
        "a\0",
        "\x1b[31m",
        "\x7f",
        "\x85",
        "a/b",
        "a\\b",
        "../etc",
        "a..b",
        "\u202egnp.exe",
        "\u200b",
        "\ud800",
        pytest.param("x" * 256, id="256 characters"),
        pytest.param("x" * 10_000, id="10 kB"),
        b"a",
        1,
        None,
        True,
        pytest.param(10**5000, id="5000 digits"),
    ],
    ids=lambda name: ascii(name)[:20],
)
def test_any_other_name_is_refused_and_shown_safely(name: object) -> None:
    with pytest.raises(OptionError, match=r"queue name .* is not usable; use 1 to 255 printable characters") as caught:
        check_name(name, "queue")  # type: ignore[arg-type]  # why: wrong on purpose
    assert len(str(caught.value)) < 250
    assert str(caught.value).isprintable()
    assert not re.search("[\u202e\x1b]", str(caught.value))
