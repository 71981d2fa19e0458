# SPDX-License-Identifier: Apache-2.0
"""What the memory of each node is used for now, and how short of it the kernel is there."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import sysfs
from .pages import PAGE_SIZE

_NODES = "sys/devices/system/node"
_ZONE = re.compile(r"^Node (\d+), zone +\S+\n(.*?)(?=^Node |\Z)", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"^ +(min|low) +(\d+)$", re.MULTILINE)
_PRESSURE = re.compile(r"^(some|full) .*avg10=(\d+\.\d+)", re.MULTILINE)


@dataclass(frozen=True)
class NodeStat:
    """The memory of a node, in bytes.

    ``total`` is ``free`` + ``anonymous`` (processes' own pages) + ``shared`` (tmpfs, shm) +
    ``file`` (page cache of files and buffers) + ``hugetlb`` (the whole pool, used or not) +
    ``kernel`` (slabs, page tables, and what is left).
    """

    id: int
    total: int
    free: int
    anonymous: int = 0
    shared: int = 0
    file: int = 0
    hugetlb: int = 0
    hugetlb_free: int = 0
    low: int = 0
    """The sum of the zones' low watermarks: with less free, the kernel reclaims."""
    min: int = 0
    """The sum of the zones' min watermarks: with less free, whoever allocates has to wait."""
    misses: int = 0
    """``numa_miss``: came from here, as the node preferred was full. Since the start, in bytes."""
    foreign: int = 0
    """``numa_foreign``: was wanted from here, and came from elsewhere. Likewise."""

    @property
    def used(self) -> int:
        """Bytes that are not free; page cache counts as used."""
        return self.total - self.free

    @property
    def kernel(self) -> int:
        """What is used and belongs to none of the kinds that are told."""
        known = self.anonymous + self.shared + self.file + self.hugetlb
        return max(self.used - known, 0)

    @property
    def pressure(self) -> str:
        """``"none"``; ``"reclaim"`` below the low watermark; ``"stall"`` below the minimum.

        The kernel tells stalls for the machine and for cgroups, not for nodes; the watermarks
        are what its reclaim goes by.
        """
        if not self.total or self.free > self.low:
            return "none"
        return "reclaim" if self.free > self.min else "stall"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return asdict(self) | {
            "used": self.used,
            "kernel": self.kernel,
            "pressure": self.pressure,
        }


def node_stats(root: str | os.PathLike[str] = "/") -> tuple[NodeStat, ...]:
    """Return what the memory of every online node is used for, by node id.

    Rests on ``meminfo`` and ``numastat`` below ``/sys/devices/system/node`` and on
    ``/proc/zoneinfo``. A kernel without NUMA has one node 0, from ``/proc/meminfo``. What cannot
    be read is 0.
    """
    base = Path(root)
    marks = _watermarks(base)
    folders = sysfs.numbered(base / _NODES, "node")
    online = sysfs.numbers(base / _NODES / "online")
    found = [
        _stat(id, path / "meminfo", path / "hugepages", _numastat(path), marks.get(id, {}))
        for id, path in folders.items()
        if not online or id in online
    ]
    if not found:
        pools = base / "sys/kernel/mm/hugepages"
        found = [_stat(0, base / "proc/meminfo", pools, {}, marks.get(0, {}))]
    return tuple(found)


def memory_pressure(root: str | os.PathLike[str] = "/") -> dict[str, float]:
    """Return the share of the last 10 s, in percent, in which tasks waited for memory.

    ``some``: at least one task; ``full``: all that could run. From ``/proc/pressure/memory``, for
    the whole machine; {} when the kernel has no PSI.
    """
    found = _PRESSURE.findall(sysfs.text(Path(root, "proc/pressure/memory")) or "")
    return {name: float(percent) for name, percent in found}


def _stat(
    id: int, meminfo: Path, pools: Path, numastat: dict[str, int], marks: dict[str, int]
) -> NodeStat:
    memory = sysfs.meminfo(meminfo)
    # /proc/meminfo says Cached and Buffers for what a node's meminfo calls FilePages.
    file = memory.get("FilePages", memory.get("Cached", 0) + memory.get("Buffers", 0))
    shared = memory.get("Shmem", 0)
    hugetlb = sysfs.hugepages(pools).items()
    return NodeStat(
        id=id,
        total=memory.get("MemTotal", 0),
        free=memory.get("MemFree", 0),
        anonymous=memory.get("AnonPages", 0),
        shared=shared,
        file=max(file - shared, 0),
        hugetlb=sum(size * total for size, (total, _) in hugetlb),
        hugetlb_free=sum(size * free for size, (_, free) in hugetlb),
        low=marks.get("low", 0),
        min=marks.get("min", 0),
        misses=numastat.get("numa_miss", 0) * PAGE_SIZE,
        foreign=numastat.get("numa_foreign", 0) * PAGE_SIZE,
    )


def _numastat(folder: Path) -> dict[str, int]:
    pairs = (line.split() for line in (sysfs.text(folder / "numastat") or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _watermarks(base: Path) -> dict[int, dict[str, int]]:
    """Return the watermarks of each node in bytes, all its zones together."""
    marks: dict[int, dict[str, int]] = {}
    for node, zone in _ZONE.findall(sysfs.text(base / "proc/zoneinfo") or ""):
        of_node = marks.setdefault(int(node), {})
        for name, pages in _MARK.findall(zone):
            of_node[name] = of_node.get(name, 0) + int(pages) * PAGE_SIZE
    return marks
