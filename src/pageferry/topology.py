# SPDX-License-Identifier: Apache-2.0
"""The machine as a planner sees it: nodes, cores, last-level caches, and what may be used."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from . import sysfs
from .errors import NodeError, RangeError
from .flags import format_nodes, parse_size

_NODES = "sys/devices/system/node"
_CPUS = "sys/devices/system/cpu"
_TIERS = "sys/devices/virtual/memory_tiering"


@dataclass(frozen=True)
class Node:
    """A NUMA node. Sizes are bytes, as of the moment the topology was read."""

    id: int
    cpus: frozenset[int]
    """Online CPUs; empty for a memory-only node such as CXL."""
    memory_total: int
    memory_free: int
    has_memory: bool
    """False for a memoryless node: nothing can be moved there."""
    distances: dict[int, int] = field(default_factory=dict, hash=False)
    """ACPI distance to each online node, 10 being local; empty when unknown."""
    tier: int | None = None
    """Memory tier, a lower number being faster memory; None when the kernel has no tiers."""
    hugepages: dict[int, tuple[int, int]] = field(default_factory=dict, hash=False)
    """hugetlb pool: page size in bytes to (pages in the pool, pages free)."""


@dataclass(frozen=True)
class Cache:
    """A last-level cache and the online CPUs behind it."""

    id: int
    """Its place in ``Topology.caches``. The kernel's own id can be missing or repeated."""
    level: int
    size: int | None
    """Bytes, None when the kernel does not tell."""
    cpus: frozenset[int]


@dataclass(frozen=True)
class Cpu:
    """An online CPU."""

    id: int
    node: int | None
    """None when no node lists it."""
    core: frozenset[int]
    """The CPUs of its core: itself and its online SMT siblings."""
    cache: int | None
    """``Cache.id`` of its last-level cache; None when the kernel does not tell (containers)."""


@dataclass(frozen=True)
class Topology:
    """Nodes, CPUs and last-level caches of a machine, and what this process may use of them."""

    nodes: tuple[Node, ...]
    cpus: tuple[Cpu, ...]
    caches: tuple[Cache, ...]
    allowed_cpus: frozenset[int]
    """Online CPUs that this process may run on."""
    allowed_nodes: frozenset[int]
    """Online nodes that this process may allocate on (cpuset), with or without memory."""
    numa: bool = True
    """False when the kernel was built without NUMA; there is one node 0 then."""
    root: Path = Path("/")
    """The tree that it was read from."""

    @cached_property
    def node_ids(self) -> tuple[int, ...]:
        """The ids of all online nodes; they need not be consecutive."""
        return tuple(node.id for node in self.nodes)

    @cached_property
    def memory_nodes(self) -> tuple[int, ...]:
        """The ids of the nodes that have memory."""
        return tuple(node.id for node in self.nodes if node.has_memory)

    @cached_property
    def target_nodes(self) -> tuple[int, ...]:
        """The ids of the nodes that have memory and that this process may use."""
        return tuple(node for node in self.memory_nodes if node in self.allowed_nodes)

    def node(self, id: int) -> Node:
        """Return the node with this id. Raises ``NodeError`` (ENODEV) if there is none."""
        for node in self.nodes:
            if node.id == id:
                return node
        raise NodeError(
            errno.ENODEV, f"node {id} does not exist", f"nodes here: {format_nodes(self.node_ids)}"
        )

    def check_target(self, id: int) -> Node:
        """Return node ``id`` if this process can move pages to it, as ``move_pages(2)`` sees it.

        Raises ``NodeError``: ENODEV when it does not exist or has no memory, EACCES when the
        cpuset does not allow it.
        """
        node = self.node(id)
        usable = f"nodes to move to: {format_nodes(self.target_nodes) or 'none'}"
        if not node.has_memory:
            raise NodeError(errno.ENODEV, f"node {id} has no memory", usable)
        if id not in self.allowed_nodes:
            raise NodeError(
                errno.EACCES,
                f"the cpuset of this process does not allow node {id}",
                f"{usable}; the administrator can add it to cpuset.mems",
            )
        return node

    def free(self, node: int) -> int:
        """Return the free bytes of a node now; reads one file. See ``node_free``."""
        return node_free(node, self.root)

    def cpu(self, id: int) -> Cpu | None:
        """Return the online CPU with this number, or None."""
        return self._by_cpu.get(id)

    def cores(self) -> tuple[frozenset[int], ...]:
        """Return the cores as sets of their online CPUs, by lowest CPU."""
        return tuple(sorted({cpu.core for cpu in self.cpus}, key=min))

    def spread(self, cpus: Iterable[int], prefer_node: int | None = None) -> tuple[int, ...]:
        """Return ``cpus`` in the order in which a planner should take them.

        One CPU of every core comes before any second one of the same core (SMT siblings last,
        also those of the preferred node: a sibling adds little to a copy, a core elsewhere
        adds its own bandwidth). Within that, the CPUs of ``prefer_node`` come first, then those
        of other nodes by distance from it. Within that, one CPU of each last-level cache, then
        a second of each, and so on. CPUs without known cache count as sharing one per node.
        CPUs that are not online are left out. The same input gives the same order.
        """
        chosen = [self._by_cpu[id] for id in sorted(set(cpus)) if id in self._by_cpu]
        seen: dict[object, int] = {}

        def turn(key: object) -> int:
            seen[key] = seen.get(key, -1) + 1
            return seen[key]

        order = []
        for cpu in chosen:
            sibling = turn(("core", cpu.core))
            distance = self._distance(prefer_node, cpu.node)
            cache = (0, cpu.cache) if cpu.cache is not None else (1, _id_or_far(cpu.node))
            taken = turn(("cache", sibling, distance, cache))
            order.append((sibling, distance, taken, cache, cpu.id))
        return tuple(entry[-1] for entry in sorted(order))

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it; sets are sorted lists, sizes are bytes."""
        return {
            "numa": self.numa,
            "allowed_cpus": sorted(self.allowed_cpus),
            "allowed_nodes": sorted(self.allowed_nodes),
            "memory_nodes": list(self.memory_nodes),
            "target_nodes": list(self.target_nodes),
            "nodes": [
                {
                    "id": node.id,
                    "cpus": sorted(node.cpus),
                    "has_memory": node.has_memory,
                    "memory_total": node.memory_total,
                    "memory_free": node.memory_free,
                    "tier": node.tier,
                    "distances": {str(other): far for other, far in node.distances.items()},
                    "hugepages": [
                        {"size": size, "total": total, "free": free}
                        for size, (total, free) in node.hugepages.items()
                    ],
                }
                for node in self.nodes
            ],
            "cores": [sorted(core) for core in self.cores()],
            "caches": [
                {"id": c.id, "level": c.level, "size": c.size, "cpus": sorted(c.cpus)}
                for c in self.caches
            ],
        }

    @cached_property
    def _by_cpu(self) -> dict[int, Cpu]:
        return {cpu.id: cpu for cpu in self.cpus}

    def _distance(self, start: int | None, end: int | None) -> int:
        # 0 and not the 10 of the table, so that the node itself wins also in a table that
        # firmware filled with equal numbers.
        if start is None or start == end:
            return 0
        known = next((node.distances for node in self.nodes if node.id == start), {})
        return _FAR if end is None else known.get(end, _FAR)


_FAR = 1 << 16


def _id_or_far(node: int | None) -> int:
    return _FAR if node is None else node


def topology(root: str | os.PathLike[str] = "/") -> Topology:
    """Read the topology from /sys and /proc below ``root``.

    Rests on ``/sys/devices/system/{node,cpu}``, ``/sys/devices/virtual/memory_tiering`` and
    ``/proc/self/status``. What is missing or damaged is left out and never an error: without
    ``/sys/devices/system/node`` the whole machine is one node 0 and ``numa`` is False. For the
    running machine (``root`` "/") the allowed CPUs are those of ``sched_getaffinity(2)``.
    """
    base = Path(root)
    status = sysfs.status(base / "proc/self/status")
    may_run = _allowed_cpus(base, status)
    online = _online_cpus(base) or may_run or frozenset({0})
    folders = _online_nodes(base)
    nodes = [_read_node(base, id, path, sorted(folders), online) for id, path in folders.items()]
    if not nodes:
        nodes = [_whole_machine(base, online)]
    caches, cache_of = _read_caches(base, online)
    node_of = {cpu: node.id for node in nodes for cpu in node.cpus}
    core_of = _read_cores(base, online)
    cpus = [Cpu(id, node_of.get(id), core_of[id], cache_of.get(id)) for id in sorted(online)]
    ids = frozenset(node.id for node in nodes)
    may_use = sysfs.as_numbers(status.get("Mems_allowed_list"))
    return Topology(
        nodes=tuple(nodes),
        cpus=tuple(cpus),
        caches=caches,
        allowed_cpus=online if may_run is None else online & may_run,
        allowed_nodes=ids & may_use if folders and may_use else ids,
        numa=bool(folders),
        root=base,
    )


def node_free(node: int, root: str | os.PathLike[str] = "/") -> int:
    """Return the free bytes of a node now, page cache not counted.

    Reads ``MemFree`` of ``/sys/devices/system/node/nodeN/meminfo``; without NUMA, that of
    ``/proc/meminfo`` for node 0. Raises ``NodeError`` (ENODEV) if the node does not exist.
    """
    base = Path(root)
    path = base / _NODES / f"node{node}/meminfo"
    if node == 0 and not (base / _NODES).is_dir():
        path = base / "proc/meminfo"
    free = sysfs.meminfo(path).get("MemFree")
    if free is None:
        raise NodeError(errno.ENODEV, f"the free memory of node {node} cannot be read from {path}")
    return free


def _allowed_cpus(base: Path, status: dict[str, str]) -> frozenset[int] | None:
    if base == Path("/"):
        return frozenset(os.sched_getaffinity(0))
    return sysfs.as_numbers(status.get("Cpus_allowed_list"))


def _online_cpus(base: Path) -> frozenset[int]:
    listed = sysfs.numbers(base / _CPUS / "online")
    if listed:
        return listed
    folders = sysfs.numbered(base / _CPUS, "cpu")
    return frozenset(id for id, path in folders.items() if sysfs.number(path / "online") != 0)


def _online_nodes(base: Path) -> dict[int, Path]:
    folders = sysfs.numbered(base / _NODES, "node")
    listed = sysfs.numbers(base / _NODES / "online")
    return {id: path for id, path in folders.items() if not listed or id in listed}


def _read_node(base: Path, id: int, path: Path, ids: list[int], online: frozenset[int]) -> Node:
    memory = sysfs.meminfo(path / "meminfo")
    total = memory.get("MemTotal", 0)
    with_memory = sysfs.numbers(base / _NODES / "has_memory")
    columns = re.findall(r"\d{1,9}", sysfs.text(path / "distance") or "")
    tiers = sysfs.numbered(base / _TIERS, "memory_tier")
    return Node(
        id=id,
        cpus=(sysfs.numbers(path / "cpulist") or frozenset()) & online,
        memory_total=total,
        memory_free=memory.get("MemFree", 0),
        has_memory=total > 0 if with_memory is None else id in with_memory,
        # One column for each online node: with sparse ids the column is not the id.
        distances=dict(zip(ids, map(int, columns), strict=True))
        if len(columns) == len(ids)
        else {},
        tier=next(
            (n for n, tier in tiers.items() if id in (sysfs.numbers(tier / "nodelist") or ())), None
        ),
        hugepages=sysfs.hugepages(path / "hugepages"),
    )


def _whole_machine(base: Path, online: frozenset[int]) -> Node:
    memory = sysfs.meminfo(base / "proc/meminfo")
    return Node(
        id=0,
        cpus=online,
        memory_total=memory.get("MemTotal", 0),
        memory_free=memory.get("MemFree", 0),
        has_memory=True,
        distances={0: 10},
        hugepages=sysfs.hugepages(base / "sys/kernel/mm/hugepages"),
    )


def _read_cores(base: Path, online: frozenset[int]) -> dict[int, frozenset[int]]:
    """Return the core of each CPU, as the set of its online CPUs."""
    core_of: dict[int, frozenset[int]] = {}
    for cpu in sorted(online):
        if cpu in core_of:
            continue
        folder = base / _CPUS / f"cpu{cpu}/topology"
        # thread_siblings_list is the name before 5.2; both may be there.
        listed = sysfs.numbers(folder / "core_cpus_list")
        if listed is None:
            listed = sysfs.numbers(folder / "thread_siblings_list") or frozenset()
        # A damaged list must not put a CPU in two cores.
        core = ((listed & online) | {cpu}) - frozenset(core_of)
        core_of.update(dict.fromkeys(core, core))
    return core_of


def _read_caches(base: Path, online: frozenset[int]) -> tuple[tuple[Cache, ...], dict[int, int]]:
    """Return the last-level caches, and which of them each CPU is behind."""
    found: dict[frozenset[int], tuple[int, int | None]] = {}
    for cpu in sorted(online):
        last: tuple[int, Path] | None = None
        for path in sysfs.numbered(base / _CPUS / f"cpu{cpu}/cache", "index").values():
            level = sysfs.number(path / "level")
            data = sysfs.text(path / "type") != "Instruction"
            if level is not None and data and (last is None or level > last[0]):
                last = level, path
        if last is None:
            continue
        sharing = (sysfs.numbers(last[1] / "shared_cpu_list") or frozenset()) & online
        if cpu in sharing:
            found.setdefault(sharing, (last[0], _cache_size(last[1])))
    caches: list[Cache] = []
    cache_of: dict[int, int] = {}
    for sharing in sorted(found, key=sorted):
        # Lists that contradict each other would put a CPU behind two caches: the first wins.
        own = sharing - frozenset(cache_of)
        if own:
            level, size = found[sharing]
            cache_of.update(dict.fromkeys(own, len(caches)))
            caches.append(Cache(len(caches), level, size, own))
    return tuple(caches), cache_of


def _cache_size(path: Path) -> int | None:
    try:
        return parse_size(sysfs.text(path / "size") or "")
    except RangeError:
        return None
