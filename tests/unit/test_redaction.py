"""What is hidden by its name, and how what a listing has hidden finds back into edited arguments."""

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mouso import Mouso
from mouso.errors import ArgumentError, BadPayload, ConfigError
from mouso.redaction import HIDDEN, MASK, Redaction
from mouso.testing.inline import run_until_idle


@pytest.mark.parametrize(
    "name",
    [
        "password", "db_password", "PASSWORD", "userPassword", "passwd", "passphrase", "pwd", "secret", "client_secret",
        "token", "access_token", "refreshToken", "api_key", "apikey", "apiKey", "X-Api-Key", "private_key",
        "access_key", "authorization", "Proxy-Authorization", "credentials", "cookie", "Set-Cookie", "session_id",
        "sessionId", "credit_card", "card_number", "cvv",
    ],
)  # fmt: skip
def test_names_that_are_hidden_in_every_app(name: str) -> None:
    assert Redaction().hides(name)
    assert Redaction(["iban"]).hides(name)
    assert not Redaction(False).hides(name)


@pytest.mark.parametrize(
    "name", ["user", "pass_count", "key", "to", "card", "author", "x", "", "compass", "primary_key"]
)
def test_other_names_are_shown(name: str) -> None:
    assert not Redaction().hides(name)


def test_patterns_of_an_app() -> None:
    own = Redaction(["iban", "*salary*", "tax-id"])
    assert [name for name in ("iban", "IBAN", "net_salary", "taxId", "iban2") if own.hides(name)] == [
        "iban",
        "IBAN",
        "net_salary",
        "taxId",
    ]


@pytest.mark.parametrize("wrong", ["iban", True, [""], [5], [None]])
def test_what_is_no_list_of_patterns_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="redact= takes a list of patterns"):
        Mouso("t", broker="memory://", redact=wrong)


def test_values_are_hidden_at_any_depth() -> None:
    value = {
        "user": "ann",
        "password": "x",
        "token": {"deep": ["x"]},
        "accounts": [{"name": "a", "secret": 5}, [{"apiKey": None}]],
    }
    assert Redaction().apply(value) == {
        "user": "ann",
        "password": MASK,
        "token": MASK,
        "accounts": [{"name": "a", "secret": MASK}, [{"apiKey": MASK}]],
    }
    assert Redaction(False).apply(value) == value


names = st.sampled_from(["user", "password", "items", "token", "n"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(names, values))
def test_what_was_listed_can_be_given_back(stored: dict[str, Any]) -> None:
    own = Redaction()
    assert own.restore(own.apply(stored), stored) == stored


def test_only_what_was_hidden_is_kept() -> None:
    own = Redaction()
    stored = {"user": "ann", "password": "old", "all": [{"token": 1}, {"token": 2}]}
    edited = {"user": MASK, "password": MASK, "all": [{"token": 5}, {"token": MASK}]}
    assert own.restore(edited, stored) == {"user": MASK, "password": "old", "all": [{"token": 5}, {"token": 2}]}
    for missing in ({"token": MASK}, {"all": [{}, {}, {"token": MASK}]}, {"user": {"token": MASK}}):
        with pytest.raises(KeyError):
            own.restore(missing, stored)


def test_errors_about_hidden_arguments_do_not_quote_them() -> None:
    app = Mouso("t", broker="memory://redaction")

    @app.task(name="login")
    def login(
        user: Literal["ann", "bob"], password: Literal["a", "b"], token: dict[str, int] | None = None
    ) -> None: ...

    for arguments in ({"user": "ann", "password": "hunter2"}, {"user": "ann", "password": "a", "token": "hunter2"}):
        with pytest.raises(ArgumentError) as caught:
            login.delay(**arguments)  # type: ignore[arg-type]  # why: that is the test
        assert "hunter2" not in str(caught.value)
    with pytest.raises(ArgumentError, match="'user': Invalid enum value 'eve'"):
        login.delay("eve", "a")  # type: ignore[arg-type]  # why: that is the test


@pytest.mark.parametrize(
    ("value", "why"),
    [(object(), "an object of type object cannot be encoded"), ("\ud800", "text that is not UTF-8")],
)
def test_errors_about_hidden_arguments_still_say_what_is_wrong(value: object, why: str) -> None:
    app = Mouso("t", broker="memory://redaction-3")

    @app.task(name="login")
    def login(password: str) -> None: ...

    with pytest.raises(ArgumentError, match=f"argument 'password': {why}"):
        login.delay(value)  # type: ignore[arg-type]  # why: that is the test


def test_arguments_that_do_not_fit_are_not_written_down_where_some_are_hidden() -> None:
    """Bad payloads are logged and stored with how they start."""
    app = Mouso("t", broker="memory://redaction-2")

    @app.task(name="login")
    def login(password: int) -> None: ...

    job = login.delay(5)
    with pytest.raises(BadPayload) as caught:
        login.signature.decode(b'{"password":"hunter2"}', "json")
    assert "Expected `int`, got `str`" in str(caught.value)
    assert "68 75 6e" not in str(caught.value)
    assert "70 61 73" not in str(caught.value)
    run_until_idle(app)
    assert job.state == "completed"


def test_the_patterns_match_what_they_say() -> None:
    own = Redaction()
    assert all(own.hides(pattern.replace("*", "")) for pattern in HIDDEN)
