# SPDX-License-Identifier: Apache-2.0
"""``pageferry move``: move a process's pages to a node."""

from __future__ import annotations

import argparse
import errno
import os
from typing import Any

from .. import console
from ..control import MoveControl
from ..engine import Progress
from ..errors import errno_name
from ..flags import MigrateMode
from ..migrate import MoveInterrupted, move
from ..progress_bar import MoveBar
from ..report import MoveResult, page_hint
from ..steering import Steerable
from . import arguments, plan, several_processes
from .suspended import suspension


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb's parser."""
    parser = subparsers.add_parser(
        "move",
        help="move processes' memory to a node",
        description="Move the pages of processes to a node with many threads. Pages that other "
        "processes use too stay, unless --shared is given. Several processes are moved one after "
        "the other; what goes wrong with one of them does not stop the others. This process, "
        "kernel threads and what has ended are not meant by --cgroup, --unit and --name.",
        epilog="pageferry steer PID, from another terminal, pauses it or changes its --max-gbps. "
        "Ctrl-Z stops it between two batches, until it is continued. Ctrl-C ends the move "
        "between two batches and reports what moved, as --timeout does (with exit code 1, and for "
        "all processes together); memory is whole at any time. Exit codes: 0 all moved, 1 "
        "something not moved (with several processes: of one of them, also as it ended), 2 usage, "
        "130 Ctrl-C.",
    )
    plan.add_request(parser)
    parser.add_argument(
        "--shared",
        "--all",
        action="store_true",
        help="also pages that other processes use (MPOL_MF_MOVE_ALL; needs CAP_SYS_NICE)",
    )
    parser.add_argument(
        "--exact", action="store_true", help="count pages that are there already exactly"
    )
    arguments.add_limits(parser)
    arguments.refuse_user_engine(parser)
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be done, and how, and do nothing: the same as pageferry plan",
    )
    either.add_argument(
        "--plan",
        metavar="FILE",
        help="do it as this plan says, which pageferry plan --json printed; - reads it from "
        "standard input",
    )
    arguments.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Move, with a progress bar on a terminal, and print the report."""
    if args.dry_run:
        return plan.run(args)
    node = arguments.one_node(args.to)
    source = plan.sources(args)
    given = None if args.plan is None else plan.read_plan(args.plan)
    if given is not None and args.threads not in ("auto", given.threads):
        console.complain(
            f"--threads {args.threads} contradicts the plan, which has {given.threads}"
        )
        return 2
    if given is not None and plan.MODES[args.mode] not in (MigrateMode.SYNC, given.mode):
        console.complain(f"--mode {args.mode} contradicts the plan, which has {given.mode!r}")
        return 2
    several = plan.processes(args)
    request: dict[str, Any] = {
        "source": source,
        "mode": plan.MODES[args.mode],
        "threads": args.threads,
        "plan": given,
        "partial": args.partial,
        "kind": args.kind,
        "only_page_size": args.page_size,
        "hot": args.hot,
        "idle": args.idle,
        "shared": args.shared,
        "exact": args.exact,
        "control": MoveControl(max_gbps=args.max_gbps),
        "stall_ms": args.stall_ms,
        "timeout": args.timeout,
    }
    arguments.say_watching(args)
    if several is not None:
        return several_processes.move(several, node, request, as_json=args.json)
    interrupted = False
    try:
        with (
            suspension(request["control"]) as suspended,
            MoveBar(f"to node {node}") as bar,
            Steerable(request["control"], node, args.pids) as steered,
        ):

            def show_progress(now: Progress) -> None:
                suspended.obey(bar)
                steered.note(now)
                bar.show(now)

            result = move(args.addresses, node, pid=args.pids[0], progress=show_progress, **request)
    except MoveInterrupted as stop:
        result = stop.result
        interrupted = True
    if args.json:
        console.print_json(result.as_dict())
    else:
        show(result)
    if interrupted:
        return 130
    return 0 if result.complete else 1


def show(result: MoveResult) -> None:
    """Print the report of a move."""
    out = console.console()
    pages = sum(result.pages_moved.values())
    kinds = ", ".join(f"{n} {kind}" for kind, n in result.pages_moved.items() if n)
    out.print(
        f"Moved {console.size(result.bytes_moved)} to node {result.node} in "
        f"{result.seconds * 1e3:.1f} ms, {result.gbps:.2f} GB/s, with "
        f"{result.workers} thread{'s' if result.workers != 1 else ''}"
        f"{' and those of the kernel' if result.kernel_mt else ''}"
        + (f" ({pages} pages: {kinds})" if pages else "")
    )
    rest = {
        "already there": result.bytes_already,
        "on other nodes, left": result.bytes_elsewhere,
        "in swap": result.bytes_swapped,
        "zero page": result.bytes_zero,
        "freed meanwhile": result.bytes_gone,
        "in cut huge pages, left": result.bytes_cut,
        "in pages of other sizes, left": result.bytes_other_size,
        "left by --hot or --idle": result.bytes_other_activity,
        "never touched": result.bytes_not_present,
    }
    parts = [f"{name} {console.size(size)}" for name, size in rest.items() if size]
    if parts:
        out.print("Nothing to do: " + ", ".join(parts))
    for number, count in result.failed.items():
        out.print(f"Not moved: {count} pages, {errno_name(number)}: {page_hint(number)}")
        first = [f for f in result.failures if f.errno == number][:3]
        if number != errno.EACCES and first:
            out.print("  first: " + ", ".join(f"{f.address:#x}" for f in first))
    if result.bytes_skipped:
        why = "Ctrl-C" if result.cancelled else "--timeout"
        if result.stopped:
            why = errno_name(result.stopped)
        out.print(f"Not tried: {console.size(result.bytes_skipped)}, the move ended by {why}")
        if result.stopped:
            out.print(f"  {os.strerror(result.stopped)}; {page_hint(result.stopped)}".rstrip("; "))
    elif result.cancelled or result.timed_out:
        out.print(f"Ended by {'Ctrl-C' if result.cancelled else '--timeout'}")
    if result.fell_back:
        out.print(f"Fell back: {result.fell_back}")
    if result.helpers_left:
        out.print(f"Times that a thread left early, its CPU being busy: {result.helpers_left}")
    for warning in result.warnings:
        out.print(f"Note: {warning}")
