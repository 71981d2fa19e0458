# SPDX-License-Identifier: Apache-2.0
"""The NUMA system calls as the man pages have them, typed, with MPOL_MF_MOVE_MT on every kernel.

What a call returns is returned, and a failure raises ``OSError`` with the kernel's errno; nothing
is checked or explained before (``pageferry.move`` and ``pageferry.bind`` do that). Node sets are
iterables of numbers, of any width. ``MPOL_MF_MOVE_MT`` makes ``move_pages``, ``mbind`` and
``migrate_pages`` use several threads: inside the kernel where the running one takes the flag, else
by threads of ours, with the same return value, statuses and placement.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ._native import ffi, lib
from .flags import MPOL_MF_MOVE, MPOL_MF_MOVE_MT

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

_MAX_NODES: int = lib.PF_MAX_NODES
_GET_WORDS = _MAX_NODES // 64
_MASK_BITS = 1 << 15  # as many as fit into a page, which is what the kernel reads


class MovePages(NamedTuple):
    """What move_pages(2) answered."""

    not_moved: int
    """0, or how many pages were not moved (the kernel stops at the first group that fails)."""
    status: npt.NDArray[np.int32]
    """The node of each page, or -errno; ``UNWRITTEN`` where the kernel wrote nothing."""


class Policy(NamedTuple):
    """What get_mempolicy(2) answered."""

    mode: int
    """``MPOL_*``, with the ``MPOL_F_*`` mode flags; a node if ``MPOL_F_NODE`` asked for one."""
    nodes: frozenset[int]


#: Where no status was written: neither a node nor an errno.
UNWRITTEN: int = lib.PF_STATUS_UNKNOWN


@lru_cache(maxsize=1)
def kernel_has_mt() -> bool:
    """Say whether the running kernel takes MPOL_MF_MOVE_MT itself, by trying it on no page."""
    return bool(lib.pf_kernel_has_mt())


def move_pages(
    pid: int,
    pages: npt.ArrayLike,
    nodes: npt.ArrayLike | None,
    flags: int = MPOL_MF_MOVE,
    *,
    threads: int | None = None,
) -> MovePages:
    """Move each page to its node, or, without ``nodes``, ask where each is. move_pages(2).

    ``pages`` are addresses, ``nodes`` one node or one for each page; ``pid`` 0 is this process.
    ``threads`` (default: one for each CPU that may be used) counts with ``MPOL_MF_MOVE_MT``.
    """
    addresses = np.ascontiguousarray(pages, np.uint64)
    status = np.full(len(addresses), UNWRITTEN, np.int32)
    targets = None
    if nodes is not None:
        targets = np.ascontiguousarray(np.broadcast_to(nodes, addresses.shape), np.int32)
    arguments = (
        pid,
        len(addresses),
        _pointer("uint64_t *", addresses),
        ffi.NULL if targets is None else _pointer("int32_t *", targets),
        _pointer("int32_t *", status),
        flags,
    )
    if _ours(flags):
        result = lib.pf_mt_move_pages(_settings(threads), *arguments)
    else:
        result = lib.pf_sys_move_pages(*arguments)
    return MovePages(_checked(result, "move_pages"), status)


def mbind(
    start: int,
    length: int,
    mode: int,
    nodes: Iterable[int] = (),
    flags: int = 0,
    *,
    threads: int | None = None,
) -> None:
    """Set the memory policy of a range of this process; mbind(2).

    ``flags`` may say to move what is there (``MPOL_MF_MOVE``, ``MPOL_MF_MOVE_ALL``), to fail with
    EIO if some of it is or stays elsewhere (``MPOL_MF_STRICT``), and to do it with several threads
    (``MPOL_MF_MOVE_MT``).
    """
    mask, maxnode = node_mask(nodes)
    if _ours(flags):
        result = lib.pf_mt_mbind(_settings(threads), start, length, mode, mask, maxnode, flags)
    else:
        result = lib.pf_sys_mbind(start, length, mode, mask, maxnode, flags)
    _checked(result, "mbind")


def migrate_pages(
    pid: int,
    old: Iterable[int],
    new: Iterable[int],
    flags: int = 0,
    *,
    threads: int | None = None,
) -> int:
    """Move a process from nodes to nodes, and return how many pages would not move.

    migrate_pages(2), which has no flags: ``MPOL_MF_MOVE_MT`` here makes threads of ours do it.
    """
    source, source_bits = node_mask(old)
    target, target_bits = node_mask(new)
    # One width for both: the narrower one is short of words, so make it anew.
    bits = max(source_bits, target_bits)
    if source_bits != target_bits:
        source, target = _mask_of(old, bits), _mask_of(new, bits)
    if flags & ~MPOL_MF_MOVE_MT:
        raise OSError(errno.EINVAL, "migrate_pages: only MPOL_MF_MOVE_MT is a flag of this call")
    if flags:
        result = lib.pf_mt_migrate_pages(_settings(threads), pid, bits, source, target)
    else:
        result = lib.pf_sys_migrate_pages(pid, bits, source, target)
    return _checked(result, "migrate_pages")


def get_mempolicy(address: int | None = None, flags: int = 0) -> Policy:
    """Return the policy of this thread, or with an address and ``MPOL_F_ADDR`` of that memory.

    get_mempolicy(2), with its other flags ``MPOL_F_NODE`` and ``MPOL_F_MEMS_ALLOWED``.
    """
    mode = ffi.new("int32_t *")
    mask = ffi.new("uint64_t[]", _GET_WORDS)
    _checked(
        lib.pf_sys_get_mempolicy(mode, mask, _MAX_NODES + 1, address or 0, flags),
        "get_mempolicy",
    )
    nodes = (64 * word + bit for word in range(_GET_WORDS) for bit in range(64)
             if mask[word] >> bit & 1)  # fmt: skip
    return Policy(mode[0], frozenset(nodes))


def set_mempolicy(mode: int, nodes: Iterable[int] = ()) -> None:
    """Set the memory policy of the calling thread; set_mempolicy(2)."""
    mask, maxnode = node_mask(nodes)
    _checked(lib.pf_sys_set_mempolicy(mode, mask, maxnode), "set_mempolicy")


def set_mempolicy_home_node(start: int, length: int, node: int, flags: int = 0) -> None:
    """Name the node from which a range's bind or preferred-many policy starts to allocate.

    set_mempolicy_home_node(2), Linux 5.17.
    """
    result = lib.pf_sys_set_mempolicy_home_node(start, length, node, flags)
    _checked(result, "set_mempolicy_home_node")


def node_mask(nodes: Iterable[int]) -> tuple[Any, int]:
    """Return the nodes as the kernel takes them: a C array of words, and ``maxnode``.

    As wide as the highest node needs; no nodes make a null pointer and 0. Raises
    ``OSError`` (EINVAL) for negative numbers, and for what no kernel reads (beyond a page).
    """
    numbers = frozenset(nodes)
    for node in numbers:
        if not 0 <= node < _MASK_BITS:
            raise OSError(errno.EINVAL, f"{node} is no node: a mask has room for 0 to 32767")
    if not numbers:
        return ffi.NULL, 0
    maxnode = max(numbers) // 64 * 64 + 64 + 1
    return _mask_of(numbers, maxnode), maxnode


def _mask_of(nodes: Iterable[int], maxnode: int) -> Any:
    mask = ffi.new("uint64_t[]", max(maxnode // 64, 1))
    for node in nodes:
        mask[node // 64] |= 1 << node % 64
    return mask


def _ours(flags: int) -> bool:
    return bool(flags & MPOL_MF_MOVE_MT) and not kernel_has_mt()


def _settings(threads: int | None) -> Any:
    settings = ffi.new("struct pf_mt *")
    settings.threads = threads or min(len(os.sched_getaffinity(0)), lib.PF_MAX_THREADS)
    return settings


def _pointer(kind: str, array: npt.NDArray[Any]) -> Any:
    return ffi.cast(kind, array.ctypes.data)


def _checked(result: int, name: str) -> int:
    if result < 0:
        raise OSError(-result, f"{name}: {os.strerror(-result)}")
    return int(result)
