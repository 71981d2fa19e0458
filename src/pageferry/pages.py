# SPDX-License-Identifier: Apache-2.0
"""Page sizes and kinds, as Python and the C core name them."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

PAGE_SIZE = mmap.PAGESIZE
PAGE_SHIFT = PAGE_SIZE.bit_length() - 1

#: The names of ``enum pf_page_kind``, by number.
KINDS = ("base", "thp", "hugetlb")
BASE, THP, HUGETLB = range(3)

#: ``struct pf_extent``: adjacent present pages of one size.
EXTENT = np.dtype([("start", "u8"), ("pages", "u8"), ("shift", "u4"), ("kind", "u4")])


def extents_bytes(extents: npt.NDArray[np.void]) -> int:
    """Return the size of all pages of ``extents`` together, in bytes."""
    return int((extents["pages"] << extents["shift"].astype(np.uint64)).sum())


def extents_pages(extents: npt.NDArray[np.void]) -> int:
    """Return how many pages ``extents`` have, each of its own size."""
    return int(extents["pages"].sum())


def extents_by_size(extents: npt.NDArray[np.void]) -> dict[int, int]:
    """Return how many pages of each size, in bytes, ``extents`` have."""
    shifts = extents["shift"]
    if len(shifts) < 16:  # numpy's own cost is more than a short loop
        counts: dict[int, int] = {}
        for shift, pages in zip(shifts.tolist(), extents["pages"].tolist(), strict=True):
            counts[1 << shift] = counts.get(1 << shift, 0) + pages
        return counts
    if (shifts == shifts[0]).all():  # the usual case, and the fastest
        return {1 << int(shifts[0]): int(extents["pages"].sum())}
    sums = np.bincount(shifts, weights=extents["pages"])
    return {1 << int(shift): int(sums[shift]) for shift in np.flatnonzero(sums)}
