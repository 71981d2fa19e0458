# SPDX-License-Identifier: Apache-2.0
"""``pageferry plan``: what a move would do and how, without doing it."""

from __future__ import annotations

import argparse
import errno
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from .. import console
from ..activity import watched
from ..errors import DescriptionError, PageferryError, TargetError
from ..filters import MEMORY_KINDS
from ..flags import MigrateMode, parse_nodes
from ..plan import Plan
from ..planning import Outlook, outlook
from ..processes import Process, find_processes
from ..topology import topology
from . import arguments, several_processes

MODES = {"async": MigrateMode.ASYNC, "light": MigrateMode.SYNC_LIGHT, "sync": MigrateMode.SYNC}
_LONGEST = 1 << 20  # characters of a file with a plan


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb's parser."""
    parser = subparsers.add_parser(
        "plan",
        help="say what a move would do, how, and how long it would take",
        description="Plan the move of processes' pages to a node and print the plan: engine, "
        "threads and their CPUs, batch, expected time, and the reasons. Nothing moves. What "
        "--json prints of one process, pageferry move --plan runs.",
    )
    add_request(parser)
    arguments.add_json(parser)
    parser.set_defaults(run=run)


def add_request(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what to move where, and how."""
    parser.add_argument(
        "pids", type=arguments.process, nargs="*", metavar="PID", help="a process; or several"
    )
    parser.add_argument(
        "--cgroup",
        action="append",
        default=[],
        metavar="PATH",
        help="all processes of this cgroup and those below it: a folder, or what "
        "/proc/PID/cgroup has; can be repeated",
    )
    parser.add_argument(
        "--unit",
        action="append",
        default=[],
        metavar="NAME",
        help="all processes of this systemd unit (of the system, not of a user); can be repeated",
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="PATTERN",
        help="all processes with command names (as ps -o comm= has them, at most 15 characters) "
        "like this shell pattern; can be repeated",
    )
    parser.add_argument("--to", required=True, metavar="NODE", help="the node to move to")
    parser.add_argument(
        "--from", dest="source", metavar="NODES", help="only pages on these nodes: 0-3, !2, all"
    )
    arguments.add_range(parser)
    parser.add_argument(
        "--kind",
        action="append",
        choices=MEMORY_KINDS,
        help="only this kind of memory: anon (private memory without a file, heap and stack among "
        "it), heap, stack (of the main thread), file (and shared memory); can be repeated",
    )
    parser.add_argument(
        "--page-size",
        type=arguments.page_size,
        metavar="SIZE",
        help="only pages of this size: 4K, 2M (transparent huge pages), 2M-hugetlb, 1G",
    )
    arguments.add_activity(parser)
    parser.add_argument(
        "--threads", type=arguments.threads, default="auto", help="a number, or auto (default)"
    )
    parser.add_argument(
        "--mode",
        choices=tuple(MODES),
        default="sync",
        help="busy pages: async gives up at once, light tries again for 4 ms a batch, sync waits "
        "for them up to 0.13 s a batch (default)",
    )


def processes(args: argparse.Namespace) -> list[Process] | None:
    """Return the processes that the arguments name; None where it is one, by its id.

    Raises ``TargetError`` where none is named, or a range is given for several.
    """
    by_others = bool(args.cgroup or args.unit or args.name)
    if not args.pids and not by_others:
        raise TargetError(
            errno.EINVAL, "no process is named", "give process ids, --cgroup, --unit or --name"
        )
    if len(args.pids) == 1 and not by_others:
        return None
    if args.addresses is not None:
        raise TargetError(errno.EINVAL, "--range is for one process", "give one process id")
    return find_processes(args.pids, cgroups=args.cgroup, units=args.unit, names=args.name)


def sources(args: argparse.Namespace) -> frozenset[int] | None:
    """Read ``--from``, None for all nodes. Raises ``NodeError``."""
    if args.source is None:
        return None
    machine = topology()
    return parse_nodes(args.source, machine.node_ids, machine.allowed_nodes)


def run(args: argparse.Namespace) -> int:
    """Print the plan of the move that the arguments ask for."""
    node = arguments.one_node(args.to)
    several = processes(args)
    arguments.say_watching(args)
    look = partial(
        outlook,
        args.addresses,
        node,
        source=sources(args),
        mode=MODES[args.mode],
        threads=args.threads,
        partial=args.partial,
        kind=args.kind,
        only_page_size=args.page_size,
    )
    if several is not None:
        activities = watched(several, args.hot, args.idle)
        return several_processes.plan(several, node, look, activities, as_json=args.json)
    (pid,) = args.pids
    found = look(pid=pid, hot=args.hot, idle=args.idle)
    free = topology().free(node)
    if args.json:
        console.print_json(
            {"dry_run": True, "pid": pid, "node": node, "bytes_free_on_node": free}
            | found.as_dict()
        )
    else:
        show(found, pid, node, free)
    return 0


def show(found: Outlook, pid: int, node: int, free: int) -> None:
    """Print an outlook for people."""
    out = console.console()
    out.print(
        f"Would move {console.size(found.bytes_to_move)} of process {pid} to node {node}; "
        f"{console.size(found.bytes_already)} are there already."
    )
    if found.bytes_to_move > free:
        out.print(f"Node {node} has only {console.size(free)} free: the move would stop there.")
    for reason in found.plan.reasons:
        out.print(f"  {reason}")


def read_plan(name: str) -> Plan:
    """Read a plan that ``--json`` printed, from a file or (``-``) from standard input.

    The output of ``move --json`` has a plan too. Raises ``PageferryError`` for anything else.
    """
    try:
        if name == "-":
            text = sys.stdin.read(_LONGEST + 1)
        else:
            with Path(name).open(encoding="utf-8") as file:
                text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise ValueError("it is too long")
        value = json.loads(text)
        if isinstance(value, dict) and "plan" in value:
            value = value["plan"]
        return Plan.from_dict(value)
    except OSError as error:
        raise PageferryError(error.errno or 0, f"cannot read the plan {name}") from None
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DescriptionError(
            errno.EINVAL, f"{name} is no plan: {why}", "pageferry plan --json prints one"
        ) from None
