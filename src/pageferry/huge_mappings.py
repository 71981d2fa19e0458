# SPDX-License-Identifier: Apache-2.0
"""Where huge pages are hugetlb's, and how large; where the others are THPs.

PAGEMAP_SCAN and pagemap call both of them huge. Rests on ``/proc/PID/maps``, the PROCMAP_QUERY of
Linux 6.11 or else ``/proc/PID/smaps``, for which the kernel walks all page tables.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from . import procfs, sysfs
from ._native import lib
from .errors import UnsupportedError
from .pages import HUGETLB, PAGE_SIZE, THP

_POOLS = Path("/sys/kernel/mm/hugepages")
# Mappings of the kernel's own hugetlbfs: MAP_HUGETLB, memfd_create and shmget.
_OWN_NAMES = ("/anon_hugepage", "/memfd:", "/SYSV")


class HugeMapping(NamedTuple):
    """Addresses in which huge pages are of one kind, ``pages.THP`` or ``HUGETLB``, and size."""

    start: int
    end: int
    shift: int
    kind: int
    dense: bool = False
    """Every full block of it that is present is a huge page."""


def hugetlb_in_use() -> bool:
    """Say whether any pool of hugetlb pages has pages, by /sys/kernel/mm/hugepages."""
    for pool in _pools():
        try:
            fd = os.open(pool, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if int(os.read(fd, 32)):
                    return True
            finally:
                os.close(fd)
        except (OSError, ValueError):
            continue
    return False


@lru_cache(maxsize=1)
def _pools() -> tuple[str, ...]:
    """The files that say how many pages each pool has; the sizes are the CPU's and stay."""
    return tuple(map(str, _POOLS.glob("hugepages-*/nr_hugepages")))


@lru_cache(maxsize=1)
def _smallest_pool() -> int:
    """The smallest size in bytes of which the CPU has hugetlb pages; a base page without any."""
    return min(sysfs.numbered(_POOLS, "hugepages-", "kB"), default=PAGE_SIZE >> 10) << 10


def huge_mappings(
    pid: int | None, ranges: Sequence[range], thp_shift: int, *, dense: bool
) -> list[HugeMapping] | None:
    """Return what mappings there are in ``ranges``, or None where huge pages can only be THPs.

    ``dense``: ask for that, too, which takes smaps. Raises ``ProcessGoneError`` and
    ``NotPermittedError``.
    """
    if not dense:
        if not hugetlb_in_use():
            return None
        mappings = procfs.mappings(pid, within=ranges)
        # The kernel refuses hugetlb mappings that are not aligned, and all have a file behind them.
        suspects = [
            m
            for m in mappings
            if m.device != "00:00"
            and not (m.start | m.end) % _smallest_pool()
            and not m.name.startswith("/dev/dax")
        ]
        sizes = _ask(pid, [m.start for m in suspects])
        if sizes is not None:
            if all(size == PAGE_SIZE for size in sizes.values()):
                return None
            return [_of_size(m, sizes.get(m.start, PAGE_SIZE), thp_shift) for m in mappings]
        devices = procfs.hugetlbfs_devices(pid)
        if not any(m.device in devices or m.name.startswith(_OWN_NAMES) for m in suspects):
            return None
    try:
        known = procfs.smaps(pid, within=ranges)
    except UnsupportedError:
        return None  # every page counts as a base page then, which is slower but right
    return [_of_use(use, thp_shift) for use in known]


def _ask(pid: int | None, addresses: list[int]) -> dict[int, int] | None:
    """Return the page size of each mapping; None where it cannot be asked for, or one is gone."""
    if not addresses:
        return {}
    try:
        fd = os.open(f"/proc/{pid or 'self'}/maps", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        sizes = {address: int(lib.pf_mapping_page_bytes(fd, address)) for address in addresses}
    finally:
        os.close(fd)
    return sizes if all(size > 0 for size in sizes.values()) else None


def _of_size(mapping: procfs.Mapping, size: int, thp_shift: int) -> HugeMapping:
    if size == PAGE_SIZE:
        return HugeMapping(mapping.start, mapping.end, thp_shift, THP)
    return HugeMapping(mapping.start, mapping.end, size.bit_length() - 1, HUGETLB)


def _of_use(use: procfs.MappingUse, thp_shift: int) -> HugeMapping:
    start, end = use.mapping.start, use.mapping.end
    if "ht" in use.flags:
        return HugeMapping(start, end, use.kernel_page_size.bit_length() - 1, HUGETLB)
    # Fewer base pages than make up one huge page: every full block must be a huge one.
    dense = use.anon_huge > 0 and use.rss - use.anon_huge < 1 << thp_shift
    return HugeMapping(start, end, thp_shift, THP, dense)
