# SPDX-License-Identifier: Apache-2.0
"""Limits: how much traffic a move may cause, how long it and each of its calls may take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

_MOST_GBPS = 1e6
_MOST_MS = 1e6
_MOST_S = 1e6


@dataclass(frozen=True)
class Limits:
    """Bounds for a move. None: no bound.

    ``max_gbps`` is in GB/s (10**9 bytes) of what moves; ``stall_ms`` is the time in milliseconds
    that one system call, or one chunk of the user engine, should take at most; ``timeout`` is the
    time in seconds after which the move ends between two batches. Raises ``ValueError`` for
    anything but a number above zero.
    """

    max_gbps: float | None = None
    stall_ms: float | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.max_gbps is not None:
            _check("max_gbps", self.max_gbps, _MOST_GBPS, "GB/s")
        if self.stall_ms is not None:
            _check("stall_ms", self.stall_ms, _MOST_MS, "milliseconds")
        if self.timeout is not None:
            _check("timeout", self.timeout, _MOST_S, "seconds")

    @property
    def max_rate(self) -> int:
        """Bytes a second, for the C core; 0 without a limit."""
        return 0 if self.max_gbps is None else max(int(self.max_gbps * 1e9), 1)


def _check(name: str, value: object, most: float, unit: str) -> None:
    """Raise ``ValueError`` unless ``value`` is a number above 0 that makes sense."""
    good = isinstance(value, Real) and not isinstance(value, bool)
    if not good or not math.isfinite(float(value)) or not 0 < float(value) <= most:  # type: ignore[arg-type]
        raise ValueError(
            f"{name} must be a number of {unit} above 0 and up to {most:g}, not {value!r}; "
            "leave it out for no limit"
        )
