# SPDX-License-Identifier: Apache-2.0
"""Values that come from outside, checked field by field: every error names the field.

For plans that were saved, calibrations and machine descriptions. Nothing is guessed: an unknown
field, another type, or a number out of bounds is a ``ValueError``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_REQUIRED = object()


class Fields:
    """A table (a dict of JSON or TOML) whose fields are taken one by one, then ``end``-ed.

    ``where`` names the table in errors, ``""`` for the outermost one.
    """

    def __init__(self, value: object, where: str = "") -> None:
        self._where = where
        if not isinstance(value, Mapping):
            raise self._wrong("", f"must be a table, not {_short(value)}")
        self._left: dict[Any, Any] = dict(value)

    def name(self, key: object) -> str:
        """Return the full name of a field of this table."""
        return ".".join(part for part in (self._where, str(key) if key != "" else "") if part)

    def _wrong(self, key: object, text: str) -> ValueError:
        return ValueError(f"{self.name(key) or 'the whole'} {text}")

    def _take(self, key: str, default: object) -> Any:
        if key in self._left:
            return self._left.pop(key)
        if default is _REQUIRED:
            raise self._wrong(key, "is missing")
        return default

    def integer(self, key: str, low: int, high: int, default: Any = _REQUIRED) -> int:
        """Take a whole number from ``low`` to ``high``."""
        if key not in self._left and default is not _REQUIRED:
            return int(default)
        return whole(self._take(key, default), self.name(key), low, high)

    def number(self, key: str, low: float, high: float, default: Any = _REQUIRED) -> float:
        """Take a finite number from ``low`` to ``high``."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(key, f"must be a number, not {_short(value)}")
        if not math.isfinite(value) or not low <= value <= high:
            raise self._wrong(key, f"must be from {low:g} to {high:g}, not {_short(value)}")
        return float(value)

    def text(self, key: str, longest: int = 1000, default: Any = _REQUIRED) -> str:
        """Take a text of at most ``longest`` characters."""
        value = self._take(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, f"must be a text, not {_short(value)}")
        if len(value) > longest:
            raise self._wrong(key, f"is longer than {longest} characters")
        return value

    def choice(self, key: str, choices: Sequence[str], default: Any = _REQUIRED) -> str:
        """Take one of ``choices``."""
        value = self._take(key, default)
        if value not in choices:
            raise self._wrong(key, f"must be one of {', '.join(choices)}, not {_short(value)}")
        return str(value)

    def items(self, key: str, most: int, default: Any = _REQUIRED) -> list[tuple[str, Any]]:
        """Take a list of at most ``most`` values, each with the name it has in errors."""
        value = self._take(key, default)
        if not isinstance(value, (list, tuple)):
            raise self._wrong(key, f"must be a list, not {_short(value)}")
        if len(value) > most:
            raise self._wrong(key, f"has more than {most} entries")
        return [(f"{self.name(key)}[{i}]", entry) for i, entry in enumerate(value)]

    def table(self, key: str, default: Any = _REQUIRED) -> Fields:
        """Take a table inside this one."""
        return Fields(self._take(key, default), self.name(key))

    def keys(self) -> Iterator[str]:
        """Return the fields that have not been taken yet; each of them must be a text."""
        for key in list(self._left):
            if not isinstance(key, str):
                raise self._wrong(key, "must be a text to be the name of a field")
            yield key

    def end(self) -> None:
        """Raise ``ValueError`` for fields that nobody took."""
        if self._left:
            unknown = ", ".join(_short(key) for key in list(self._left)[:5])
            if len(self._left) > 5:
                unknown += f" and {len(self._left) - 5} more"
            raise ValueError(f"{self.name('') or 'the whole'} has unknown fields: {unknown}")


def whole(value: object, name: str, low: int, high: int) -> int:
    """Return ``value`` if it is a whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, not {_short(value)}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {_short(value)}")
    return value


def _short(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 70:
        return "a number far away"  # repr() of a huge int can be refused, and is no help
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
