# SPDX-License-Identifier: Apache-2.0
"""``pageferry locate``: where the pages of a process are."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path
from typing import Any

from rich.table import Table

from .. import console, sysfs
from ..areas import areas
from ..errors import TargetError
from ..locate import locate
from ..pages import KINDS
from ..pictures import placement as drawing
from ..report import Placement
from ..topology import topology
from . import arguments


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb's parser."""
    parser = subparsers.add_parser(
        "locate",
        help="show on which nodes a process's memory is",
        description="Show on which nodes the present pages of a process are, by size of page.",
    )
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("pid", nargs="?", type=arguments.process, metavar="PID")
    who.add_argument("--self", action="store_true", help="this command itself")
    arguments.add_range(parser)
    parser.add_argument(
        "--threads", type=arguments.threads, default="auto", help="a number, or auto (default)"
    )
    arguments.add_activity(parser)
    arguments.add_plot(parser, "it by node and kind of page, and along the address space")
    arguments.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show the placement."""
    if args.plot and (args.hot or args.idle):
        raise TargetError(
            errno.EINVAL, "--plot draws all pages", "leave --hot and --idle out, or --plot"
        )
    picture = arguments.picture(args)
    arguments.say_watching(args)
    pid = os.getpid() if args.self else args.pid
    placement = locate(
        args.addresses,
        pid=pid,
        partial=args.partial,
        threads=args.threads,
        hot=args.hot,
        idle=args.idle,
    )
    view = _view(args, pid, placement) if args.plot else None
    if args.json:
        along = {} if view is None else {"areas": [area.as_dict() for area in view.areas]}
        console.print_json(placement.as_dict() | along)
    elif view is not None and picture is None:
        drawing.show(view, console.console())
    else:
        show(placement)
    if view is not None and picture:
        drawing.draw(view, picture)
        arguments.say_written(args, picture)
    return 0


def _view(args: argparse.Namespace, pid: int, placement: Placement) -> drawing.View:
    along, others = areas(pid, args.addresses, threads=args.threads)
    name = sysfs.text(Path(f"/proc/{pid}/comm")) or "?"
    return drawing.View(
        f"Process {pid} ({name})", placement, along, others, topology().memory_nodes
    )


def show(placement: Placement) -> None:
    """Print a placement as a table."""
    out = console.console()
    table = Table(title=f"Memory of process {placement.pid}", title_justify="left", box=None)
    table.add_column("node", justify="right")
    for kind in (*KINDS, "all"):
        table.add_column(kind, justify="right")
    table.add_column("share", justify="right")
    whole = placement.bytes_present or 1
    for node, sizes in placement.nodes.items():
        table.add_row(
            str(node),
            *(console.size(sizes[kind]) for kind in KINDS),
            console.size(placement.on(node)),
            f"{placement.on(node) / whole:.1%}",
        )
    out.print(table)
    rest = {
        "swapped": placement.bytes_swapped,
        "zero page": placement.bytes_zero,
        "never touched": placement.bytes_not_present,
        "unknown": placement.bytes_unknown,
    }
    parts = [f"{name} {console.size(size)}" for name, size in rest.items() if size]
    if parts:
        out.print("Without a page of their own: " + ", ".join(parts))
