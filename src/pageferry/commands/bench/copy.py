# SPDX-License-Identifier: Apache-2.0
"""``pageferry bench copy``: every way to copy, by size and threads, against memcpy."""

from __future__ import annotations

import argparse
from typing import Any

from ... import console
from ...bench.copy import SIZES, run_copy
from ...bench.copy_report import plot, print_table
from ...errors import RangeError
from ...flags import parse_size
from .experiment import add_output, count, counts, earlier, say, show

_PAGES = {"4K": 4 << 10, "2M": 2 << 20}


def add_parser(experiments: argparse._SubParsersAction[Any]) -> None:
    """Add the experiment's parser."""
    parser = experiments.add_parser(
        "copy",
        help="every way to copy, by size and threads, against memcpy, numpy and STREAM",
        description="Copy between two arrays by every method that this CPU has, with one and "
        "more threads, by memcpy, numpy.copyto and the loop of STREAM, in turn.",
    )
    parser.add_argument(
        "--size",
        type=_sizes,
        default=SIZES,
        metavar="SIZE,SIZE,…",
        help="sizes of a copy, with K, M or G (default: 4K to 400000000)",
    )
    parser.add_argument(
        "--threads",
        type=counts,
        default=(),
        metavar="N,N,…",
        help="numbers of threads beside one (default: one for each core)",
    )
    parser.add_argument("--repeats", type=count, default=7, help="default: %(default)s")
    parser.add_argument(
        "--page-size",
        choices=tuple(_PAGES),
        default="2M",
        help="of the memory that is copied (default: %(default)s)",
    )
    parser.add_argument(
        "--cached",
        action="store_true",
        help="repeat each copy in one place, so that small ones are in the caches",
    )
    add_output(parser)
    parser.set_defaults(run=_run)


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = sorted({parse_size(part) for part in text.split(",")})
    except RangeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 8 <= sizes[0] <= sizes[-1] <= 1 << 40:
        raise argparse.ArgumentTypeError("a size is 8 bytes at least, 1 TiB at most")
    return tuple(sizes)


def _run(args: argparse.Namespace) -> int:
    if args.from_json:
        figures = earlier(args.from_json, "copy")
    else:
        try:
            figures = run_copy(
                sizes=args.size,
                threads=args.threads,
                repeats=args.repeats,
                page_size=_PAGES[args.page_size],
                cached=args.cached,
                say=say,
            )
        except MemoryError as error:
            console.complain(str(error))
            return 1
    return show(args, figures, print_table, plot)
