# SPDX-License-Identifier: Apache-2.0
"""The page sizes that memory can be asked for in, by name."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from . import sysfs
from .errors import RangeError, UnsupportedError
from .flags import parse_size
from .pages import PAGE_SHIFT, PAGE_SIZE
from .survey import thp_shift

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_HUGETLB = Path("/sys/kernel/mm/hugepages")
_SUFFIX = "-hugetlb"


@dataclass(frozen=True)
class PageSize:
    """Pages of ``1 << shift`` bytes; ``hugetlb`` ones come from a pool that the admin sets."""

    shift: int
    hugetlb: bool = False

    @property
    def bytes(self) -> int:
        """The size in bytes."""
        return 1 << self.shift

    @property
    def name(self) -> str:
        """How it is asked for: ``4K``, ``2M``, ``2M-hugetlb``, ``1G``."""
        return self._number + (_SUFFIX if self.hugetlb and self.shift < 30 else "")

    @property
    def _number(self) -> str:
        for unit, shift in (("G", 30), ("M", 20)):
            if self.shift >= shift:
                return f"{1 << self.shift - shift}{unit}"
        return f"{1 << self.shift - 10}K"

    def whole(self, size: int) -> int:
        """Return ``size`` rounded up to whole pages."""
        return size + -size % self.bytes


BASE = PageSize(PAGE_SHIFT)


def thp_available() -> bool:
    """Say whether this kernel gives transparent huge pages to those who ask (madvise)."""
    return thp_shift() > 0 and sysfs.choice(_ENABLED) not in (None, "never")


def parse_page_size(text: str, *, allocate: bool = True) -> PageSize:
    """Return the page size that ``text`` names: ``4K``, ``2M``, ``2M-hugetlb``, ``1G``.

    The base page and the transparent huge page have the size that this machine gives them;
    every other size, and one with ``-hugetlb``, is of hugetlb pages. Raises ``ValueError`` for
    a size that this machine has no pages of, ``UnsupportedError`` where THPs are switched off
    and pages are to be allocated.
    """
    if not isinstance(text, str):
        raise TypeError(f"a page size is a text such as '2M', not {text!r}")
    number, hugetlb = text.removesuffix(_SUFFIX), text.endswith(_SUFFIX)
    pools = {size * 1024 for size in sysfs.numbered(_HUGETLB, "hugepages-", "kB")}
    try:
        size = parse_size(number)
    except RangeError:
        size = 0
    if size == PAGE_SIZE and not hugetlb:
        return BASE
    if thp_shift() and size == 1 << thp_shift() and not hugetlb:
        if allocate and not thp_available():
            raise UnsupportedError(
                errno.EOPNOTSUPP,
                f"transparent huge pages of {text} are switched off here",
                f"echo madvise > {_ENABLED}, or take {BASE.name}",
            )
        return PageSize(thp_shift())
    if size in pools:
        return PageSize(size.bit_length() - 1, hugetlb=True)
    sizes = [BASE.name] + ([PageSize(thp_shift()).name] if thp_shift() else [])
    sizes += [PageSize(pool.bit_length() - 1, hugetlb=True).name for pool in sorted(pools)]
    raise ValueError(f"{text!r} is no page size of this machine; it has {', '.join(sizes)}")
