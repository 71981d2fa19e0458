# SPDX-License-Identifier: Apache-2.0
"""Which engine is faster here, found out on the first pieces of a move (``engine="auto"``)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .pages import EXTENT, extents_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

#: What is moved by each engine to see which is faster, and the least that is worth it.
TRIAL_BYTES = 32 << 20
WORTH_BYTES = 4 * TRIAL_BYTES

# The user engine begins with a little. Where a host takes virtual CPUs away, each page waits for
# the others to flush their TLBs, and all of it would take minutes.
_STEPS = (64 << 10, 1 << 20, TRIAL_BYTES)
_FAR_TOO_LONG = 0.05  # seconds, and
_TIMES_SLOWER = 4.0

_Run = Callable[["npt.NDArray[np.void]"], "tuple[int, npt.NDArray[np.void]]"]


class Rates:
    """Bytes a second that each engine reached in this process, by page size and way."""

    def __init__(self) -> None:
        self._rates: dict[tuple[int, str, str], float] = {}

    def note(self, shift: int, way: str, engine: str, size: int, seconds: float) -> None:
        """Remember a rate; trials that moved little say nothing and are not kept."""
        if size >= TRIAL_BYTES // 2 and seconds > 0:
            self._rates[shift, way, engine] = size / seconds

    def give_up(self, shift: int, way: str, size: int, seconds: float) -> None:
        """Remember that the user engine is too slow for a trial to be ended."""
        self._rates[shift, way, "user"] = size / seconds

    def get(self, shift: int, way: str, engine: str) -> float | None:
        """Return the rate in bytes a second, or None: not measured."""
        return self._rates.get((shift, way, engine))


#: What was measured in this process. Figures of one machine and kernel: nothing to keep.
RATES = Rates()


class Tried(NamedTuple):
    """What came of a trial of the user engine."""

    code: int
    """0 or an errno."""
    left: npt.NDArray[np.void]
    """Extents for the other engine, in order."""
    bytes_untried: int = 0
    """Those of ``left`` that were not tried any more, as the engine was far too slow."""


def try_user(
    extents: npt.NDArray[np.void],
    way: str,
    run: _Run,
    bytes_moved: Callable[[], int],
    run_seconds: Callable[[], float],
) -> Tried:
    """Move extents of one page size by ``run`` of the user engine, and note its rate in ``RATES``.

    Nothing is tried while the kernel engine's rate is not known. Ends after a step in which the
    user engine was four times slower and took 50 ms or longer, by ``run_seconds``: how long the
    engine itself has run, as threads of Python that compute can keep the caller waiting for longer.
    """
    shift = int(extents["shift"][0])
    kernel = RATES.get(shift, way, "kernel")
    if kernel is None:
        return Tried(0, extents)
    left: list[npt.NDArray[np.void]] = []
    for step in _STEPS:
        if not len(extents):
            break
        begun, run_begun, before = time.perf_counter(), run_seconds(), bytes_moved()
        part, extents = split(extents, step)
        code, rest = run(part)
        left.append(rest)
        if code:
            return Tried(code, _in_order([*left, extents]))
        seconds, moved = run_seconds() - run_begun, bytes_moved() - before
        if seconds > _FAR_TOO_LONG and moved / seconds * _TIMES_SLOWER < kernel:
            if moved:  # else it says something about the pages
                RATES.give_up(shift, way, moved, seconds)
            return Tried(0, _in_order([*left, extents]), extents_bytes(extents))
        RATES.note(shift, way, "user", moved, time.perf_counter() - begun)  # the last moves most
    return Tried(0, _in_order(left))


def _in_order(parts: list[npt.NDArray[np.void]]) -> npt.NDArray[np.void]:
    return np.sort(np.concatenate([np.empty(0, EXTENT), *parts]), order="start")


def split(
    extents: npt.NDArray[np.void], size: int
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """Split extents after about ``size`` bytes, one page at least; all of one page size."""
    if not len(extents):
        return extents, extents
    shift = int(extents["shift"][0])
    want = max(size >> shift, 1)
    ends = np.cumsum(extents["pages"].astype(np.int64))
    at = int(np.searchsorted(ends, want))
    if at >= len(extents):
        return extents, extents[:0]
    before = int(ends[at] - extents["pages"][at])
    head, tail = extents[: at + 1].copy(), extents[at:].copy()
    head["pages"][-1] = want - before
    tail["start"][0] += (want - before) << shift
    tail["pages"][0] -= want - before
    return head[head["pages"] > 0], tail[tail["pages"] > 0]
