# SPDX-License-Identifier: Apache-2.0
"""exchange(): two ranges of this process swap their nodes, without free memory on either."""

from __future__ import annotations

import errno
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from . import procfs
from ._native import ffi, lib
from .errors import PageferryError, RangeError, errno_name
from .pages import PAGE_SIZE
from .polling import handle_of, polled
from .populate import crew_for
from .report import Stalls
from .stalls import stalls_of
from .survey import Survey
from .target import Target, resolve
from .user_engine import why_not

if TYPE_CHECKING:
    from .target import Movable

#: What is surveyed and handed to the core at a time.
BLOCK_BYTES = 512 << 20
_POLL_US = 100_000
_FLAGS = 0
#: Where the core refuses part of a range: why.
_REASONS = {
    errno.EBUSY: "pinned for a device, shared by a fork, or merged by KSM",
    errno.EDEADLK: "pageferry itself runs on it",
    errno.EINVAL: "not private, anonymous, writable and unlocked memory, or changed meanwhile",
}


@dataclass(frozen=True)
class ExchangeResult:
    """What an exchange did. Sizes are bytes of one range, and add up to ``bytes``.

    ``bytes_exchanged`` swapped places; ``bytes_same`` were on one node already, ``bytes_alone``
    are of pages that only one of the ranges has (or none), ``bytes_gone`` were freed meanwhile,
    ``bytes_skipped`` were not tried after a cancel. ``refused`` has the bytes that the kernel
    refused to take, by errno. ``stalls`` says how long accesses may have waited.
    """

    bytes: int
    bytes_exchanged: int
    bytes_same: int
    bytes_alone: int
    bytes_gone: int
    bytes_skipped: int
    refused: dict[int, int]
    seconds: float
    threads: int
    stalls: Stalls
    cancelled: bool = False

    @property
    def complete(self) -> bool:
        """True when nothing was refused and nothing skipped."""
        return not self.refused and not self.cancelled

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why parts were refused, in words."""
        return tuple(
            f"{size} bytes: {_REASONS.get(number, 'the kernel refused')} [{errno_name(number)}]"
            for number, size in sorted(self.refused.items())
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        value = asdict(self)
        value["refused"] = {errno_name(number): size for number, size in self.refused.items()}
        value.update(complete=self.complete, reasons=list(self.reasons))
        return value


class ExchangeInterrupted(KeyboardInterrupt):
    """Ctrl-C during an exchange. ``result`` is the ``ExchangeResult`` of what was done."""

    def __init__(self, result: ExchangeResult) -> None:
        super().__init__("the exchange was interrupted")
        self.result = result


def exchange(
    a: Movable,
    b: Movable,
    *,
    threads: int | str = "auto",
    cancel: threading.Event | None = None,
) -> ExchangeResult:
    """Let two ranges of this process swap their nodes, page for page; their bytes stay.

    ``a`` and ``b`` are arrays, buffers or ranges of addresses of the same number of pages (one
    more or less is left alone), that do not overlap. No page is allocated, so this works when both
    nodes are full. A page moves to the node of its partner at the same offset in the other range;
    where only one of the two has a page, it stays. Transparent huge pages stay whole where both
    ranges have one at the same offset.

    The memory must be private and anonymous. Readers and writers of a piece (2 MiB of each
    range) wait while it is under way. The kernel refuses what is pinned for a device or shared by
    a fork: that stays as it was and is in ``refused``. Nobody may unmap the ranges meanwhile.
    A set ``cancel``, and Ctrl-C (``ExchangeInterrupted``), end it between two pieces.

    Raises ``RangeError`` for ranges that differ in size, overlap, or are not this process's,
    ``NotPermittedError`` without the right to a userfaultfd that sees faults of the kernel, and
    ``UnsupportedError`` before Linux 6.8 (UFFDIO_MOVE, which this rests on). The idea is that of
    Nimble (ASPLOS'19).
    """
    first, second = _one_range(a), _one_range(b)
    size = min(len(first), len(second))
    if abs(len(first) - len(second)) > PAGE_SIZE:
        raise RangeError(
            errno.EINVAL,
            f"ranges of {len(first)} and {len(second)} bytes cannot be exchanged",
            "both must have the same size",
        )
    first, second = first[:size], second[:size]
    if size and first.start < second.stop and second.start < first.stop:
        raise RangeError(
            errno.EINVAL,
            f"the ranges at {first.start:#x} and {second.start:#x} overlap",
            "arrays that share a page do, too",
        )
    error = why_not("checked")
    if error is not None:
        raise error
    run = _Run(crew_for(-1, size, threads), cancel)
    begun = time.perf_counter()
    try:
        for offset in range(0, size, BLOCK_BYTES):
            end = min(offset + BLOCK_BYTES, size)
            if run.over():
                run.skipped += end - offset
            else:
                run.exchange(list(_pairs(first[offset:end], second[offset:end])), end - offset)
    except KeyboardInterrupt as exception:
        run.exception = exception
    result = run.result(size, time.perf_counter() - begun)
    if isinstance(run.exception, KeyboardInterrupt):
        raise ExchangeInterrupted(result) from None
    if run.exception is not None:
        raise run.exception
    return result


class _Run:
    """``pf_exchange`` of the C core, block after block; counts add up."""

    def __init__(self, crew: tuple[int, Any], cancel: threading.Event | None) -> None:
        self.exception: BaseException | None = None
        self.skipped = 0
        self._alone = 0
        self._cancel = cancel
        self._handle = handle_of(self)
        self._c: Any = ffi.new("struct pf_exchange *")
        self._threads, self._cpus = crew
        self._c.threads, self._c.cpus = crew
        self._c.poll, self._c.poll_arg = lib.pf_python_poll, self._handle
        self._c.poll_us, self._c.flags = _POLL_US, _FLAGS

    def poll(self) -> bool:
        """Look for a cancel; signal handlers run on the way here."""
        return self._cancel is not None and self._cancel.is_set()

    def end(self) -> None:
        """End between two pieces. Any thread may call it."""
        self._c.cancel = 1

    def over(self) -> bool:
        """Say whether no further block is to be begun."""
        if self.poll():
            self.end()
        return bool(self._c.cancel) or self.exception is not None

    def exchange(self, pairs: list[tuple[int, int, int]], size: int) -> None:
        """Exchange the pairs (address, address, bytes) of a block of ``size`` bytes."""
        self._alone += size - sum(length for _, _, length in pairs)
        if not pairs:
            return
        array = ffi.new("struct pf_exchange_pair[]", pairs)
        self._c.pairs, self._c.n_pairs = array, len(pairs)
        with polled(self):
            code = -int(lib.pf_exchange_run(self._c))
        if code not in (0, errno.ECANCELED):
            raise PageferryError(code, "the exchange could not be run")

    def result(self, size: int, seconds: float) -> ExchangeResult:
        c = self._c
        done = c.bytes_exchanged + c.bytes_same + c.bytes_gone + c.bytes_skipped
        refused = {i: int(c.refused[i]) for i in range(lib.PF_MAX_ERRNO) if c.refused[i]}
        rest = size - done - sum(refused.values()) - self._alone - self.skipped
        return ExchangeResult(
            bytes=size,
            bytes_exchanged=int(c.bytes_exchanged),
            bytes_same=int(c.bytes_same),
            bytes_alone=self._alone,
            bytes_gone=int(c.bytes_gone),
            bytes_skipped=int(c.bytes_skipped) + self.skipped + rest,
            refused=refused,
            seconds=seconds,
            threads=int(c.workers),
            stalls=stalls_of(list(c.stalls), int(c.stall_us_max)),
            cancelled=bool(c.cancel) or self.exception is not None,
        )


def _one_range(target: Movable) -> range:
    if target is None:
        raise TypeError("exchange what? give two arrays, buffers or ranges of addresses")
    return resolve(target).one_range()


def _pairs(first: range, second: range) -> Iterator[tuple[int, int, int]]:
    """Yield (address, address, bytes) where both have pages, each within one mapping."""
    ours = _runs(first)
    theirs = iter(_runs(second))
    start, end = next(theirs, (0, -1))
    for low, high in ours:
        while end >= 0 and start < high:
            begin, stop = max(low, start), min(high, end)
            if begin < stop:
                yield first.start + begin, second.start + begin, stop - begin
            if end > high:
                break
            start, end = next(theirs, (0, -1))


def _runs(addresses: range) -> list[tuple[int, int]]:
    """Return the present pages as offsets, joined, and cut where mappings end."""
    start, stop = addresses.start, addresses.stop
    found: list[tuple[int, int]] = []
    for extents in Survey(Target(0, (addresses,))).windows():
        for begin, pages, shift, _ in extents.tolist():
            low, high = max(begin, start) - start, min(begin + (pages << shift), stop) - start
            if found and found[-1][1] == low:
                found[-1] = found[-1][0], high
            elif low < high:
                found.append((low, high))
    edges = {edge for m in procfs.mappings() for edge in (m.start, m.end) if start < edge < stop}
    borders = sorted(edge - start for edge in edges)
    cut: list[tuple[int, int]] = []
    for low, high in found:
        inside = borders[bisect_right(borders, low) : bisect_left(borders, high)]
        cut += pairwise([low, *inside, high])
    return cut
