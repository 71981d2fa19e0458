# SPDX-License-Identifier: Apache-2.0
"""Idle page tracking: /sys/kernel/mm/page_idle/bitmap, a bit for each page frame of the machine.

A set bit says that the page was not touched since the bit was set, by any process. Pages of a
folio share the bit of its first page. Needs CONFIG_IDLE_PAGE_TRACKING and root (CAP_SYS_ADMIN), who
alone sees frame numbers in /proc/PID/pagemap.
"""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ._native import ffi
from .pages import PAGE_SHIFT, PAGE_SIZE
from .syscalls import move_pages

if TYPE_CHECKING:
    import numpy.typing as npt

    Words = npt.NDArray[np.uint64]

BITMAP = Path("/sys/kernel/mm/page_idle/bitmap")
_KPAGEFLAGS = "/proc/kpageflags"
_HEAD, _TAIL = np.uint64(1 << 15), np.uint64(1 << 16)  # KPF_COMPOUND_HEAD and KPF_COMPOUND_TAIL
_PRESENT = np.uint64(1 << 63)
_FRAME = np.uint64((1 << 55) - 1)
_GAP = 16  # words that are read too, rather than in two calls
_LARGEST_FOLIO = 18  # log2 of base pages: 1 GiB


def available() -> bool:
    """Say whether the kernel has it, and this process may use it."""
    return os.access(BITMAP, os.R_OK | os.W_OK) and bool(_frames_of(_own_page(), 0)[0])


def _own_page() -> npt.NDArray[np.uint64]:
    array = np.ones(PAGE_SIZE // 8, np.uint64)
    address = int(ffi.cast("uintptr_t", ffi.from_buffer(array)))
    return np.array([address - address % PAGE_SIZE], np.uint64)


def mark(pid: int, addresses: npt.NDArray[np.uint64]) -> None:
    """Set the bits of the present pages at ``addresses``. Raises ``OSError``."""
    frames = _frames_of(addresses, pid)
    frames = np.unique(_heads(frames[frames != 0]))
    if not len(frames):
        return
    words, first = np.unique(frames >> np.uint64(6), return_index=True)
    bits = np.bitwise_or.reduceat(np.uint64(1) << (frames & np.uint64(63)), first)
    fd = os.open(BITMAP, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for part in _runs(words, 1):
            os.pwrite(fd, bits[part].tobytes(), int(words[part][0]) * 8)
    finally:
        os.close(fd)


def idle(pid: int, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Say of each page whether its bit is still set. Raises ``OSError``."""
    frames = _frames_of(addresses, pid)
    present: npt.NDArray[np.bool_] = frames != 0
    frames[present] = _heads(frames[present])
    bits = _read(str(BITMAP), frames >> np.uint64(6))
    bits = (bits >> (frames & np.uint64(63))) & np.uint64(1)
    return present & bits.astype(np.bool_)


def drain() -> None:
    """Have the kernel put new pages on its lists: those it still holds back have no bit.

    move_pages(2) does so on all CPUs before it looks at any page.
    """
    page = mmap.mmap(-1, PAGE_SIZE)
    address = int(ffi.cast("uintptr_t", ffi.from_buffer(page)))
    page[0] = 1
    with suppress(OSError):
        move_pages(0, np.array([address], np.uint64), np.zeros(1, np.int32))


def _frames_of(addresses: npt.NDArray[np.uint64], pid: int) -> Words:
    """Return the frame of the page at each address, 0 where none is present or it is hidden."""
    entries = _read(f"/proc/{pid or 'self'}/pagemap", addresses >> np.uint64(PAGE_SHIFT))
    return np.where(entries & _PRESENT, entries & _FRAME, np.uint64(0))


def _heads(frames: Words) -> Words:
    """Return for each frame the first one of its folio, which is aligned to the folio's size."""
    heads = frames.copy()
    left = np.flatnonzero(_read(_KPAGEFLAGS, heads) & _TAIL)
    for order in range(1, _LARGEST_FOLIO + 1):
        if not len(left):
            break
        candidates = frames[left] & ~np.uint64((1 << order) - 1)
        found = (_read(_KPAGEFLAGS, candidates) & _HEAD) != 0
        heads[left[found]] = candidates[found]
        left = left[~found]
    return heads


def _read(path: str, places: Words) -> Words:
    """Return the 8-byte words at ``places`` of a file, in any order; 0 beyond its end."""
    wanted, where = np.unique(places, return_inverse=True)
    values = np.zeros(len(wanted), np.uint64)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for part in _runs(wanted, _GAP):
            run = wanted[part]
            first, count = int(run[0]), int(run[-1] - run[0]) + 1
            try:
                data = os.pread(fd, count * 8, first * 8)
            except OSError as error:
                if error.errno in (errno.ENXIO, errno.EINVAL):
                    continue  # no such frame
                raise
            got = np.frombuffer(data[: len(data) // 8 * 8], np.uint64)
            offsets = (run - run[0]).astype(np.int64)
            inside = offsets < len(got)
            values[part][inside] = got[offsets[inside]]
    finally:
        os.close(fd)
    return values[where]


def _runs(numbers: Words, gap: int) -> list[slice]:
    """Return slices of sorted numbers in which none is more than ``gap`` above the one before."""
    if not len(numbers):
        return []
    cuts = np.flatnonzero(np.diff(numbers) > np.uint64(gap)) + 1
    edges = [0, *cuts.tolist(), len(numbers)]
    return [slice(a, b) for a, b in pairwise(edges)]
