# SPDX-License-Identifier: Apache-2.0
"""Which mappings are of hugetlb pages. tests/guest has such pages; here their size is made up."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from itertools import pairwise

import pytest

from pageferry import huge_mappings as module
from pageferry import procfs
from pageferry._native import ffi
from pageferry.huge_mappings import HugeMapping, huge_mappings
from pageferry.pages import HUGETLB, THP

HUGE = 2 << 20
PAGE = mmap.PAGESIZE


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Six huge blocks of shared memory, of which the third alone is another mapping."""
    monkeypatch.setattr(module, "hugetlb_in_use", lambda: True)
    monkeypatch.setattr(module, "_smallest_pool", lambda: HUGE)
    fd = os.memfd_create("blocks")
    os.ftruncate(fd, 8 * HUGE)
    with mmap.mmap(fd, 8 * HUGE) as memory:
        os.close(fd)
        at = int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))
        begin = -(-at // HUGE) * HUGE
        # Memory that a fork leaves out is a mapping of its own.
        memory.madvise(mmap.MADV_DONTFORK, begin - at + 2 * HUGE, HUGE)
        yield begin


def test_thps_only(start: int) -> None:
    """The kernel itself says that none of them is of a pool, or before 6.11 their names do."""
    assert huge_mappings(None, [range(start, start + 6 * HUGE)], 21, dense=False) is None


def test_the_mapping_of_a_pool_is_told(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool's page size is a mock here: there may be no pool."""
    middle = start + 2 * HUGE
    asked: list[int] = []

    def ask(pid: int | None, addresses: list[int]) -> dict[int, int]:
        asked.extend(addresses)
        return {address: 1 << 30 if address == middle else PAGE for address in addresses}

    monkeypatch.setattr(module, "_ask", ask)
    found = huge_mappings(None, [range(start, start + 6 * HUGE)], 21, dense=False)
    assert found is not None and middle in asked and all(at % HUGE == 0 for at in asked)
    assert HugeMapping(middle, middle + HUGE, 30, HUGETLB) in found
    assert [m.kind for m in found] == [THP, HUGETLB, THP]
    assert all(a.end <= b.start for a, b in pairwise(found))


def test_where_the_kernel_cannot_be_asked_smaps_decides(
    start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ask", lambda pid, addresses: None)
    found = huge_mappings(None, [range(start, start + 6 * HUGE)], 21, dense=False)
    assert found is not None and {m.kind for m in found} == {THP}
    monkeypatch.setattr(module, "_OWN_NAMES", ())
    monkeypatch.setattr(procfs, "hugetlbfs_devices", lambda pid: frozenset())
    assert huge_mappings(None, [range(start, start + 6 * HUGE)], 21, dense=False) is None
