# SPDX-License-Identifier: Apache-2.0
"""``pageferry bench preload``: unmodified programs without and with the preload library."""

from __future__ import annotations

import argparse
from typing import Any

from ... import console
from ...bench.preload import SIZE, run_preload
from ...bench.preload_report import plot, print_table
from ...flags import parse_size
from .experiment import (
    add_lab,
    add_output,
    check_output,
    count,
    earlier,
    in_guest,
    say,
    show,
    wants_guest,
)


def add_parser(experiments: argparse._SubParsersAction[Any]) -> None:
    """Add the experiment's parser."""
    parser = experiments.add_parser(
        "preload",
        help="unmodified programs without and with the preload library",
        description="Time move_pages, mbind and migratepages in programs without and with the "
        "library in turn, a call that it passes on, and look at a program that moves nothing.",
        epilog="With fewer than two memory nodes here it runs in the lab guest.",
    )
    parser.add_argument("--repeats", type=count, default=7, help="default: %(default)s")
    parser.add_argument(
        "--size",
        type=parse_size,
        default=SIZE,
        help=f"bytes to move in each case (default: {SIZE >> 20}M)",
    )
    parser.add_argument(
        "--threads", type=count, metavar="N", help="for each call (default: one for each core)"
    )
    add_lab(parser)
    add_output(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    check_output(args)
    if args.from_json:
        figures = earlier(args.from_json, "preload")
    elif wants_guest(args):
        options = ["--repeats", str(args.repeats), "--size", str(args.size)]
        if args.threads:
            options += ["--threads", str(args.threads)]
        figures = in_guest(args, options)
    else:
        try:
            figures = run_preload(
                size=args.size, repeats=args.repeats, threads=args.threads, say=say
            )
        except MemoryError as error:
            console.complain(str(error))
            return 1
    return show(args, figures, print_table, plot)
