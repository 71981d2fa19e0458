# SPDX-License-Identifier: Apache-2.0
"""The shapes of guest machines: which NUMA nodes have memory, CPUs, both or neither."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .errors import LabError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SMALLEST_NODE = 64 << 20
#: What Linux takes offline at once on a machine with less than 64 GiB.
MEMORY_BLOCK = 128 << 20


@dataclass(frozen=True)
class Node:
    """One NUMA node of a guest.

    A node with neither memory nor CPUs is known to the guest's firmware but never online:
    it leaves a hole in the node ids. The nodes after a hole cannot have CPUs. The memory of a node
    that is ``pluggable`` is on a module that can be taken out: its blocks can be taken offline.
    """

    memory: bool = True
    cpus: bool = True
    pluggable: bool = False


@dataclass(frozen=True)
class Topology:
    """The NUMA nodes of a guest; the position in ``nodes`` is the node's id.

    ``distance`` is the SLIT value between any two nodes (10 is local). With ``tiers`` the
    firmware also has an HMAT in which nodes without CPUs are slower, so that Linux puts them
    into a lower memory tier.
    """

    name: str
    summary: str
    nodes: tuple[Node, ...]
    distance: int = 20
    tiers: bool = False

    @property
    def online(self) -> tuple[int, ...]:
        """The ids of the nodes that Linux brings online."""
        return tuple(i for i, node in enumerate(self.nodes) if node.memory or node.cpus)

    @property
    def with_memory(self) -> tuple[int, ...]:
        """The ids of the nodes that have memory."""
        return tuple(i for i, node in enumerate(self.nodes) if node.memory)

    @property
    def with_cpus(self) -> tuple[int, ...]:
        """The ids of the nodes that have CPUs."""
        return tuple(i for i, node in enumerate(self.nodes) if node.cpus)


def plain(nodes: int) -> Topology:
    """Return a topology of ``nodes`` nodes (1 to 64), each with memory and CPUs.

    Raises LabError (EINVAL) for another count.
    """
    if not 1 <= nodes <= 64:
        raise LabError(errno.EINVAL, f"a guest cannot have {nodes} nodes", "use 1 to 64")
    if nodes == 2:
        return TOPOLOGIES["two-node"]
    return Topology(f"{nodes}-node", f"{nodes} nodes, each with memory and CPUs", (Node(),) * nodes)


TOPOLOGIES: Mapping[str, Topology] = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            Topology("two-node", "two nodes, each with memory and CPUs", (Node(), Node())),
            Topology(
                "memory-only",
                "node 1 has memory and no CPUs, is slower and further away (as CXL memory)",
                (Node(), Node(cpus=False)),
                distance=30,
                tiers=True,
            ),
            Topology(
                "hot-plug",
                "two nodes with memory and CPUs, and node 2 of memory that can be taken offline, "
                "in steps of 128M",
                (Node(), Node(), Node(cpus=False, pluggable=True)),
            ),
            Topology(
                "memoryless",
                "three nodes; node 1 has CPUs and no memory",
                (Node(), Node(memory=False), Node()),
            ),
            Topology(
                "sparse",
                "node 0 has memory and CPUs, node 2 memory; there is no node 1",
                (Node(), Node(memory=False, cpus=False), Node(cpus=False)),
            ),
        )
    }
)


def parse_size(text: str) -> int:
    """Return a size such as ``512M`` or ``2G`` (binary units) in bytes.

    Raises LabError (EINVAL) when it is not a size or too small for a node.
    """
    match = re.fullmatch(r"(\d+)([KMGT]?)(?:iB|B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise LabError(errno.EINVAL, f"{text!r} is not a size", "write 512M or 2G")
    count = int(match[1]) * _UNITS[match[2].upper()]
    if count < SMALLEST_NODE or count % (2 << 20):
        raise LabError(
            errno.EINVAL,
            f"a node cannot have {text} of memory",
            "give at least 64M, in steps of 2M",
        )
    return count


def deal_cpus(topology: Topology, cpus: int | None) -> tuple[int, ...]:
    """Return how many vCPUs each node gets when ``cpus`` are dealt over the nodes with CPUs.

    None means one for each node with CPUs, and at least two. With fewer vCPUs than such
    nodes, the last ones get none. Raises LabError (EINVAL) for less than one.
    """
    takers = topology.with_cpus
    count = max(2, len(takers)) if cpus is None else cpus
    if not 1 <= count <= 255:
        raise LabError(errno.EINVAL, f"a guest cannot have {count} CPUs", "use 1 to 255")
    share = [0] * len(topology.nodes)
    for turn in range(count):
        share[takers[turn % len(takers)]] += 1
    return tuple(share)


def qemu_arguments(
    topology: Topology, *, memory: int, cpus: int | None, cpu_model: str
) -> tuple[list[str], list[str]]:
    """Return QEMU's arguments for the machine, and kernel arguments that must go with them.

    ``memory`` is in bytes for each node with memory; ``cpu_model`` is QEMU's, with features
    after commas (``max,-erms``).
    """
    share = deal_cpus(topology, cpus)
    holes = [i for i, node in enumerate(topology.nodes) if not (node.memory or node.cpus)]
    if holes and any(share[holes[0] :]):
        raise LabError(errno.EINVAL, f"{topology.name}: nodes after a hole cannot have CPUs")
    # A socket for each node keeps a node's CPUs on one last-level cache. Nodes with unequal
    # numbers of CPUs cannot be said that way: then each CPU is a socket.
    counts = {count for count in share if count}
    cores = counts.pop() if len(counts) == 1 else 1
    sockets = [node for node, count in enumerate(share) for _ in range(count // cores)]
    present = len(sockets) * cores
    # Linux numbers nodes densely, in the order in which the firmware names them: first those
    # of the CPUs, then those of the memory. A socket that is never plugged in makes it name,
    # and so number, the hole as well. It has to be the last one: Linux 6.1 does not get past
    # a gap in the CPUs' numbers here.
    sockets += holes

    machine = "q35,hmat=on" if topology.tiers else "q35"
    pluggable = [node for node, has in enumerate(topology.nodes) if has.pluggable]
    total = memory * (len(topology.with_memory) - len(pluggable)) >> 20
    size = f"{total}M"
    if pluggable:
        if memory % MEMORY_BLOCK:
            raise LabError(
                errno.EINVAL,
                f"a node of {memory >> 20}M cannot be plugged in",
                f"give a multiple of {MEMORY_BLOCK >> 20}M",
            )
        size += f",slots={len(pluggable)},maxmem={total + len(pluggable) * (memory >> 20)}M"
    arguments = ["-M", machine, "-m", size]
    smp = f"{present},sockets={len(sockets)},cores={cores},threads=1"
    arguments += ["-cpu", cpu_model, "-smp", f"{smp},maxcpus={len(sockets) * cores}"]
    for node, has in enumerate(topology.nodes):
        spec = f"node,nodeid={node}"
        if has.memory:
            arguments += ["-object", f"memory-backend-ram,id=memory{node},size={memory}"]
            if has.pluggable:
                module = f"pc-dimm,id=dimm{node},memdev=memory{node},node={node}"
                arguments += ["-device", module]
            else:
                spec += f",memdev=memory{node}"
        if topology.tiers and not share[node]:
            spec += f",initiator={topology.with_cpus[0]}"
        arguments += ["-numa", spec]
    for socket, node in enumerate(sockets):
        arguments += ["-numa", f"cpu,node-id={node},socket-id={socket}"]
    for source in range(len(topology.nodes)):
        for target in range(source + 1, len(topology.nodes)):
            arguments += ["-numa", f"dist,src={source},dst={target},val={topology.distance}"]
    if topology.tiers:
        arguments += _memory_attributes(topology)
    # Without this limit Linux brings the node of a CPU online that may be plugged in later.
    needed = [f"possible_cpus={present}"] if holes else []
    # In a zone for movable pages only, or no block of it can be taken offline.
    if pluggable:
        needed.append("memhp_default_state=online_movable")
    return arguments, needed


def _memory_attributes(topology: Topology) -> list[str]:
    """Return the HMAT: latencies in ns, bandwidths in bytes/s, from every node with CPUs."""
    arguments = []
    for source in topology.with_cpus:
        for target in topology.with_memory:
            near = topology.nodes[target].cpus
            pair = f"hmat-lb,initiator={source},target={target},hierarchy=memory"
            latency, bandwidth = (100, "100G") if near else (300, "30G")
            arguments += ["-numa", f"{pair},data-type=access-latency,latency={latency}"]
            arguments += ["-numa", f"{pair},data-type=access-bandwidth,bandwidth={bandwidth}"]
    return arguments
