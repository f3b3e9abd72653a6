"""Keys: who may sign jobs, who can check them, and who can read them.

A key's kind fixes its algorithm; nothing that is stored with a job can choose another one.

| Kind | Holds | Signs | Checks | Encrypts, decrypts |
|---|---|---|---|---|
| ``hmac`` | a secret | yes (HMAC-SHA256) | yes | yes (AES-256-GCM) |
| ``ed25519`` | a private or a public half | the private half | yes | no |
| ``aes`` | a secret | no | no | yes (AES-256-GCM) |

What signs and what encrypts is derived from the secret with two labels (HKDF, RFC 5869, its second half), so that
neither tells anything about the other. No key shows its secret in a ``repr``, an error or a pickle.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

from mouso.errors import ConfigError
from mouso.sealing import Sealer

VARIABLE = "MOUSO_KEYS"
LEAST_SECRET = 32
"""Bytes."""

_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_KINDS = ("hmac", "aes", "ed25519-private", "ed25519-public")
_FORM = "hmac:ID:SECRET, aes:ID:SECRET, ed25519-private:ID:KEY or ed25519-public:ID:KEY"
_MOST_FILE = 1 << 20


class Key:
    """One key; made by ``Key.hmac``, ``Key.ed25519`` or ``Key.aes``.

    Attributes:
        id: What signed and encrypted jobs call it.
        kind: ``hmac``, ``ed25519`` or ``aes``.
        tasks, queues: Patterns, such as ``mail.*``, of what it may sign; None for everything.
    """

    __slots__ = ("_check", "_sealer", "_secret", "_sign", "id", "kind", "queues", "tasks")

    def __init__(self, id: str, kind: str, tasks: Sequence[str] | None, queues: Sequence[str] | None) -> None:
        if not isinstance(id, str) or not _ID.fullmatch(id):
            raise ConfigError("a key's id is 1 to 64 of A-Z a-z 0-9 _ . - (the one given is not shown)")
        self.id = id
        self.kind = kind
        self.tasks = _patterns(id, "tasks", tasks)
        self.queues = _patterns(id, "queues", queues)
        self._sign: Callable[[bytes], bytes] | None = None
        self._check: Callable[[bytes, bytes], bool] | None = None
        self._secret: bytes | None = None
        self._sealer: Sealer | None = None

    @classmethod
    def hmac(
        cls, id: str, secret: bytes | str, *, tasks: Sequence[str] | None = None, queues: Sequence[str] | None = None
    ) -> Key:
        """A shared secret: whoever has it signs, checks, encrypts and decrypts.

        Args:
            secret: At least 32 bytes; a text counts as its UTF-8 bytes. ``mouso.keys.new_secret()`` makes one.
            tasks, queues: Patterns of what it may sign; the worker's own list decides.

        Raises:
            ConfigError: The id, the secret or a pattern cannot be used.
        """
        import hmac

        key = cls(id, "hmac", tasks, queues)
        key._secret = _secret(secret)
        own = hmac.digest(key._secret, b"mouso sign 1\x01", "sha256")

        def sign(message: bytes) -> bytes:
            return hmac.digest(own, message, "sha256")

        def check(message: bytes, signature: bytes) -> bool:
            return hmac.compare_digest(hmac.digest(own, message, "sha256"), signature)

        key._sign, key._check = sign, check
        return key

    @classmethod
    def ed25519(
        cls,
        id: str,
        *,
        private: bytes | str | None = None,
        public: bytes | str | None = None,
        tasks: Sequence[str] | None = None,
        queues: Sequence[str] | None = None,
    ) -> Key:
        """A pair of keys: the private half signs, the public half only checks. Needs the extra ``crypto``.

        Args:
            private, public: One of the two: 32 bytes, as they are or in base64, or PEM. ``mouso.keys.new_ed25519()``
                makes a pair.
            tasks, queues: Patterns of what it may sign; the worker's own list decides.

        Raises:
            ConfigError: The id, the key or a pattern cannot be used, or the package ``cryptography`` is missing.
        """
        key = cls(id, "ed25519", tasks, queues)
        if (private is None) == (public is None):
            raise ConfigError(f"key {id!r}: give private= to sign, or public= to check only")
        try:
            key._sign, key._check = _ed25519(private, public)
        except ImportError:
            raise ConfigError(
                f"key {id!r}: Ed25519 needs the package cryptography: pip install 'mouso[crypto]'"
            ) from None
        except Exception:
            half = "private" if public is None else "public"
            raise ConfigError(
                f"key {id!r}: {half}= is no Ed25519 {half} key: 32 bytes, base64 of them, or PEM"
            ) from None
        return key

    @classmethod
    def aes(cls, id: str, secret: bytes | str) -> Key:
        """A shared secret that encrypts and decrypts, and signs nothing: for use beside Ed25519 keys.

        Args:
            secret: At least 32 bytes; a text counts as its UTF-8 bytes.

        Raises:
            ConfigError: The id or the secret cannot be used.
        """
        key = cls(id, "aes", None, None)
        key._secret = _secret(secret)
        return key

    def __repr__(self) -> str:
        limits = "".join(
            f", {name}={list(patterns)}"
            for name, patterns in (("tasks", self.tasks), ("queues", self.queues))
            if patterns
        )
        half = "" if self.kind != "ed25519" else ", private" if self.can_sign else ", public"
        return f"<Key {self.id!r}, {self.kind}{half}{limits}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key cannot be pickled or copied; it would leave its process")

    @property
    def can_sign(self) -> bool:
        """Whether it signs."""
        return self._sign is not None

    @property
    def can_check(self) -> bool:
        """Whether it checks signatures."""
        return self._check is not None

    @property
    def can_seal(self) -> bool:
        """Whether it encrypts and decrypts."""
        return self._secret is not None

    def may_sign(self, task: str, queue: str) -> bool:
        """Whether its limits let it sign jobs of this task in this queue."""
        return _fits(task, self.tasks) and _fits(queue, self.queues)

    def sign(self, message: bytes) -> bytes:
        """The signature of a message; only for a key that can sign."""
        assert self._sign is not None
        return self._sign(message)

    def signed(self, message: bytes, signature: bytes) -> bool:
        """Whether a signature is this key's, of this message. Takes the same time wherever they differ."""
        return self._check is not None and self._check(message, signature)

    @property
    def sealer(self) -> Sealer:
        """What encrypts and decrypts with it; only for a key that can.

        Raises:
            ConfigError: The package ``cryptography`` is missing.
        """
        if self._sealer is None:
            assert self._secret is not None
            try:
                self._sealer = Sealer(self._secret)
            except ImportError:
                raise ConfigError("encryption needs the package cryptography: pip install 'mouso[crypto]'") from None
        return self._sealer


def _patterns(id: str, name: str, given: Sequence[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    if isinstance(given, str) or not all(isinstance(pattern, str) and pattern for pattern in given):
        raise ConfigError(f"key {id!r}: {name}= takes a list of patterns, such as ['mail.*']")
    if not given:
        raise ConfigError(f"key {id!r}: {name}=[] lets it sign nothing; leave it out for everything")
    return tuple(given)


def _fits(name: str, patterns: tuple[str, ...] | None) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def _secret(secret: object) -> bytes:
    """The secret as bytes. No error names the key: who mixed up the order would read the secret in its place."""
    if isinstance(secret, str):
        secret = secret.encode("utf-8", "surrogateescape")
    if not isinstance(secret, bytes):
        raise ConfigError(f"a key's secret is bytes or a text, not {type(secret).__name__}")
    if len(secret) < LEAST_SECRET:
        raise ConfigError(
            f"a key's secret has {len(secret)} bytes, at least {LEAST_SECRET} are needed; "
            "mouso.keys.new_secret() makes one"
        )
    return secret


def _ed25519(
    private: bytes | str | None, public: bytes | str | None
) -> tuple[Callable[[bytes], bytes] | None, Callable[[bytes, bytes], bool]]:
    """How to sign (None with the public half alone) and how to check."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    def load(given: bytes | str, raw: Callable[[bytes], Any], pem: Callable[[bytes], Any]) -> Any:
        content = given.encode() if isinstance(given, str) else given
        if b"-----BEGIN" in content:
            return pem(content)
        return raw(content if len(content) == 32 else _unbase64(content))

    sign = None
    if private is not None:
        own = load(
            private, Ed25519PrivateKey.from_private_bytes, lambda pem: serialization.load_pem_private_key(pem, None)
        )
        if not isinstance(own, Ed25519PrivateKey):
            raise ValueError("another kind of key")
        sign, other = own.sign, own.public_key()
    else:
        assert public is not None
        other = load(public, Ed25519PublicKey.from_public_bytes, serialization.load_pem_public_key)
        if not isinstance(other, Ed25519PublicKey):
            raise ValueError("another kind of key")

    def check(message: bytes, signature: bytes) -> bool:
        try:
            other.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    return sign, check


def _unbase64(content: bytes) -> bytes:
    import base64

    text = content.strip().translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


# -- keys as text ----------------------------------------------------------------------------------------------------


def read_keys(given: Sequence[Key | str] | Key | str | None) -> tuple[Key, ...]:
    """The keys that an app is given: as objects, as text, or by ``$MOUSO_KEYS``.

    A text holds keys with white space between them, such as ``hmac:2026-11:SECRET`` or
    ``ed25519-public:billing:BASE64;tasks=mail.*;queues=mail,low``. ``$NAME`` stands for the text of a variable of the
    environment, and ``@PATH`` for that of a file.

    Args:
        given: None for ``$MOUSO_KEYS``; no keys if that is not set either.

    Raises:
        ConfigError: One of them cannot be used. The message never quotes the text.
    """
    if given is None:
        if VARIABLE not in os.environ:
            return ()
        given = f"${VARIABLE}"
    if not isinstance(given, (str, Key, Iterable)):
        raise ConfigError(f"keys= takes keys or their texts, not {type(given).__name__}; use [Key.hmac(…)] or its text")
    parts = [given] if isinstance(given, (str, Key)) else list(given)
    keys: list[Key] = []
    for number, part in enumerate(parts, 1):
        if isinstance(part, Key):
            keys.append(part)
        elif isinstance(part, str):
            keys += _read_text(part, f"keys[{number - 1}]")
        else:
            raise ConfigError(f"keys[{number - 1}] is no key but {type(part).__name__}; use Key.hmac(…) or its text")
    if not keys:
        raise ConfigError("keys= is empty, which would leave jobs unsigned; name a key, or leave it out")
    for key in keys:
        if sum(other.id == key.id for other in keys) > 1:
            raise ConfigError(f"two keys are called {key.id!r}; give each an id of its own")
    return tuple(keys)


def _read_text(text: str, source: str) -> Iterator[Key]:
    words = text.split()
    if len(words) == 1 and words[0].startswith("$"):
        source = words[0][:80]
        words = os.environ.get(words[0][1:], "").split()
        if not words:
            raise ConfigError(f"{source} is not set or empty; put keys into it, such as hmac:ID:SECRET")
    if len(words) == 1 and words[0].startswith("@"):
        source = f"the key file {words[0][1:]}"
        words = _read_file(Path(words[0][1:]), source)
    if not words:
        raise ConfigError(f"{source} holds no key; write {_FORM}")
    for number, word in enumerate(words, 1):
        yield _read_word(word, f"{source}, key {number}" if len(words) > 1 else source)


def _read_file(path: Path, source: str) -> list[str]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_FILE)
        lines = content.decode().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{source} is not UTF-8 text") from None
    return [word for line in lines if not line.lstrip().startswith("#") for word in line.split()]


def _read_word(word: str, source: str) -> Key:
    """One key. What is wrong with it is told without its text, in which anything may be the secret."""
    head, *settings = word.split(";")
    kind, _, rest = head.partition(":")
    id, _, material = rest.partition(":")
    if kind not in _KINDS or not material:
        raise ConfigError(f"{source} cannot be read; write {_FORM}")
    limits: dict[str, Any] = {}
    for setting in settings:
        name, equals, patterns = setting.partition("=")
        if name not in ("tasks", "queues") or not equals or name in limits:
            raise ConfigError(f"{source}: after ';' comes tasks=PATTERN,… or queues=PATTERN,…, each once")
        limits[name] = patterns.split(",")
    try:
        match kind:
            case "hmac":
                return Key.hmac(id, material, **limits)
            case "aes":
                if limits:
                    raise ConfigError("an aes key signs nothing, so it has no tasks= and queues=")
                return Key.aes(id, material)
            case _:
                return Key.ed25519(id, **{kind.removeprefix("ed25519-"): material}, **limits)
    except ConfigError as error:
        raise ConfigError(f"{source}: {str(error).removeprefix(f'key {id!r}: ')}") from None


# -- new keys --------------------------------------------------------------------------------------------------------


def new_secret() -> str:
    """A fresh random secret for ``Key.hmac`` or ``Key.aes``: 32 bytes in base64, which any setting can hold."""
    return _base64(os.urandom(32))


def new_ed25519() -> tuple[str, str]:
    """A fresh pair for ``Key.ed25519``: private and public half in base64. Needs the extra ``crypto``."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    return _base64(private.private_bytes_raw()), _base64(private.public_key().public_bytes_raw())


def _base64(content: bytes) -> str:
    import base64

    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
