# SPDX-License-Identifier: Apache-2.0
"""The node of this process, where several of its kind share a machine; and staying on its CPUs."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from pathlib import Path

from .local import local_node
from .topology import Topology

_TURNS = 1024  # processes for each node


def own_node(machine: Topology, kind: str) -> tuple[int, socket.socket | None]:
    """Return the node of this process, and what is to be held as long as it counts for that node.

    That is the node of the CPUs that the process may use, if it is one. Processes of a ``kind``
    that may use several are dealt out over those with CPUs and memory, one on each before a second
    on any; containers with network namespaces of their own do not know of each other. Without any,
    it is the node nearest to the CPU that this thread runs on.
    """
    near = {cpu.node for cpu in machine.cpus if cpu.id in machine.allowed_cpus}
    nodes = [node for node in machine.target_nodes if node in near]
    if len(nodes) < 2:
        return (nodes[0] if nodes else local_node()), None
    # Names of sockets: taken by one process at a time, and free when it ends, however it ends.
    for turn, node in itertools.product(range(_TURNS), nodes):
        claim = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            claim.bind(f"\0{kind}/{turn}/{node}")
            return node, claim
        claim.close()
    return nodes[0], None


def pin_to(machine: Topology, node: int) -> None:
    """Keep all threads of this process on the CPUs of a node, and those that they will begin.

    Where the process may use none of them, nothing changes.
    """
    cpus = machine.node(node).cpus & machine.allowed_cpus
    if not cpus:
        return
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), cpus)
