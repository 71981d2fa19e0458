# SPDX-License-Identifier: Apache-2.0
"""Small /sys and /proc trees of machines that the test machine is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pageferry.flags import format_nodes

GIB = 1 << 30


def write(root: Path, path: str, content: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content + "\n")


@dataclass
class FakeNode:
    cpus: Sequence[int]
    total: int = 64 * GIB
    free: int = 32 * GIB
    distance: str = "10"
    tier: int | None = None
    hugepages: dict[int, tuple[int, int]] = field(default_factory=dict)


def build(
    root: Path,
    nodes: dict[int, FakeNode],
    *,
    cores: Sequence[Sequence[int]] = (),
    caches: Sequence[Sequence[int]] = (),
    cpus_allowed: str | None = None,
    mems_allowed: str | None = None,
) -> Path:
    """Write the tree of a machine and return its root."""
    online = sorted(cpu for node in nodes.values() for cpu in node.cpus)
    folder = "sys/devices/system/node"
    write(root, f"{folder}/online", format_nodes(nodes))
    write(root, f"{folder}/possible", f"0-{max(nodes)}")
    write(root, f"{folder}/has_memory", format_nodes(i for i, n in nodes.items() if n.total))
    tiers: dict[int, list[int]] = {}
    for id, node in nodes.items():
        here = f"{folder}/node{id}"
        write(root, f"{here}/cpulist", format_nodes(node.cpus))
        write(root, f"{here}/distance", node.distance)
        write(
            root,
            f"{here}/meminfo",
            f"Node {id} MemTotal:       {node.total // 1024} kB\n"
            f"Node {id} MemFree:        {node.free // 1024} kB\n"
            f"Node {id} HugePages_Total:     3",
        )
        for size, (total, free) in node.hugepages.items():
            write(root, f"{here}/hugepages/hugepages-{size // 1024}kB/nr_hugepages", str(total))
            write(root, f"{here}/hugepages/hugepages-{size // 1024}kB/free_hugepages", str(free))
        if node.tier is not None:
            tiers.setdefault(node.tier, []).append(id)
    for tier, members in tiers.items():
        path = f"sys/devices/virtual/memory_tiering/memory_tier{tier}/nodelist"
        write(root, path, format_nodes(members))
    build_cpus(root, online, cores, caches)
    write(
        root,
        "proc/self/status",
        "Name:\tpython3\nSeccomp:\t0\nCapEff:\t0000000000000000\n"
        f"Cpus_allowed_list:\t{cpus_allowed or format_nodes(online)}\n"
        f"Mems_allowed_list:\t{mems_allowed or format_nodes(nodes)}",
    )
    return root


def build_cpus(
    root: Path,
    online: Sequence[int],
    cores: Sequence[Sequence[int]],
    caches: Sequence[Sequence[int]],
) -> None:
    folder = "sys/devices/system/cpu"
    write(root, f"{folder}/online", format_nodes(online))
    for core in cores:
        for cpu in core:
            write(root, f"{folder}/cpu{cpu}/topology/core_cpus_list", format_nodes(core))
    for number, cache in enumerate(caches):
        for cpu in cache:
            # A larger level 1 sharing, of instructions, that must not be taken for the last.
            levels = [(0, 1, "Data", "32K", [cpu]), (1, 4, "Instruction", "64K", online)]
            levels += [(2, 3, "Unified", "32768K", list(cache))]
            for index, level, kind, size, shared in levels:
                here = f"{folder}/cpu{cpu}/cache/index{index}"
                write(root, f"{here}/level", str(level))
                write(root, f"{here}/type", kind)
                write(root, f"{here}/size", size)
                write(root, f"{here}/id", str(number))
                write(root, f"{here}/shared_cpu_list", format_nodes(shared))


def zen3(root: Path) -> Path:
    """Two sockets of 64 cores with SMT: 8 last-level caches of 8 cores in each."""
    cores = [(core, core + 128) for core in range(128)]
    caches = [[*range(8 * c, 8 * c + 8), *range(8 * c + 128, 8 * c + 136)] for c in range(16)]
    nodes = {
        0: FakeNode([*range(64), *range(128, 192)], distance="10 32"),
        1: FakeNode([*range(64, 128), *range(192, 256)], distance="32 10"),
    }
    return build(root, nodes, cores=cores, caches=caches)


def cxl(root: Path) -> Path:
    """Two nodes with CPUs, a slower one without (id 4), and one without memory (id 7)."""
    return build(
        root,
        {
            0: FakeNode([0, 1], distance="10 21 24 17", tier=4),
            1: FakeNode([2, 3], distance="21 10 14 17", tier=4),
            4: FakeNode([], total=256 * GIB, distance="24 14 10 30", tier=22),
            7: FakeNode([4], total=0, free=0, distance="17 17 30 10"),
        },
        cores=[[0], [1], [2], [3], [4]],
        caches=[[0, 1], [2, 3], [4]],
    )


def without_numa(root: Path) -> Path:
    """A kernel without NUMA, and a container that hides the caches."""
    build_cpus(root, [0, 1, 2, 3], [], [])
    write(root, "proc/meminfo", "MemTotal:        8388608 kB\nMemFree:         4194304 kB")
    write(root, "proc/self/status", "Cpus_allowed_list:\t0-2\nMems_allowed_list:\t0")
    write(root, "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8")
    write(root, "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "5")
    return root
