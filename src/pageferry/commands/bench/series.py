# SPDX-License-Identifier: Apache-2.0
"""``pageferry bench series``: the experiment of the 2017 series, here or in the lab guest."""

from __future__ import annotations

import argparse
from typing import Any

from ... import console
from ...bench.series import CASES, merge, run_series
from ...bench.series_report import plot, print_table
from .experiment import (
    add_lab,
    add_output,
    check_output,
    count,
    counts,
    earlier,
    in_guest,
    say,
    show,
    wants_guest,
)


def add_parser(experiments: argparse._SubParsersAction[Any]) -> None:
    """Add the experiment's parser."""
    parser = experiments.add_parser(
        "series",
        help="the 2017 series: 100000 x 4 KiB and 195 x 2 MiB, one thread against many",
        description="Move 100000 pages of 4 KiB and 195 of 2 MiB between two nodes: one plain "
        "move_pages call, pageferry with one and more threads, and migratepages, in turn.",
        epilog="With fewer than two memory nodes here it runs in the lab guest.",
    )
    parser.add_argument("--repeats", type=count, default=7, help="default: %(default)s")
    parser.add_argument(
        "--threads",
        type=counts,
        default=(),
        metavar="N,N,…",
        help="numbers of threads to compare (default: powers of two up to the CPUs)",
    )
    parser.add_argument(
        "--pages",
        type=count,
        nargs=2,
        metavar=("NORMAL", "HUGE"),
        default=(CASES[0][1], CASES[1][1]),
        help="pages of 4 KiB and of 2 MiB (default: %(default)s)",
    )
    parser.add_argument("--user-engine", action="store_true", help="move by the user engine, too")
    parser.add_argument(
        "--kernel",
        type=_kernels,
        default=("stock",),
        metavar="NAME,NAME,…",
        help="kernels of the guest, one after the other: stock, stock-6.1, patched (with the "
        "series for 6.12, built when it is not there) or a path; all: stock,patched",
    )
    add_lab(parser)
    add_output(parser)
    parser.set_defaults(run=_run)


def _kernels(text: str) -> tuple[str, ...]:
    return ("stock", "patched") if text == "all" else tuple(dict.fromkeys(text.split(",")))


def _run(args: argparse.Namespace) -> int:
    check_output(args)
    if args.kernel != ("stock",):
        args.lab = "always"
    if args.from_json:
        figures = earlier(args.from_json, "series")
    elif wants_guest(args):
        options = ["--repeats", str(args.repeats), "--pages", *map(str, args.pages)]
        if args.threads:
            options += ["--threads", ",".join(map(str, args.threads))]
        options += ["--user-engine"] if args.user_engine else []
        figures = merge({kernel: in_guest(args, options, kernel=kernel) for kernel in args.kernel})
    else:
        cases = tuple(
            (size, pages, word) for (size, _, word), pages in zip(CASES, args.pages, strict=True)
        )
        try:
            figures = run_series(
                repeats=args.repeats,
                threads=args.threads,
                cases=cases,
                user_engine=args.user_engine,
                say=say,
            )
        except MemoryError as error:
            console.complain(str(error))
            return 1
    return show(args, figures, print_table, plot)
