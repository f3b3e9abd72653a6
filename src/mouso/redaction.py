"""Which arguments are hidden from listings and logs, by their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from fnmatch import translate
from typing import Any

from mouso.errors import ConfigError

MASK = "***"
HIDDEN = (
    "*password*",
    "*passwd*",
    "*passphrase*",
    "pwd",
    "*secret*",
    "*token*",
    "*api_key*",
    "*private_key*",
    "*access_key*",
    "*authorization*",
    "*credential*",
    "*cookie*",
    "*session_id*",
    "*credit_card*",
    "*card_number*",
    "cvv",
    "cvc",
)
"""Names that are hidden in every app. Case, ``_`` and ``-`` do not count: ``*api_key*`` is ``X-Api-Key`` as well."""


class Redaction:
    """Hides values by the names of arguments, and by the keys of what is nested in them.

    Args:
        patterns: What is hidden beside ``HIDDEN``, such as ``iban`` or ``*salary*``; False hides nothing at all.

    Raises:
        ConfigError: They are no list of patterns.
    """

    def __init__(self, patterns: Sequence[str] | bool = ()) -> None:
        given = () if patterns is False else patterns
        if isinstance(given, (str, bool)) or not isinstance(given, Collection) or not all(map(_is_pattern, given)):
            raise ConfigError("redact= takes a list of patterns, such as ['iban', '*salary*'], or False for none")
        names = () if patterns is False else (*HIDDEN, *given)
        self._hidden = re.compile("|".join(translate(_plain(name)) for name in names)) if names else None

    def hides(self, name: str) -> bool:
        """Whether values of this name are hidden."""
        return self._hidden is not None and self._hidden.match(_plain(name)) is not None

    def apply(self, value: Any) -> Any:
        """Plain JSON types with ``***`` in place of what is hidden."""
        if isinstance(value, dict):
            return {name: MASK if self.hides(str(name)) else self.apply(inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.apply(inner) for inner in value]
        return value

    def restore(self, given: Any, stored: Any) -> Any:
        """``given`` with the stored value wherever it has kept the ``***`` of a listing.

        Raises:
            KeyError: Nothing is stored there.
        """
        if isinstance(given, dict):
            known = stored if isinstance(stored, dict) else {}
            return {
                name: known[name] if inner == MASK and self.hides(name) else self.restore(inner, known.get(name))
                for name, inner in given.items()
            }
        if isinstance(given, list):
            items = stored if isinstance(stored, list) else []
            return [
                self.restore(inner, items[place] if place < len(items) else None) for place, inner in enumerate(given)
            ]
        return given


def _is_pattern(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
