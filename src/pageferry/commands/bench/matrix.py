# SPDX-License-Identifier: Apache-2.0
"""``pageferry bench matrix``: latency, copy and migration bandwidth from node to node."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ... import console
from ...bench.matrix import REPEATS, SIZE, run_matrix
from ...bench.matrix_report import plot, print_table, write_csv
from .. import arguments
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
    write,
)


def add_parser(experiments: argparse._SubParsersAction[Any]) -> None:
    """Add the experiment's parser."""
    parser = experiments.add_parser(
        "matrix",
        help="latency, copy and migration bandwidth from each node to each node",
        description="Measure between all nodes: the latency of memory (a chain of loads that "
        "depend on each other), copy bandwidth, and how fast pages of 4 KiB and 2 MiB migrate.",
        epilog="With fewer than two memory nodes here it runs in the lab guest, unless --lab never "
        "is given.",
    )
    parser.add_argument("--repeats", type=count, default=REPEATS, help="default: %(default)s")
    parser.add_argument(
        "--size",
        type=arguments.byte_count,
        default=SIZE,
        help=f"bytes that are chased through, copied and moved (default: {SIZE >> 20}M); more than "
        "the last-level cache, for figures of memory",
    )
    parser.add_argument(
        "--threads", type=count, metavar="N", help="that copy and move (default: one for each core)"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the figures as CSV")
    add_lab(parser)
    add_output(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    check_output(args)
    if args.from_json:
        figures = earlier(args.from_json, "matrix")
    elif wants_guest(args):
        options = ["--repeats", str(args.repeats), "--size", str(args.size)]
        options += ["--threads", str(args.threads)] if args.threads else []
        figures = in_guest(args, options)
    else:
        try:
            figures = run_matrix(
                size=args.size, repeats=args.repeats, threads=args.threads, say=say
            )
        except MemoryError as error:
            console.complain(str(error))
            return 1
    if args.csv:
        write(args.csv, lambda path: write_csv(figures, path))
    return show(args, figures, print_table, plot)
