# SPDX-License-Identifier: Apache-2.0
"""Survey: which pages of a target are present, and of what size.

The answer comes in windows, so that a 1 TiB range needs no list of all its pages. Three ways to
know, the best that works is taken: PAGEMAP_SCAN (Linux 6.7), ``/proc/PID/pagemap`` with
``/proc/kpageflags`` (root) or ``smaps`` for the huge pages, and ``move_pages(2)`` without nodes.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import procfs
from ._native import ffi, lib
from .errors import (
    NotPermittedError,
    PageferryError,
    ProcessGoneError,
    RangeError,
    UnsupportedError,
)
from .huge_mappings import HugeMapping, huge_mappings, hugetlb_in_use
from .pages import BASE, EXTENT, HUGETLB, PAGE_SHIFT, PAGE_SIZE, THP, extents_bytes
from .target import Target, without_memory

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

    from .activity import Selection
    from .page_size import PageSize

METHODS = ("scan", "pagemap", "query")
_METHOD_NUMBERS = {"scan": 1, "pagemap": 2, "query": 3}

_WINDOW_EXTENTS = 1 << 16  # 1.5 MiB of extents
_SMALL_EXTENTS = 1 << 10  # enough for a few MiB, and cheap to make
# What is looked at between two chances to cancel, and moved by one call: a thread that has left the
# others because somebody needed its CPU is back in the next.
_WINDOW_BYTES = 16 << 30
_SMALL_BYTES = 4 << 20

_THP_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


@lru_cache(maxsize=1)
def thp_shift() -> int:
    """Return log2 of the size of a transparent huge page, 0 where the kernel has none."""
    try:
        return int(_THP_SIZE.read_text()).bit_length() - 1
    except (OSError, ValueError):
        return 0


@lru_cache(maxsize=1)
def _scan_error() -> int:
    """Return 0 if the kernel has PAGEMAP_SCAN, else the errno it gives, by trying on a page."""
    page = mmap.mmap(-1, PAGE_SIZE)
    probe: Any = ffi.new("struct pf_survey *")
    probe.method = _METHOD_NUMBERS["scan"]
    probe.start = int(ffi.cast("uintptr_t", ffi.from_buffer(page)))
    probe.end = probe.start + PAGE_SIZE
    probe.pagemap_fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return max(-int(lib.pf_survey_next(probe, ffi.new("struct pf_extent[512]"), 512)), 0)
    finally:
        os.close(probe.pagemap_fd)


@dataclass
class _Part:
    """A piece of the target in which huge pages are all of one kind and size."""

    start: int
    end: int
    huge_shift: int
    huge_kind: int = THP
    dense: bool = False


class Survey:
    """The present pages of a target, window by window.

    ``bytes_present``, ``bytes_zero`` (the shared zero page), ``bytes_swapped`` and ``bytes_cut``
    (present, but in a huge page that the range covers in part, with ``partial="inside"``) and
    ``bytes_other_size`` (present, in pages of another size than ``only``) grow while
    ``windows()`` is consumed, which has what ``selection`` keeps.
    ``method`` names the way in use: one of ``METHODS``. Raises ``ProcessGoneError`` or
    ``NotPermittedError`` when the process cannot be looked at.
    """

    def __init__(
        self,
        target: Target,
        *,
        method: str | None = None,
        partial: str = "touched",
        only: PageSize | None = None,
        selection: Selection | None = None,
    ) -> None:
        if method is not None and method not in METHODS:
            raise ValueError(f"the survey method is one of {', '.join(METHODS)}, not {method!r}")
        self.target = target
        self.bytes_other_size = 0
        self._only = only
        self.selection = selection
        self.method = method or "scan"
        self._forced = method is not None
        self._c: Any = ffi.new("struct pf_survey *")
        self._c.pid = target.pid
        self._c.pagemap_fd = -1
        self._c.kpageflags_fd = -1
        self._flags: int = lib.PF_SURVEY_TOUCHED if partial == "touched" else 0
        self._classified = False
        self._bytes_beyond = 0  # of huge pages taken whole, outside the target's ranges
        self._parts: list[_Part] = []

    @property
    def bytes_present(self) -> int:
        """Bytes in present pages, so far."""
        return int(self._c.bytes_present)

    @property
    def bytes_zero(self) -> int:
        """Bytes mapped to the shared zero page, so far."""
        return int(self._c.bytes_zero)

    @property
    def bytes_swapped(self) -> int:
        """Bytes in swap (or on the way between nodes), so far."""
        return int(self._c.bytes_swapped)

    @property
    def bytes_cut(self) -> int:
        """Bytes left out because their huge page is only partly in the range, so far."""
        return int(self._c.bytes_cut)

    @property
    def bytes_absent(self) -> int:
        """Bytes of the target without a page, once all windows are consumed."""
        described = self.bytes_present + self.bytes_zero + self.bytes_swapped + self.bytes_cut
        return max(self.target.bytes + self._bytes_beyond - described, 0)

    def windows(self) -> Iterator[npt.NDArray[np.void]]:
        """Yield the extents (dtype ``pages.EXTENT``) of one window after the other.

        The array is reused: use it before asking for the next.
        """
        if not self.target.ranges:
            if self.target.pid and not Path(f"/proc/{self.target.pid}").exists():
                self._fail(errno.ESRCH)
            return
        small = self.target.bytes <= _SMALL_BYTES
        extents = np.empty(_SMALL_EXTENTS if small else _WINDOW_EXTENTS, EXTENT)
        pointer = ffi.from_buffer("struct pf_extent[]", extents)
        with ExitStack() as files:
            self._open(files)
            self._parts = [_Part(r.start, r.stop, thp_shift()) for r in self.target.ranges]
            # From the last to the first, so that the next one is popped from the end.
            self._parts.reverse()
            # Without THP the kernel's "huge" can only be hugetlb.
            if self.method == "pagemap" or self.target.whole_process or not thp_shift():
                self._classify()
            while self._parts:
                count = self._fill(extents, pointer)
                found = extents[:count] if self._only is None else self._of_size(extents[:count])
                if self.selection is not None:
                    yield from self.selection.keep(found)
                elif len(found):
                    yield found
            self._check_alive()

    def _open(self, files: ExitStack) -> None:
        """Open what the method needs, and fall back to the next method where it fails."""
        if self.method in ("scan", "pagemap"):
            path = f"/proc/{self.target.pid or 'self'}/pagemap"
            try:
                self._c.pagemap_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                files.callback(os.close, self._c.pagemap_fd)
            except OSError as error:
                self._no_pagemap(error)
        if self.method == "scan":
            self._probe_scan()
        if self.method == "pagemap":
            try:
                self._c.kpageflags_fd = os.open("/proc/kpageflags", os.O_RDONLY | os.O_CLOEXEC)
                files.callback(os.close, self._c.kpageflags_fd)
            except OSError:
                self._c.kpageflags_fd = -1
        self._c.method = _METHOD_NUMBERS[self.method]
        unsure = self.method == "query" or (self.method == "pagemap" and self._c.kpageflags_fd < 0)
        if self._only is not None and unsure:
            raise UnsupportedError(
                errno.ENOSYS,
                f"pages of {self._only.name} cannot be told from others here",
                "that needs Linux 6.7, or root and /proc/PID/pagemap",
            )

    def _of_size(self, extents: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Return the extents of pages of the one size that is wanted; count the others."""
        assert self._only is not None
        kind = HUGETLB if self._only.hugetlb else BASE if self._only.shift == PAGE_SHIFT else THP
        fits = (extents["kind"] == kind) & (extents["shift"] == self._only.shift)
        self.bytes_other_size += extents_bytes(extents[~fits])
        wanted: npt.NDArray[np.void] = extents[fits]
        return wanted

    def _no_pagemap(self, error: OSError) -> None:
        pid = self.target.pid
        if pid and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            raise ProcessGoneError(
                errno.ESRCH, f"there is no process {pid}", "check the process id"
            ) from None
        if pid and error.errno == errno.ESRCH:
            self._fail(errno.ESRCH)
        # A process that has changed its user may not open its own files in /proc.
        if isinstance(error, PermissionError) and (pid or self._forced):
            raise NotPermittedError(
                errno.EPERM,
                f"cannot look at the memory of process {pid or 'self'}",
                "run as the same user or root, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
            ) from None
        if self._forced:
            raise PageferryError(error.errno or errno.EIO, f"cannot open {error.filename}")
        self.method = "query"

    def _probe_scan(self) -> None:
        number = _scan_error()
        if not number:
            return
        if self._forced:
            raise UnsupportedError(
                number, "this kernel has no PAGEMAP_SCAN", "Linux 6.7 or later has it"
            )
        self.method = "pagemap"

    def _fill(self, extents: npt.NDArray[np.void], pointer: Any) -> int:
        """Fill ``extents`` from the parts that are left; return how many are filled."""
        filled = 0
        looked = 0
        while self._parts and len(extents) - filled >= 512 and looked < _WINDOW_BYTES:
            part = self._parts[-1]
            end = min(part.end, _next_window(part.start))
            kept = (
                self._c.bytes_present,
                self._c.bytes_zero,
                self._c.bytes_swapped,
                self._c.bytes_cut,
            )
            self._c.start, self._c.end = part.start, end
            self._c.huge_shift, self._c.huge_kind = part.huge_shift, part.huge_kind
            self._c.flags = self._flags | (lib.PF_SURVEY_DENSE if part.dense else 0)
            count = lib.pf_survey_next(self._c, pointer + filled, len(extents) - filled)
            if count < 0:
                self._fail(-count)
            found = extents[filled : filled + count]
            if not self._classified and (found["kind"] == THP).any() and hugetlb_in_use():
                # These may be hugetlb pages, of another size: ask, and look once more.
                (
                    self._c.bytes_present,
                    self._c.bytes_zero,
                    self._c.bytes_swapped,
                    self._c.bytes_cut,
                ) = kept
                self._classify()
                continue
            if count:
                self._bytes_beyond += _beyond(found, part.start, end)
            looked += self._c.start - part.start
            filled += count
            part.start = self._c.start
            if part.start >= part.end:
                self._parts.pop()
        return filled

    def _classify(self) -> None:
        """Cut the parts at the mappings, and give each its kind and size of huge page."""
        self._classified = True
        unsure = self.method == "pagemap" and self._c.kpageflags_fd < 0 and thp_shift() > 0
        pid = self.target.pid or None
        known = huge_mappings(pid, self.target.ranges, thp_shift(), dense=unsure)
        if known is not None:
            parts = [piece for part in reversed(self._parts) for piece in _cut(part, known)]
            self._parts = parts[::-1]

    def _check_alive(self) -> None:
        """Raise ``ProcessGoneError`` if the process ended meanwhile: its pages look absent then."""
        if self.target.pid and self._c.pagemap_fd >= 0:
            entry = (self.target.ranges[0].start // PAGE_SIZE) * 8
            if not os.pread(self._c.pagemap_fd, 8, entry):
                self._fail(errno.ESRCH)

    def _fail(self, number: int) -> None:
        pid = self.target.pid
        if number == errno.ESRCH:
            # Raises for a process that is gone, or waits for its parent.
            if not pid or procfs.mappings(pid):
                raise ProcessGoneError(number, f"process {pid} ended", "check the process id")
            raise without_memory(pid)
        if number in (errno.EPERM, errno.EACCES):
            raise NotPermittedError(
                number,
                "the kernel refuses to say where pages are",
                "run as the same user; in a container allow move_pages (CAP_SYS_NICE)",
            )
        if number == errno.ENOSYS:
            raise UnsupportedError(
                number, "this kernel has no move_pages", "it needs CONFIG_NUMA and CONFIG_MIGRATION"
            )
        if number == errno.EFAULT:
            raise RangeError(
                number, "the range goes beyond the address space", "see /proc/PID/maps"
            )
        raise PageferryError(number, f"the survey failed ({self.method})")


def _beyond(extents: npt.NDArray[np.void], start: int, end: int) -> int:
    """Return the bytes of the extents, which go up, that are outside of start to end."""
    first, last = extents[0], extents[-1]
    stop = int(last["start"]) + (int(last["pages"]) << int(last["shift"]))
    return max(start - int(first["start"]), 0) + max(stop - end, 0)


def _next_window(start: int) -> int:
    """Return the first window border above ``start``: windows do not cut gigantic pages."""
    return (start // _WINDOW_BYTES + 1) * _WINDOW_BYTES


def _cut(part: _Part, known: list[HugeMapping]) -> Iterator[_Part]:
    """Yield ``part`` cut at the borders of the mappings, holes left out."""
    for mapping in known:
        start, end = max(part.start, mapping.start), min(part.end, mapping.end)
        if start < end:
            yield _Part(start, end, mapping.shift, mapping.kind, mapping.dense)
