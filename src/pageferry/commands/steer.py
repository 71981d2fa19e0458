# SPDX-License-Identifier: Apache-2.0
"""``pageferry steer``: see the moves in progress; pause, resume and limit one of them."""

from __future__ import annotations

import argparse
import errno
from typing import Any

from rich.table import Table

from .. import console
from ..errors import TargetError
from ..steering import moves, processes, steer, told
from . import arguments


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb's parser."""
    parser = subparsers.add_parser(
        "steer",
        help="see moves in progress; change their limit, pause and resume them",
        description="Without a process id, list the moves that pageferry move has in progress on "
        "this machine; with one, show that move, after changing what the options say. Root may ask "
        "for every user's moves, others for their own.",
    )
    parser.add_argument(
        "pid",
        nargs="?",
        type=arguments.process,
        metavar="PID",
        help="of pageferry move, or of a process that it moves",
    )
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument(
        "--max-gbps",
        type=arguments.above_zero,
        metavar="RATE",
        help="from now on, no more than so many GB/s (10**9 bytes)",
    )
    limit.add_argument("--no-limit", action="store_true", help="as fast as it goes")
    pause = parser.add_mutually_exclusive_group()
    pause.add_argument("--pause", action="store_true", help="begin no batch until --resume")
    pause.add_argument("--resume", action="store_true", help="go on")
    arguments.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Change what is asked for, and show what there is."""
    request: dict[str, Any] = {}
    if args.max_gbps is not None or args.no_limit:
        request["max_gbps"] = args.max_gbps
    if args.pause or args.resume:
        request["paused"] = args.pause
    if args.pid is None:
        if request:
            raise TargetError(errno.EINVAL, "which move?", "give its process id")
        found = moves()
    else:
        found = [steer(_mover(args.pid), **request)]
    if args.json:
        console.print_json({"moves": found})
    else:
        show(found)
    return 0


def _mover(pid: int) -> int:
    """Return the process that moves, where ``pid`` is one that is moved."""
    return next((each["pid"] for each in moves() if pid in each["moving"]), pid)


def show(found: list[dict[str, Any]]) -> None:
    """Print moves as a table."""
    out = console.console()
    if not found:
        out.print("No moves in progress.")
        return
    table = Table(box=None)
    for name in ("pid", "moves", "to node", "done", "moved", "GB/s", "left", "limit"):
        table.add_column(name, justify="left" if name == "moves" else "right")
    table.add_column("")
    for each in found:
        limit = each["max_gbps"]
        table.add_row(
            str(each["pid"]),
            processes(each),
            str(each["node"]),
            *told(each),
            "–" if limit is None else f"{limit:g} GB/s",
            "paused" if each["paused"] else "",
        )
    out.print(table)
