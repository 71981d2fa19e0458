# SPDX-License-Identifier: Apache-2.0
"""The nodes that a request names, checked against this machine."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from .errors import NodeError
from .topology import Topology, topology


@lru_cache(maxsize=1)
def machine() -> Topology:
    """Return the topology of this machine, read once; ``check_node`` reads it again."""
    return topology()


def check_node(node: int, pid: int | None) -> None:
    """Raise ``NodeError`` for a target that cannot be; another process has its own cpuset."""
    if isinstance(node, bool) or not isinstance(node, (int, np.integer)):
        raise TypeError(f"a node is a number, not {node!r}")
    for fresh in (False, True):
        if fresh:
            machine.cache_clear()  # memory may have come online since
        try:
            found = machine().node(node) if pid else machine().check_target(node)
        except NodeError:
            if fresh:
                raise
            continue
        if found.has_memory:
            return
    raise NodeError(errno.ENODEV, f"node {node} has no memory", "choose a node with memory")


def check_sources(source: Iterable[int] | int | None) -> frozenset[int] | None:
    """Return the nodes of ``source=`` as a set, None for all. Raises ``NodeError``."""
    if source is None:
        return None
    named = [source] if isinstance(source, (int, np.integer)) else list(source)
    for node in named:
        if isinstance(node, bool) or not isinstance(node, (int, np.integer)):
            raise TypeError(f"a source node is a number, not {node!r}")
        machine().node(int(node))
    nodes = frozenset(map(int, named))
    if not nodes:
        raise NodeError(errno.EINVAL, "the set of source nodes is empty", "leave source out")
    return nodes
