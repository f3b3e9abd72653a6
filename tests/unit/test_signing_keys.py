"""Keys: what each kind can do, what is refused, and that no text that Mouso makes holds a secret."""

import copy
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mouso import Key
from mouso.errors import ConfigError
from mouso.keys import new_ed25519, new_secret, read_keys

SECRET = "s3cr3t-" + "x" * 40
PRIVATE = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
PUBLIC = "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"


def pem(half: str) -> tuple[bytes, bytes]:
    """A pair made by another tool."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ed25519, x25519

    private: Any = ed25519.Ed25519PrivateKey.generate() if half == "ed" else x25519.X25519PrivateKey.generate()
    return (
        private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()),
        private.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo),
    )


def test_what_each_kind_can_do() -> None:
    keys = [
        Key.hmac("h", SECRET),
        Key.aes("a", SECRET),
        Key.ed25519("e", private=PRIVATE),
        Key.ed25519("p", public=PUBLIC),
    ]
    assert [(key.can_sign, key.can_check, key.can_seal) for key in keys] == [
        (True, True, True),
        (False, False, True),
        (True, True, False),
        (False, True, False),
    ]
    assert list(map(repr, keys)) == [
        "<Key 'h', hmac>",
        "<Key 'a', aes>",
        "<Key 'e', ed25519, private>",
        "<Key 'p', ed25519, public>",
    ]


@pytest.mark.parametrize(
    ("signer", "checker"),
    [
        (Key.hmac("k", SECRET), Key.hmac("k", SECRET.encode())),
        (Key.ed25519("k", private=PRIVATE), Key.ed25519("k", public=PUBLIC)),
    ],
)
def test_a_signature_holds_for_its_message_alone(signer: Key, checker: Key) -> None:
    signature = signer.sign(b"message")
    assert checker.signed(b"message", signature)
    for other in (b"", b"messagf", b"message\0"):
        assert not checker.signed(other, signature)
    for wrong in (b"", signature[:-1], signature + b"\0", bytes(len(signature)), signature[::-1], signature[:16] * 9):
        assert not checker.signed(b"message", wrong)


def test_other_keys_do_not_check_it() -> None:
    signature = Key.hmac("k", SECRET).sign(b"message")
    assert not Key.hmac("k", SECRET + "x").signed(b"message", signature)
    assert not Key.ed25519("k", public=PUBLIC).signed(b"message", signature)
    assert not Key.aes("k", SECRET).signed(b"message", signature)


def test_what_signs_and_what_encrypts_are_not_the_same() -> None:
    """A forger who can have things encrypted gains nothing for signatures, nor the other way round."""
    import hmac

    key = Key.hmac("k", SECRET)
    assert key.sign(b"m") != hmac.digest(SECRET.encode(), b"m", "sha256")
    assert key.sealer.open(Key.aes("k", SECRET).sealer.seal(b"content", b"bound"), b"bound") == b"content"


@pytest.mark.parametrize("length", [0, 1, 16, 31])
@pytest.mark.parametrize("make", [Key.hmac, Key.aes])
def test_short_secrets_are_refused(make: Callable[[str, str], Key], length: int) -> None:
    with pytest.raises(ConfigError, match=f"a key's secret has {length} bytes, at least 32 are needed"):
        make("k", "x" * length)
    make("k", "ü" * 16)  # it is bytes that count


@pytest.mark.parametrize("secret", [None, 5, ["x" * 32], bytearray(32)])
def test_what_is_no_secret_is_refused(secret: Any) -> None:
    with pytest.raises(ConfigError, match="a key's secret is bytes or a text, not"):
        Key.hmac("k", secret)


@pytest.mark.parametrize("id", ["", "a b", "a:b", "ä", "x" * 65, None, 5, "a/b", "a;b"])
def test_an_id_that_settings_could_not_hold_is_refused(id: Any) -> None:
    with pytest.raises(ConfigError, match="a key's id is 1 to 64 of"):
        Key.hmac(id, SECRET)


def test_ed25519_keys_in_every_form() -> None:
    private, public = pem("ed")
    signature = Key.ed25519("k", private=private).sign(b"m")
    for form in (public, public.decode()):
        assert Key.ed25519("k", public=form).signed(b"m", signature)
    import base64

    raw = base64.urlsafe_b64decode(PRIVATE + "=")
    standard = base64.b64encode(raw).decode()
    signatures = {Key.ed25519("k", private=form).sign(b"m") for form in (PRIVATE, PRIVATE.encode(), raw, standard)}
    assert len(signatures) == 1


@pytest.mark.parametrize("wrong", ["", "x", b"", b"x" * 33, "x" * 44, PRIVATE + "!", 5])
def test_what_is_no_private_key_is_refused_without_being_shown(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"^key 'k': private= is no Ed25519 private key: 32 bytes, .*PEM$"):
        Key.ed25519("k", private=wrong)


@pytest.mark.parametrize(("half", "which"), [("ed", 1), ("x", 0)])
def test_another_kind_of_pem_is_refused(half: str, which: int) -> None:
    with pytest.raises(ConfigError, match=r"^key 'k': private= is no Ed25519 private key"):
        Key.ed25519("k", private=pem(half)[which])


def test_one_half_is_given() -> None:
    for halves in ({}, {"private": PRIVATE, "public": PUBLIC}):
        with pytest.raises(ConfigError, match="give private= to sign, or public= to check only"):
            Key.ed25519("k", **halves)
    with pytest.raises(ConfigError, match="public= is no Ed25519 public key"):
        Key.ed25519("k", public=pem("x")[1])


def test_limits() -> None:
    key = Key.ed25519("k", private=PRIVATE, tasks=["mail.*", "report"], queues=["mail"])
    assert key.may_sign("mail.send", "mail")
    assert key.may_sign("report", "mail")
    for task, queue in (("mail.send", "other"), ("report.x", "mail"), ("mailx", "mail"), ("Mail.send", "mail")):
        assert not key.may_sign(task, queue)
    assert repr(key) == "<Key 'k', ed25519, private, tasks=['mail.*', 'report'], queues=['mail']>"


@pytest.mark.parametrize("wrong", ["mail.*", [""], [5], b"x"])
def test_limits_that_are_no_list_of_patterns_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"key 'k': tasks= takes a list of patterns"):
        Key.hmac("k", SECRET, tasks=wrong)


def test_limits_to_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"queues=\[\] lets it sign nothing"):
        Key.hmac("k", SECRET, queues=[])


# -- secrets stay secret


def test_no_secret_is_shown() -> None:
    for key in (Key.hmac("k", SECRET), Key.aes("k", SECRET), Key.ed25519("k", private=PRIVATE)):
        shown = f"{key!r} {key} {key!s:.300} {[key]} {vars(type(key))}"
        assert SECRET not in shown
        assert PRIVATE not in shown


@pytest.mark.parametrize("leak", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_key_is_not_pickled_or_copied(leak: Callable[[Key], Any]) -> None:
    with pytest.raises(TypeError, match="a key cannot be pickled or copied"):
        leak(Key.hmac("k", SECRET))


WRONG_TEXTS = [
    SECRET,
    f"hmac:{SECRET}",
    f"{SECRET}:k",
    f"hmac:{SECRET}:k",  # the wrong way round
    f"hmac::{SECRET}",
    f"hmac:a b:{SECRET}",
    f"HMAC:k:{SECRET}",
    f"hmac:k:{SECRET};task=x",
    f"hmac:k:{SECRET};tasks",
    f"hmac:k:{SECRET};tasks=",
    f"hmac:k:{SECRET};tasks=a;tasks=b",
    f"hmac:k:{SECRET};{SECRET}",
    f"aes:k:{SECRET};tasks=a",
    f"hmac:k:{SECRET} hmac:k:{SECRET}",
    f"hmac:k:{SECRET} {SECRET}",
    f"ed25519:k:{SECRET}",
    f"ed25519-private:k:{SECRET}",
    f"ed25519-private:{SECRET}:k",
    "hmac:k:s3cr3t-short",
]


@pytest.mark.parametrize("text", WRONG_TEXTS)
def test_texts_that_are_no_keys_are_refused_without_being_shown(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOUSO_KEYS", text)
    for given in (None, text, [text]):
        with pytest.raises(ConfigError) as caught:
            read_keys(given)
        assert "s3cr3t" not in "".join(traceback.format_exception(caught.value, chain=True)).replace(text, "")
        assert "s3cr3t" not in str(caught.value)
        assert "\n" not in str(caught.value)


# -- where keys come from


def test_keys_as_text() -> None:
    text = f"hmac:new:{SECRET}\n ed25519-private:e:{PRIVATE};tasks=mail.*,report;queues=mail\taes:seal:{SECRET}"
    keys = read_keys(text)
    assert [repr(key) for key in keys] == [
        "<Key 'new', hmac>",
        "<Key 'e', ed25519, private, tasks=['mail.*', 'report'], queues=['mail']>",
        "<Key 'seal', aes>",
    ]
    assert Key.hmac("new", SECRET).signed(b"m", keys[0].sign(b"m"))
    assert read_keys([f"ed25519-public:e:{PUBLIC}"])[0].signed(b"m", keys[1].sign(b"m"))


def test_a_secret_may_hold_colons_and_slashes() -> None:
    (key,) = read_keys(f"hmac:k:{SECRET}:/+=_-")
    assert Key.hmac("k", f"{SECRET}:/+=_-").signed(b"m", key.sign(b"m"))


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOUSO_KEYS", raising=False)
    assert read_keys(None) == ()
    monkeypatch.setenv("MOUSO_KEYS", f"hmac:a:{SECRET} hmac:b:{SECRET}")
    monkeypatch.setenv("SHOP_KEY", f"hmac:c:{SECRET}")
    assert [key.id for key in read_keys(None)] == ["a", "b"]
    assert [key.id for key in read_keys("$SHOP_KEY")] == ["c"]
    assert [key.id for key in read_keys([Key.hmac("own", SECRET), "$SHOP_KEY", "$MOUSO_KEYS"])] == [
        "own",
        "c",
        "a",
        "b",
    ]


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_variable_is_no_way_to_unsigned_jobs(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOUSO_KEYS", value)
    with pytest.raises(ConfigError, match=r"^\$MOUSO_KEYS is not set or empty"):
        read_keys(None)
    with pytest.raises(ConfigError, match=r"^\$NO_SUCH_KEYS is not set or empty"):
        read_keys("$NO_SUCH_KEYS")


@pytest.mark.parametrize("given", [[], (), "", "  ", [""]])
def test_no_keys_at_all_are_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"holds no key|keys= is empty"):
        read_keys(given)


@pytest.mark.parametrize("given", [[5], [None], [b"hmac"]])
def test_what_is_no_key_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"keys\[0\] is no key but"):
        read_keys(given)


def test_keys_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of the shop\nhmac:a:{SECRET}\n\n# the old one\nhmac:b:{SECRET}\n")
    assert [key.id for key in read_keys(f"@{path}")] == ["a", "b"]
    monkeypatch.setenv("MOUSO_KEYS", f"@{path}")
    assert [key.id for key in read_keys(None)] == ["a", "b"]


def test_files_that_hold_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(ConfigError, match=r"^cannot read the key file .*/keys: No such file or directory$"):
        read_keys(f"@{path}")
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"the key file .*/keys holds no key"):
        read_keys(f"@{path}")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"the key file .*/keys is not UTF-8 text"):
        read_keys(f"@{path}")
    path.write_text(SECRET)
    with pytest.raises(ConfigError, match=r"the key file .*/keys cannot be read; write hmac:ID:SECRET"):
        read_keys(f"@{path}")


def test_two_keys_of_one_id_are_refused() -> None:
    with pytest.raises(ConfigError, match="two keys are called 'k'"):
        read_keys([Key.hmac("k", SECRET), Key.aes("k", SECRET)])


def test_new_keys() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(Key.hmac("k", secret) for secret in secrets)
    private, public = new_ed25519()
    (own,) = read_keys(f"ed25519-private:k:{private}")
    assert read_keys(f"ed25519-public:k:{public}")[0].signed(b"m", own.sign(b"m"))
