"""Pickle, for apps that allow it and have keys.

Unpickling runs whatever code the bytes name. So this module is made use of only where ``allow_pickle=True``, and its
``decode`` functions are handed only bytes whose signature was checked (``mouso.signing``).
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Mapping, Sequence
from typing import Any


class PickledCalls:
    """The arguments of one function as pickle, whatever their annotations say.

    Args:
        signature: The function's, without what the worker fills in.
    """

    def __init__(self, signature: inspect.Signature) -> None:
        self._signature = signature

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        """Encodes a call that fits the signature. Any exception: it cannot be pickled, or not be restored."""
        call = self._signature.bind(*args, **kwargs)
        content = self.dumps((call.args, call.kwargs))
        self.loads(content)
        return content

    def decode(self, content: bytes) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Decodes a call from signed bytes. Any exception: it is none of this function."""
        args, kwargs = self.loads(content)
        self._signature.bind(*args, **kwargs)
        return args, kwargs

    def dumps(self, value: Any) -> bytes:
        """A result as pickle."""
        return pickle.dumps(value, protocol=5)

    def loads(self, content: bytes) -> Any:
        """The value of signed bytes."""
        return pickle.loads(content)  # noqa: S301  # why: signed bytes only, see the module's text
