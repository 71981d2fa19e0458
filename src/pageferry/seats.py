# SPDX-License-Identifier: Apache-2.0
"""Seats: the CPUs that threads get, in order, and what these share with each other."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property

from .topology import Topology


@dataclass(frozen=True, eq=False)
class Seats:
    """CPUs in the order in which threads get them; thread i sits on ``cpus[i]``.

    ``caches`` has the last-level cache of each seat (equal values: the same cache), and
    ``siblings`` whether an earlier seat is on the same core. Two objects are never equal, so that
    they are cheap keys.
    """

    cpus: tuple[int, ...]
    caches: tuple[Hashable, ...]
    siblings: tuple[bool, ...]

    @cached_property
    def cores(self) -> int:
        """The number of cores, SMT siblings not counted."""
        return len(self.siblings) - sum(self.siblings)


_known: dict[tuple[int, frozenset[int], int | None], tuple[Topology, Seats]] = {}
_KNOWN_MOST = 64


def seats_near(machine: Topology, cpus: Iterable[int], node: int | None) -> Seats:
    """Return ``cpus`` as seats, those of ``node`` first; see ``Topology.spread`` for the order.

    The answer is kept for the next plan: spreading hundreds of CPUs takes longer than a plan may.
    """
    key = (id(machine), frozenset(cpus), node)
    known = _known.get(key)
    if known is not None and known[0] is machine:
        return known[1]
    order = machine.spread(key[1], prefer_node=node)
    caches: list[Hashable] = []
    siblings: list[bool] = []
    taken: set[frozenset[int]] = set()
    for id_ in order:
        cpu = machine.cpu(id_)
        assert cpu is not None  # spread leaves out what is not online
        # A cache that the kernel does not tell counts as one for each node, as in spread.
        caches.append(("node", cpu.node) if cpu.cache is None else cpu.cache)
        siblings.append(cpu.core in taken)
        taken.add(cpu.core)
    seats = Seats(order, tuple(caches), tuple(siblings))
    if len(_known) >= _KNOWN_MOST:
        _known.clear()
    _known[key] = machine, seats  # holds the machine, so that its id stays its own
    return seats
