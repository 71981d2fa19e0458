# SPDX-License-Identifier: Apache-2.0
"""Memory of a known layout: pages that are touched, read only, huge, or absent."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

PAGE = mmap.PAGESIZE
HUGE = 2 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")

needs_thp = pytest.mark.skipif(
    not _ENABLED.exists() or "[never]" in _ENABLED.read_text(),
    reason="this machine has transparent huge pages switched off",
)


class Region:
    """Private anonymous memory aligned to a huge page, no page of it touched.

    It lives as long as the object, or an array made of ``bytes``; a ``range()`` does not hold it.
    """

    def __init__(self, size: int, *, huge: bool = False) -> None:
        self._map = mmap.mmap(-1, size + HUGE, flags=PRIVATE)
        whole = np.frombuffer(self._map, np.uint8)
        self._skip = -whole.ctypes.data % HUGE
        self._map.madvise(mmap.MADV_NOHUGEPAGE)
        self.bytes: npt.NDArray[np.uint8] = whole[self._skip : self._skip + size]
        self.address = int(self.bytes.ctypes.data)
        self.size = size
        if huge:
            self.advise(mmap.MADV_HUGEPAGE)

    def advise(self, advice: int, start: int = 0, size: int | None = None) -> None:
        self._map.madvise(advice, self._skip + start, self.size - start if size is None else size)

    def write(self, start: int, size: int) -> None:
        """Touch the pages from ``start`` on: each gets a page of its own."""
        self.bytes[start : start + size : PAGE] = 1 + start // PAGE % 250

    def read(self, start: int, size: int) -> None:
        """Look at untouched pages: they get the shared zero page."""
        assert not self.bytes[start : start + size : PAGE].any()

    def range(self, start: int = 0, size: int | None = None) -> range:
        first = self.address + start
        return range(first, self.address + self.size if size is None else first + size)


def kinds(table: npt.NDArray[Any]) -> dict[int, int]:
    """How many pages of each size a status table has."""
    sizes, counts = np.unique(table["size"], return_counts=True)
    return dict(zip(sizes.tolist(), counts.tolist(), strict=True))
