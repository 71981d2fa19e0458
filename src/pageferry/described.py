# SPDX-License-Identifier: Apache-2.0
"""Machines to predict for: this one, or one described in a TOML file, at hand or not."""

from __future__ import annotations

import errno
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from .calibration import current
from .errors import DescriptionError, NodeError, PageferryError
from .flags import format_nodes, parse_size
from .model import BOUNDS, WORTH_SEVERAL, Costs
from .nodes import machine as this_topology
from .seats import Seats, seats_near
from .strict import Fields
from .topology import Topology

_LONGEST = 1 << 20  # bytes of a description that is read at all
_NODES_MOST, _CORES_MOST, _CPUS_MOST = 1024, 4096, 1 << 16
SHIPPED = "machines"


@dataclass(frozen=True)
class DescribedNode:
    """A node: its cores, threads on each core, last-level caches, and memory in bytes if known."""

    id: int
    cores: int
    smt: int = 1
    caches: int = 1
    memory: int | None = None


@dataclass(frozen=True)
class Machine:
    """A machine as the cost model sees it. ``links`` are GB/s by (source node, target node).

    ``worth``: what several threads have to save, see ``best_threads``.
    """

    name: str
    nodes: tuple[DescribedNode, ...]
    costs: Costs
    links: Mapping[tuple[int, int], float] = field(default_factory=dict)
    about: str = ""
    cpus_near: str = "target"
    worth: float = WORTH_SEVERAL
    topology: Topology | None = None
    """The real one, where the machine is this one."""

    def node(self, id: int) -> DescribedNode:
        """Return the node with this id. Raises ``NodeError`` (ENODEV) if there is none."""
        for node in self.nodes:
            if node.id == id:
                return node
        known = format_nodes(node.id for node in self.nodes)
        raise NodeError(errno.ENODEV, f"{self.name} has no node {id}", f"it has {known}")

    def link(self, source: int, target: int) -> float:
        """Return the GB/s between two nodes."""
        self.node(source), self.node(target)
        return self.links.get((source, target), self.costs.link_gbps)

    def seats(self, source: int, target: int) -> Seats:
        """Return the CPUs in the order in which threads of such a move get them.

        One of each core before any SMT sibling; the target's CPUs, then the source's, then the
        others by number (``cpus_near`` "source": the source's first); one of each last-level cache
        before a second in the same. For this machine those that this process may use, as a move
        takes them.
        """
        near, far = self.node(target), self.node(source)
        if self.cpus_near == "source":
            near, far = far, near
        if self.topology is not None:
            return seats_near(self.topology, os.sched_getaffinity(0), near.id)
        order = [near, far, *(n for n in self.nodes if n not in (near, far))]
        if near == far:
            del order[0]
        caches: list[tuple[int, int]] = []
        siblings: list[bool] = []
        for turn in range(max(node.smt for node in order)):
            for node in order:
                if turn < node.smt:
                    caches += [(node.id, core % node.caches) for core in range(node.cores)]
                    siblings += [turn > 0] * node.cores
        return Seats(tuple(range(len(caches))), tuple(caches), tuple(siblings))


def this_machine() -> Machine:
    """Return this machine, with its calibration if it has one; ``about`` says whether."""
    here, known = this_topology(), current()
    return Machine(
        name="this machine",
        nodes=tuple(
            DescribedNode(
                id=node.id,
                cores=len({cpu.core for cpu in here.cpus if cpu.node == node.id}),
                memory=node.memory_total if node.has_memory else 0,
            )
            for node in here.nodes
        ),
        costs=known.costs,
        links={(source, target): gbps for source, target, gbps in known.links},
        about=". ".join(filter(None, (known.when and f"calibrated {known.when}", known.note))),
        cpus_near=known.cpus_near,
        worth=known.worth,
        topology=here,
    )


def shipped() -> tuple[str, ...]:
    """Return the names of the descriptions that come with pageferry."""
    folder = resources.files(__package__) / SHIPPED
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def load_machine(name: str) -> Machine:
    """Return the machine that ``name`` describes: a shipped description, or a TOML file.

    Raises ``DescriptionError`` for an impossible or unknown one, ``PageferryError`` for a file
    that cannot be read.
    """
    if name in shipped():
        text = (resources.files(__package__) / SHIPPED / f"{name}.toml").read_text("utf-8")
        return parse_machine(text, name)
    try:
        with Path(name).open("rb") as file:
            data = file.read(_LONGEST + 1)
    except (OSError, ValueError) as error:
        if "/" not in name and "." not in name:
            raise DescriptionError(
                errno.ENOENT, f"no machine is called {name!r}", f"there are {', '.join(shipped())}"
            ) from None
        number = error.errno if isinstance(error, OSError) else None
        raise PageferryError(number or errno.EINVAL, f"cannot read {name}") from None
    if len(data) > _LONGEST:
        raise DescriptionError(errno.EFBIG, f"{name} is longer than {_LONGEST >> 20} MiB")
    return parse_machine(data.decode(errors="replace"), name)


def parse_machine(text: str, name: str = "the description") -> Machine:
    """Return the machine that a TOML text describes; see ``machines/*.toml`` for examples.

    Raises ``DescriptionError`` that names the field for anything impossible.
    """
    try:
        return _machine(Fields(tomllib.loads(text)))
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DescriptionError(
            errno.EINVAL,
            f"{name} describes no machine: {why}",
            f"see the shipped ones: {', '.join(shipped())}",
        ) from None


def _machine(fields: Fields) -> Machine:
    name = fields.text("name", 100)
    about = fields.text("about", 2000, default="")
    near = fields.choice("cpus_near", ("target", "source"), default="target")
    nodes: dict[int, DescribedNode] = {}
    for where, entry in fields.items("node", _NODES_MOST):
        node = _node(Fields(entry, where))
        if node.id in nodes:
            raise ValueError(f"{where}.id: there is a node {node.id} already")
        nodes[node.id] = node
    cpus = sum(node.cores * node.smt for node in nodes.values())
    if not 0 < cpus <= _CPUS_MOST:
        raise ValueError(f"node: a machine has from 1 to {_CPUS_MOST} CPUs, not {cpus}")
    links: dict[tuple[int, int], float] = {}
    for where, entry in fields.items("link", _NODES_MOST**2, default=[]):
        _link(Fields(entry, where), where, nodes, links)
    costs = Costs.from_fields(fields.table("costs"))
    fields.end()
    return Machine(name, tuple(nodes[id] for id in sorted(nodes)), costs, links, about, near)


def _node(fields: Fields) -> DescribedNode:
    id_ = fields.integer("id", 0, (1 << 16) - 1)
    cores = fields.integer("cores", 0, _CORES_MOST)
    smt = fields.integer("smt", 1, 8, default=1)
    caches = fields.integer("caches", 1, max(cores, 1), default=1)
    memory = fields.text("memory", 20, default="")
    node = DescribedNode(id_, cores, smt, caches, _size(memory, fields.name("memory")))
    fields.end()
    return node


def _link(
    fields: Fields, where: str, nodes: Mapping[int, Any], links: dict[tuple[int, int], float]
) -> None:
    ends = fields.integer("from", 0, 1 << 16), fields.integer("to", 0, 1 << 16)
    gbps = fields.number("gbps", *BOUNDS["link_gbps"])
    fields.end()
    for end in ends:
        if end not in nodes:
            raise ValueError(f"{where}: there is no node {end}")
    if ends[0] == ends[1]:
        raise ValueError(f"{where} goes from node {ends[0]} to itself")
    if ends in links:
        raise ValueError(f"{where}: the link from {ends[0]} to {ends[1]} is there already")
    links[ends] = gbps


def _size(text: str, name: str) -> int | None:
    if not text:
        return None
    try:
        return parse_size(text)
    except ValueError:
        raise ValueError(f"{name} is no size: {text!r}") from None
