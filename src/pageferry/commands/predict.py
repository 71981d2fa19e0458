# SPDX-License-Identifier: Apache-2.0
"""``pageferry predict``: how long a move would take, on this machine or a described one."""

from __future__ import annotations

import argparse
import errno
from pathlib import Path
from typing import Any

from rich.table import Table

from .. import console, sweep
from ..described import Machine, load_machine, shipped, this_machine
from ..errors import NodeError, RangeError
from ..flags import parse_size
from ..model import ENGINES, Prediction, best_threads, predict
from . import arguments

_PAGE_SIZES = (4096, 64 << 10, 2 << 20)
_WHAT = {
    "fixed": "calls and hand-overs to threads",
    "bookkeeping": "the kernel's bookkeeping for each page",
    "copy": "copying",
    "link": "waiting for the link between the nodes",
}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the verb's parser."""
    parser = subparsers.add_parser(
        "predict",
        help="say how long a move would take, here or on a described machine",
        description="Predict, by the cost model, how long moving so many bytes from one node to "
        "another takes, and what holds it up. Nothing moves, and the machine need not be at hand.",
        epilog=f"Described machines: {', '.join(shipped())}; or a TOML file like theirs "
        "(src/pageferry/machines). Example: pageferry predict --machine cxl --from 0 --to 2 "
        "--bytes 2T --page-size 4K --sweep",
    )
    parser.add_argument(
        "--bytes",
        type=_size,
        metavar="SIZE",
        help="how much: bytes, or with K, M, G, T (default: all memory of the node moved from)",
    )
    parser.add_argument(
        "--page-size", type=_page_size, default=4096, metavar="SIZE", help="default: 4K"
    )
    parser.add_argument("--from", dest="source", type=int, required=True, metavar="NODE")
    parser.add_argument("--to", dest="target", type=int, required=True, metavar="NODE")
    parser.add_argument(
        "--threads", type=arguments.threads, default="auto", help="a number, or auto (default)"
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="kernel",
        help="kernel: pageferry's, threads that move whole pages each (default); split and "
        "split-batch: kernels that share out the copying alone",
    )
    parser.add_argument(
        "--machine",
        metavar="FILE",
        help="a described machine, by name or as a TOML file (default: this one)",
    )
    parser.add_argument(
        "--sweep", action="store_true", help="also throughput by number of threads, as a table"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw throughput by number of threads"
    )
    arguments.add_json(parser)
    parser.set_defaults(run=run)


def _size(text: str) -> int:
    try:
        size = parse_size(text)
    except RangeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not size:
        raise argparse.ArgumentTypeError("nothing to move: a size is 1 byte or more")
    return size


def _page_size(text: str) -> int:
    size = _size(text)
    if size < 4096 or size > 1 << 34 or size & (size - 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no page size: a power of two from 4K to 16G")
    return size


def run(args: argparse.Namespace) -> int:
    """Print the prediction, and the sweep if it is wanted."""
    machine = load_machine(args.machine) if args.machine else this_machine()
    if machine.node(args.source) == machine.node(args.target):
        raise NodeError(errno.EINVAL, "the pages would not leave their node", "give two nodes")
    size = _how_much(args, machine)
    pages = {args.page_size: -(-size // args.page_size)}
    seats = machine.seats(args.source, args.target)
    link = machine.link(args.source, args.target)
    threads = args.threads
    if threads == "auto":
        threads = best_threads(machine.costs, seats, pages, link_gbps=link, worth=machine.worth)
    found = predict(machine.costs, seats, pages, threads, link_gbps=link, engine=args.engine)
    swept = None
    if args.sweep:
        swept = sweep.sweep(machine, args.source, args.target, pages, engine=args.engine)
    if args.plot:
        sizes = tuple(sorted({args.page_size, *_PAGE_SIZES}))
        sweep.plot(machine, args.source, args.target, size, sizes, args.plot)
    if args.json:
        value = {"machine": machine.name, "about": machine.about, **found.as_dict()}
        value["engine"] = args.engine
        if swept is not None:
            value["sweep"] = [prediction.as_dict() for prediction in swept]
        console.print_json(value)
    else:
        _show(args, machine, size, found, swept)
    return 0


def _how_much(args: argparse.Namespace, machine: Machine) -> int:
    """Return ``--bytes``, or the memory of the node that is to be emptied."""
    memory = machine.node(args.source).memory
    if args.bytes is None and not memory:
        raise RangeError(
            errno.EINVAL,
            f"how much? the memory of node {args.source} is not known, or there is none",
            "give --bytes",
        )
    return int(args.bytes or memory or 0)


def _show(
    args: argparse.Namespace,
    machine: Machine,
    size: int,
    found: Prediction,
    swept: tuple[Prediction, ...] | None,
) -> None:
    out = console.console()
    out.print(f"[bold]{machine.name}[/bold]: {machine.about}" if machine.about else machine.name)
    out.print(
        f"{console.size(size)} in pages of {sweep.words(args.page_size)} from node {args.source} "
        f"to node {args.target} with {found.threads} thread{'s' if found.threads > 1 else ''}: "
        f"[bold]{duration(found.seconds)}[/bold], {found.gbps:.2f} GB/s"
    )
    for term in sorted(found.terms, key=lambda term: -found.terms[term]):
        out.print(
            f"  {found.terms[term] / found.seconds:5.1%}  {duration(found.terms[term]):>10}  "
            f"{_WHAT[term]}"
        )
    room = machine.node(args.target).memory
    if room is not None and size > room:
        out.print(f"Node {args.target} has only {console.size(room)}: it would not all fit.")
    if swept is not None:
        table = Table(box=None)
        for name in ("threads", "time", "GB/s", "times one", "held up by"):
            table.add_column(name, justify="left" if name == "held up by" else "right")
        for row in swept:
            table.add_row(
                str(row.threads),
                duration(row.seconds),
                f"{row.gbps:.2f}",
                f"{swept[0].seconds / row.seconds:.2f}×",
                row.dominant,
            )
        out.print(table)
    if args.plot:
        out.print(f"Written: {args.plot}")


def duration(seconds: float) -> str:
    """Return a time for people: microseconds to hours."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
