# SPDX-License-Identifier: Apache-2.0
"""The raw system calls: what the man pages say they return, with and without MPOL_MF_MOVE_MT."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from regions import HUGE, PAGE, PRIVATE, Region

from pageferry import flags, syscalls
from pageferry._native import ffi, lib
from pageferry.syscalls import UNWRITTEN, get_mempolicy, mbind, migrate_pages, move_pages

MT = flags.MPOL_MF_MOVE_MT
HERE = min(get_mempolicy(flags=flags.MPOL_F_MEMS_ALLOWED).nodes)


@contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as info:
        yield
    assert info.value.errno == number, errno.errorcode[info.value.errno or 0]


@pytest.fixture
def region() -> Region:
    region = Region(8 * HUGE)
    region.write(0, region.size)
    return region


def pages_of(region: Region) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.arange(region.address, region.address + region.size, PAGE, dtype=np.uint64)


# --- move_pages


def test_where(region: Region) -> None:
    region.advise(4, 0, 4 * PAGE)  # MADV_DONTNEED
    answer = move_pages(0, pages_of(region), None, 0)
    assert answer.not_moved == 0 and answer.status.dtype == np.int32
    assert set(answer.status[:4]) == {-errno.ENOENT}
    assert set(answer.status[4:]) <= get_mempolicy(flags=flags.MPOL_F_MEMS_ALLOWED).nodes


@pytest.mark.parametrize("bits", [0, MT])
def test_move_keeps_the_order(region: Region, bits: int) -> None:
    pages = pages_of(region)[::-1].copy()
    pages[7] = 0
    answer = move_pages(0, pages, HERE, flags.MPOL_MF_MOVE | bits)
    assert answer.not_moved == 0
    assert answer.status[7] == -errno.EFAULT
    assert set(np.delete(answer.status, 7)) == {HERE}
    assert move_pages(os.getpid(), pages, HERE, flags.MPOL_MF_MOVE | bits)[0] == 0


@pytest.mark.parametrize("bits", [0, MT])
def test_move_is_refused(region: Region, bits: int) -> None:
    pages = pages_of(region)
    with refused(errno.ENODEV):
        move_pages(0, pages, 1000, flags.MPOL_MF_MOVE | bits)
    with refused(errno.ENODEV):
        move_pages(0, pages, -1, flags.MPOL_MF_MOVE | bits)
    with refused(errno.ESRCH):
        move_pages(1 << 22, pages, HERE, flags.MPOL_MF_MOVE | bits)
    with refused(errno.EINVAL):
        move_pages(0, pages, HERE, flags.MPOL_MF_STRICT | bits)
    with refused(errno.EINVAL):
        move_pages(0, pages, HERE, MT)
    assert move_pages(0, [], [], flags.MPOL_MF_MOVE | bits).not_moved == 0
    with pytest.raises(ValueError):
        move_pages(0, pages, [HERE, HERE], flags.MPOL_MF_MOVE | bits)


@pytest.mark.skipif(syscalls.kernel_has_mt(), reason="this kernel knows the flag")
def test_a_stock_kernel_does_not_know_the_flag(region: Region) -> None:
    page = ffi.new("uint64_t[]", [region.address])
    node = ffi.new("int32_t[]", [HERE])
    status = ffi.new("int32_t[]", [UNWRITTEN])
    both = flags.MPOL_MF_MOVE | MT
    assert lib.pf_sys_move_pages(0, 1, page, node, status, both) == -errno.EINVAL
    assert status[0] == UNWRITTEN
    assert lib.pf_sys_mbind(region.address, PAGE, 0, ffi.NULL, 0, both) == -errno.EINVAL


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 8 * HUGE // PAGE + 2), min_size=1, max_size=40),
    st.integers(1, 5),
)
def test_any_list_is_answered_alike(places: list[int], threads: int) -> None:
    """Sparse lists are cut between 2 MiB blocks: few pages do for several threads."""
    region = Region(8 * HUGE)
    region.write(0, region.size // 2)
    pages = [region.address + place * PAGE for place in places] * 3
    plain = move_pages(0, pages, HERE, flags.MPOL_MF_MOVE)
    threaded = move_pages(0, pages, HERE, flags.MPOL_MF_MOVE | MT, threads=threads)
    assert plain.not_moved == threaded.not_moved
    assert plain.status.tolist() == threaded.status.tolist()


# --- mbind and get_mempolicy


@pytest.mark.parametrize("bits", [0, MT])
@pytest.mark.parametrize(
    "mode", [flags.MPOL_BIND, flags.MPOL_PREFERRED, flags.MPOL_INTERLEAVE, flags.MPOL_DEFAULT]
)
def test_bind(region: Region, mode: int, bits: int) -> None:
    nodes = [] if mode == flags.MPOL_DEFAULT else [HERE]
    moving = flags.MPOL_MF_MOVE | flags.MPOL_MF_STRICT | bits
    mbind(region.address, region.size, mode, nodes, moving)
    policy = get_mempolicy(region.address + PAGE, flags.MPOL_F_ADDR)
    assert policy == (mode, frozenset(nodes))
    node = get_mempolicy(region.address, flags.MPOL_F_ADDR | flags.MPOL_F_NODE)
    assert node.mode == HERE


@pytest.mark.parametrize("bits", [0, MT])
def test_bind_is_refused(region: Region, bits: int) -> None:
    move = flags.MPOL_MF_MOVE | bits
    with refused(errno.EINVAL):
        mbind(region.address + 1, region.size, flags.MPOL_BIND, [HERE], move)
    with refused(errno.EINVAL):
        mbind(region.address, region.size, flags.MPOL_BIND, [], move)
    with refused(errno.EINVAL):
        mbind(region.address, region.size, flags.MPOL_BIND, [1000], move)
    with refused(errno.EINVAL):
        mbind(region.address, region.size, 99, [HERE], move)
    with refused(errno.EINVAL):
        mbind(region.address, region.size, flags.MPOL_BIND, [HERE], MT)
    with refused(errno.EFAULT):
        mbind(PAGE, region.size, flags.MPOL_BIND, [HERE], move)
    with refused(errno.EINVAL):
        mbind(region.address, region.size, flags.MPOL_BIND, [-1], move)
    with refused(errno.EINVAL):
        mbind(region.address, region.size, flags.MPOL_BIND, [1 << 20], move)


def test_a_sparse_mapping_is_listed_to_its_end() -> None:
    """Gaps are skipped in growing steps, and no page behind one is overlooked."""
    size = 1 << 40
    area = mmap.mmap(-1, size, flags=PRIVATE | 0x4000)  # MAP_NORESERVE
    area.madvise(mmap.MADV_NOHUGEPAGE)
    places = [0, 5, 1 << 13, (1 << 13) + 1, 1 << 22, (1 << 26) + 3, size // PAGE - 1]
    array = np.frombuffer(area, np.uint8)
    for place in places:
        array[place * PAGE] = 1
    array[1 << 39 : (1 << 39) + 40 * HUGE : PAGE] = 1  # and more than a piece in one place
    settings = ffi.new("struct pf_mt *")
    settings.threads = 2
    mask, maxnode = syscalls.node_mask([HERE])
    move = flags.MPOL_MF_MOVE | flags.MPOL_MF_STRICT
    address = array.ctypes.data
    assert lib.pf_mt_mbind(settings, address, size, flags.MPOL_BIND, mask, maxnode, move) == 0
    assert settings.pages == len(places) + 40 * HUGE // PAGE
    assert settings.bytes == settings.pages * PAGE


def test_masks_of_any_width() -> None:
    for nodes in ([0], [63], [64], [0, 127], [1023], [5, 32767]):
        mask, maxnode = syscalls.node_mask(nodes)
        assert maxnode % 64 == 1 and maxnode > max(nodes) + 1
        found = {64 * w + b for w in range(maxnode // 64) for b in range(64) if mask[w] >> b & 1}
        assert found == set(nodes)
    assert syscalls.node_mask([])[1] == 0


# --- migrate_pages


@pytest.mark.parametrize("bits", [0, MT])
def test_migrate(bits: int) -> None:
    assert migrate_pages(0, [HERE], [HERE], bits) == 0
    assert migrate_pages(os.getpid(), [HERE, 70], [HERE], bits) == 0
    assert migrate_pages(0, [], [HERE], bits) == 0
    for old, new in (([HERE], []), ([HERE], [1000])):
        with refused(errno.EINVAL):
            migrate_pages(0, old, new, bits)
    with refused(errno.ESRCH):
        migrate_pages(1 << 22, [HERE], [HERE], bits)
    with refused(errno.EINVAL):
        migrate_pages(0, [HERE], [HERE], bits | flags.MPOL_MF_MOVE)


# --- the policy of the thread


def test_set_mempolicy() -> None:
    for mode in (flags.MPOL_BIND, flags.MPOL_PREFERRED, flags.MPOL_INTERLEAVE):
        try:
            syscalls.set_mempolicy(mode, [HERE])
            assert get_mempolicy() == (mode, frozenset({HERE}))
        finally:
            syscalls.set_mempolicy(flags.MPOL_DEFAULT)
    assert get_mempolicy() == (flags.MPOL_DEFAULT, frozenset())
    with refused(errno.EINVAL):
        syscalls.set_mempolicy(flags.MPOL_BIND, [])


def test_home_node(region: Region) -> None:
    mbind(region.address, region.size, flags.MPOL_BIND, [HERE])
    try:
        syscalls.set_mempolicy_home_node(region.address, region.size, HERE)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            pytest.skip("this kernel has no set_mempolicy_home_node")
        raise
    with refused(errno.EINVAL):
        syscalls.set_mempolicy_home_node(region.address, region.size, 100000)


def test_weighted_interleave(region: Region) -> None:
    try:
        mbind(region.address, region.size, flags.MPOL_WEIGHTED_INTERLEAVE, [HERE],
              flags.MPOL_MF_MOVE | MT)  # fmt: skip
    except OSError as error:
        if error.errno == errno.EINVAL:
            pytest.skip("this kernel has no weighted interleaving")
        raise
    policy = get_mempolicy(region.address, flags.MPOL_F_ADDR)
    assert policy == (flags.MPOL_WEIGHTED_INTERLEAVE, frozenset({HERE}))
