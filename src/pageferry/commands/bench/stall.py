# SPDX-License-Identifier: Apache-2.0
"""``pageferry bench stall``: how long a program waits for its memory while that moves."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.table import Table

from ... import console
from ...bench.machine import describe
from ...bench.memory import HUGE
from ...bench.stall import REPEATS, SIZE, run_stall
from ...pages import PAGE_SIZE
from .. import arguments
from .experiment import add_lab, count, in_guest, say, wants_guest

_PAGES = {"4K": PAGE_SIZE, "2M": HUGE}


def add_parser(experiments: argparse._SubParsersAction[Any]) -> None:
    """Add the experiment's parser."""
    parser = experiments.add_parser(
        "stall",
        help="the longest pause of a program whose memory is moved",
        description="Move the memory of a process that writes to it all the time, in calls of "
        "different length, and show the longest pause between two of its writes.",
        epilog="With fewer than two memory nodes here it runs in the lab guest.",
    )
    parser.add_argument("--repeats", type=count, default=REPEATS, help="default: %(default)s")
    parser.add_argument(
        "--size",
        type=arguments.byte_count,
        default=SIZE,
        help=f"of the memory (default: {SIZE >> 20}M)",
    )
    parser.add_argument(
        "--page-size", choices=tuple(_PAGES), default="4K", help="default: %(default)s"
    )
    add_lab(parser)
    arguments.add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if wants_guest(args):
        options = ["--repeats", str(args.repeats), "--size", str(args.size)]
        figures = in_guest(args, [*options, "--page-size", args.page_size])
    else:
        try:
            figures = run_stall(
                size=args.size, page_size=_PAGES[args.page_size], repeats=args.repeats, say=say
            )
        except MemoryError as error:
            console.complain(str(error))
            return 1
    if args.json:
        console.print_json(figures)
    else:
        print_table(figures, console.console())
    return 0


def print_table(figures: dict[str, Any], out: Console) -> None:
    """Print a row for each length of a call."""
    facts = figures["machine"]
    out.print(f"[bold]{describe(facts)}[/bold]")
    out.print(
        f"A process writes to {console.size(figures['bytes'])} of its memory, in pages of "
        f"{console.size(figures['page_size'])}, while that moves. Median (lowest–highest) of "
        f"{figures['repeats']} repeats."
    )
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for heading in ("calls of at most", "longest call, ms", "move, ms", "longest pause, ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in figures["bounds"]:
        pause = row["pause_ms"]
        table.add_row(
            f"{row['bound_ms']:g} ms" if row["bound_ms"] else "no move",
            f"{row['call_ms']:.1f}" if row["bound_ms"] else "–",
            f"{row['seconds'] * 1e3:.1f}" if row["bound_ms"] else "–",
            f"{pause['median']:.1f} ({pause['low']:.1f}–{pause['high']:.1f})",
        )
    out.print(table)
