# SPDX-License-Identifier: Apache-2.0
"""Run: the parts of a move that the user engine of the C core does, in this process's memory."""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, bisect_right
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from . import procfs
from ._native import ffi, lib
from .engine_trial import RATES, TRIAL_BYTES, WORTH_BYTES, split, try_user
from .errors import NotPermittedError, UnsupportedError
from .headroom import threads_with_room
from .pages import BASE, EXTENT, HUGETLB, PAGE_SHIFT, extents_bytes
from .report import EnginePart
from .stalls import stalls_of

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

    from .plan import Plan

ENGINES = ("auto", "kernel", "user")
WAYS = ("auto", "checked", "hold", "protect")
_WAY_NUMBERS = {"checked": 1, "hold": 2, "protect": 3}

#: No access waits longer than this for its page, in milliseconds, unless told otherwise.
STALL_MS = 20.0

_MAX_LEFT = 1 << 16
#: Shorter runs of pages are quicker by move_pages(2), which takes many in one call.
_SMALLEST_BYTES = 64 << 10
#: Less for each worker is done before another has a userfaultfd and a side range of its own.
_WORKER_BYTES = 4 << 20
# Mappings that the kernel would refuse, or whose flags mremap(2) would change: locked, special,
# hugetlb, growing stacks, watched by another userfaultfd.
_UNFIT_FLAGS = frozenset({"lo", "io", "pf", "mm", "ht", "gd", "um", "uw", "ss"})

_REASONS = {
    errno.EBUSY: "pinned for a device, shared by a fork, or merged by KSM",
    errno.EDEADLK: "the engine itself runs on it",
    errno.ENOMEM: "the target has no room, or not in pages of that size",
    errno.EINVAL: "not private, anonymous and writable, or changed meanwhile",
    errno.EMFILE: "this process has no file descriptor left for a userfaultfd",
    errno.ENFILE: "the machine has no file left for a userfaultfd",
    errno.EAGAIN: "too many threads move memory at once",
}
#: Why base pages did not become huge ones.
_KEPT = {
    0: "not 2 MiB of base pages, aligned, all there and all on the node",
    errno.EINVAL: "marked MADV_NOHUGEPAGE, shared, or changed meanwhile",
    errno.ENOMEM: "the target has no free huge page",
    errno.EAGAIN: "in use, or pinned for a device",
    errno.EBUSY: "the memory cgroup is at its limit, or pages were freed meanwhile",
}
#: What may pass: the user engine then leaves everything to the kernel engine.
_FOR_NOW = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@lru_cache(maxsize=1)
def _offered() -> int:
    """Ask the kernel, once where it answers: raises where only files or memory ran out."""
    offered = int(lib.pf_user_features())
    if offered < 0 and -offered in _FOR_NOW:
        raise OSError(-offered, os.strerror(-offered))
    return offered


def features() -> int:
    """Return what the kernel offers the user engine: ``PF_USER_HAS_*`` bits, or -errno."""
    try:
        return _offered()
    except OSError as error:
        return -(error.errno or errno.EIO)


def _needs(way: str) -> int:
    if way == "checked":
        return int(lib.PF_USER_HAS_MOVE | lib.PF_USER_HAS_EVENTS)
    return int(lib.PF_USER_HAS_REMAP | (lib.PF_USER_HAS_PROTECT if way == "protect" else 0))


def why_not(way: str) -> NotPermittedError | UnsupportedError | None:
    """Return the error that the user engine would end with here, or None where it works."""
    offered = features()
    if offered == -errno.EPERM:
        return NotPermittedError(
            errno.EPERM,
            "the user engine needs a userfaultfd that waits for faults of the kernel, too",
            "CAP_SYS_PTRACE, access to /dev/userfaultfd, or vm.unprivileged_userfaultfd=1",
        )
    if -offered in _FOR_NOW:
        return None
    if offered < 0:
        return UnsupportedError(-offered, "this kernel, or seccomp, gives no userfaultfd")
    if _needs(way) & ~offered:
        return UnsupportedError(
            errno.EOPNOTSUPP,
            f"this kernel lacks what the user engine needs for way={way!r}",
            "checked needs UFFDIO_MOVE (Linux 6.8), protect UFFDIO_WRITEPROTECT (5.7), hold "
            "MREMAP_DONTUNMAP (5.7); or take engine='kernel'",
        )
    return None


class UserRun:
    """``pf_user`` of the C core: parts of a move, and the rest handed back.

    ``trial`` is True where the faster engine is to be found out on the first pieces of each page
    size (``engine="auto"``), else everything that fits is done here. ``shift`` asks for pages of
    that size, base or huge, in place of the others; ``again`` gives pages that are on the node
    already new ones, too: for benchmarks on machines with one node. Counts add up over the windows.
    """

    def __init__(
        self,
        node: int,
        way: str,
        *,
        trial: bool,
        stall_ms: float | None,
        exact: bool,
        shift: int = 0,
        max_rate: int = 0,
        again: bool = False,
    ) -> None:
        self.way = "checked" if way == "auto" else way
        self._trial = trial
        self._base = shift == PAGE_SHIFT
        self._exact = exact
        self._again = again
        self._judge = False
        self._plan_threads = 1
        self._c: Any = ffi.new("struct pf_user *")
        self._cpus: Any = ffi.NULL
        self._threads = 1
        self._left = np.empty(_MAX_LEFT, EXTENT)
        self._mappings: list[procfs.Mapping] | None = None
        self._not_here: Counter[str] = Counter()
        c = self._c
        c.target, c.way = node, _WAY_NUMBERS[self.way]
        c.page_shift, c.max_rate = shift, max_rate
        c.left = ffi.from_buffer("struct pf_extent[]", self._left)
        c.max_left = _MAX_LEFT
        c.stall_us = max(int((stall_ms or STALL_MS) * 1000), 1)

    def follow(self, plan: Plan, *, judge: bool = False) -> None:
        """Use the threads and CPUs of ``plan`` from now on.

        With ``judge``, when nobody insists on the number, no more than this engine has use for.
        """
        self._judge = judge
        self._plan_threads = plan.threads
        self._cpus = ffi.new("int32_t[]", list(plan.cpus)) if plan.cpus else ffi.NULL
        self._threads, self._c.cpus = plan.threads, self._cpus

    def poll_by(self, function: Any, handle: Any, poll_us: int) -> None:
        """Set what the core calls between two pieces, on the thread that moves."""
        self._c.poll, self._c.poll_arg, self._c.poll_us = function, handle, poll_us

    def sort(
        self, extents: npt.NDArray[np.void]
    ) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
        """Cut ``extents`` at the borders of mappings: those for this engine, and the others."""
        if self._kernel_is_faster(extents):  # no need to know the mappings, which takes its time
            return extents[:0], extents
        first, last = extents[0], extents[-1]
        stop = int(last["start"]) + (int(last["pages"]) << int(last["shift"]))
        if self._mappings is None:
            self._mappings = _fit_mappings(self.way)
        borders = [(m.start, m.end) for m in self._mappings]
        near = [(a, b) for a, b in borders if a < stop and b > int(first["start"])]
        ends = [b for _, b in near]
        here: list[tuple[int, int, int, int]] = []
        others: list[tuple[int, int, int, int]] = []
        for extent in extents:
            start, pages, shift, kind = (int(extent[name]) for name in EXTENT.names or ())
            low = bisect_right(ends, start)
            high = bisect_left(near, (start + (pages << shift), 0), low)
            for at, count, fits in _cut(start, pages, shift, near[low:high]):
                part = (at, count, shift, kind)
                if kind == HUGETLB:
                    reason = "hugetlb pages"
                elif not fits:
                    reason = "not private anonymous memory, locked, or special"
                elif count << shift < _SMALLEST_BYTES:
                    reason = "too few pages together"
                elif kind != BASE and not features() & lib.PF_USER_HAS_MOVE:
                    reason = "huge pages need UFFDIO_MOVE"
                else:
                    here.append(part)
                    continue
                self._not_here[reason] += count << shift
                others.append(part)
        return np.array(here, EXTENT), np.array(others, EXTENT)

    def choose(self, extents: npt.NDArray[np.void]) -> list[tuple[str, npt.NDArray[np.void]]]:
        """Divide extents that fit among the engines, in the order in which they are to be run."""
        if not self._trial:
            return [("user", extents)]
        steps: list[tuple[str, npt.NDArray[np.void]]] = []
        for shift in np.unique(extents["shift"]):
            chosen = extents[extents["shift"] == shift]
            rates = [RATES.get(int(shift), self.way, engine) for engine in ("kernel", "user")]
            if None in rates:
                if extents_bytes(chosen) < WORTH_BYTES:
                    self._not_here["too little to find out whether it is faster"] += extents_bytes(
                        chosen
                    )
                    steps.append(("kernel", chosen))
                    continue
                trial, chosen = split(chosen, TRIAL_BYTES)
                steps.append(("trial kernel", trial))
                trial, chosen = split(chosen, TRIAL_BYTES)
                steps.append(("trial user", trial))
            steps.append(("faster", chosen))
        return steps

    def _kernel_is_faster(self, extents: npt.NDArray[np.void]) -> bool:
        """Say whether that is known for every page size there is."""
        shifts = [int(shift) for shift in np.unique(extents["shift"])]
        for shift in shifts:
            kernel, user = (RATES.get(shift, self.way, name) for name in ("kernel", "user"))
            if not self._trial or kernel is None or user is None or user > kernel:
                return False
        return all(self.faster(extents[extents["shift"] == s]) == "kernel" for s in shifts)

    def faster(self, extents: npt.NDArray[np.void]) -> str:
        """Return the engine that was faster for the page size of these extents."""
        shift = int(extents["shift"][0])
        kernel, user = (RATES.get(shift, self.way, name) for name in ("kernel", "user"))
        size = extents_bytes(extents)
        if kernel is None or user is None:
            self._not_here["not found out whether it is faster"] += size
            return "kernel"
        if user > kernel:
            return "user"
        self._not_here[f"slower here ({user / 1e9:.3g} GB/s, not {kernel / 1e9:.3g})"] += size
        return "kernel"

    def run(self, extents: npt.NDArray[np.void]) -> tuple[int, npt.NDArray[np.void]]:
        """Move; return 0 or an errno, and the extents that were left for another engine.

        Where the copies would meet the limit of the memory cgroup, that is all of them: the kernel
        engine's pages are charged to nobody twice.
        """
        c = self._c
        size = extents_bytes(extents)
        c.threads, why = threads_with_room(self._threads, size)
        if not c.threads:
            self._not_here[why] += size
            return 0, extents
        huge = extents["kind"] != BASE
        left = []
        code = 0
        for again, part in (
            (self._again, extents[~huge]),
            (self._again or self._base, extents[huge]),
        ):
            if not len(part):
                continue
            c.flags = (lib.PF_USER_AGAIN if again else 0) | (
                lib.PF_USER_EXACT if self._exact else 0
            )
            c.extents, c.n_extents = ffi.from_buffer("struct pf_extent[]", part), len(part)
            if self._judge:
                useful = max(extents_bytes(part) // _WORKER_BYTES, 1)
                c.threads = min(self._plan_threads, useful)
            result = -int(lib.pf_user_run(c))  # after an end, it counts what is skipped
            code = code or result
            left.append(self._left[: c.n_left].copy())
        rest = np.concatenate(left) if left else np.empty(0, EXTENT)
        return code, np.sort(rest, order="start")

    def tried(self, extents: npt.NDArray[np.void]) -> tuple[int, npt.NDArray[np.void]]:
        """``run``, and note the rate; ends early where the kernel engine is so much faster."""
        tried = try_user(
            extents, self.way, self.run, lambda: self.bytes_moved, lambda: self._c.run_us / 1e6
        )
        if tried.bytes_untried:
            self._not_here["the trial ended early: far slower here"] += tried.bytes_untried
        return tried.code, tried.left

    def steer(self, paused: bool, max_rate: int) -> None:
        """Pause or go on, at most at ``max_rate`` bytes per second (0: no limit). Any thread."""
        if self._c.max_rate != max_rate:
            self._c.max_rate, self._c.due_us = max_rate, 0
        self._c.pause = int(paused)

    def end(self) -> None:
        """End between two pieces. Any thread may call it."""
        self._c.cancel = 1

    @property
    def cancelled(self) -> bool:
        """True after a cancel."""
        return bool(self._c.cancel)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What could not be set back as it was."""
        if not self._c.policy_lost:
            return ()
        name = errno.errorcode.get(self._c.policy_lost, str(self._c.policy_lost))
        return (
            f"the memory policy of this thread is not what it was ({name}): set it again by "
            "set_mempolicy(2)",
        )

    @property
    def bytes_moved(self) -> int:
        """Bytes that moved so far."""
        return int(self._c.progress.bytes_moved)

    @property
    def bytes_done(self) -> int:
        """Bytes attended to here so far, without what was left."""
        p = self._c.progress
        return int(p.bytes_moved + p.bytes_already + p.bytes_gone)

    @property
    def pages_done(self) -> tuple[int, int]:
        """Pages that moved, and pages that were there already, so far."""
        p = self._c.progress
        return sum(p.pages_moved), sum(p.pages_already)

    def add_to(self, counts: dict[str, Any]) -> None:
        """Add what was done here to the fields of ``MoveResult`` that the kernel engine counts."""
        p = self._c.progress
        parts = []
        if counts["bytes_moved"]:
            parts.append(EnginePart("kernel", counts["bytes_moved"], "what was left to it"))
        if p.bytes_moved:
            reason = f"{self.way}: detached, copied and put back piece by piece"
            parts.insert(0, EnginePart("user", int(p.bytes_moved), reason))
        for number in range(lib.PF_MAX_ERRNO):
            if p.left[number]:
                why = _REASONS.get(number, errno.errorcode.get(number, str(number)))
                parts.append(EnginePart("left", int(p.left[number]), why))
        parts += [EnginePart("left", size, why) for why, size in self._not_here.items()]
        for number in range(lib.PF_MAX_ERRNO):
            if p.uncollapsed[number]:
                why = _KEPT.get(number, errno.errorcode.get(number, str(number)))
                parts.append(EnginePart("kept", int(p.uncollapsed[number]), why))
        counts["bytes_collapsed"] = int(p.bytes_collapsed)
        for name in ("moved", "already", "gone", "skipped"):
            counts[f"bytes_{name}"] += int(getattr(p, f"bytes_{name}"))
        for i, kind in enumerate(counts["pages_moved"]):
            counts["pages_moved"][kind] += int(p.pages_moved[i])
            counts["pages_already"][kind] += int(p.pages_already[i])
        counts["exact"] = counts["exact"] and not p.pages_unsampled
        counts["workers"] = max(counts["workers"], int(self._c.workers))
        counts["parts"] = tuple(parts)
        counts["stalls"] = stalls_of(list(p.stalls), int(p.stall_us_max)) if p.pieces else None


def _fit_mappings(way: str) -> list[procfs.Mapping]:
    """Return the mappings that this engine can do; for ``checked`` the kernel looks at flags."""
    if way == "checked":
        found = procfs.mappings()
    else:
        found = [use.mapping for use in procfs.smaps() if not use.flags & _UNFIT_FLAGS]
    return [m for m in found if m.anonymous and m.perms[:2] == "rw" and m.name != "[stack]"]


def _cut(
    start: int, pages: int, shift: int, mappings: list[tuple[int, int]]
) -> list[tuple[int, int, bool]]:
    """Cut pages at the borders of mappings: address, count, and whether it is in one of them."""
    parts: list[tuple[int, int, bool]] = []
    end = start + (pages << shift)
    for low, high in mappings:
        if high <= start or low >= end:
            continue
        low += -(low - start) % (1 << shift) if low > start else 0
        stop = min(end, high - (high - start) % (1 << shift))
        if low > start:
            parts.append((start, (min(low, end) - start) >> shift, False))
            start = min(low, end)
        if stop > start:
            parts.append((start, (stop - start) >> shift, True))
            start = stop
    if start < end:
        parts.append((start, (end - start) >> shift, False))
    return parts
