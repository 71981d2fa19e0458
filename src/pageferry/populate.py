# SPDX-License-Identifier: Apache-2.0
"""Memory with pages from a chosen node: what arrays and the pool are made of."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from . import sysfs
from ._native import ffi, lib
from .errors import NodeFullError, NotPermittedError, PageferryError
from .flags import MigrateMode
from .headroom import cgroup_room
from .nodes import machine
from .page_size import BASE, PageSize
from .plan import MAX_THREADS, check_request
from .seats import seats_near

#: What one call of the core populates; Ctrl-C and the room on the node are looked at in between.
PORTION = 512 << 20
#: Less than this, and waking a thread takes longer than what it saves.
BYTES_PER_THREAD = 16 << 20


def room(node: int) -> int:
    """Return about how many bytes a node can give without taking them from programs.

    Free memory and page cache, from the node's meminfo; on a machine with one node, what the
    kernel estimates (``MemAvailable``).
    """
    here = machine()
    if len(here.memory_nodes) < 2:
        return sysfs.meminfo(here.root / "proc/meminfo").get("MemAvailable", 0)
    facts = sysfs.meminfo(here.root / f"sys/devices/system/node/node{node}/meminfo")
    cache = max(facts.get("FilePages", 0) - facts.get("Shmem", 0), 0)
    return facts.get("MemFree", 0) + cache + facts.get("SReclaimable", 0) // 2


def check_room(node: int, size: int) -> None:
    """Raise ``NodeFullError`` when a node, or the memory cgroup, has no room for ``size`` bytes."""
    have = room(node)
    if have < size:
        raise _full(node, size, f"about {have >> 20} MiB can be had there")
    allowed = cgroup_room(machine().root)
    if allowed is not None and allowed < size:
        why = f"the memory cgroup of this process allows about {allowed >> 20} MiB more"
        raise _full(node, size, why)


def crew_for(node: int, size: int, threads: int | str) -> tuple[int, Any]:
    """Return how many threads work on ``size`` bytes of a node, and their CPUs for the core.

    ``"auto"`` is one for each core that this process may use, where there is work for it.
    """
    check_request(threads, MigrateMode.SYNC)
    seats = seats_near(machine(), os.sched_getaffinity(0), node)
    count = min(seats.cores, size // BYTES_PER_THREAD) if threads == "auto" else int(threads)
    count = max(1, min(count, MAX_THREADS))
    if count == 1 or not seats.cpus:
        return count, ffi.NULL
    return count, ffi.new("int32_t[]", [seats.cpus[i % len(seats.cpus)] for i in range(count)])


def populate(
    start: int,
    size: int,
    node: int,
    page_size: PageSize,
    *,
    threads: int | str = "auto",
    fall_back: bool = False,
    later: bool = False,
) -> None:
    """Give the mapping at ``start`` pages of that size from the node, by many threads.

    With ``fall_back``, what cannot be had in huge pages comes in base pages. ``later`` only
    sets policy and page size. Raises ``NodeFullError`` when node or page size have run out, and
    ``NotPermittedError`` where it cannot be known on which of several nodes the pages are. Rests
    on mbind(2) with MPOL_PREFERRED and madvise(2) with MADV_POPULATE_WRITE.
    """
    count, cpus = crew_for(node, size, threads)
    flags = lib.PF_POPULATE_HUGETLB if page_size.hugetlb else 0
    for first in range(start, start + size, PORTION):
        portion = min(PORTION, start + size - first)
        if later:
            check_code(
                lib.pf_populate(
                    first, portion, node, page_size.shift, flags | lib.PF_POPULATE_LATER, 1, cpus
                ),
                node, size, page_size,
            )  # fmt: skip
            continue
        if not page_size.hugetlb:
            check_room(node, portion)
        code = lib.pf_populate(first, portion, node, page_size.shift, flags, count, cpus)
        if code == -errno.ENOMEM and fall_back:
            code = lib.pf_populate(first, portion, node, BASE.shift, 0, count, cpus)
        check_code(code, node, size, page_size)


def check_code(code: int, node: int, size: int, page_size: PageSize) -> None:
    """Raise the error for what ``pf_populate`` or ``pf_pool_reserve`` returned, if it is one."""
    if code == 1 and len(machine().memory_nodes) > 1:
        raise NotPermittedError(
            errno.EPERM,
            f"cannot see whether memory is on node {node}",
            "the seccomp profile of this container must allow mbind and move_pages; "
            "see pageferry doctor",
        )
    if code >= 0:
        return
    if code == -errno.ENOMEM:
        raise _full(node, size, _why(node, page_size))
    raise PageferryError(
        -code, f"cannot populate {size} bytes on node {node} in pages of {page_size.name}"
    )


def _full(node: int, size: int, why: str) -> NodeFullError:
    return NodeFullError(errno.ENOMEM, f"node {node} has no room for {_amount(size)}", why)


def _amount(size: int) -> str:
    return f"{size} bytes" + (f" ({size / (1 << 20):.0f} MiB)" if size >= 1 << 20 else "")


def _why(node: int, page_size: PageSize) -> str:
    if page_size.hugetlb:
        pool = Path(f"/sys/devices/system/node/node{node}/hugepages")
        file = pool / f"hugepages-{page_size.bytes >> 10}kB/nr_hugepages"
        return f"its pool of {page_size.name} pages is too small: write their number to {file}"
    have = f"about {room(node) >> 20} MiB can be had there"
    if page_size == BASE:
        return have
    return f"{have}, but not all in pages of {page_size.name}; take page_size='auto'"
