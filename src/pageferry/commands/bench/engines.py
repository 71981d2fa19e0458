# SPDX-License-Identifier: Apache-2.0
"""``pageferry bench engines``: the engines against the copy they rest on, and each other."""

from __future__ import annotations

import argparse
from typing import Any

from ... import console
from ...bench.engines import BYTES, run_engines
from ...bench.engines_report import plot, print_table
from .experiment import add_lab, add_output, count, earlier, in_guest, say, show


def add_parser(experiments: argparse._SubParsersAction[Any]) -> None:
    """Add the experiment's parser."""
    parser = experiments.add_parser(
        "engines",
        help="the user engine, way by way, against parallel copy, UFFDIO_COPY and kernel engine",
        description="Move 4 KiB and 2 MiB pages of this process by each way of the user engine, "
        "with a warm and with no pool, and by the kernel engine where there are two nodes; beside "
        "the best parallel copy and UFFDIO_COPY alone, in turn. Shows what was to be reached.",
        epilog="Here unless --lab always: on one node pages get new places on it.",
    )
    parser.add_argument("--repeats", type=count, default=7, help="default: %(default)s")
    parser.add_argument(
        "--threads", type=count, default=0, metavar="N", help="default: one for each core"
    )
    parser.add_argument(
        "--mib", type=count, default=BYTES >> 20, help="of memory to move (default: %(default)s)"
    )
    add_lab(parser)
    add_output(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.from_json:
        figures = earlier(args.from_json, "engines")
    elif args.lab == "always":
        options = ["--repeats", str(args.repeats), "--mib", str(args.mib)]
        if args.threads:
            options += ["--threads", str(args.threads)]
        figures = in_guest(args, options)
    else:
        try:
            figures = run_engines(
                size=args.mib << 20, repeats=args.repeats, threads=args.threads, say=say
            )
        except MemoryError as error:
            console.complain(str(error))
            return 1
    return show(args, figures, print_table, plot)
