# SPDX-License-Identifier: Apache-2.0
"""``pageferry topology``: nodes, distances, caches and cores, and what may be used of them."""

from __future__ import annotations

import argparse
import platform
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import console
from ..flags import format_nodes
from ..nodestat import node_stats
from ..pictures import topology as drawing
from ..topology import Node, Topology, topology
from . import arguments

_WIDTH = 80


def add_parser(subparsers: Any) -> None:
    """Add the ``topology`` command."""
    parser = subparsers.add_parser(
        "topology",
        help="show nodes, caches and cores",
        description="Show nodes, distances, caches and cores, and what this process may use.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    arguments.add_plot(parser, "the nodes with their memory in use, CPUs, caches and distances")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the topology of this machine, and draw it if asked to; always 0."""
    picture = arguments.picture(args)
    here = topology()
    if args.json:
        console.print_json(here.as_dict() | {"memory": [s.as_dict() for s in node_stats()]})
    elif args.plot == arguments.TERMINAL:
        screen = console.console()
        drawing.show(here, node_stats(), screen)
        if (distances := _distances(here)) is not None:
            screen.print()
            screen.print(distances)
    else:
        show(here, console.console())
    if picture:
        drawing.draw(here, node_stats(), picture, platform.node())
        arguments.say_written(args, picture)
    return 0


def show(here: Topology, screen: Console) -> None:
    """Print ``here`` on ``screen`` as tables and sentences."""
    for part in (_nodes(here), _distances(here)):
        if part is not None:
            screen.print(part, width=min(screen.width, _WIDTH), soft_wrap=False)
            screen.print()
    screen.print(_facts(here), width=min(screen.width, _WIDTH), soft_wrap=False)


def _nodes(here: Topology) -> Table:
    tiers = any(node.tier is not None for node in here.nodes)
    pools = {node.id: _pools(node) for node in here.nodes}
    table = _plain_table()
    table.add_column("node", justify="right")
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("free", justify="right", no_wrap=True)
    if tiers:
        table.add_column("tier", justify="right")
    table.add_column("CPUs", overflow="fold")
    if any(pools.values()):
        table.add_column("hugetlb, free of all", overflow="fold")
    for node in here.nodes:
        memory = (console.size(node.memory_total), console.size(node.memory_free))
        table.add_row(
            str(node.id),
            *(memory if node.has_memory else ("none", "")),
            *([] if not tiers else ["" if node.tier is None else str(node.tier)]),
            format_nodes(node.cpus) or "none",
            *([pools[node.id] or "none"] if any(pools.values()) else []),
        )
    return table


def _pools(node: Node) -> str:
    return ", ".join(
        f"{free} of {total} × {console.size(size)}"
        for size, (total, free) in node.hugepages.items()
        if total
    )


def _distances(here: Topology) -> Table | None:
    """Return the distance matrix; None with one node, where it says nothing."""
    if len(here.nodes) < 2 or not any(node.distances for node in here.nodes):
        return None
    table = _plain_table()
    table.add_column("distance", justify="right")
    for other in here.node_ids:
        table.add_column(str(other), justify="right")
    for node in here.nodes:
        far = (node.distances.get(other) for other in here.node_ids)
        table.add_row(str(node.id), *("?" if value is None else str(value) for value in far))
    return table


def _facts(here: Topology) -> Table:
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    cores = here.cores()
    threads = max((len(core) for core in cores), default=1)
    smt = f", up to {threads} threads each (SMT)" if threads > 1 else ", one thread each"
    grid.add_row("cores", f"{len(cores)} with {console.count(len(here.cpus), 'online CPU')}{smt}")
    kinds = Counter((cache.level, cache.size) for cache in here.caches)
    for (level, size), count in sorted(kinds.items(), key=str):
        lists = [format_nodes(c.cpus) for c in here.caches if (c.level, c.size) == (level, size)]
        how_large = "of unknown size" if size is None else f"of {console.size(size)}"
        grid.add_row("caches", f"{count} × L{level} {how_large}, CPUs {' | '.join(lists)}")
    if not here.caches:
        grid.add_row("caches", "the kernel does not tell")
    grid.add_row(
        "may use",
        f"memory of node {format_nodes(here.target_nodes) or 'none'}, "
        f"CPUs {format_nodes(here.allowed_cpus) or 'none'}",
    )
    if not here.numa:
        grid.add_row("note", Text("this kernel has no NUMA; the machine is shown as node 0"))
    return grid


def _plain_table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
