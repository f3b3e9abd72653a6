"""Encryption of what a job carries: AES-256-GCM, a fresh key for every message.

A sealed message is ``salt (16) | nonce (12) | ciphertext | tag (16)``. Its key is derived from the secret and the salt,
so no number of messages wears a secret out: random nonces under one key would, after some 2³² of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

_SALT, _HEAD = 16, 28


class Sealer:
    """Encrypts and decrypts with one secret.

    Args:
        secret: At least 32 bytes.

    Raises:
        ImportError: The package ``cryptography`` is missing.
    """

    __slots__ = ("_cipher", "_digest", "_own")

    def __init__(self, secret: bytes) -> None:
        import hmac

        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher: Callable[[bytes], Any] = AESGCM
        self._digest = hmac.digest
        self._own = hmac.digest(secret, b"mouso seal 1\x01", "sha256")

    def seal(self, content: bytes, bound: bytes) -> bytes:
        """Encrypts; only who names the same ``bound`` can open it."""
        head = os.urandom(_HEAD)
        sealed: bytes = self._cipher(self._key(head)).encrypt(head[_SALT:], content, bound)
        return head + sealed

    def open(self, sealed: bytes, bound: bytes) -> bytes:
        """Decrypts.

        Raises:
            ValueError: It was altered, belongs elsewhere, or was sealed with another secret.
        """
        from cryptography.exceptions import InvalidTag

        try:
            content: bytes = self._cipher(self._key(sealed)).decrypt(sealed[_SALT:_HEAD], sealed[_HEAD:], bound)
        except (InvalidTag, ValueError, OverflowError):
            raise ValueError("it cannot be decrypted") from None
        return content

    def digest(self, content: bytes) -> str:
        """A text by which equal contents are known, and which tells nothing to who lacks the secret."""
        return self._digest(self._own, b"mouso equal 1\x01" + content, "sha256")[:16].hex()

    def _key(self, head: bytes) -> bytes:
        return self._digest(self._own, b"mouso message 1\x01" + head[:_SALT], "sha256")
