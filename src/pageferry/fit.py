# SPDX-License-Identifier: Apache-2.0
"""Fitting the costs of a machine to moves that were measured on it.

Least squares on the logarithm of the time, so that a page and a gigabyte count alike, by the
Levenberg-Marquardt method on the logarithm of each cost, so that none becomes negative. Each cost
is also pulled a little towards where it began: what the measurements do not tell stays there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .model import BOUNDS, Costs, predict
from .seats import Seats

#: How strongly a cost is held where it began: a factor of e away counts as much as a measurement
#: that is wrong by this share.
PULL = 0.05
_ROUNDS = 60
_STEP = 1e-4

_Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """A move that was measured: what, by how many threads where, and the seconds it took.

    ``engine``, ``handovers`` and ``smallest`` as ``predict`` takes them.
    """

    pages: Mapping[int, int]
    threads: int
    seconds: float
    seats: Seats
    engine: str = "kernel"
    handovers: int | None = None
    smallest: int | None = None

    def predicted(self, costs: Costs) -> float:
        """Return the seconds that the model expects of it."""
        return predict(
            costs,
            self.seats,
            self.pages,
            self.threads,
            engine=self.engine,
            handovers=self.handovers,
            smallest=self.smallest,
        ).seconds


def fit(measured: Sequence[Measured], start: Costs, free: Sequence[str]) -> Costs:
    """Return ``start`` with the costs named in ``free`` fitted to ``measured``.

    A name is a field of ``Costs``, or ``page_us.SIZE`` for one size of page. Raises ``ValueError``
    for a name that there is not, and for one that begins at 0, which has no logarithm.
    """
    begun = np.array([_get(start, name) for name in free])
    if not (begun > 0).all():
        raise ValueError(f"{free[int(np.argmin(begun))]} begins at 0 and cannot be fitted")
    target = np.log([m.seconds for m in measured])

    def costs(logs: _Vector) -> Costs:
        found = start
        for name, value in zip(free, begun * np.exp(logs), strict=True):
            found = _set(found, name, float(value))
        return found

    def errors(logs: _Vector) -> _Vector:
        now = costs(logs)
        off = np.log([m.predicted(now) for m in measured]) - target
        return np.concatenate([off, PULL * logs])

    logs = np.zeros(len(free))
    wrong = errors(logs)
    damping = 1e-2
    for _ in range(_ROUNDS):
        slope = np.stack(
            [(errors(logs + _STEP * unit) - wrong) / _STEP for unit in np.eye(len(free))], axis=1
        )
        square = slope.T @ slope
        step = np.linalg.solve(square + damping * np.diag(square.diagonal()), -slope.T @ wrong)
        better = errors(logs + np.clip(step, -1.0, 1.0))
        if better @ better < wrong @ wrong:
            done = wrong @ wrong - better @ better < 1e-10
            logs, wrong, damping = logs + np.clip(step, -1.0, 1.0), better, damping / 3
            if done:
                break
        else:
            damping *= 4
            if damping > 1e8:
                break
    return costs(logs)


def _get(costs: Costs, name: str) -> float:
    field, _, size = name.partition(".")
    if field == "page_us" and size.isdecimal():
        return costs.page(int(size))
    if field not in BOUNDS or size:
        raise ValueError(f"{name!r} is no cost that can be fitted")
    return float(getattr(costs, field))


def _set(costs: Costs, name: str, value: float) -> Costs:
    field, _, size = name.partition(".")
    if field == "page_us":
        pages = {**dict(costs.page_us), int(size): value}
        return replace(costs, page_us=tuple(sorted(pages.items())))
    low, high = BOUNDS[field]
    changed: dict[str, Any] = {field: min(max(value, low), high)}
    return replace(costs, **changed)
